//! The consumption of a metric, exact to the last entry: the folded days, and the entries that are
//! not folded yet.

use crate::base::time::{Moment, day, start_of};
use crate::ledger::recent::{Entry, LaneSummary};
use crate::ledger::rows;
use crate::schema::ledger::{lanes, ledger};
use crate::schema::usage::{fold_positions, usage_days};
use crate::schema::{Snapshot, Table};
use uuid::Uuid;

/// The sum of what was consumed from one moment to another, by whole days where it is folded.
pub fn consumed(org_id: Uuid, metric: &str, from: Moment, to: Moment) -> i64 {
    folded_days(org_id, metric, from, to).saturating_add(unfolded(org_id, metric, from))
}

fn folded_days(org_id: Uuid, metric: &str, from: Moment, to: Moment) -> i64 {
    let (mut sum, last) = (0_i64, day(to));
    let days = Table::<usage_days::Table>::to_read();
    days.each(&usage_days::since(org_id, metric, day(from)), Snapshot::Callers, |row| {
        let is_within = row.day() <= last;
        if is_within {
            sum = sum.saturating_add(row.consumed());
        }
        is_within
    });
    sum
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

/// The last folded entry of the lane that has this entry.
pub fn folded_until(org_id: Uuid, entry_id: i64, at: Snapshot) -> i64 {
    let of_lane = fold_positions::of_lane(org_id, slot(entry_id));
    let mut known = None;
    Table::<fold_positions::Table>::to_read().find(&of_lane, at, |row| known = Some(row.entry_id()));
    known.unwrap_or_else(|| i64::from(slot(entry_id)) << 40)
}

/// The unfolded entries of each lane of an org, on that snapshot.
pub fn tails(org_id: Uuid, at: Snapshot) -> Vec<UnfoldedEntries> {
    let mut tails = Vec::new();
    Table::<lanes::Table>::to_read().each(&lanes::of_org(org_id), at, |row| {
        let (unit, last) = (row.unit().to_owned(), row.last_entry_id());
        tails.push(UnfoldedEntries { unit, lane: row.lane(), from: last, last, recent: rows::recent(row) });
        true
    });
    for tail in &mut tails {
        tail.from = folded_until(org_id, tail.last, at);
        tail.recent = tail.recent.take().filter(|recent| recent.after == tail.from);
    }
    tails
}

/// The sums of a lane's unfolded entries that were made since a moment.
pub fn read(org_id: Uuid, tail: &UnfoldedEntries, at: Snapshot, since: Moment) -> LaneSummary {
    let mut recent = LaneSummary::after(tail.from);
    if tail.from >= tail.last {
        return recent;
    }
    Table::<ledger::Table>::to_read().each(&ledger::after(org_id, tail.from), at, |row| {
        let is_within = row.entry_id() <= tail.last;
        if is_within && row.created_at() >= since {
            recent.add(Entry {
                entry_id: row.entry_id(),
                operation_id: rows::operation_of(row),
                kind: rows::kind_of(row),
                metric: row.metric(),
                source: row.source(),
                created_at: row.created_at(),
                quantity: rows::quantity_of(row),
                amount: row.amount(),
            });
        }
        is_within
    });
    recent
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
fn unfolded(org_id: Uuid, metric: &str, from: Moment) -> i64 {
    tails(org_id, Snapshot::Callers).iter().fold(0_i64, |sum, tail| {
        let known = tail.recent.as_ref().and_then(|recent| consumed_since(recent, metric, from));
        let consumed = known.unwrap_or_else(|| {
            let read = read(org_id, tail, Snapshot::Callers, from);
            read.consumed(metric).fold(0, |total, sum| sum.quantity.saturating_add(total))
        });
        sum.saturating_add(consumed)
    })
}
