//! Subscribing, changing the plan, cancelling, and allowances of single orgs.

use crate::access;
use crate::base::error::{Error, Result};
use crate::base::hash;
use crate::base::time::{self, Moment};
use crate::base::units;
use crate::base::words::Word;
use crate::call::{Answer, to_json};
use crate::catalog::cache;
use crate::catalog::sections::plans::{Limit, Plan};

use crate::ledger::store as ledger;
use crate::pg::arguments::{self, required, required_uuid};
use crate::pg::clock;
use crate::pg::jsonb::Jsonb;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db};
use crate::plans::period::{Override, prorated, whole_period};
use crate::plans::store::{self, Collector, Subscription};
use crate::settlement;
use crate::settlement::renewal;
use crate::{args, receipt, statements};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

receipt! {
    /// Of a subscription as it is now.
    #[derive(Serialize, Deserialize)]
    SubscriptionStatus as "subscription" {
        org_id: Uuid,
        plan: String,
        status: String,
        starts_at: Option<i64>,
        period_start: Option<i64>,
        period_end: Option<i64>,
        cancel_at_period_end: bool,
        pending_plan: Option<String>,
        ends_at: Option<i64>,
        replayed: bool,
    }
}
impl Answer for SubscriptionStatus {
    fn set_replayed(&mut self) {
        self.replayed = true;
    }
}

statements! {
    REQUEST(uuid, text) =
        "select request_hash, result from billing_internal.subscription_requests where org_id = $1 and idempotency_key = $2";
    KEEP_REQUEST(uuid, text, int8, text) =
        "insert into billing_internal.subscription_requests (org_id, idempotency_key, request_hash, result) values ($1, $2, $3, $4)";
}

/// A subscription may begin so many months ago, or ahead.
const LONGEST_AGO: i64 = 120;

/// A call that changes an org's subscription.
struct Call<'a> {
    org_id: Uuid,
    key: Option<&'a str>,
    hash: i64,
    metadata: String,
}

impl<'a> Call<'a> {
    fn new(
        org_id: Uuid,
        function: &str,
        arguments: &[Option<&str>],
        key: Option<&'a str>,
        metadata: Option<Jsonb>,
    ) -> Result<Self> {
        let metadata = arguments::metadata_text(metadata)?;
        let mut all = arguments.to_vec();
        all.push(Some(&metadata));
        Ok(Self { org_id, key: arguments::key(key)?, hash: hash::fingerprint(function, &all), metadata })
    }

    /// Does the work under the wallet's lock, and gives a repeated call its first answer.
    fn run(
        &self,
        makes_wallet: bool,
        work: impl FnOnce(&Db, &[Subscription], Moment) -> Result<SubscriptionStatus>,
    ) -> Result<SubscriptionStatus> {
        spi::connect(|db| {
            cache::require_installed(db)?;
            // All wallets, in their order: what is to be paid before may be in any of them.
            let units = if makes_wallet { vec![units::CREDIT.to_owned()] } else { Vec::new() };
            if ledger::lock_org(db, self.org_id, &units, clock::now())?.is_empty() {
                return Err(Error::no_subscription(&self.org_id.to_string()));
            }
            if let Some(answer) = self.replay(db)? {
                return Ok(answer);
            }
            let now = clock::now();
            settlement::catch_up(db, self.org_id, now)?;
            let answer = work(db, &store::subscriptions(self.org_id), now)?;
            if let Some(key) = self.key {
                let text = to_json(&answer)?;
                db.write(&KEEP_REQUEST, args![self.org_id, key, self.hash, text.as_str()]);
            }
            Ok(answer)
        })
    }

    fn replay(&self, db: &Db) -> Result<Option<SubscriptionStatus>> {
        let Some(key) = self.key else { return Ok(None) };
        let rows = db.write(&REQUEST, args![self.org_id, key]);
        let Some(row) = rows.first() else { return Ok(None) };
        if row.get::<i64>(0) != self.hash {
            return Err(Error::idempotency_conflict(key));
        }
        let mut answer: SubscriptionStatus = serde_json::from_str(&row.get::<String>(1))
            .map_err(|_| Error::corrupt("the answer of an operation cannot be read"))?;
        answer.set_replayed();
        Ok(Some(answer))
    }
}

/// The subscription that runs, or is about to begin.
fn active(all: &[Subscription], now: Moment) -> Option<&Subscription> {
    all.iter().rev().find(|s| !s.is_void() && s.ends_at.is_none_or(|end| end > now))
}

/// The newest subscription as it is now.
fn status(db: &Db, org_id: Uuid, now: Moment) -> Result<SubscriptionStatus> {
    let all = store::subscriptions(org_id);
    let newest = all.iter().rev().find(|s| !s.is_void()).or(all.last());
    let newest = newest.ok_or_else(|| Error::no_subscription(&org_id.to_string()))?;
    status_of(db, org_id, newest, now)
}

fn status_of(db: &Db, org_id: Uuid, newest: &Subscription, now: Moment) -> Result<SubscriptionStatus> {
    let ended = newest.is_void() || newest.ends_at.is_some_and(|end| end <= now);
    let status = match newest {
        _ if ended => "canceled",
        s if s.starts_at > now => "scheduled",
        _ => "active",
    };
    let period = store::timeline(db, org_id, true)?.period(now.max(newest.starts_at));
    Ok(SubscriptionStatus {
        org_id,
        plan: newest.plan.clone(),
        status: status.to_owned(),
        starts_at: Some(newest.starts_at),
        period_start: (!ended).then_some(period.start),
        period_end: (!ended).then_some(period.end),
        cancel_at_period_end: newest.cancel_at_period_end,
        pending_plan: newest.pending_plan.clone(),
        ends_at: newest.ends_at,
        replayed: false,
    })
}

fn subscribe_to(
    db: &Db,
    call: &Call<'_>,
    all: &[Subscription],
    plan: &Plan,
    starts_at: Option<Moment>,
    now: Moment,
) -> Result<SubscriptionStatus> {
    let org_id = call.org_id;
    match active(all, now) {
        Some(current) if !current.by_default && current.starts_at <= now => {
            let end = current.next_period_at.unwrap_or(now);
            match starts_at.filter(|at| *at > now) {
                None => change_now(db, call, all, current, plan, now)?,
                Some(at) if at == end => store::set_ending(db, org_id, current.starts_at, false, Some(&plan.name)),
                Some(_) => {
                    return Err(Error::invalid("starts_at", "must be null or the end of the current period")
                        .with("period_end", time::display(end)));
                }
            }
        }
        _ => {
            let starts_at = starts_at.unwrap_or(now);
            // Each period since then is begun, one after the other.
            if starts_at < time::add_months(now, -LONGEST_AGO) || starts_at > time::add_months(now, LONGEST_AGO) {
                return Err(Error::invalid("starts_at", "must be at most 10 years away"));
            }
            let mut before = all.iter().filter(|s| !s.by_default && !s.is_void()).filter_map(|s| s.ends_at);
            if before.any(|end| end > starts_at) {
                return Err(Error::invalid("starts_at", "lies within an earlier subscription"));
            }
            if let Some(scheduled) = active(all, now).filter(|s| !s.by_default) {
                withdraw(db, org_id, all, scheduled, now)?;
            }
            settlement::cut_period(db, org_id, now, starts_at)?;
            // The default plan until then.
            for other in store::subscriptions(org_id).iter().filter(|s| s.by_default && !s.is_void()) {
                if other.ends_at.is_none_or(|end| end > starts_at) {
                    store::end(db, org_id, other.starts_at, starts_at);
                }
            }
            begin(db, call, plan, (starts_at, starts_at, starts_at), (None, None), now);
            settlement::catch_up(db, org_id, now)?;
        }
    }
    status(db, org_id, now)
}

/// Takes back a subscription that has not begun: as if it had never been, the default plan goes on.
fn withdraw(db: &Db, org_id: Uuid, all: &[Subscription], scheduled: &Subscription, now: Moment) -> Result<()> {
    let at = scheduled.starts_at;
    store::end(db, org_id, at, at);
    for before in all.iter().filter(|s| s.by_default && !s.is_void() && s.ends_at == Some(at)) {
        let cycle = cache::any_plan(db, &before.plan)?.cycle;
        let next = whole_period(cycle, before.anchor, now).end;
        store::reopen(db, org_id, before.starts_at, before.next_period_at.unwrap_or(next));
    }
    settlement::join_period(db, org_id, at)
}

/// Grants of the current period that exist already, what they came to, and what of it was taken back.
type Granted = (Vec<i64>, i64, i64);

fn begin(
    db: &Db,
    call: &Call<'_>,
    plan: &Plan,
    (starts_at, anchor, next): (Moment, Moment, Moment),
    (granted, billing_provider): (Option<Granted>, Option<Collector>),
    now: Moment,
) {
    let (grants, granted, taken_back) = granted.unwrap_or_default();
    let new = Subscription {
        starts_at,
        ends_at: None,
        anchor,
        next_period_at: Some(next),
        plan: plan.name.clone(),
        pending_plan: None,
        cancel_at_period_end: false,
        by_default: false,
        grants,
        granted,
        taken_back,
        awaiting_payment: false,
        billing_provider,
    };
    store::begin(db, call.org_id, &new, now, &call.metadata);
}

/// Another plan for the rest of the period: allowances and credits in proportion to the time.
fn change_now(
    db: &Db,
    call: &Call<'_>,
    all: &[Subscription],
    current: &Subscription,
    plan: &Plan,
    now: Moment,
) -> Result<()> {
    let org_id = call.org_id;
    if current.plan == plan.name {
        store::set_ending(db, org_id, current.starts_at, false, None);
        return Ok(());
    }
    let old = cache::any_plan(db, &current.plan)?;
    if old.cycle != plan.cycle {
        settlement::cut_period(db, org_id, now, now)?;
        store::end(db, org_id, current.starts_at, now);
        begin(db, call, plan, (now, now, now), (None, current.billing_provider.clone()), now);
        return settlement::catch_up(db, org_id, now).map(drop);
    }
    let whole = whole_period(plan.cycle, current.anchor, now);
    // What the plans of the whole period come to, by time; what was granted already counts, however often it is changed.
    let share = |plan: &Plan, from: Moment| plan.credits.map_or(0, |credits| prorated(credits.amount, whole, from));
    let mut due = share(plan, now) - share(&old, now) + share(&old, current.starts_at);
    for earlier in all.iter().filter(|s| s.anchor == current.anchor && s.starts_at < current.starts_at) {
        let known = cache::any_plan(db, &earlier.plan)?;
        let end = earlier.ends_at.unwrap_or(now);
        due += share(&known, earlier.starts_at) - share(&known, end);
    }
    let difference = due - current.granted;
    let (mut grants, mut granted, mut taken_back) = (current.grants.clone(), current.granted, current.taken_back);
    if difference > 0 {
        grants.extend(renewal::grant_amounts(db, org_id, plan, &[difference], (now, whole.end), now)?);
        granted += difference;
    } else if difference < 0 {
        let back = renewal::take_back(db, org_id, &grants, -difference, now)?;
        granted -= back;
        taken_back += back;
    }
    store::end(db, org_id, current.starts_at, now);
    let changed = (Some((grants, granted, taken_back)), current.billing_provider.clone());
    begin(db, call, plan, (now, current.anchor, whole.end), changed, now);
    Ok(())
}

fn finite(at: Option<TimestampWithTimeZone>) -> Result<Option<Moment>> {
    let at = at.map(Moment::from);
    match at {
        Some(time::INFINITY | time::NEG_INFINITY) => Err(Error::invalid("starts_at", "must be finite")),
        at => Ok(at),
    }
}

/// Puts an org on a plan, or changes its plan.
///
/// Without a subscription, one begins at `starts_at` (null: now; also in the past or future), and its periods count from there:
/// 31 January, 28 February, 31 March. With one, the plan changes now, allowances and credits in proportion to the rest of the
/// period; or at the end of the period, when `starts_at` is that. The same plan again takes back a cancellation or a change
/// that was to come. Makes the wallet where there is none. Errors: PT404 `unknown_plan`; PT409 `idempotency_conflict`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn subscribe(
    org_id: Option<pgrx::Uuid>,
    plan: Option<&str>,
    starts_at: default!(Option<TimestampWithTimeZone>, "NULL"),
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> SubscriptionStatus {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let name = required("plan", plan)?;
        let starts_at = finite(starts_at)?;
        let start = starts_at.map(|at| at.to_string());
        let call = Call::new(org_id, "subscribe", &[Some(name), start.as_deref()], idempotency_key, metadata)?;
        call.run(true, |db, all, now| {
            let plan = cache::plan(db, name)?;
            subscribe_to(db, &call, all, &plan, starts_at, now)
        })
    }))
}

/// Changes the plan of an org that has a subscription: now, in proportion to the rest of the period, or at its end.
///
/// Errors: PT404 `unknown_plan`, `unknown_subscription`; PT409 `idempotency_conflict`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn change_plan(
    org_id: Option<pgrx::Uuid>,
    plan: Option<&str>,
    at_period_end: default!(Option<bool>, false),
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> SubscriptionStatus {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let name = required("plan", plan)?;
        let at_period_end = required("at_period_end", at_period_end)?;
        let when = at_period_end.to_string();
        let call = Call::new(org_id, "change_plan", &[Some(name), Some(&when)], idempotency_key, metadata)?;
        call.run(false, |db, all, now| {
            let plan = cache::plan(db, name)?;
            let current = active(all, now).filter(|s| !s.by_default && s.starts_at <= now);
            let current = current.ok_or_else(|| Error::no_subscription(&org_id.to_string()))?;
            if at_period_end && current.plan != plan.name {
                store::set_ending(db, org_id, current.starts_at, false, Some(&plan.name));
            } else {
                change_now(db, &call, all, current, &plan, now)?;
            }
            status(db, org_id, now)
        })
    }))
}

/// A period of a plan was paid: puts the org on the plan where it is not, lets the period begin, and gives what was granted for it.
///
/// `paid`: from when to when, and whether there was money in it; `note` writes until when it is paid. The wallets are locked.
pub fn collect(
    db: &Db,
    org_id: Uuid,
    plan: &Plan,
    (start, until, is_money): (Moment, Moment, bool),
    billing_provider: &Collector,
    now: Moment,
    note: impl FnOnce(),
) -> Result<Vec<i64>> {
    let call = Call::new(org_id, "collect", &[], None, None)?;
    settlement::catch_up(db, org_id, now)?;
    let before = store::subscriptions(org_id);
    let running = active(&before, now).filter(|s| !s.by_default && s.starts_at <= now);
    // Money for the time after its end takes a cancellation back.
    if let Some(current) = running.filter(|s| s.cancel_at_period_end)
        && current.next_period_at.is_some_and(|turn| until > turn + GRACE)
    {
        store::set_ending(db, org_id, current.starts_at, false, None);
    }
    match running {
        // It was free until now, or paid to another day: the paid period is a period.
        Some(current) if is_money && start <= now + GRACE && is_new_anchor(db, current, (start, until))? => {
            settlement::cut_period(db, org_id, now, now)?;
            store::end(db, org_id, current.starts_at, now);
            note();
            begin_paid(db, &call, plan, start.min(now), now)?;
        }
        Some(current) if current.plan == plan.name => {
            // Periods that nobody paid are passed by.
            if current.awaiting_payment
                && let Some(next) = current.next_period_at.filter(|next| start > *next + GRACE)
            {
                let paid = whole_period(plan.cycle, current.anchor, start.saturating_add(GRACE)).start;
                store::reopen(db, org_id, current.starts_at, paid.max(next));
            }
            note();
        }
        // A period that was waiting for its money begins with the plan that was paid.
        Some(current) if current.next_period_at.is_some_and(|at| at <= now) => {
            store::set_ending(db, org_id, current.starts_at, false, Some(&plan.name));
            note();
        }
        Some(current) => {
            note();
            change_now(db, &call, &before, current, plan, now)?;
        }
        None => {
            let ended = before.iter().filter(|s| !s.by_default && !s.is_void()).filter_map(|s| s.ends_at);
            let start = ended.filter(|end| *end <= now).chain([start.min(now)]).max().unwrap_or(now);
            note();
            if is_money && before.iter().any(|s| !s.by_default && !s.is_void() && s.ends_at.is_some()) {
                begin_paid(db, &call, plan, start, now)?;
            } else {
                subscribe_to(db, &call, &before, plan, Some(start), now)?;
            }
        }
    }
    let all = store::subscriptions(org_id);
    if let Some(current) = active(&all, now).filter(|s| !s.by_default) {
        store::set_collector(db, org_id, current.starts_at, billing_provider);
    }
    settlement::catch_up(db, org_id, now)?;
    let known: Vec<i64> = before.iter().flat_map(|s| s.grants.clone()).collect();
    let mut new: Vec<i64> = store::subscriptions(org_id).iter().flat_map(|s| s.grants.clone()).collect();
    new.retain(|grant_id| !known.contains(grant_id));
    new.sort_unstable();
    new.dedup();
    Ok(new)
}

/// How far a provider's periods may be from ours.
const GRACE: i64 = 12 * 3600 * 1_000_000;

/// Whether a paid period goes further than the running one and does not lie as its periods do: what a change costs for the rest of
/// a period ends with it.
fn is_new_anchor(db: &Db, current: &Subscription, (start, until): (Moment, Moment)) -> Result<bool> {
    let goes_further = current.next_period_at.is_none_or(|next| until > next + GRACE);
    if !goes_further || start <= current.starts_at + GRACE {
        return Ok(false);
    }
    let cycle = cache::any_plan(db, &current.plan)?.cycle;
    let period = whole_period(cycle, current.anchor, start.saturating_add(GRACE));
    Ok((period.start - start).abs() > GRACE)
}

/// Begins a paid subscription after another one: what that one granted for the same time was paid, or free, by itself.
fn begin_paid(db: &Db, call: &Call<'_>, plan: &Plan, anchor: Moment, now: Moment) -> Result<()> {
    let (org_id, end) = (call.org_id, whole_period(plan.cycle, anchor, now).end);
    let mut grants = Vec::new();
    if let Some(credits) = plan.credits {
        grants = renewal::grant_amounts(db, org_id, plan, &[credits.amount], (now, end), now)?;
    }
    settlement::cut_period(db, org_id, now, now)?;
    for other in store::subscriptions(org_id).iter().filter(|s| s.by_default && !s.is_void()) {
        if other.ends_at.is_none_or(|end| end > now) {
            store::end(db, org_id, other.starts_at, now);
        }
    }
    let granted = plan.credits.map_or(0, |credits| credits.amount);
    begin(db, call, plan, (now, anchor, end), (Some((grants, granted, 0)), None), now);
    Ok(())
}

/// Whether a provider's subscription pays for what runs.
pub fn is_billing_provider(org_id: Uuid, billing_provider: &Collector, now: Moment) -> bool {
    let all = store::subscriptions(org_id);
    active(&all, now).is_some_and(|s| !s.by_default && s.billing_provider.as_ref() == Some(billing_provider))
}

/// The plan of what a provider collects for changed: from the next period on, or as soon as the difference is paid. The wallets
/// are locked.
pub fn schedule_plan_change(db: &Db, org_id: Uuid, plan: &Plan, now: Moment) {
    let all = store::subscriptions(org_id);
    if let Some(current) = active(&all, now).filter(|s| !s.by_default && s.starts_at <= now) {
        let pending = (current.plan != plan.name).then_some(plan.name.as_str());
        if current.pending_plan.as_deref() != pending {
            store::set_ending(db, org_id, current.starts_at, current.cancel_at_period_end, pending);
        }
    }
}

/// It ends with its period, or goes on. The wallets are locked.
pub fn end_with_period(db: &Db, org_id: Uuid, ends: bool, now: Moment) {
    let all = store::subscriptions(org_id);
    if let Some(current) = active(&all, now).filter(|s| !s.by_default && s.cancel_at_period_end != ends) {
        store::set_ending(db, org_id, current.starts_at, ends, current.pending_plan.as_deref().filter(|_| !ends));
    }
}

/// It ends at once, where there is one. The wallets are locked.
pub fn end_now(db: &Db, org_id: Uuid, now: Moment) -> Result<()> {
    let all = store::subscriptions(org_id);
    if let Some(current) = active(&all, now).filter(|s| !s.by_default && s.starts_at <= now) {
        settlement::cut_period(db, org_id, now, now)?;
        // A period that waited for its money never was.
        let end = current.next_period_at.filter(|next| *next < now).unwrap_or(now);
        store::end(db, org_id, current.starts_at, end);
    }
    Ok(())
}

/// Ends an org's subscription with its period, or at once. Credits of the plan that are left stay until they expire.
///
/// Errors: PT404 `unknown_subscription`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn cancel_subscription(org_id: Option<pgrx::Uuid>, at_period_end: default!(Option<bool>, true)) -> SubscriptionStatus {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let at_period_end = required("at_period_end", at_period_end)?;
        let call = Call::new(org_id, "cancel_subscription", &[], None, None)?;
        call.run(false, |db, all, now| {
            let current = active(all, now).filter(|s| !s.by_default);
            let current = current.ok_or_else(|| Error::no_subscription(&org_id.to_string()))?;
            if at_period_end && current.starts_at <= now {
                store::set_ending(db, org_id, current.starts_at, true, None);
                return status(db, org_id, now);
            }
            if current.starts_at <= now {
                settlement::cut_period(db, org_id, now, now)?;
                store::end(db, org_id, current.starts_at, now);
            } else {
                withdraw(db, org_id, all, current, now)?;
            }
            let ended = Subscription { ends_at: Some(now.max(current.starts_at)), ..current.clone() };
            status_of(db, org_id, &ended, now)
        })
    }))
}

/// Gives an org its own allowance per period, or limit, for a metric; null leaves it to the plan. Holds at once.
///
/// `limit_kind`: hard | soft | unlimited. Errors: PT404 `unknown_metric`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn set_org_allowance(
    org_id: Option<pgrx::Uuid>,
    metric: Option<&str>,
    allowance: default!(Option<i64>, "NULL"),
    limit_kind: default!(Option<&str>, "NULL"),
) {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let metric = required("metric", metric)?;
        if allowance.is_some_and(|a| a < 0) {
            return Err(Error::invalid("allowance", "must not be negative"));
        }
        let limit = limit_kind
            .map(|name| Limit::parse(name).ok_or(Error::invalid("limit_kind", "must be hard, soft or unlimited")))
            .transpose()?;
        spi::connect(|db| {
            let known = cache::metric(db, metric)?;
            store::set_own_terms(db, org_id, metric, Override { allowance, limit });
            // The first such terms of a metric make every backend look for them from then on.
            if !known.own.allowance {
                cache::invalidate(db);
            }
            Ok(())
        })
    }));
}
