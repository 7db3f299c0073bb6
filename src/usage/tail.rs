//! What was consumed of a metric, to the last entry: the days that are folded, and what of the ledger is not yet. Without
//! statements (`heap.rs`), since the shortest answers ask for it.

use crate::heap::{Is, Key, Snapshot, Table};
use crate::ledger::rows::{column, int, number, text};
use crate::sql::ToSql;
use crate::time::Moment;
use uuid::Uuid;

const DAY: Moment = 24 * 3600 * 1_000_000;

/// The sum of what was consumed from one moment to another, by whole days where it is folded. None where that takes a statement.
pub fn consumed(org_id: Uuid, metric: &str, from: Moment, to: Moment) -> Option<i64> {
    let sum = folded(org_id, metric, from, to)?;
    Some(sum.saturating_add(unfolded(org_id, metric, from)?))
}

/// Days as the server counts them.
fn day(at: Moment) -> i32 {
    i32::try_from(at.div_euclid(DAY)).unwrap_or(if at < 0 { i32::MIN } else { i32::MAX })
}

fn folded(org_id: Uuid, metric: &str, from: Moment, to: Moment) -> Option<i64> {
    let days = Table::open_to_read("usage_days", 7)?;
    let keys =
        [Key(1, Is::Uuid, org_id.to_sql()), Key(2, Is::Text, metric.to_sql()), Key(3, Is::DayFrom, day(from).to_sql())];
    let (mut sum, last) = (0_i64, day(to));
    let is_known = days.read_while("usage_days_pkey", &keys, Snapshot::Callers, |row| {
        let is_within = int(row, 3).is_some_and(|day| day <= last);
        if is_within {
            sum = sum.saturating_add(number(row, 4).unwrap_or(0));
        }
        is_within
    });
    is_known.then_some(sum)
}

/// Of each lane, what came after its last folded entry.
fn unfolded(org_id: Uuid, metric: &str, from: Moment) -> Option<i64> {
    let (lanes, folded) = (Table::open_to_read("lanes", column::COUNT)?, Table::open_to_read("folded", 3)?);
    let entries = Table::open_to_read("entries", column::ENTRIES)?;
    let mut tails = Vec::new();
    let of_org = [Key(1, Is::Uuid, org_id.to_sql())];
    let knows_lanes = lanes.read("lanes_pkey", &of_org, Snapshot::Callers, |row, _| {
        tails.extend(number(row, column::LAST_ENTRY_ID));
    });
    let mut knows_all = knows_lanes;
    let mut sum = 0_i64;
    for last in tails {
        let slot = i16::try_from(last >> 40).unwrap_or(i16::MAX);
        let mut position = i64::from(slot) << 40;
        let of_lane = [Key(1, Is::Uuid, org_id.to_sql()), Key(2, Is::Small, slot.to_sql())];
        knows_all &= folded.read("folded_pkey", &of_lane, Snapshot::Callers, |row, _| {
            position = number(row, 3).unwrap_or(position);
        });
        if position >= last {
            continue;
        }
        let after = [Key(1, Is::Uuid, org_id.to_sql()), Key(3, Is::BigAbove, position.to_sql())];
        let mut counted = None;
        knows_all &= entries.read_while("entries_pkey", &after, Snapshot::Callers, |row| {
            if number(row, 3).is_none_or(|entry_id| entry_id > last) {
                return false;
            }
            // The entries of a consumption follow each other, and each has all of its quantity.
            let operation = number(row, 2);
            let is_usage = text(row, 14).as_deref() == Some("usage") && text(row, 15).as_deref() == Some(metric);
            let is_counted = is_usage && number(row, 7).is_some_and(|at| at >= from);
            if is_counted && counted != operation && text(row, 16).as_deref() != Some("settlement") {
                counted = operation;
                sum = sum.saturating_add(number(row, 9).unwrap_or(0));
            }
            true
        });
    }
    knows_all.then_some(sum)
}
