//! Holds: two-phase spending (reserve, then capture or release), and credit that is locked for a
//! payout.

use crate::alerts::sync::sync_caps;
use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::base::units;
use crate::base::words::Word;
use crate::call::{Answer, Call, Key};
use crate::catalog::cache::{self, Metric};
use crate::catalog::price::{self, Price};
use crate::ledger::chain::{self, HoldTerms};
use crate::ledger::kind::{EntryKind, HoldKind, HoldStatus};
use crate::ledger::store;
use crate::ledger::wallet::{EntryContext, Hold, Operation, Part, Wallet, split};
use crate::limits::caps::{self, Caps};
use crate::pg::arguments::{optional_uuid, positive, reason, required, required_uuid, unit};
use crate::pg::jsonb::Jsonb;
use crate::pg::raise::or_raise;
use crate::pg::spi::Db;
use crate::schema::ledger::holds;
use crate::schema::{Snapshot, Table};
use crate::spending::consumption::Consumption;
use crate::usage::counters::{self, Metered};
use crate::usage::tally::Charge;
use crate::{access, receipt};
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::rc::Rc;
use uuid::Uuid;

/// The longest time for which credit may be reserved, in microseconds.
const LONGEST_TTL: i64 = 366 * 24 * 3600 * 1_000_000;

/// The end of the year 9999: nothing is reserved later, where adding a time might leave the
/// calendar.
const END_OF_TIME: Moment = 252_455_616_000_000_000;

receipt! {
    /// The answer of the functions that set credit aside or give it back.
    #[derive(Serialize, Deserialize)]
    HoldReceipt as "hold_receipt" {
        hold_id: i64,
        credits: i64,
        expires_at: Option<i64>,
        balance_after: i64,
        replayed: bool,
    }
}
impl Answer for HoldReceipt {
    fn set_replayed(&mut self) {
        self.replayed = true;
    }
}

/// A hold as the table has it.
struct Stored {
    hold_id: i64,
    unit: String,
    kind: HoldKind,
    status: HoldStatus,
    metric: Option<String>,
    quantity: Option<i64>,
    credits: i64,
    member_id: Option<Uuid>,
    expires_at: Option<Moment>,
    created_at: Moment,
    /// The price at the time of the reservation; None: free.
    price: Option<Price>,
    /// The grant that it took from, if that was only one.
    grant_id: Option<i64>,
}

fn find(org_id: Uuid, hold_id: i64) -> Result<Stored> {
    let text = |text: Option<&str>| text.map(str::to_owned);
    let found = Table::<holds::Table>::to_read().find(&holds::one(org_id, hold_id), Snapshot::Latest, |row| {
        Ok(Stored {
            hold_id,
            unit: row.unit().to_owned(),
            kind: HoldKind::parse(row.kind()).ok_or(Error::corrupt("a hold has an unknown kind"))?,
            status: HoldStatus::parse(row.status()).ok_or(Error::corrupt("a hold has an unknown status"))?,
            metric: text(row.metric()),
            quantity: row.quantity(),
            credits: row.credits(),
            member_id: row.member_id(),
            expires_at: row.expires_at(),
            created_at: row.created_at(),
            price: price(row.price().map(Jsonb::text))?,
            grant_id: row.grant_id(),
        })
    });
    found.unwrap_or_else(|| {
        store::require_org(org_id)?;
        Err(Error::unknown("unknown_hold", hold_id))
    })
}

fn price(text: Option<String>) -> Result<Option<Price>> {
    let unreadable = |_| Error::corrupt("the price of a hold cannot be read");
    text.map(|text| serde_json::from_str(&text).map_err(unreadable)).transpose()
}

impl Stored {
    /// Refuses a hold that no longer binds credit. Its lane must be locked.
    fn require_open(&self, now: Moment) -> Result<()> {
        if self.status != HoldStatus::Open {
            return Err(Error::hold_closed(self.hold_id, self.status.name()));
        }
        if self.expires_at.is_some_and(|at| at <= now) {
            return Err(Error::hold_closed(self.hold_id, HoldStatus::Expired.name()));
        }
        Ok(())
    }

    /// The moment at which the key of a capture is looked up. If the cost does not depend on
    /// earlier usage, the hold is all that is written besides the entries, and the first of those
    /// may take the key.
    fn key(&self, db: &Db) -> Result<Key> {
        let Some(metric) = &self.metric else { return Ok(Key::First) };
        let is_plain = cache::any_metric(db, metric)?.is_plain(self.price.as_ref());
        Ok(if is_plain { Key::WithEntry } else { Key::First })
    }

    fn is_payout(&self) -> bool {
        self.kind == HoldKind::Payout
    }
}

/// Writes the row of a hold.
fn make(wallet: &Wallet, hold_id: i64, terms: &HoldTerms<'_>, grant_id: Option<i64>, reason: Option<&str>) {
    let org_id = wallet.lane.org_id;
    let row = holds::New {
        org_id,
        hold_id,
        credits: terms.credits,
        quantity: terms.quantity,
        member_id: terms.member_id,
        expires_at: terms.expires_at,
        created_at: terms.created_at,
        closed_at: None,
        closed_by: None,
        parts: terms.parts,
        unit: &wallet.lane.unit,
        kind: terms.kind,
        status: HoldStatus::Open.name(),
        metric: terms.metric,
        reason,
        price: terms.price.map(crate::pg::jsonb::from_known_text),
        grant_id,
    };
    Table::<holds::Table>::to_insert().insert_as(&holds::one(org_id, hold_id), &row);
}

/// The number of entries that took these parts: one per grant, and one for nothing.
fn entries_of(parts: &[Part]) -> i32 {
    i32::try_from(parts.len()).unwrap_or(i32::MAX).max(1)
}

/// The grant of the parts, if it is only one.
fn only_grant(parts: &[Part]) -> Option<i64> {
    if let [part] = parts { Some(part.grant_id) } else { None }
}

/// The grants that a hold took from, in the recorded order.
fn parts_of(db: &Db, org_id: Uuid, hold: &Stored) -> Vec<Part> {
    if let Some(grant_id) = hold.grant_id {
        return vec![Part { grant_id, credits: hold.credits }];
    }
    if hold.credits == 0 {
        return Vec::new();
    }
    store::past_operation(db, org_id, hold.hold_id)
        .into_iter()
        .filter(|e| matches!(e.kind, Some(EntryKind::Hold | EntryKind::PayoutHold)))
        .filter_map(|e| e.grant_id.map(|grant_id| Part { grant_id, credits: e.credits }))
        .collect()
}

fn from_hold(hold: &Stored) -> EntryContext {
    EntryContext { member_id: hold.member_id, ..EntryContext::from_source("hold", Some(hold.hold_id.to_string())) }
}

/// Reserves what `quantity` of a metric costs now, for at most `ttl`.
///
/// The credit counts as gone at once; capture charges what was really used, release gives it back,
/// and when the time is over it is free again by itself. `ttl`: above zero, at most a year. Errors:
/// as `consume_credits`.
#[pg_extern(volatile)]
fn reserve_credits(
    org_id: Option<pgrx::Uuid>,
    metric: Option<&str>,
    quantity: Option<i64>,
    ttl: default!(Option<Interval>, "'15 minutes'"),
    idempotency_key: default!(Option<&str>, "NULL"),
    member_id: default!(Option<pgrx::Uuid>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> HoldReceipt {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let metric = required("metric", metric)?;
        let quantity = positive("quantity", quantity)?;
        let ttl = required("ttl", ttl)?;
        let member_id = optional_uuid(member_id);
        let ttl_text = format!("{}/{}/{}", ttl.months(), ttl.days(), ttl.micros());
        let arguments = [metric.to_owned(), quantity.to_string(), ttl_text, format!("{member_id:?}")];
        let arguments: Vec<_> = arguments.iter().map(|a| Some(a.as_str())).collect();
        let call = Call::new(org_id, "reserve_credits", &arguments, idempotency_key, metadata)?;
        let price = RefCell::new(None);
        call.run_then(
            |db, now| {
                let known = cache::metric(db, metric)?;
                let found = cache::price(db, &known, Some(org_id), now)?;
                let unit = found.as_ref().map_or(units::CREDIT, |p| p.unit.as_str());
                let is_plain = known.is_plain(found.as_deref());
                let lane = if is_plain {
                    let credits = found.as_ref().map_or(Ok(0), |p| p.charge(0, quantity).map_err(price::too_large))?;
                    store::lock_known(db, org_id, unit, credits, now)
                } else {
                    // It may cost nothing, which only the counters can tell.
                    if cache::default_plan(db)?.0.is_none() {
                        store::require_org(org_id)?;
                    }
                    store::lock_or_create(db, org_id, unit, now)
                };
                *price.borrow_mut() = found;
                Ok((lane?, if is_plain { Key::WithEntry } else { Key::First }))
            },
            |db, wallet| {
                let now = wallet.now();
                let expires_at = expiry(now, &ttl)?;
                let price = price.take();
                let known = cache::metric(db, metric)?;
                let metered = lock_metered(db, org_id, &known, price.as_deref(), now)?;
                let charge = charge(metered.as_ref(), &known, quantity, price.as_deref())?;
                let credits = charge.credits;
                let mut caps = Caps::lock(db, &[(org_id, Rc::clone(&known), member_id)], now)?;
                caps.check(org_id, &known, member_id, quantity)?;
                caps.add(org_id, &known, member_id, quantity);
                store::ensure_spendable(db, wallet, credits, Some(metric))?;
                store::load_budgets(db, wallet, member_id.into_iter().collect());
                wallet.check_budget(member_id, credits)?;
                let parts = wallet.allocate(credits, Some(metric))?;
                let mut operation = call.operation(EntryContext {
                    metric: Some(metric.to_owned()),
                    quantity: Some(quantity),
                    member_id,
                    ..EntryContext::default()
                });
                wallet.take(&mut operation, EntryKind::Hold, &parts)?;
                wallet.lane.reserved += credits;
                wallet.lane.holds_due = wallet.lane.holds_due.min(expires_at);
                wallet.note_member(member_id, 0, credits, Some(now));
                let hold_id = operation.id();
                let price = price.as_deref().and_then(|p| serde_json::to_string(p).ok());
                let terms = HoldTerms {
                    kind: HoldKind::Usage.name(),
                    credits,
                    parts: entries_of(&parts),
                    expires_at: Some(expires_at),
                    created_at: now,
                    metric: Some(metric),
                    quantity: Some(quantity),
                    member_id,
                    price: None,
                };
                wallet.bind_terms_hash(hold_id, chain::hold_terms(&HoldTerms { price: price.as_deref(), ..terms }));
                let grant_id = only_grant(&parts);
                let then = move |db: &Db, wallet: &Wallet| {
                    caps.save(db);
                    sync_caps(db, &caps)?;
                    make(wallet, hold_id, &HoldTerms { price: price.as_deref(), ..terms }, grant_id, None);
                    Ok(())
                };
                let balance_after = wallet.spendable(Some(metric));
                let receipt =
                    HoldReceipt { hold_id, credits, expires_at: Some(expires_at), balance_after, replayed: false };
                Ok((operation, receipt, then))
            },
        )
    }))
}

/// The counter of a metric, if its cost depends on earlier usage.
fn lock_metered(
    db: &Db,
    org_id: Uuid,
    metric: &Rc<Metric>,
    price: Option<&Price>,
    now: Moment,
) -> Result<Option<Metered>> {
    if metric.is_plain(price) {
        return Ok(None);
    }
    Ok(counters::lock_metered(db, &[(org_id, Rc::clone(metric))], now)?.pop_first().map(|(_, metered)| metered))
}

/// The charge for a quantity, after what was used in the period.
fn charge(metered: Option<&Metered>, metric: &Metric, quantity: i64, price: Option<&Price>) -> Result<Charge> {
    match (metered, price) {
        (Some(metered), price) => metered.charge(metric, quantity, price),
        (None, None) => Ok(Charge::default()),
        (None, Some(price)) => {
            let credits = price.charge(0, quantity).map_err(price::too_large)?;
            Ok(Charge { credits, ..Charge::default() })
        }
    }
}

fn expiry(now: Moment, ttl: &Interval) -> Result<Moment> {
    let bad = || Error::invalid("ttl", "must be above zero and at most a year");
    // This is more than any ttl may be, and far from where adding it would overflow.
    if ttl.months().unsigned_abs() > 12
        || ttl.days().unsigned_abs() > 366
        || ttl.micros().unsigned_abs() > LONGEST_TTL.unsigned_abs()
        || now > END_OF_TIME
    {
        return Err(bad());
    }
    let start = TimestampWithTimeZone::try_from(now).map_err(|_| bad())?;
    let end = Moment::from(start + *ttl);
    if end <= now || end - now > LONGEST_TTL { Err(bad()) } else { Ok(end) }
}

/// Charges what a reserved request really used: up to what was reserved, or beyond.
///
/// `quantity`: null as reserved. The price is that of the moment of the reservation. What was
/// reserved and not used goes back to its grants; credit that expired after it was reserved can
/// still be captured. `beyond`, when it costs more than was reserved: charge burns the difference
/// as a consumption would, refuse is PT409 `capture_exceeds`. Errors: PT409 `hold_closed`; PT404
/// `unknown_hold`; else as `consume_credits`. A refused capture leaves the hold open.
#[pg_extern(volatile)]
fn capture_credits(
    org_id: Option<pgrx::Uuid>,
    hold_id: Option<i64>,
    quantity: default!(Option<i64>, "NULL"),
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
    beyond: default!(Option<&str>, "'charge'"),
) -> Consumption {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let hold_id = required("hold_id", hold_id)?;
        let quantity = quantity.map(|q| positive("quantity", Some(q))).transpose()?;
        let beyond = required("beyond", beyond)?;
        if beyond != "charge" && beyond != "refuse" {
            return Err(Error::invalid("beyond", "must be charge or refuse"));
        }
        let arguments = [hold_id.to_string(), format!("{quantity:?}"), beyond.to_owned()];
        let arguments: Vec<_> = arguments.iter().map(|a| Some(a.as_str())).collect();
        let call = Call::new(org_id, "capture_credits", &arguments, idempotency_key, metadata)?;
        let found = RefCell::new(None);
        call.run_then(
            |db, _| {
                // Nothing of a hold changes but whether it is open, so it may be read before the
                // lock.
                let hold = find(org_id, hold_id)?;
                let lane = store::lock(org_id, &hold.unit).ok_or(Error::corrupt("a hold without a wallet"))?;
                let key = hold.key(db)?;
                *found.borrow_mut() = Some(hold);
                Ok((lane, key))
            },
            |db, wallet| {
                let hold = found.take().ok_or(Error::corrupt("a hold that was not looked at"))?;
                let now = wallet.now();
                let is_open = move |_db: &Db| find(org_id, hold_id)?.require_open(now);
                let (operation, answer) = hold
                    .require_open(now)
                    .and_then(|()| capture(db, wallet, &call, &hold, quantity, beyond))
                    .map_err(|error| is_open(db).err().unwrap_or(error))?;
                let operation_id = operation.id();
                let then = move |db: &Db, _: &Wallet| {
                    if store::close_hold(org_id, hold_id, HoldStatus::Captured, now, operation_id) {
                        return Ok(());
                    }
                    // Another call closed it while this one waited for the wallet.
                    is_open(db)?;
                    Err(Error::contended())
                };
                Ok((operation, answer, then))
            },
        )
    }))
}

fn capture(
    db: &Db,
    wallet: &mut Wallet,
    call: &Call,
    hold: &Stored,
    quantity: Option<i64>,
    beyond: &str,
) -> Result<(Operation, Consumption)> {
    let (Some(metric), Some(reserved_quantity), false) = (&hold.metric, hold.quantity, hold.is_payout()) else {
        return Err(Error::invalid("hold_id", "is a payout hold: use pay_out or release_credits"));
    };
    let quantity = quantity.unwrap_or(reserved_quantity);
    let price = hold.price.as_ref();
    let known = cache::any_metric(db, metric)?;
    let metered = lock_metered(db, call.org_id, &known, price, wallet.now())?;
    let charge = charge(metered.as_ref(), &known, quantity, price)?;
    let credits = charge.credits;
    if credits > hold.credits && beyond == "refuse" {
        return Err(Error::capture_exceeds(hold.credits, credits));
    }
    let parts = parts_of(db, call.org_id, hold);
    let in_slice = parts.iter().all(|p| p.grant_id == wallet.lane.slice_grant);
    let beyond = (credits - hold.credits).max(0);
    if !(in_slice && wallet.slice_suffices(beyond)) {
        // Another call may have closed it while this one waited for the wallet; then its grants
        // have their credit back.
        find(call.org_id, hold.hold_id)?.require_open(wallet.now())?;
        let named: Vec<i64> = parts.iter().map(|p| p.grant_id).collect();
        store::load(db, wallet, &named)?;
        store::ensure_spendable(db, wallet, beyond, Some(metric))?;
    }
    caps::give_back(db, call.org_id, vec![hold.hold_id], Some(quantity))?;
    store::load_budgets(db, wallet, hold.member_id.into_iter().collect());
    // The part of the hold that counted in an earlier period is no part of this period's budget.
    let still_counted = wallet.still_counted(&plain(hold));
    wallet.check_budget(hold.member_id, credits - still_counted)?;
    let balance_before = wallet.spendable(Some(metric));
    let context = EntryContext { metric: Some(metric.clone()), quantity: Some(quantity), ..from_hold(hold) };
    let mut operation = call.operation(context);
    wallet.give_back(&mut operation, EntryKind::Release, &parts)?;
    wallet.lane.reserved -= hold.credits;

    let (mine, excess) = split(&parts, credits);
    wallet.note_member(hold.member_id, 0, -still_counted, None);
    if excess > 0 {
        if !mine.is_empty() {
            wallet.consume(&mut operation, &mine, credits - excess)?;
        }
        let rest = wallet
            .allocate(excess, Some(metric))
            .map_err(|_| Error::insufficient(credits, hold.credits + wallet.spendable(Some(metric))))?;
        wallet.consume(&mut operation, &rest, excess)?;
    } else {
        wallet.consume(&mut operation, &mine, credits)?;
    }
    wallet.write_off_dead_grants()?;
    if let Some(mut metered) = metered {
        metered.take(charge, price)?;
        counters::save(&[&metered.counter]);
    }
    let answer = Consumption {
        operation_id: operation.id(),
        metric: metric.clone(),
        quantity,
        included: charge.included,
        credits,
        balance_before,
        balance_after: wallet.spendable(Some(metric)),
        replayed: false,
    };
    Ok((operation, answer))
}

fn plain(hold: &Stored) -> Hold {
    Hold {
        hold_id: hold.hold_id,
        credits: hold.credits,
        member_id: hold.member_id,
        created_at: hold.created_at,
        parts: Vec::new(),
    }
}

/// Gives the credit of an open hold, reserved or locked, back to the grants that it came from.
///
/// Errors: PT404 `unknown_hold`; PT409 `hold_closed`.
#[pg_extern(volatile)]
fn release_credits(org_id: Option<pgrx::Uuid>, hold_id: Option<i64>) -> HoldReceipt {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let hold_id = required("hold_id", hold_id)?;
        let call = Call::new(org_id, "release_credits", &[], None, None)?;
        call.run(
            |_db, _| lock_of(org_id, hold_id),
            |db, wallet| {
                let hold = find(org_id, hold_id)?;
                hold.require_open(wallet.now())?;
                let kind = if hold.is_payout() { EntryKind::PayoutRelease } else { EntryKind::Release };
                let operation = give_back(db, wallet, &call, &hold, kind)?;
                if !hold.is_payout() {
                    caps::give_back(db, org_id, vec![hold_id], None)?;
                    store::load_budgets(db, wallet, hold.member_id.into_iter().collect());
                    let counted = wallet.still_counted(&plain(&hold));
                    wallet.note_member(hold.member_id, 0, -counted, None);
                }
                wallet.write_off_dead_grants()?;
                Ok(close(wallet, operation, &hold, HoldStatus::Released))
            },
        )
    }))
}

fn lock_of(org_id: Uuid, hold_id: i64) -> Result<crate::ledger::wallet::Lane> {
    let unit = find(org_id, hold_id)?.unit;
    store::lock(org_id, &unit).ok_or(Error::corrupt("a hold without a wallet"))
}

fn give_back(db: &Db, wallet: &mut Wallet, call: &Call, hold: &Stored, kind: EntryKind) -> Result<Operation> {
    let parts = parts_of(db, call.org_id, hold);
    let named: Vec<i64> = parts.iter().map(|p| p.grant_id).collect();
    store::load(db, wallet, &named)?;
    let context = EntryContext { metric: hold.metric.clone(), quantity: hold.quantity, ..from_hold(hold) };
    let mut operation = call.operation(context);
    wallet.give_back(&mut operation, kind, &parts)?;
    if hold.is_payout() {
        wallet.lane.locked -= hold.credits;
    } else {
        wallet.lane.reserved -= hold.credits;
    }
    Ok(operation)
}

fn close(wallet: &Wallet, operation: Operation, hold: &Stored, status: HoldStatus) -> (Operation, HoldReceipt) {
    store::close_hold(wallet.lane.org_id, hold.hold_id, status, wallet.now(), operation.id());
    let receipt = HoldReceipt {
        hold_id: hold.hold_id,
        credits: hold.credits,
        expires_at: hold.expires_at,
        balance_after: wallet.spendable(hold.metric.as_deref()),
        replayed: false,
    };
    (operation, receipt)
}

/// Locks credit that is to be paid out, without a time limit.
///
/// `amount`: from 1, of general credit. Then `pay_out` or `release_credits`. Errors: PT402
/// `insufficient_credits`; PT404 `unknown_org`; PT409 `idempotency_conflict`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn lock_credits(
    org_id: Option<pgrx::Uuid>,
    amount: Option<i64>,
    reason: Option<&str>,
    unit: default!(Option<&str>, "'credit'"),
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> HoldReceipt {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let amount = positive("amount", amount)?;
        let reason = self::reason(reason)?;
        let unit = self::unit(unit)?;
        let text = amount.to_string();
        let call =
            Call::new(org_id, "lock_credits", &[Some(&text), Some(&reason), Some(unit)], idempotency_key, metadata)?;
        call.run(
            |db, now| store::lock_known(db, org_id, unit, amount, now),
            |db, wallet| {
                store::ensure_spendable(db, wallet, amount, None)?;
                let parts = wallet.allocate(amount, None)?;
                let context = EntryContext {
                    reason: Some(reason.clone()),
                    actor: Some(crate::access::actor()),
                    ..EntryContext::default()
                };
                let mut operation = call.operation(context);
                wallet.take(&mut operation, EntryKind::PayoutHold, &parts)?;
                wallet.lane.locked += amount;
                let hold_id = operation.id();
                let terms = HoldTerms {
                    kind: HoldKind::Payout.name(),
                    credits: amount,
                    parts: entries_of(&parts),
                    expires_at: None,
                    created_at: wallet.now(),
                    metric: None,
                    quantity: None,
                    member_id: None,
                    price: None,
                };
                wallet.bind_terms_hash(hold_id, chain::hold_terms(&terms));
                make(wallet, hold_id, &terms, only_grant(&parts), Some(&reason));
                let balance_after = wallet.spendable(None);
                Ok((
                    operation,
                    HoldReceipt { hold_id, credits: amount, expires_at: None, balance_after, replayed: false },
                ))
            },
        )
    }))
}

/// Lets locked credit leave: it was paid out.
///
/// Errors: PT404 `unknown_hold`; PT409 `hold_closed`, `idempotency_conflict`; 22023 for a usage
/// hold.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn pay_out(
    org_id: Option<pgrx::Uuid>,
    hold_id: Option<i64>,
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> HoldReceipt {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let hold_id = required("hold_id", hold_id)?;
        let call = Call::new(org_id, "pay_out", &[Some(&hold_id.to_string())], idempotency_key, metadata)?;
        call.run(
            |_db, _| lock_of(org_id, hold_id),
            |db, wallet| {
                let hold = find(org_id, hold_id)?;
                if !hold.is_payout() {
                    return Err(Error::invalid("hold_id", "is a usage hold: use capture_credits or release_credits"));
                }
                hold.require_open(wallet.now())?;
                let mut operation = give_back(db, wallet, &call, &hold, EntryKind::PayoutRelease)?;
                let parts = parts_of(db, org_id, &hold);
                wallet.take(&mut operation, EntryKind::Payout, &parts)?;
                Ok(close(wallet, operation, &hold, HoldStatus::PaidOut))
            },
        )
    }))
}
