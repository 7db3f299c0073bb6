//! The consumption of a metric, exact to the last entry: the folded days, and the entries that are
//! not folded yet. It is read without statements (`heap`), since the shortest answers need it.

use crate::base::time::{Moment, day, start_of};
use crate::ledger::recent::{Entry, LaneSummary};
use crate::ledger::rows::{self, column, entry, int, number, text};
use crate::pg::heap::{Is, Key, Snapshot, Table, shapes};
use crate::pg::spi::ToSql;
use uuid::Uuid;

/// The quantity that was consumed between two moments, by whole days where it is folded; None where
/// that needs a statement.
pub fn consumed(org_id: Uuid, metric: &str, from: Moment, to: Moment) -> Option<i64> {
    let sum = folded(org_id, metric, from, to)?;
    Some(sum.saturating_add(unfolded(org_id, metric, from)?))
}

fn folded(org_id: Uuid, metric: &str, from: Moment, to: Moment) -> Option<i64> {
    let days = Table::open_to_read(&shapes::USAGE_DAYS)?;
    let keys =
        [Key(1, Is::Uuid, org_id.to_sql()), Key(2, Is::Text, metric.to_sql()), Key(3, Is::DayFrom, day(from).to_sql())];
    let (mut sum, last) = (0_i64, day(to));
    days.read_while(&shapes::USAGE_DAYS_KEY, &keys, Snapshot::Callers, |row| {
        let is_within = int(row, 3).is_some_and(|day| day <= last);
        if is_within {
            sum = sum.saturating_add(number(row, 4).unwrap_or(0));
        }
        is_within
    });
    Some(sum)
}

/// The entries of a lane that are not folded: those after `from`, up to `last`.
pub struct UnfoldedEntries {
    /// The unit of the wallet.
    pub unit: String,
    /// The number of the lane.
    pub lane: i16,
    /// The last entry that is folded.
    pub from: i64,
    /// The newest entry.
    pub last: i64,
    /// The sums of the entries, if the lane has them.
    pub recent: Option<LaneSummary>,
}

impl UnfoldedEntries {
    /// The number of the lane within the org (`lanes.slot`).
    pub fn slot(&self) -> i16 {
        slot(self.last)
    }
}

fn slot(entry_id: i64) -> i16 {
    i16::try_from(entry_id >> 40).unwrap_or(i16::MAX)
}

/// The last folded entry of the lane that has this entry; None where that needs a statement.
pub fn folded_until(org_id: Uuid, entry_id: i64, snapshot: Snapshot) -> Option<i64> {
    let folded = Table::open_to_read(&shapes::FOLDED)?;
    let mut position = i64::from(slot(entry_id)) << 40;
    let of_lane = [Key(1, Is::Uuid, org_id.to_sql()), Key(2, Is::Small, slot(entry_id).to_sql())];
    folded.finder(&shapes::FOLDED_KEY, snapshot).read(&of_lane, |row, _| position = number(row, 3).unwrap_or(position));
    Some(position)
}

/// The unfolded entries of each lane of an org; None where that needs a statement.
pub fn tails(org_id: Uuid, snapshot: Snapshot) -> Option<Vec<UnfoldedEntries>> {
    let lanes = Table::open_to_read(&shapes::LANES)?;
    let mut found = Vec::new();
    let of_org = [Key(1, Is::Uuid, org_id.to_sql())];
    lanes.read(&shapes::LANES_KEY, &of_org, snapshot, |row, _| {
        let known = || {
            let (unit, last) = (text(row, 12)?, number(row, column::LAST_ENTRY_ID)?);
            Some((unit, rows::lane_number(row)?, last, rows::recent(row, last)))
        };
        found.extend(known());
    });
    let tail = |(unit, lane, last, recent): (String, i16, i64, Option<LaneSummary>)| {
        let from = folded_until(org_id, last, snapshot)?;
        Some(UnfoldedEntries { unit, lane, from, last, recent: recent.filter(|recent| recent.after == from) })
    };
    found.into_iter().map(tail).collect()
}

/// The sums of a lane's unfolded entries that were made since a moment; None where that needs a
/// statement.
pub fn read(org_id: Uuid, tail: &UnfoldedEntries, snapshot: Snapshot, since: Moment) -> Option<LaneSummary> {
    let mut recent = LaneSummary::after(tail.from);
    if tail.from >= tail.last {
        return Some(recent);
    }
    let entries = Table::open_to_read(&shapes::LEDGER)?;
    let after = [Key(1, Is::Uuid, org_id.to_sql()), Key(2, Is::BigAbove, tail.from.to_sql())];
    entries.read_while(&shapes::LEDGER_KEY, &after, snapshot, |row| {
        let Some(entry_id) = number(row, entry::ENTRY_ID).filter(|entry_id| *entry_id <= tail.last) else {
            return false;
        };
        let created_at = number(row, entry::CREATED_AT).unwrap_or_default();
        if created_at >= since {
            recent.add(Entry {
                entry_id,
                operation_id: rows::operation_of(row).unwrap_or(entry_id),
                kind: &rows::kind_of(row),
                metric: text(row, entry::METRIC).as_deref(),
                source: text(row, entry::SOURCE).as_deref(),
                created_at,
                quantity: rows::quantity_of(row),
                amount: number(row, entry::AMOUNT).unwrap_or_default(),
            });
        }
        true
    });
    Some(recent)
}

/// The quantity that was consumed since a moment; None where a day would have to be divided.
fn consumed_since(recent: &LaneSummary, metric: &str, from: Moment) -> Option<i64> {
    recent.consumed(metric).try_fold(0_i64, |total, sum| match () {
        () if start_of(sum.day) >= from => Some(total.saturating_add(sum.quantity)),
        () if sum.day < day(from) => Some(total),
        () => None,
    })
}

/// The quantity of a metric that was consumed since a moment and is not folded yet.
fn unfolded(org_id: Uuid, metric: &str, from: Moment) -> Option<i64> {
    tails(org_id, Snapshot::Callers)?.iter().try_fold(0_i64, |sum, tail| {
        let known = tail.recent.as_ref().and_then(|recent| consumed_since(recent, metric, from));
        let consumed = match known {
            Some(known) => known,
            None => {
                let read = read(org_id, tail, Snapshot::Callers, from)?;
                read.consumed(metric).fold(0, |total, sum| sum.quantity.saturating_add(total))
            }
        };
        Some(sum.saturating_add(consumed))
    })
}
