//! Rows of lanes and entries: what the shortest calls read and write, and the form in which the
//! ledger stores an entry.

use crate::base::time::Moment;
use crate::base::units;
use crate::base::words::Word;
use crate::ledger::chain::{self, Position};
use crate::ledger::kind::EntryKind;
use crate::ledger::lanes::View;
use crate::ledger::recent::LaneSummary;
use crate::ledger::replay::Replay;
use crate::ledger::wallet::Lane;
use crate::pg::jsonb::Jsonb;
use crate::schema::ledger::{lanes, ledger};
use crate::schema::{Changed, Finder, Insertion, LockPolicy, Snapshot, Table, at_one_moment};
use uuid::Uuid;

/// The table of lanes, open.
pub type Lanes = Table<lanes::Table>;

/// The ledger, open.
pub type Entries = Table<ledger::Table>;

/// Tells whether an org has any wallet. `fresh` is for a call that holds locks: what is committed
/// by now counts.
pub fn has_wallet(org_id: Uuid, fresh: bool) -> bool {
    at_one_moment(fresh, || {
        let table = Lanes::to_read();
        // Most orgs have this wallet, and to find it takes one look.
        let usual = table.find(&lanes::one(org_id, units::CREDIT, 0), Snapshot::Callers, |_| true);
        usual.unwrap_or_else(|| {
            let mut is_there = false;
            table.each(&lanes::of_org(org_id), Snapshot::Callers, |_| {
                is_there = true;
                false
            });
            is_there
        })
    })
}

/// The entry that took an idempotency key, if there is one.
pub fn find_request(org_id: Uuid, request_id: i64) -> Option<Replay> {
    let mut found = None;
    Entries::to_read().each(&ledger::request(org_id, request_id), Snapshot::Latest, |row| {
        found = Some(replay(row));
        true
    });
    found
}

fn replay(row: ledger::Row<'_>) -> Replay {
    let text = |text: Option<&str>| text.map(str::to_owned);
    Replay {
        operation_id: row.entry_id(),
        request_hash: row.request_hash(),
        result: text(row.result()),
        kind: kind_of(row).to_owned(),
        metric: text(row.metric()),
        quantity: quantity_of(row),
        amount: row.amount(),
        balance_before: row.balance_after().wrapping_sub(row.amount()),
        balance_after: row.balance_after(),
        member_id: row.member_id(),
        metadata: row.metadata().map_or_else(|| NO_METADATA.to_owned(), Jsonb::text),
        key: text(row.key_text()).or_else(|| row.key_uuid().map(|key| key.to_string())),
    }
}

// The metadata of an entry that has none, which the ledger stores as NULL.
const NO_METADATA: &str = "{}";

/// The unit of an entry as it is stored: NULL stands for credit.
fn stored_unit(unit: &str) -> Option<&str> {
    (unit != units::CREDIT).then_some(unit)
}

/// The kind of an entry as it is stored: NULL stands for usage.
fn stored_kind(kind: EntryKind) -> Option<&'static str> {
    (kind != EntryKind::Usage).then(|| kind.name())
}

/// The kind of a stored entry.
pub fn kind_of(row: ledger::Row<'_>) -> &str {
    row.kind().unwrap_or(EntryKind::Usage.name())
}

/// The quantity of an entry as it is stored. For usage, whose quantity cannot be 0, NULL stands for
/// 1 and 0 for none.
fn stored_quantity(kind: EntryKind, quantity: Option<i64>) -> Option<i64> {
    if kind == EntryKind::Usage { Some(quantity.unwrap_or(0)).filter(|quantity| *quantity != 1) } else { quantity }
}

/// The quantity of a stored entry.
pub fn quantity_of(row: ledger::Row<'_>) -> Option<i64> {
    let stored = row.quantity();
    if row.kind().is_some() { stored } else { Some(stored.unwrap_or(1)).filter(|quantity| *quantity != 0) }
}

/// The metadata of an entry as they are stored: NULL stands for the empty object.
pub fn stored_metadata(metadata: &str) -> Option<&str> {
    (metadata != NO_METADATA).then_some(metadata)
}

/// The operation of an entry as it is stored: NULL stands for the entry's own number.
fn stored_operation(operation_id: i64, entry_id: i64) -> Option<i64> {
    (operation_id != entry_id).then_some(operation_id)
}

/// The operation of a stored entry.
pub fn operation_of(row: ledger::Row<'_>) -> i64 {
    row.operation_id().unwrap_or_else(|| row.entry_id())
}

/// The idempotency key of an entry as it is stored. A key that is a UUID goes to a column of its
/// own, where it takes less than half the room of its text.
fn stored_key(key: Option<&str>) -> (Option<Uuid>, Option<&str>) {
    let is_same = |uuid: &Uuid, key: &str| uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == key;
    match key.and_then(|key| Uuid::try_parse(key).ok().filter(|uuid| is_same(uuid, key))) {
        Some(uuid) => (Some(uuid), None),
        None => (None, key),
    }
}

/// Locks a lane; None where there is no such lane, or it is held and the policy is to skip it.
pub fn lock(org_id: Uuid, unit: &str, number: i16, policy: LockPolicy) -> Option<Lane> {
    Lanes::to_update().lock(&lanes::one(org_id, unit, number), policy, lane)
}

/// Locks all wallets of an org, in the order of locks.
pub fn lock_org(org_id: Uuid) -> Vec<Lane> {
    let table = Lanes::to_update();
    let mut units = Vec::new();
    table.each(&lanes::of_org(org_id), Snapshot::Latest, |row| {
        units.extend((row.lane() == 0).then(|| row.unit().to_owned()));
        true
    });
    let lock = |unit: &String| table.lock(&lanes::one(org_id, unit, 0), LockPolicy::Wait, lane);
    units.iter().filter_map(lock).collect()
}

/// Reads lane 0 of a wallet without a lock.
pub fn read_lane(org_id: Uuid, unit: &str, at: Snapshot) -> Option<Lane> {
    Lanes::to_read().find(&lanes::one(org_id, unit, 0), at, lane)
}

fn lane(row: lanes::Row<'_>) -> Lane {
    Lane {
        org_id: row.org_id(),
        unit: row.unit().to_owned(),
        lane: row.lane(),
        last_entry_id: row.last_entry_id(),
        balance: row.balance(),
        reserved: row.reserved(),
        locked: row.locked(),
        purchased: row.purchased(),
        consumed: row.consumed(),
        scoped: row.scoped(),
        future: row.future(),
        slice_grant: row.slice_grant(),
        slice_credits: row.slice_credits(),
        fresh_until: row.fresh_until(),
        holds_due: row.holds_due(),
        head: row.head().to_vec(),
        alert_below: row.alert_below(),
        alert_base: row.alert_base(),
        lanes: row.lanes(),
        recent: row.recent().map(<[u8]>::to_vec),
    }
}

/// The lane summary in a lane's row, if the lane has one.
pub fn recent(row: lanes::Row<'_>) -> Option<LaneSummary> {
    LaneSummary::of_lane(row.recent(), row.last_entry_id())
}

/// Saves the lane summary in lane 0 of a wallet that is locked.
pub fn keep_recent(org_id: Uuid, unit: &str, recent: &LaneSummary) {
    let _changed = Lanes::to_update().update(&lanes::one(org_id, unit, 0), LockPolicy::AlreadyHeld, |_| {
        Some(lanes::Set::new().recent(recent.encode().as_deref()))
    });
}

/// Saves a lane that is locked.
pub fn save(lane: &Lane, recent: Option<&[u8]>) {
    let key = lanes::one(lane.org_id, &lane.unit, lane.lane);
    let changed = Lanes::to_update().update(&key, LockPolicy::AlreadyHeld, |_| {
        let new = lanes::Set::new()
            .fresh_until(lane.fresh_until)
            .holds_due(lane.holds_due)
            .reserved(lane.reserved)
            .locked(lane.locked)
            .purchased(lane.purchased)
            .scoped(lane.scoped)
            .future(lane.future)
            .slice_grant(lane.slice_grant)
            .fast_until(lane.fast_until())
            .last_entry_id(lane.last_entry_id)
            .balance(lane.balance)
            .slice_credits(lane.slice_credits)
            .consumed(lane.consumed)
            .head(lane.head.as_slice())
            .lanes(lane.lanes)
            .alert_base(lane.alert_base)
            .recent(recent);
        Some(new)
    });
    debug_assert_eq!(changed, Changed::Yes, "a lane that is locked");
}

/// An entry that is to be inserted.
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
    pub kind: EntryKind,
    pub metric: Option<&'a str>,
    pub source: Option<&'a str>,
    pub source_id: Option<&'a str>,
    pub key: Option<&'a str>,
    pub reason: Option<&'a str>,
    pub actor: Option<&'a str>,
    /// The metadata; None for the empty object.
    pub metadata: Option<Jsonb>,
    pub result: Option<&'a str>,
    pub hash: &'a [u8],
}

impl EntryRow<'_> {
    /// Inserts the entry; false where its key is taken. Where another transaction may be taking the
    /// key, it is looked up among the committed ones first, and only then that transaction is
    /// waited for.
    pub fn insert(&self, entries: &Entries, insertion: Insertion) -> bool {
        let (key_uuid, key_text) = stored_key(self.key);
        let request_id = self.key.map(chain::request_id);
        let row = ledger::New {
            org_id: self.org_id,
            entry_id: self.position.entry_id,
            amount: self.amount,
            balance_after: self.position.balance_after,
            created_at: self.created_at,
            grant_id: self.position.grant_id,
            quantity: stored_quantity(self.kind, self.quantity),
            request_id,
            key_uuid,
            member_id: self.member_id,
            operation_id: stored_operation(self.operation_id, self.position.entry_id),
            request_hash: self.request_hash,
            unit: stored_unit(self.unit),
            kind: stored_kind(self.kind),
            metric: self.metric,
            source: self.source,
            source_id: self.source_id,
            key_text,
            reason: self.reason,
            actor: self.actor,
            metadata: self.metadata,
            result: self.result,
            entry_hash: self.hash,
        };
        match request_id {
            None => {
                entries.insert(&row);
                true
            }
            Some(request_id) => {
                let is_taken = || find_request(self.org_id, request_id).is_some();
                entries.insert_new(&ledger::REQUEST, &row, insertion, is_taken)
            }
        }
    }
}

/// A wallet as a charge reads it before it locks any lane.
#[derive(Debug, Default)]
pub struct WalletSnapshot {
    /// The moment up to which lane 0 allows all credit of the wallet to be spent, and its lanes to
    /// be charged.
    pub fast_until: Moment,
    /// The credit of lanes 1 to n that can be charged, and that of lane 0.
    pub view: View,
    /// The numbers of the lanes that another transaction holds.
    pub held: Vec<i16>,
    /// The credit of all lanes.
    pub total: i64,
    /// The number of lanes.
    pub lanes: i16,
    /// The balance below which an alert may be due.
    pub alert_below: i64,
    /// The balance after the last grant, of which alerts take their shares.
    pub alert_base: i64,
}

impl WalletSnapshot {
    /// The part of the snapshot that lane 0 has.
    fn of(row: lanes::Row<'_>) -> Self {
        let balance = row.balance();
        Self {
            fast_until: row.fast_until(),
            view: View { rest: balance, lanes: Vec::new() },
            held: Vec::new(),
            total: balance,
            lanes: row.lanes(),
            alert_below: row.alert_below(),
            alert_base: row.alert_base(),
        }
    }
}

/// Reads a wallet on one snapshot, and returns the finder with which its lanes can be read again;
/// None where there is no such wallet.
pub fn read_wallet_snapshot<'a>(
    table: &'a Lanes,
    (org_id, unit): (Uuid, &str),
    at: Snapshot,
    now: Moment,
) -> Option<(WalletSnapshot, Finder<'a, lanes::Table>)> {
    let mut key = lanes::one(org_id, unit, 0);
    let mut finder = table.finder(&key, at);
    let mut seen = finder.read(&key, |row, _| WalletSnapshot::of(row))?;
    let last = if seen.lanes > 1 { seen.lanes } else { 0 };
    if last > 0 {
        finder.show_up_to(&lanes::Table::balance);
    }
    for lane in 1..=last {
        key.set_lane(lane);
        let slice = finder.read(&key, |row, is_held| {
            if is_held {
                seen.held.push(lane);
            }
            if row.fresh_until() > now { row.balance() } else { 0 }
        });
        let slice = slice.unwrap_or(0);
        seen.total += slice;
        seen.view.lanes.push(slice);
    }
    Some((seen, finder))
}
