//! Lanes and entries by the server's access methods (`heap`): what the shortest calls look at and write.

use crate::base::time::Moment;
use crate::base::units;
use crate::ledger::chain::{self, Position};
use crate::ledger::lanes::View;
use crate::ledger::recent::LaneSummary;
use crate::ledger::replay::Replay;
use crate::ledger::wallet::Lane;
use crate::pg::heap::{self, Attempt, Changed, Finder, Held, Is, Key, Snapshot, Table, Value, Write, shapes};
use crate::pg::jsonb::Jsonb;
use crate::pg::spi::{FromSql, ToSql};
use pgrx::datum::FromDatum;
use uuid::Uuid;

/// Columns of `lanes`.
pub mod column {
    #![allow(missing_docs)]
    pub const ORG_ID: i16 = 1;
    pub const FRESH_UNTIL: usize = 2;
    pub const HOLDS_DUE: usize = 3;
    pub const RESERVED: usize = 4;
    pub const LOCKED: usize = 5;
    pub const PURCHASED: usize = 6;
    pub const SCOPED: usize = 7;
    pub const FUTURE: usize = 8;
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
    pub const RECENT: usize = 22;
}

/// Columns of `ledger`, of which 2 is the entry's number.
pub mod entry {
    #![allow(missing_docs)]
    pub const ENTRY_ID: usize = 2;
    pub const AMOUNT: usize = 3;
    pub const BALANCE_AFTER: usize = 4;
    pub const CREATED_AT: usize = 5;
    pub const QUANTITY: usize = 7;
    pub const KEY_UUID: usize = 9;
    pub const MEMBER_ID: usize = 10;
    pub const OPERATION_ID: usize = 11;
    pub const REQUEST_HASH: usize = 12;
    pub const KIND: usize = 14;
    pub const METRIC: usize = 15;
    pub const SOURCE: usize = 16;
    pub const KEY_TEXT: usize = 18;
    pub const METADATA: usize = 21;
    pub const RESULT: usize = 22;
}

/// The lanes, for changing one; None where that takes a statement.
pub fn open() -> Option<Table> {
    Table::open(&shapes::LANES, Write::Update)
}

/// The key of a lane.
pub fn key(org_id: Uuid, unit: &str, lane: i16) -> [Key; 3] {
    let [org_id, unit] = wallet(org_id, unit);
    [org_id, unit, Key(column::LANE, Is::Small, lane.to_sql())]
}

/// As the others are counted.
const LANE_COLUMN: usize = 10;

fn wallet(org_id: Uuid, unit: &str) -> [Key; 2] {
    [Key(column::ORG_ID, Is::Uuid, org_id.to_sql()), Key(column::UNIT, Is::Text, unit.to_sql())]
}

/// The queue of those who wait for a lane.
pub fn queue(org_id: Uuid, unit: &str, lane: i16) -> u32 {
    heap::queue((org_id, unit, lane))
}

/// The access methods do not do.
pub struct NeedsStatement;

/// A column of 64 bits.
pub fn number(row: &[Value], column: usize) -> Option<i64> {
    // SAFETY: such a column, by value.
    row[column - 1].map(|datum| unsafe { i64::from_sql(datum) })
}

/// A column of 32 bits, or a date.
pub fn int(row: &[Value], column: usize) -> Option<i32> {
    // SAFETY: such a column, by value.
    row[column - 1].map(|datum| unsafe { i32::from_sql(datum) })
}

fn small(row: &[Value], column: usize) -> Option<i16> {
    // SAFETY: a column of 16 bits, by value.
    row[column - 1].map(|datum| unsafe { i16::from_sql(datum) })
}

/// A column of type boolean.
pub fn flag(row: &[Value], column: usize) -> Option<bool> {
    // SAFETY: such a column, by value.
    row[column - 1].map(|datum| unsafe { bool::from_sql(datum) })
}

/// A column of type text.
pub fn text(row: &[Value], column: usize) -> Option<String> {
    // SAFETY: such a column.
    row[column - 1].map(|datum| unsafe { FromSql::from_sql(datum) })
}

/// A column of type bytea.
pub fn bytes(row: &[Value], column: usize) -> Option<Vec<u8>> {
    // SAFETY: such a column.
    row[column - 1].map(|datum| unsafe { FromSql::from_sql(datum) })
}

/// A column of type uuid.
pub fn uuid(row: &[Value], column: usize) -> Option<Uuid> {
    // SAFETY: such a column.
    row[column - 1].map(|datum| unsafe { FromSql::from_sql(datum) })
}

/// A column of type jsonb, as the server prints it.
pub fn json(row: &[Value], column: usize) -> Option<String> {
    // SAFETY: such a column.
    row[column - 1].and_then(|datum| unsafe { Jsonb::from_datum(datum, false) }).map(Jsonb::text)
}

/// Whether an org has any wallet; None where that takes a statement.
pub fn has_wallet(org_id: Uuid) -> Option<bool> {
    heap::look(true, || {
        let lanes = Table::open_to_read(&shapes::LANES)?;
        let mut is_there = false;
        // Most have this one.
        let mut finder = lanes.finder(&shapes::LANES_KEY, Snapshot::Callers);
        finder.read(&key(org_id, units::CREDIT, 0), |_, _| is_there = true);
        drop(finder);
        if !is_there {
            let of_org = [Key(column::ORG_ID, Is::Uuid, org_id.to_sql())];
            lanes.read_while(&shapes::LANES_KEY, &of_org, Snapshot::Callers, |_| {
                is_there = true;
                false
            });
        }
        Some(is_there)
    })
}

/// The key of an entry or a hold.
pub fn numbered(org_id: Uuid, id: i64) -> [Key; 2] {
    [Key(column::ORG_ID, Is::Uuid, org_id.to_sql()), Key(2, Is::Big, id.to_sql())]
}

/// Shows a hold; false where that takes a statement.
pub fn read_hold(org_id: Uuid, hold_id: i64, mut show: impl FnMut(&[Value])) -> bool {
    let Some(holds) = Table::open_to_read(&shapes::HOLDS) else { return false };
    let mut finder = holds.finder(&shapes::HOLDS_KEY, Snapshot::Latest);
    finder.read(&numbered(org_id, hold_id), |row, _| show(row));
    true
}

/// Writes a hold; false where that takes a statement.
pub fn make_hold(org_id: Uuid, hold_id: i64, row: &[Value]) -> bool {
    let Some(holds) = Table::open(&shapes::HOLDS, Write::Insert) else { return false };
    holds.insert_as(&shapes::HOLDS_KEY, &numbered(org_id, hold_id), row);
    true
}

/// Closes an open hold; false where that takes a statement, or it is not open. The wallet is locked.
pub fn close_hold(org_id: Uuid, hold_id: i64, status: &str, now: Moment, operation_id: i64) -> bool {
    let Some(holds) = Table::open(&shapes::HOLDS, Write::Update) else { return false };
    let closed = holds.update_one(&shapes::HOLDS_KEY, &numbered(org_id, hold_id), Held::Ours, |row| {
        (text(row, 13)? == "open").then(|| vec![(13, status.to_sql()), (8, now.to_sql()), (9, operation_id.to_sql())])
    });
    closed == Changed::Yes
}

/// As keys are counted.
const REQUEST_COLUMN: i16 = 8;

/// The entry that took a key, if there is one.
pub fn find_request(org_id: Uuid, request_id: i64) -> Result<Option<Replay>, NeedsStatement> {
    let entries = Table::open_to_read(&shapes::LEDGER).ok_or(NeedsStatement)?;
    let key = [Key(column::ORG_ID, Is::Uuid, org_id.to_sql()), Key(REQUEST_COLUMN, Is::Big, request_id.to_sql())];
    let mut found = None;
    entries.read(&shapes::LEDGER_REQUEST, &key, Snapshot::Latest, |row, _| {
        found = replay(row);
    });
    Ok(found)
}

fn replay(row: &[Value]) -> Option<Replay> {
    let (amount, balance_after) = (number(row, entry::AMOUNT)?, number(row, entry::BALANCE_AFTER)?);
    Some(Replay {
        operation_id: number(row, entry::ENTRY_ID)?,
        request_hash: number(row, entry::REQUEST_HASH),
        result: text(row, entry::RESULT),
        kind: kind_of(row),
        metric: text(row, entry::METRIC),
        quantity: quantity_of(row),
        amount,
        balance_before: balance_after.wrapping_sub(amount),
        balance_after,
        member_id: uuid(row, entry::MEMBER_ID),
        metadata: json(row, entry::METADATA).unwrap_or_else(|| NO_METADATA.to_owned()),
        key: text(row, entry::KEY_TEXT).or_else(|| uuid(row, entry::KEY_UUID).map(|key| key.to_string())),
    })
}

// What the ledger leaves out.
const USUAL_KIND: &str = "usage";
const NO_METADATA: &str = "{}";

/// The unit of an entry, as it is stored.
pub fn stored_unit(unit: &str) -> Option<&str> {
    (unit != units::CREDIT).then_some(unit)
}

/// The kind of an entry, as it is stored.
pub fn stored_kind(kind: &str) -> Option<&str> {
    (kind != USUAL_KIND).then_some(kind)
}

/// The kind of a stored entry.
pub fn kind_of(row: &[Value]) -> String {
    text(row, entry::KIND).unwrap_or_else(|| USUAL_KIND.to_owned())
}

/// The quantity of an entry, as it is stored: of usage, which cannot be 0, nothing stands for 1, and 0 for nothing.
pub fn stored_quantity(kind: &str, quantity: Option<i64>) -> Option<i64> {
    if kind == USUAL_KIND { Some(quantity.unwrap_or(0)).filter(|quantity| *quantity != 1) } else { quantity }
}

/// The quantity of a stored entry.
pub fn quantity_of(row: &[Value]) -> Option<i64> {
    let stored = number(row, entry::QUANTITY);
    if row[entry::KIND - 1].is_some() { stored } else { Some(stored.unwrap_or(1)).filter(|quantity| *quantity != 0) }
}

/// The metadata of an entry, as they are stored.
pub fn stored_metadata(metadata: &str) -> Option<&str> {
    (metadata != NO_METADATA).then_some(metadata)
}

/// The operation of an entry, as it is stored.
pub fn stored_operation(operation_id: i64, entry_id: i64) -> Option<i64> {
    (operation_id != entry_id).then_some(operation_id)
}

/// The operation of a stored entry.
pub fn operation_of(row: &[Value]) -> Option<i64> {
    number(row, entry::OPERATION_ID).or_else(|| number(row, entry::ENTRY_ID))
}

/// An idempotency key as it is stored: a UUID takes less than half the room of its text.
pub fn stored_key(key: Option<&str>) -> (Option<Uuid>, Option<&str>) {
    let is_same = |uuid: &Uuid, key: &str| uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == key;
    match key.and_then(|key| Uuid::try_parse(key).ok().filter(|uuid| is_same(uuid, key))) {
        Some(uuid) => (Some(uuid), None),
        None => (None, key),
    }
}

/// Locks a wallet: its lane 0, if there is one.
pub fn lock(org_id: Uuid, unit: &str) -> Result<Option<Lane>, NeedsStatement> {
    let lanes = open().ok_or(NeedsStatement)?;
    Ok(lanes
        .lock_one(&shapes::LANES_KEY, &key(org_id, unit, 0), queue(org_id, unit, 0), |row| lane(row, org_id, unit))
        .flatten())
}

/// Locks all wallets of an org, in the one order.
pub fn lock_org(org_id: Uuid) -> Result<Vec<Lane>, NeedsStatement> {
    let lanes = open().ok_or(NeedsStatement)?;
    let mut units = Vec::new();
    let of_org = [Key(column::ORG_ID, Is::Uuid, org_id.to_sql())];
    lanes.read(&shapes::LANES_KEY, &of_org, Snapshot::Latest, |row, _| {
        units.extend(text(row, 12).filter(|_| small(row, LANE_COLUMN) == Some(0)));
    });
    let lock = |unit: &String| lock(org_id, unit).transpose();
    units.iter().filter_map(lock).collect()
}

fn lane(row: &[Value], org_id: Uuid, unit: &str) -> Option<Lane> {
    Some(Lane {
        org_id,
        unit: unit.to_owned(),
        lane: small(row, LANE_COLUMN)?,
        last_entry_id: number(row, column::LAST_ENTRY_ID)?,
        balance: number(row, column::BALANCE)?,
        reserved: number(row, column::RESERVED)?,
        locked: number(row, column::LOCKED)?,
        purchased: number(row, column::PURCHASED)?,
        consumed: number(row, column::CONSUMED)?,
        scoped: number(row, column::SCOPED)?,
        future: number(row, column::FUTURE)?,
        slice_grant: number(row, column::SLICE_GRANT)?,
        slice_credits: number(row, column::SLICE_CREDITS)?,
        fresh_until: number(row, column::FRESH_UNTIL)?,
        holds_due: number(row, column::HOLDS_DUE)?,
        head: bytes(row, column::HEAD)?,
        alert_below: number(row, column::ALERT_BELOW)?,
        alert_base: number(row, column::ALERT_BASE)?,
        lanes: lanes(row),
        recent: bytes(row, column::RECENT),
    })
}

/// The number of a lane.
pub fn lane_number(row: &[Value]) -> Option<i16> {
    small(row, LANE_COLUMN)
}

/// What a lane knows of the entries that are not folded.
pub fn recent(row: &[Value], last_entry_id: i64) -> Option<LaneSummary> {
    LaneSummary::of_lane(bytes(row, column::RECENT).as_deref(), last_entry_id)
}

/// Lets a lane that is locked know it.
pub fn keep_recent(org_id: Uuid, unit: &str, recent: &LaneSummary) {
    if let Some(table) = open() {
        let _changed = table.update_one(&shapes::LANES_KEY, &key(org_id, unit, 0), Held::Ours, |_| {
            Some(vec![(column::RECENT, recent.encode().as_deref().to_sql())])
        });
    }
}

/// Writes a lane that is locked; false where that takes a statement.
pub fn save(lane: &Lane, recent: Option<&[u8]>) -> bool {
    let Some(table) = open() else { return false };
    let changed = table.update_one(&shapes::LANES_KEY, &key(lane.org_id, &lane.unit, lane.lane), Held::Ours, |_| {
        Some(vec![
            (column::FRESH_UNTIL, lane.fresh_until.to_sql()),
            (column::HOLDS_DUE, lane.holds_due.to_sql()),
            (column::RESERVED, lane.reserved.to_sql()),
            (column::LOCKED, lane.locked.to_sql()),
            (column::PURCHASED, lane.purchased.to_sql()),
            (column::SCOPED, lane.scoped.to_sql()),
            (column::FUTURE, lane.future.to_sql()),
            (column::SLICE_GRANT, lane.slice_grant.to_sql()),
            (column::FAST_UNTIL, lane.fast_until().to_sql()),
            (column::LAST_ENTRY_ID, lane.last_entry_id.to_sql()),
            (column::BALANCE, lane.balance.to_sql()),
            (column::SLICE_CREDITS, lane.slice_credits.to_sql()),
            (column::CONSUMED, lane.consumed.to_sql()),
            (column::HEAD, lane.head.as_slice().to_sql()),
            (column::LANES, lane.lanes.to_sql()),
            (column::ALERT_BASE, lane.alert_base.to_sql()),
            (column::RECENT, recent.to_sql()),
        ])
    });
    changed == Changed::Yes
}

/// What is written of an entry.
#[allow(missing_docs)]
pub struct EntryRow<'a> {
    pub org_id: Uuid,
    pub operation_id: i64,
    pub position: Position,
    pub amount: i64,
    pub created_at: Moment,
    pub quantity: Option<i64>,
    pub request_hash: Option<i64>,
    pub member_id: Option<Uuid>,
    pub unit: &'a str,
    pub kind: &'a str,
    pub metric: Option<&'a str>,
    pub source: Option<&'a str>,
    pub source_id: Option<&'a str>,
    pub key: Option<&'a str>,
    pub reason: Option<&'a str>,
    pub actor: Option<&'a str>,
    /// None: the empty object.
    pub metadata: Option<Jsonb>,
    pub result: Option<&'a str>,
    pub hash: &'a [u8],
}

impl EntryRow<'_> {
    /// Inserts it; false where its key is taken, or may be.
    pub fn insert(&self, entries: &Table, attempt: Attempt) -> bool {
        let (key_uuid, key_text) = stored_key(self.key);
        let row = [
            self.org_id.to_sql(),
            self.position.entry_id.to_sql(),
            self.amount.to_sql(),
            self.position.balance_after.to_sql(),
            self.created_at.to_sql(),
            self.position.grant_id.to_sql(),
            stored_quantity(self.kind, self.quantity).to_sql(),
            self.key.map(chain::request_id).to_sql(),
            key_uuid.to_sql(),
            self.member_id.to_sql(),
            stored_operation(self.operation_id, self.position.entry_id).to_sql(),
            self.request_hash.to_sql(),
            stored_unit(self.unit).to_sql(),
            stored_kind(self.kind).to_sql(),
            self.metric.to_sql(),
            self.source.to_sql(),
            self.source_id.to_sql(),
            key_text.to_sql(),
            self.reason.to_sql(),
            self.actor.to_sql(),
            self.metadata.to_sql(),
            self.result.to_sql(),
            self.hash.to_sql(),
        ];
        if self.key.is_none() {
            entries.insert(&row);
            return true;
        }
        entries.insert_new(&shapes::LEDGER_REQUEST, &row, attempt)
    }
}

/// The ledger, for entries to be inserted; None where that takes a statement.
pub fn open_entries() -> Option<Table> {
    Table::open(&shapes::LEDGER, Write::Insert)
}

/// Into how many lanes the wallet is split, as its lane 0 tells.
pub fn lanes(row: &[Value]) -> i16 {
    small(row, column::LANES).unwrap_or(1)
}

/// A wallet at a glance.
#[derive(Debug, Default)]
pub struct WalletSnapshot {
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

impl WalletSnapshot {
    /// What lane 0 tells of it.
    fn of(row: &[Value]) -> Option<Self> {
        let balance = number(row, column::BALANCE)?;
        Some(Self {
            fast_until: number(row, column::FAST_UNTIL)?,
            view: View { rest: balance, lanes: Vec::new() },
            held: Vec::new(),
            total: balance,
            lanes: lanes(row),
            alert_below: number(row, column::ALERT_BELOW)?,
            alert_base: number(row, column::ALERT_BASE)?,
        })
    }
}

/// Looks at a wallet; None where there is none, or nothing is known without a statement.
pub fn read_wallet_snapshot(lanes: &mut Finder<'_>, org_id: Uuid, unit: &str, now: Moment) -> Option<WalletSnapshot> {
    let mut seen: Option<WalletSnapshot> = None;
    let mut key = key(org_id, unit, 0);
    lanes.read(&key, |row, _| seen = WalletSnapshot::of(row));
    let mut seen = seen?;
    let last = if seen.lanes > 1 { seen.lanes } else { 0 };
    if last > 0 {
        lanes.show_first(column::BALANCE);
    }
    for lane in 1..=last {
        let mut slice = 0;
        key[2].2 = lane.to_sql();
        lanes.read(&key, |row, is_held| {
            let is_fresh = number(row, column::FRESH_UNTIL).is_some_and(|until| until > now);
            slice = number(row, column::BALANCE).filter(|_| is_fresh).unwrap_or(0);
            if is_held {
                seen.held.push(lane);
            }
        });
        seen.total += slice;
        seen.view.lanes.push(slice);
    }
    Some(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::heap::shapes;

    #[test]
    fn columns_are_counted_as_they_stand() {
        shapes::LANES.assert_numbers(&[
            (column::ORG_ID.unsigned_abs().into(), "org_id"),
            (column::FRESH_UNTIL, "fresh_until"),
            (column::HOLDS_DUE, "holds_due"),
            (column::RESERVED, "reserved"),
            (column::LOCKED, "locked"),
            (column::PURCHASED, "purchased"),
            (column::SCOPED, "scoped"),
            (column::FUTURE, "future"),
            (column::SLICE_GRANT, "slice_grant"),
            (column::LANE.unsigned_abs().into(), "lane"),
            (column::UNIT.unsigned_abs().into(), "unit"),
            (column::FAST_UNTIL, "fast_until"),
            (column::LAST_ENTRY_ID, "last_entry_id"),
            (column::BALANCE, "balance"),
            (column::SLICE_CREDITS, "slice_credits"),
            (column::CONSUMED, "consumed"),
            (column::HEAD, "head"),
            (column::ALERT_BELOW, "alert_below"),
            (column::LANES, "lanes"),
            (column::ALERT_BASE, "alert_base"),
            (column::RECENT, "recent"),
            (LANE_COLUMN, "lane"),
        ]);
        shapes::LEDGER.assert_numbers(&[
            (entry::ENTRY_ID, "entry_id"),
            (entry::AMOUNT, "amount"),
            (entry::BALANCE_AFTER, "balance_after"),
            (entry::CREATED_AT, "created_at"),
            (entry::QUANTITY, "quantity"),
            (entry::KEY_UUID, "key_uuid"),
            (entry::MEMBER_ID, "member_id"),
            (entry::OPERATION_ID, "operation_id"),
            (entry::REQUEST_HASH, "request_hash"),
            (entry::KIND, "kind"),
            (entry::METRIC, "metric"),
            (entry::SOURCE, "source"),
            (entry::KEY_TEXT, "key_text"),
            (entry::METADATA, "metadata"),
            (entry::RESULT, "result"),
            (REQUEST_COLUMN.unsigned_abs().into(), "request_id"),
        ]);
        shapes::HOLDS.assert_numbers(&[(2, "hold_id"), (8, "closed_at"), (9, "closed_by"), (13, "status")]);
    }
}
