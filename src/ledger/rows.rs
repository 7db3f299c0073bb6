//! Lanes by the server's access methods (`heap.rs`): what the shortest calls look at and change.

use crate::heap::{Equal, Key, Snapshot, Table, Value, Write};
use crate::ledger::lanes::View;
use crate::sql::{FromSql, ToSql};
use crate::time::Moment;
use std::hash::{DefaultHasher, Hash, Hasher};
use uuid::Uuid;

/// Columns of `lanes`, and how many there are.
pub mod column {
    #![allow(missing_docs)]
    pub const ORG_ID: i16 = 1;
    pub const FRESH_UNTIL: usize = 2;
    pub const SLICE_GRANT: usize = 9;
    pub const LANE: i16 = 10;
    pub const UNIT: i16 = 12;
    pub const FAST_UNTIL: usize = 13;
    pub const LAST_ENTRY_ID: usize = 14;
    pub const BALANCE: usize = 15;
    pub const SLICE_CREDITS: usize = 16;
    pub const CONSUMED: usize = 17;
    pub const HEAD: usize = 18;
    pub const ALERT_BELOW: usize = 19;
    pub const LANES: usize = 20;
    pub const ALERT_BASE: usize = 21;
    pub const COUNT: usize = 21;
}

/// The index by which lanes are found.
pub const KEY: &str = "lanes_pkey";

/// The lanes, for changing one; None where that takes a statement.
pub fn open() -> Option<Table> {
    Table::open("lanes", column::COUNT, Write::Update)
}

/// The key of a lane.
pub fn key(org_id: Uuid, unit: &str, lane: i16) -> [Key; 3] {
    let [org_id, unit] = wallet(org_id, unit);
    [org_id, unit, Key(column::LANE, Equal::Small, lane.to_sql())]
}

/// As the others are counted.
const LANE_COLUMN: usize = 10;

fn wallet(org_id: Uuid, unit: &str) -> [Key; 2] {
    [Key(column::ORG_ID, Equal::Uuid, org_id.to_sql()), Key(column::UNIT, Equal::Text, unit.to_sql())]
}

/// The queue of those who wait for a lane: two that share a number by chance only wait a little longer.
pub fn queue(org_id: Uuid, unit: &str, lane: i16) -> u32 {
    let mut hasher = DefaultHasher::new();
    (org_id, unit, lane).hash(&mut hasher);
    u32::try_from(hasher.finish() >> 32).unwrap_or_default()
}

/// A column of 64 bits.
pub fn number(row: &[Value], column: usize) -> Option<i64> {
    // SAFETY: such a column, by value.
    row[column - 1].map(|datum| unsafe { i64::from_sql(datum) })
}

fn small(row: &[Value], column: usize) -> Option<i16> {
    // SAFETY: a column of 16 bits, by value.
    row[column - 1].map(|datum| unsafe { i16::from_sql(datum) })
}

/// Into how many lanes the wallet is split, as its lane 0 tells.
pub fn lanes(row: &[Value]) -> i16 {
    small(row, column::LANES).unwrap_or(1)
}

/// A wallet at a glance.
#[derive(Debug, Default)]
pub struct Glance {
    /// Until when lane 0 says that all of it can be spent, and that its lanes may be burned from.
    pub fast_until: Moment,
    /// Lanes 1 to n, what can be burned of each, and the rest.
    pub view: View,
    /// The lanes that somebody holds just now.
    pub held: Vec<i16>,
    /// All of that.
    pub total: i64,
    /// Into how many lanes it is split.
    pub lanes: i16,
    /// Below that, somebody may want to know.
    pub alert_below: i64,
    /// What it had after its last grant.
    pub alert_base: i64,
}

/// Looks at a wallet; None where there is none, or nothing is known without a statement.
pub fn glance(table: &Table, org_id: Uuid, unit: &str, snapshot: Snapshot, now: Moment) -> Option<Glance> {
    let mut seen: Option<Glance> = None;
    let mut slices: Vec<(i16, i64)> = Vec::new();
    let mut held = Vec::new();
    table.read(KEY, &wallet(org_id, unit), snapshot, |row, is_held| {
        let mut note = || {
            let (lane, balance) = (small(row, LANE_COLUMN)?, number(row, column::BALANCE)?);
            if lane == 0 {
                seen = Some(Glance {
                    fast_until: number(row, column::FAST_UNTIL)?,
                    view: View { rest: balance, lanes: Vec::new() },
                    held: Vec::new(),
                    total: balance,
                    lanes: lanes(row),
                    alert_below: number(row, column::ALERT_BELOW)?,
                    alert_base: number(row, column::ALERT_BASE)?,
                });
            } else if number(row, column::FRESH_UNTIL)? > now {
                slices.push((lane, balance));
            }
            if is_held && lane > 0 {
                held.push(lane);
            }
            Some(())
        };
        let _known = note();
    });
    let mut seen = seen?;
    seen.held = held;
    if seen.lanes > 1 {
        seen.view.lanes = vec![0; usize::try_from(seen.lanes).unwrap_or_default()];
        for (lane, slice) in slices {
            seen.total += slice;
            if let Some(place) = usize::try_from(lane - 1).ok().and_then(|i| seen.view.lanes.get_mut(i)) {
                *place = slice;
            }
        }
    }
    Some(seen)
}
