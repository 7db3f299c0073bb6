//! Lanes and entries row by row: what the shortest calls look at and write, and how the ledger stores what an entry says.

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

/// Whether an org has any wallet. `fresh`: as of this very moment, for a call that holds locks.
pub fn has_wallet(org_id: Uuid, fresh: bool) -> bool {
    at_one_moment(fresh, || {
        let table = Lanes::to_read();
        // Most have this one.
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

/// The entry that took a key, if there is one.
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

// What the ledger leaves out.
const NO_METADATA: &str = "{}";

/// The unit of an entry, as it is stored.
fn stored_unit(unit: &str) -> Option<&str> {
    (unit != units::CREDIT).then_some(unit)
}

/// The kind of an entry, as it is stored.
fn stored_kind(kind: EntryKind) -> Option<&'static str> {
    (kind != EntryKind::Usage).then(|| kind.name())
}

/// The kind of a stored entry.
pub fn kind_of(row: ledger::Row<'_>) -> &str {
    row.kind().unwrap_or(EntryKind::Usage.name())
}

/// The quantity of an entry, as it is stored: of usage, which cannot be 0, nothing stands for 1, and 0 for nothing.
fn stored_quantity(kind: EntryKind, quantity: Option<i64>) -> Option<i64> {
    if kind == EntryKind::Usage { Some(quantity.unwrap_or(0)).filter(|quantity| *quantity != 1) } else { quantity }
}

/// The quantity of a stored entry.
pub fn quantity_of(row: ledger::Row<'_>) -> Option<i64> {
    let stored = row.quantity();
    if row.kind().is_some() { stored } else { Some(stored.unwrap_or(1)).filter(|quantity| *quantity != 0) }
}

/// The metadata of an entry, as they are stored.
pub fn stored_metadata(metadata: &str) -> Option<&str> {
    (metadata != NO_METADATA).then_some(metadata)
}

/// The operation of an entry, as it is stored.
fn stored_operation(operation_id: i64, entry_id: i64) -> Option<i64> {
    (operation_id != entry_id).then_some(operation_id)
}

/// The operation of a stored entry.
pub fn operation_of(row: ledger::Row<'_>) -> i64 {
    row.operation_id().unwrap_or_else(|| row.entry_id())
}

/// An idempotency key as it is stored: a UUID takes less than half the room of its text.
fn stored_key(key: Option<&str>) -> (Option<Uuid>, Option<&str>) {
    let is_same = |uuid: &Uuid, key: &str| uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == key;
    match key.and_then(|key| Uuid::try_parse(key).ok().filter(|uuid| is_same(uuid, key))) {
        Some(uuid) => (Some(uuid), None),
        None => (None, key),
    }
}

/// Locks a lane; None where there is none, or somebody holds it and is not waited for.
pub fn lock(org_id: Uuid, unit: &str, number: i16, policy: LockPolicy) -> Option<Lane> {
    Lanes::to_update().lock(&lanes::one(org_id, unit, number), policy, lane)
}

/// Locks all wallets of an org, in the one order.
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

/// A wallet's lane 0 without a lock.
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

/// What a lane knows of the entries that are not folded.
pub fn recent(row: lanes::Row<'_>) -> Option<LaneSummary> {
    LaneSummary::of_lane(row.recent(), row.last_entry_id())
}

/// Lets a lane that is locked know it.
pub fn keep_recent(org_id: Uuid, unit: &str, recent: &LaneSummary) {
    let _changed = Lanes::to_update().update(&lanes::one(org_id, unit, 0), LockPolicy::AlreadyHeld, |_| {
        Some(lanes::Set::new().recent(recent.encode().as_deref()))
    });
}

/// Writes a lane that is locked.
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
    pub kind: EntryKind,
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
    /// Inserts the entry; false where its key is taken. Before whoever is just taking it is waited for, it is looked for among those that
    /// are taken.
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

/// Looks at a wallet at one moment, and gives what can look at it again; None where there is none.
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
