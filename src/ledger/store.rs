//! The statements of the ledger: they lock a wallet, load its grants, and write what the rules have
//! decided.
//!
//! Locks are taken in one order everywhere: lane 0 by (org, unit), other lanes by number, then
//! counters of a period, then members. A row is locked by the statement that reads it, and every
//! writer of a wallet's grants and holds holds lane 0. So the row of lane 0 is the lock of the
//! wallet, under any isolation level. `lanes.rs` says how the other lanes go with it.

use crate::base::error::{Error, Result};
use crate::base::time::{INFINITY, Moment, Period};
use crate::base::words::Word;
use crate::ledger::kind::{EntryKind, HoldStatus};
use crate::ledger::replay::Replay;
use crate::ledger::rows::{self, Entries, EntryRow, Lanes};
use crate::ledger::wallet::{Budget, Entry, Grant, Hold, Lane, MemberDelta, Part, Saved, UnlockedLane, Wallet};
use crate::ledger::{chain, lanes as protocol};
use crate::pg::spi::{self, Db, Row, Timestamptz};
use crate::schema::ledger::{holds, lanes};
use crate::schema::{Changed, Insertion, LockPolicy, Snapshot, Table, at_one_moment};
use crate::{args, statements};
use std::collections::BTreeSet;
use uuid::Uuid;

macro_rules! grant_columns {
    () => {
        "grant_id, amount, remaining, priority, category = 'paid', written_off, source, cost_minor, currency,
         effective_at, expires_at, voided_at is not null, metrics"
    };
}

statements! {
    LOCK_ORGS(uuids) =
        "select from billing_internal.lanes where org_id = any ($1) and lane = 0 order by org_id, unit for update";
    CREATE_SETTINGS(uuid, text, timestamptz) =
        "insert into billing_internal.wallet_settings (org_id, unit, created_at) values ($1, $2, $3) on conflict do nothing";
    // The slot is the org's next: a transaction that loses the race for it inserts nothing, and
    // tries again.
    CREATE_LANE(uuid, text, int2) =
        "insert into billing_internal.lanes (org_id, unit, lane, slot, last_entry_id, recent)
         select $1, $2, $3, s.slot, s.slot::bigint << 40, int8send(s.slot::bigint << 40) || int8send(s.slot::bigint << 40)
           from (select coalesce(max(slot) + 1, 0)::smallint as slot from billing_internal.lanes where org_id = $1) s
         on conflict do nothing";
    LOAD_GRANTS(uuid, text, int8s) = concat!(
        "select ", grant_columns!(), " from billing_internal.grants where org_id = $1 and unit = $2 and remaining > 0
         union all
         select ", grant_columns!(), " from billing_internal.grants
          where org_id = $1 and unit = $2 and remaining = 0 and grant_id = any ($3)");
    // No hold times out before the moment that the lane has noted, so older ones are not searched.
    TIMED_OUT_HOLDS(uuid, text, timestamptz, timestamptz) =
        "select h.hold_id, h.credits, h.member_id, h.created_at, p.grants, p.credits
           from billing.holds h
          cross join lateral (
            select coalesce(array_agg(e.grant_id order by e.entry_id), '{}') as grants,
                   coalesce(array_agg(e.credits order by e.entry_id), '{}') as credits
              from (select entry_id, grant_id, -amount as credits from billing.entries
                     where org_id = h.org_id and entry_id between h.hold_id and h.hold_id + h.parts - 1) e
             where e.grant_id is not null) p
          where h.org_id = $1 and h.unit = $2 and h.status = 'open' and h.expires_at between $4 and $3
          order by h.hold_id";
    // The result may be too early, which only costs a search: of many holds that were closed before
    // their time, no more than a thousand are read.
    NEXT_HOLD_DUE(uuid, text, timestamptz) =
        "select coalesce(min(expires_at) filter (where status = 'open'), max(expires_at) filter (where number = 1000))
           from (select expires_at, status, row_number() over (order by expires_at) as number from billing.holds
                  where org_id = $1 and unit = $2 and expires_at > $3 order by expires_at limit 1000) next";
    // The entries of an operation follow each other in the chain of its lane.
    OPERATION(uuid, int8, int8) =
        "select operation_id, kind, grant_id, -amount, unit, metric, member_id, created_at from billing.entries
          where org_id = $1 and entry_id >= $2 order by entry_id limit $3";
    BUDGETS(uuid, text, uuids) =
        "select member_id, budget, budget_per, period_start, period_consumed from billing.member_usage
          where org_id = $1 and unit = $2 and member_id = any ($3) and budget is not null
          order by member_id for update";
    SAVE_GRANT(uuid, int8, int8, boolean, timestamptz, int8) =
        "update billing_internal.grants
            set remaining = $3, written_off = $6, voided_at = case when $4 then coalesce(voided_at, $5) else voided_at end
          where org_id = $1 and grant_id = $2";
    INSERT_GRANT(uuid, int8, int8, int8, int8, timestamptz, timestamptz, timestamptz, int4, text, text, text, text, texts, jsonb, int8, boolean) =
        "insert into billing_internal.grants (org_id, grant_id, amount, remaining, cost_minor, effective_at, expires_at, created_at,
                                   priority, unit, source, category, currency, metrics, metadata, written_off, voided_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, case when $17 then $8 end)";
    // The figures change by deltas, since a member's row is reached from several lanes at once and
    // a value would overwrite that of another. A period begins with its first call; a call of an
    // earlier period that comes later counts in the newer one. No row is returned where the budget
    // does not suffice.
    SAVE_MEMBER(uuid, text, uuid, int8, int8, timestamptz, timestamptz, timestamptz, boolean) =
        "insert into billing.member_usage as m
                (org_id, unit, member_id, consumed, period_consumed, period_start, last_activity_at)
         values ($1, $2, $3, $4, greatest($5, 0), '-infinity', $6)
         on conflict (org_id, unit, member_id) do update
            set consumed = m.consumed + $4,
                period_consumed = greatest(0, $5 + case
                    when m.period_start < case m.budget_per when 'day' then $7 when 'month' then $8 else '-infinity' end
                    then 0 else m.period_consumed end),
                period_start = greatest(m.period_start,
                    case m.budget_per when 'day' then $7 when 'month' then $8 else '-infinity' end),
                last_activity_at = greatest(m.last_activity_at, $6)
          where not $9 or m.budget is null or $5 <= 0
             or $5 + case
                    when m.period_start < case m.budget_per when 'day' then $7 when 'month' then $8 else '-infinity' end
                    then 0 else m.period_consumed end <= m.budget
         returning true";
}

fn grant(row: &Row) -> Grant {
    let saved = Saved { remaining: row.get(2), written_off: row.get(5), voided: row.get(11) };
    Grant {
        grant_id: row.get(0),
        amount: row.get(1),
        remaining: saved.remaining,
        priority: row.get(3),
        paid: row.get(4),
        written_off: saved.written_off,
        source: row.get(6),
        cost_minor: row.get(7),
        currency: row.opt(8),
        effective_at: row.get(9),
        expires_at: row.opt(10).unwrap_or(INFINITY),
        voided: saved.voided,
        metrics: row.opt(12),
        saved: Some(saved),
    }
}

/// Locks a wallet; None where there is no such wallet.
pub fn lock(org_id: Uuid, unit: &str) -> Option<Lane> {
    rows::lock(org_id, unit, 0, LockPolicy::Wait)
}

/// Locks a wallet; None also where another transaction holds it.
pub fn lock_if_free(org_id: Uuid, unit: &str) -> Option<Lane> {
    rows::lock(org_id, unit, 0, LockPolicy::SkipLocked)
}

/// Locks wallets in the order of locks. Those that do not exist are missing from the result.
fn lock_all(wallets: &[(Uuid, String)]) -> Vec<Lane> {
    let in_order: BTreeSet<_> = wallets.iter().collect();
    in_order.into_iter().filter_map(|(org_id, unit)| lock(*org_id, unit)).collect()
}

/// Reads lane 0 of a wallet without a lock, on the caller's snapshot.
pub fn read_lane_unlocked(org_id: Uuid, unit: &str) -> Option<Lane> {
    rows::read_lane(org_id, unit, Snapshot::Callers)
}

/// Reads lane 0 of a wallet without a lock, as committed by now.
pub fn read_lane(org_id: Uuid, unit: &str) -> Option<Lane> {
    rows::read_lane(org_id, unit, Snapshot::Latest)
}

/// Creates a wallet, unless there is one.
fn create(db: &Db, org_id: Uuid, unit: &str, now: Moment) {
    db.write(&CREATE_SETTINGS, args![org_id, unit, Timestamptz(now)]);
    db.write(&CREATE_LANE, args![org_id, unit, 0_i16]);
}

/// Locks a lane other than 0 of a wallet that is locked; None where there is no such lane, or it is
/// held and `wait` is false.
pub fn lock_other(wallet: &Lane, number: i16, wait: bool) -> Option<Lane> {
    let policy = if wait { LockPolicy::Wait } else { LockPolicy::SkipLocked };
    rows::lock(wallet.org_id, &wallet.unit, number, policy)
}

/// Creates a lane of a wallet that is locked and has no lane of that number.
pub fn create_lane(db: &Db, wallet: &Lane, number: i16) -> Result<()> {
    // A wallet of another unit may take the org's next slot at the same time.
    let made = (0..100).any(|_| db.write(&CREATE_LANE, args![wallet.org_id, &wallet.unit, number]).count() > 0);
    if made { Ok(()) } else { Err(Error::contended()) }
}

/// The credit that lanes other than 0 of a wallet hold, as committed.
fn read_unlocked_lanes(wallet: &Lane, fresh: bool) -> Vec<UnlockedLane> {
    if !wallet.is_split() {
        return Vec::new();
    }
    let mut others = Vec::new();
    at_one_moment(fresh, || {
        Lanes::to_read().each(&lanes::of_wallet(wallet.org_id, &wallet.unit), Snapshot::Callers, |row| {
            if row.lane() > 0 && row.balance() > 0 {
                others.push(UnlockedLane {
                    lane: row.lane(),
                    slice: Part { grant_id: row.slice_grant(), credits: row.slice_credits() },
                    fresh_until: row.fresh_until(),
                });
            }
            true
        });
    });
    others
}

/// The balance of a wallet in all lanes together. Lane 0 must be locked.
pub fn balance(lane: &Lane) -> i64 {
    lane.balance + read_unlocked_lanes(lane, true).iter().map(|away| away.slice.credits).sum::<i64>()
}

/// Reclaims what a lane holds; false where it is held and `wait` is false.
fn reclaim_lane(wallet: &mut Wallet, number: i16, wait: bool) -> Result<bool> {
    let Some(lane) = lock_other(&wallet.lane, number, wait) else { return Ok(false) };
    wallet.reclaim_lane(lane)?;
    Ok(true)
}

/// Reclaims what the lanes hold of which `which` says so, after a wait for their holders.
pub fn reclaim_lanes(wallet: &mut Wallet, which: impl Fn(&UnlockedLane) -> bool) -> Result<()> {
    let numbers: Vec<i16> = wallet.away.iter().filter(|away| which(away)).map(|away| away.lane).collect();
    for number in numbers {
        reclaim_lane(wallet, number, true)?;
    }
    Ok(())
}

/// Reclaims what all lanes hold that are free; false where some were held.
pub fn reclaim_free_lanes(wallet: &mut Wallet) -> Result<bool> {
    let numbers: Vec<i16> = wallet.away.iter().map(|away| away.lane).collect();
    for number in numbers {
        reclaim_lane(wallet, number, false)?;
    }
    Ok(wallet.away.is_empty())
}

/// Makes so much credit spendable for a metric, if the wallet has it: it loads the grants and
/// reclaims lanes. It must be called before members are locked, since those who hold lanes may wait
/// for members.
pub fn ensure_spendable(db: &Db, wallet: &mut Wallet, credits: i64, metric: Option<&str>) -> Result<()> {
    if wallet.grants.is_none() && !wallet.slice_suffices(credits) {
        load(db, wallet, &[])?;
    }
    // Other transactions that have not committed can only have taken credit, so there is no use in
    // waiting for them.
    if wallet.spendable(metric) < credits {
        return Ok(());
    }
    let mut passed = Vec::new();
    loop {
        let wanted = wallet.wanted_lanes(credits, metric, &passed);
        if wanted.is_empty() {
            break;
        }
        for number in wanted {
            if !reclaim_lane(wallet, number, false)? {
                passed.push(number);
            }
        }
    }
    loop {
        // Expired credit cannot be spent, so its lane is not worth a wait.
        let now = wallet.now();
        let live = wallet.away.iter().filter(|away| away.fresh_until > now);
        let away: Vec<_> = live.map(|away| (away.lane, away.slice.credits)).collect();
        let Some((number, wait)) = protocol::next_lane_to_reclaim(wallet.at_hand(metric), &away, credits, &passed)
        else {
            return Ok(());
        };
        if !reclaim_lane(wallet, number, wait)? {
            passed.push(number);
        }
    }
}

/// Refills a lane after a consumption that had to lock the wallet because that lane had too little.
/// Where somebody holds the lane, it stays as it is.
pub fn refill(wallet: &mut Wallet, number: i16, credits: i64) -> Result<()> {
    let is_ours = wallet.lanes.iter().any(|lane| lane.lane.lane == number);
    let in_use = (1..=wallet.lane.lanes).contains(&number);
    if wallet.lane.is_split() && in_use && wallet.grants.is_some() && (is_ours || reclaim_lane(wallet, number, false)?)
    {
        wallet.refill_lane(number, credits)?;
    }
    Ok(())
}

/// Locks all wallets of an org, and creates those of these units that are missing.
pub fn lock_org(db: &Db, org_id: Uuid, units: &[String], now: Moment) -> Result<Vec<Lane>> {
    for _ in 0..100 {
        let lanes = rows::lock_org(org_id);
        let missing: Vec<_> = units.iter().filter(|unit| !lanes.iter().any(|l| l.unit == **unit)).collect();
        if missing.is_empty() {
            return Ok(lanes);
        }
        for unit in missing {
            create(db, org_id, unit, now);
        }
    }
    Err(Error::contended())
}

/// Locks all wallets of orgs, in the order of locks.
pub fn lock_orgs(db: &Db, orgs: Vec<Uuid>) {
    db.write(&LOCK_ORGS, args![orgs]);
}

/// Tells whether the org has any wallet, as committed by now.
pub fn org_exists(org_id: Uuid) -> bool {
    rows::has_wallet(org_id, true)
}

/// Tells whether the org has any wallet on the caller's snapshot, for functions that only read.
pub fn org_was_known(org_id: Uuid) -> bool {
    rows::has_wallet(org_id, false)
}

/// Refuses an org without any wallet.
pub fn require_org(org_id: Uuid) -> Result<()> {
    if org_exists(org_id) { Ok(()) } else { Err(Error::unknown("unknown_org", org_id.to_string())) }
}

/// Locks a wallet, and creates it first where there is none, since a row that is not there cannot
/// be locked.
pub fn lock_or_create(db: &Db, org_id: Uuid, unit: &str, now: Moment) -> Result<Lane> {
    for _ in 0..100 {
        if let Some(lane) = lock(org_id, unit) {
            return Ok(lane);
        }
        create(db, org_id, unit, now);
    }
    Err(Error::contended())
}

/// Locks a wallet of which `required` is to be taken. An org that is known but has no such wallet
/// has too little credit, which is another error than an unknown org.
pub fn lock_known(db: &Db, org_id: Uuid, unit: &str, required: i64, now: Moment) -> Result<Lane> {
    match lock(org_id, unit) {
        Some(lane) => Ok(lane),
        None => {
            require_org(org_id)?;
            // An operation without credit still needs a wallet for its entry.
            if required == 0 { lock_or_create(db, org_id, unit, now) } else { Err(Error::insufficient(required, 0)) }
        }
    }
}

/// Locks wallets of orgs that are known, and creates those that are missing. A new wallet can lose
/// the race for its slot in the org, and is tried again.
pub fn lock_all_or_create(db: &Db, wallets: &[(Uuid, String)], now: Moment) -> Result<Vec<Lane>> {
    for _ in 0..100 {
        let lanes = match wallets {
            [(org_id, unit)] => lock(*org_id, unit).into_iter().collect(),
            _ => lock_all(wallets),
        };
        let is_there = |name: &&(Uuid, String)| lanes.iter().any(|l| l.org_id == name.0 && l.unit == name.1);
        let missing: Vec<_> = wallets.iter().filter(|name| !is_there(name)).collect();
        if missing.is_empty() {
            return Ok(lanes);
        }
        for (org_id, unit) in missing {
            create(db, *org_id, unit, now);
        }
    }
    Err(Error::contended())
}

/// Loads the grants of a wallet that is locked, with credit left or named, and books what has
/// expired and timed out.
pub fn load(db: &Db, wallet: &mut Wallet, named: &[i64]) -> Result<()> {
    load_with(db, wallet, named, true)
}

/// Loads the grants of a wallet on the caller's snapshot, for functions that only read.
pub fn load_read_only(db: &Db, wallet: &mut Wallet) -> Result<()> {
    load_with(db, wallet, &[], false)
}

fn load_with(db: &Db, wallet: &mut Wallet, named: &[i64], locking: bool) -> Result<()> {
    let run = |statement, args: &[_]| if locking { db.write(statement, args) } else { db.read(statement, args) };
    let (org_id, unit, now) = (wallet.lane.org_id, wallet.lane.unit.clone(), wallet.now());
    let mut holds = Vec::new();
    let mut next_due = wallet.lane.holds_due;
    // Without credit in holds none can come back, so a call that only reads need not search for
    // them.
    if next_due <= now && (locking || wallet.lane.reserved > 0) {
        holds = run(&TIMED_OUT_HOLDS, args![org_id, &unit, Timestamptz(now), Timestamptz(next_due)])
            .iter()
            .map(|row| timed_out_hold(&row))
            .collect();
        let due = run(&NEXT_HOLD_DUE, args![org_id, &unit, Timestamptz(now)]);
        next_due = due.first().and_then(|row| row.opt(0)).unwrap_or(INFINITY);
        if locking {
            let members: Vec<Uuid> = holds.iter().filter_map(|h: &Hold| h.member_id).collect();
            // Whoever holds a lane may wait for a member, so the lanes are locked before the
            // members: the other order would deadlock.
            if wallet.lane.is_split() && !members.is_empty() {
                for number in 1..=wallet.lane.lanes {
                    lock_other(&wallet.lane, number, true);
                }
            }
            load_budgets(db, wallet, members);
        }
    }
    let away = read_unlocked_lanes(&wallet.lane, locking);
    let mut ids = named.to_vec();
    ids.push(wallet.lane.slice_grant);
    ids.extend(holds.iter().flat_map(|h| &h.parts).map(|p| p.grant_id));
    ids.extend(away.iter().map(|away| away.slice.grant_id));
    let mut grants: Vec<Grant> = run(&LOAD_GRANTS, args![org_id, &unit, ids]).iter().map(|row| grant(&row)).collect();
    if !locking {
        // A call that only reads takes the credit of all lanes as if it stood in lane 0.
        for away in away {
            if let Some(grant) = grants.iter_mut().find(|grant| grant.grant_id == away.slice.grant_id) {
                grant.remaining += away.slice.credits;
            }
        }
        return wallet.load(grants, &holds, next_due);
    }
    wallet.away = away;
    wallet.load(grants, &holds, next_due)?;
    // The credit that lanes hold of expired grants is booked too. A lane that is held is left for
    // the next time.
    let expired: Vec<i16> = wallet.away.iter().filter(|away| away.fresh_until <= now).map(|away| away.lane).collect();
    for number in expired {
        reclaim_lane(wallet, number, false)?;
    }
    wallet.write_off_dead_grants()
}

fn timed_out_hold(row: &Row) -> Hold {
    let grants: Vec<i64> = row.get(4);
    let credits: Vec<i64> = row.get(5);
    let parts = grants.into_iter().zip(credits).map(|(grant_id, credits)| Part { grant_id, credits });
    Hold {
        hold_id: row.get(0),
        credits: row.get(1),
        member_id: row.opt(2),
        created_at: row.get(3),
        parts: parts.collect(),
    }
}

/// Loads the budgets of members and locks their rows.
pub fn load_budgets(db: &Db, wallet: &mut Wallet, members: Vec<Uuid>) {
    if members.is_empty() {
        return;
    }
    for row in db.write(&BUDGETS, args![wallet.lane.org_id, &wallet.lane.unit, members]).iter() {
        let per: String = row.get(2);
        let budget = Budget {
            limit: row.get(1),
            per: Period::parse(&per).unwrap_or(Period::Total),
            period_start: row.get(3),
            period_consumed: row.get(4),
        };
        wallet.budgets.insert(row.get(0), budget);
    }
}

/// An entry of an operation that is in the ledger.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct PostedEntry {
    pub kind: Option<EntryKind>,
    pub grant_id: Option<i64>,
    /// The credit of the entry, positive where it left the balance.
    pub credits: i64,
    pub unit: String,
    pub metric: Option<String>,
    pub member_id: Option<Uuid>,
    pub created_at: Moment,
}

/// The entries of an operation that is in the ledger, in order; none where there is no such
/// operation.
pub fn past_operation(db: &Db, org_id: Uuid, operation_id: i64) -> Vec<PostedEntry> {
    let mut limit = 16;
    loop {
        let rows = db.write(&OPERATION, args![org_id, operation_id, limit]);
        let entries: Vec<PostedEntry> =
            rows.iter().take_while(|row| row.get::<i64>(0) == operation_id).map(|row| posted_entry(&row)).collect();
        if i64::try_from(entries.len()).unwrap_or(i64::MAX) < limit {
            return entries;
        }
        limit *= 16;
    }
}

fn posted_entry(row: &Row) -> PostedEntry {
    PostedEntry {
        kind: EntryKind::parse(&row.get::<String>(1)),
        grant_id: row.opt(2),
        credits: row.get(3),
        unit: row.get(4),
        metric: row.opt(5),
        member_id: row.opt(6),
        created_at: row.get(7),
    }
}

/// Finds the answer that is stored for a key. A key with the same hash as another one is refused,
/// or the answer of another request would be replayed.
pub fn find_replay(org_id: Uuid, key: &str) -> Result<Option<Replay>> {
    let request_id = chain::request_id(key);
    match rows::find_request(org_id, request_id) {
        Some(found) if found.key.as_deref() != Some(key) => Err(Error::idempotency_conflict(key)),
        found => Ok(found),
    }
}

/// The error of a call whose key another call has taken.
pub fn key_is_taken(wallets: &[Wallet]) -> Error {
    let entries = || wallets.iter().flat_map(|wallet| &wallet.entries);
    let key = entries().find_map(|entry| entry.request().map(|r| r.key.clone())).unwrap_or_default();
    Error::idempotency_conflict(&key)
}

/// Closes the wallets for writing, and inserts their entries. False, with nothing written, where a
/// call in another lane has taken a key meanwhile.
pub fn write_entries(wallets: &mut [Wallet]) -> Result<bool> {
    for wallet in wallets.iter_mut() {
        // New credit that is spent before what the lanes hold must go first from now on, so those
        // lanes are reclaimed, but for the ones that are held just now.
        for number in wallet.later_lanes() {
            reclaim_lane(wallet, number, false)?;
        }
        wallet.close();
    }
    let all: Vec<&Wallet> = wallets.iter().flat_map(|wallet| std::iter::once(wallet).chain(&wallet.lanes)).collect();
    // An identical call in another lane is not kept out by our lock.
    let may_be_taken = wallets
        .iter()
        .any(|w| (w.lane.is_split() || !w.lanes.is_empty()) && w.entries.iter().any(|e| e.request().is_some()));
    if may_be_taken {
        return Ok(spi::in_subtransaction(|| insert_entries(&all) == Inserted::All));
    }
    match insert_entries(&all) {
        Inserted::All => Ok(true),
        Inserted::Nothing => Ok(false),
        // The error rolls back the entries that were inserted.
        Inserted::Some => Err(key_is_taken(wallets)),
    }
}

/// Saves the rows of a wallet: its lane, its grants, and its holds that timed out. `kept` is the
/// lane summary for the lane's row.
pub fn save_wallet(db: &Db, wallet: &Wallet, kept: Option<&[u8]>, metadata_of_grants: &str) {
    let lane = &wallet.lane;
    let now = Timestamptz(wallet.now());
    let is_changed = !wallet.entries.is_empty() || wallet.grants.is_some() || lane.lane > 0;
    if is_changed {
        rows::save(lane, kept);
    }
    for (grant, saved) in wallet.grants_to_save() {
        if grant.saved.is_none() {
            db.write(
                &INSERT_GRANT,
                args![
                    lane.org_id,
                    grant.grant_id,
                    grant.amount,
                    saved.remaining,
                    grant.cost_minor,
                    Timestamptz(grant.effective_at),
                    (grant.expires_at != INFINITY).then_some(Timestamptz(grant.expires_at)),
                    now,
                    grant.priority,
                    &lane.unit,
                    &grant.source,
                    if grant.paid { "paid" } else { "promotional" },
                    grant.currency.as_deref(),
                    grant.metrics.clone(),
                    crate::pg::jsonb::from_text(metadata_of_grants),
                    saved.written_off,
                    saved.voided,
                ],
            );
        } else {
            db.write(
                &SAVE_GRANT,
                args![lane.org_id, grant.grant_id, saved.remaining, saved.voided, now, saved.written_off],
            );
        }
    }
    for (hold_id, operation_id) in &wallet.expired_holds {
        close_hold(lane.org_id, *hold_id, HoldStatus::Expired, wallet.now(), *operation_id);
    }
}

/// Adds the changes of a wallet to its members' figures. The rules have checked their budgets, with
/// the rows locked.
pub fn save_members(db: &Db, wallet: &Wallet) {
    for (member_id, delta) in &wallet.members {
        save_member(db, wallet.lane.org_id, &wallet.lane.unit, *member_id, delta, wallet.now(), false);
    }
}

/// Adds to a member's figures; false where the budget is to be kept and does not suffice.
pub fn save_member(
    db: &Db,
    org_id: Uuid,
    unit: &str,
    member_id: Uuid,
    delta: &MemberDelta,
    now: Moment,
    keep_budget: bool,
) -> bool {
    let (day, month) = (Timestamptz(Period::Day.start(now)), Timestamptz(Period::Month.start(now)));
    let active_at = delta.active_at.map(Timestamptz);
    let arguments = args![org_id, unit, member_id, delta.consumed, delta.period, active_at, day, month, keep_budget];
    db.write(&SAVE_MEMBER, arguments).count() == 1
}

/// Closes a hold of a wallet that is locked; false where the hold is not open.
pub fn close_hold(org_id: Uuid, hold_id: i64, status: HoldStatus, now: Moment, operation_id: i64) -> bool {
    let holds = Table::<holds::Table>::to_update();
    let changed = holds.update(&holds::one(org_id, hold_id), LockPolicy::AlreadyHeld, |row| {
        let closed = || holds::Set::new().status(status.name()).closed_at(Some(now)).closed_by(Some(operation_id));
        (HoldStatus::parse(row.status()) == Some(HoldStatus::Open)).then(closed)
    });
    changed == Changed::Yes
}

fn insert_entry(entries: &Entries, wallet: &Wallet, entry: &Entry, insertion: Insertion) -> bool {
    let (context, request) = (&entry.context, entry.request());
    let row = EntryRow {
        org_id: wallet.lane.org_id,
        operation_id: entry.operation_id,
        position: entry.position,
        amount: entry.amount,
        created_at: wallet.now(),
        quantity: context.quantity,
        request_hash: request.and_then(|r| r.hash),
        member_id: context.member_id,
        unit: &wallet.lane.unit,
        kind: entry.kind,
        metric: context.metric.as_deref(),
        source: context.source.as_deref(),
        source_id: context.source_id.as_deref(),
        key: request.map(|r| r.key.as_str()),
        reason: context.reason.as_deref(),
        actor: context.actor.as_deref(),
        metadata: rows::stored_metadata(&context.metadata).map(crate::pg::jsonb::from_text),
        result: entry.result.as_deref(),
        hash: &entry.hash,
    };
    row.insert(entries, insertion)
}

/// The result of inserting the entries of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inserted {
    /// All entries were inserted.
    All,
    /// A key was taken, after entries with other keys had been inserted.
    Some,
    /// The only key was taken, so nothing was inserted.
    Nothing,
}

fn insert_entries(wallets: &[&Wallet]) -> Inserted {
    let all = || wallets.iter().copied().flat_map(|wallet| wallet.entries.iter().map(move |entry| (wallet, entry)));
    if all().next().is_none() {
        return Inserted::All;
    }
    // In a wallet that is not split, another call with the same key waits for lane 0, so no two
    // insert it at once.
    let is_split = wallets.iter().any(|wallet| wallet.lane.lane > 0 || wallet.lane.is_split());
    let insertion = if is_split { Insertion::Speculative } else { Insertion::Plain };
    let entries = Entries::to_insert();
    // Entries with a key are inserted first, so nothing is written where the only key is taken.
    for (wallet, entry) in all().filter(|(_, entry)| entry.request().is_some()) {
        if !insert_entry(&entries, wallet, entry, insertion) {
            let is_only = all().filter(|(_, entry)| entry.request().is_some()).nth(1).is_none();
            return if is_only { Inserted::Nothing } else { Inserted::Some };
        }
    }
    for (wallet, entry) in all().filter(|(_, entry)| entry.request().is_none()) {
        insert_entry(&entries, wallet, entry, insertion);
    }
    Inserted::All
}
