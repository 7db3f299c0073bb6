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
use crate::plans::period::{GRACE, Override, Span, prorated, whole_period};
use crate::plans::store::{self, Collector, Subscription};
use crate::settlement::periods;
use crate::settlement::renewal;
use crate::{args, receipt, statements};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

receipt! {
    /// The answer of `subscribe`, `change_plan` and `cancel_subscription`: a subscription as it is
    /// now.
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

/// The number of months that a subscription may begin in the past or in the future.
const LONGEST_AGO: i64 = 120;

/// A call that changes an org's subscription.
struct SubscriptionCall<'a> {
    org_id: Uuid,
    key: Option<&'a str>,
    hash: i64,
    metadata: String,
}

impl<'a> SubscriptionCall<'a> {
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

    /// Does the work under the locks of the org's wallets, and gives a repeated call its first
    /// answer.
    fn run(
        &self,
        makes_wallet: bool,
        work: impl FnOnce(&Db, &[Subscription], Moment) -> Result<SubscriptionStatus>,
    ) -> Result<SubscriptionStatus> {
        spi::connect(|db| {
            cache::require_installed(db)?;
            // All wallets are locked, in their order: the usage of periods before may have to be
            // paid from any of them.
            let units = if makes_wallet { vec![units::CREDIT.to_owned()] } else { Vec::new() };
            if ledger::lock_org(db, self.org_id, &units, clock::now())?.is_empty() {
                return Err(Error::no_subscription(&self.org_id.to_string()));
            }
            if let Some(answer) = self.replay(db)? {
                return Ok(answer);
            }
            let now = clock::now();
            periods::catch_up(db, self.org_id, now)?;
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
fn current_subscription(all: &[Subscription], now: Moment) -> Option<&Subscription> {
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
    call: &SubscriptionCall<'_>,
    all: &[Subscription],
    plan: &Plan,
    starts_at: Option<Moment>,
    now: Moment,
) -> Result<SubscriptionStatus> {
    let org_id = call.org_id;
    match current_subscription(all, now) {
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
            if let Some(scheduled) = current_subscription(all, now).filter(|s| !s.by_default) {
                withdraw(db, org_id, all, scheduled, now)?;
            }
            periods::cut_period(db, org_id, now, starts_at)?;
            // The default plan goes on until the subscription begins.
            for other in store::subscriptions(org_id).iter().filter(|s| s.by_default && !s.is_void()) {
                if other.ends_at.is_none_or(|end| end > starts_at) {
                    store::end(db, org_id, other.starts_at, starts_at);
                }
            }
            begin(db, call, plan, Beginning::at(starts_at, None), now);
            periods::catch_up(db, org_id, now)?;
        }
    }
    status(db, org_id, now)
}

/// Takes back a subscription that has not begun: the default plan goes on as if it had never been.
fn withdraw(db: &Db, org_id: Uuid, all: &[Subscription], scheduled: &Subscription, now: Moment) -> Result<()> {
    let at = scheduled.starts_at;
    store::end(db, org_id, at, at);
    for before in all.iter().filter(|s| s.by_default && !s.is_void() && s.ends_at == Some(at)) {
        let cycle = cache::any_plan(db, &before.plan)?.cycle;
        let next = whole_period(cycle, before.anchor, now).end;
        store::reopen(db, org_id, before.starts_at, before.next_period_at.unwrap_or(next));
    }
    periods::join_period(db, org_id, at)
}

/// The credit that was granted for the current period already.
#[derive(Default)]
struct Granted {
    grants: Vec<i64>,
    /// The credit that the grants came to, less what was taken back.
    credits: i64,
    taken_back: i64,
}

/// The start of a subscription on a plan.
struct Beginning {
    starts_at: Moment,
    anchor: Moment,
    next_period_at: Moment,
    granted: Granted,
    billing_provider: Option<Collector>,
}

impl Beginning {
    /// A subscription whose periods begin at a moment, with nothing granted yet.
    fn at(moment: Moment, billing_provider: Option<Collector>) -> Self {
        let granted = Granted::default();
        Self { starts_at: moment, anchor: moment, next_period_at: moment, granted, billing_provider }
    }
}

fn begin(db: &Db, call: &SubscriptionCall<'_>, plan: &Plan, beginning: Beginning, now: Moment) {
    let Beginning { starts_at, anchor, next_period_at, granted, billing_provider } = beginning;
    let new = Subscription {
        starts_at,
        ends_at: None,
        anchor,
        next_period_at: Some(next_period_at),
        plan: plan.name.clone(),
        pending_plan: None,
        cancel_at_period_end: false,
        by_default: false,
        grants: granted.grants,
        granted: granted.credits,
        taken_back: granted.taken_back,
        awaiting_payment: false,
        billing_provider,
    };
    store::begin(db, call.org_id, &new, now, &call.metadata);
}

/// Changes the plan for the rest of the period, with allowances and credits in proportion to the
/// time.
fn change_now(
    db: &Db,
    call: &SubscriptionCall<'_>,
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
        periods::cut_period(db, org_id, now, now)?;
        store::end(db, org_id, current.starts_at, now);
        begin(db, call, plan, Beginning::at(now, current.billing_provider.clone()), now);
        return periods::catch_up(db, org_id, now).map(drop);
    }
    let whole = whole_period(plan.cycle, current.anchor, now);
    // The credit that the plans of the whole period come to by time, less what was granted already,
    // so that many changes in one period bring no more than one.
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
        grants.extend(renewal::grant_amounts(
            db,
            org_id,
            plan,
            &[difference],
            Span { start: now, end: whole.end },
            now,
        )?);
        granted += difference;
    } else if difference < 0 {
        let back = renewal::take_back(db, org_id, &grants, -difference, now)?;
        granted -= back;
        taken_back += back;
    }
    store::end(db, org_id, current.starts_at, now);
    let beginning = Beginning {
        starts_at: now,
        anchor: current.anchor,
        next_period_at: whole.end,
        granted: Granted { grants, credits: granted, taken_back },
        billing_provider: current.billing_provider.clone(),
    };
    begin(db, call, plan, beginning, now);
    Ok(())
}

fn finite_start(at: Option<TimestampWithTimeZone>) -> Result<Option<Moment>> {
    let at = at.map(Moment::from);
    match at {
        Some(time::INFINITY | time::NEG_INFINITY) => Err(Error::invalid("starts_at", "must be finite")),
        at => Ok(at),
    }
}

/// Puts an org on a plan, or changes its plan.
///
/// Without a subscription, one begins at `starts_at` (null: now; also in the past or future), and
/// its periods count from there: 31 January, 28 February, 31 March. With one, the plan changes now,
/// allowances and credits in proportion to the rest of the period; or at the end of the period,
/// when `starts_at` is that. The same plan again takes back a cancellation or a change that was to
/// come. Makes the wallet where there is none. Errors: PT404 `unknown_plan`; PT409
/// `idempotency_conflict`; 22023.
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
        let starts_at = finite_start(starts_at)?;
        let start = starts_at.map(|at| at.to_string());
        let call =
            SubscriptionCall::new(org_id, "subscribe", &[Some(name), start.as_deref()], idempotency_key, metadata)?;
        call.run(true, |db, all, now| {
            let plan = cache::plan(db, name)?;
            subscribe_to(db, &call, all, &plan, starts_at, now)
        })
    }))
}

/// Changes the plan of an org that has a subscription: now, in proportion to the rest of the
/// period, or at its end.
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
        let call = SubscriptionCall::new(org_id, "change_plan", &[Some(name), Some(&when)], idempotency_key, metadata)?;
        call.run(false, |db, all, now| {
            let plan = cache::plan(db, name)?;
            let current = current_subscription(all, now).filter(|s| !s.by_default && s.starts_at <= now);
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

/// A period of a plan that a provider collected for.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct PaidPeriod {
    pub start: Moment,
    pub until: Moment,
    /// Whether the invoice had an amount; that of a free trial has none.
    pub is_money: bool,
}

/// Handles a paid period of a plan: puts the org on the plan if it is on another, lets the period
/// begin, and gives the grants that were made for it.
///
/// `note` writes until when the subscription is paid. The wallets must be locked.
pub fn collect(
    db: &Db,
    org_id: Uuid,
    plan: &Plan,
    paid: PaidPeriod,
    billing_provider: &Collector,
    now: Moment,
    note: impl FnOnce(),
) -> Result<Vec<i64>> {
    let PaidPeriod { start, until, is_money } = paid;
    let call = SubscriptionCall::new(org_id, "collect", &[], None, None)?;
    periods::catch_up(db, org_id, now)?;
    let before = store::subscriptions(org_id);
    let running = current_subscription(&before, now).filter(|s| !s.by_default && s.starts_at <= now);
    // Money for the time after the end takes a cancellation back.
    if let Some(current) = running.filter(|s| s.cancel_at_period_end)
        && current.next_period_at.is_some_and(|turn| until > turn + GRACE)
    {
        store::set_ending(db, org_id, current.starts_at, false, None);
    }
    match running {
        // The org was on a free plan until now, or paid to another day: the periods begin with the
        // paid one.
        Some(current)
            if is_money && start <= now + GRACE && is_new_anchor(db, current, Span { start, end: until })? =>
        {
            periods::cut_period(db, org_id, now, now)?;
            store::end(db, org_id, current.starts_at, now);
            note();
            begin_paid(db, &call, plan, start.min(now), now)?;
        }
        Some(current) if current.plan == plan.name => {
            // Periods that nobody paid are skipped.
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
    if let Some(current) = current_subscription(&all, now).filter(|s| !s.by_default) {
        store::set_collector(db, org_id, current.starts_at, billing_provider);
    }
    periods::catch_up(db, org_id, now)?;
    let known: Vec<i64> = before.iter().flat_map(|s| s.grants.clone()).collect();
    let mut new: Vec<i64> = store::subscriptions(org_id).iter().flat_map(|s| s.grants.clone()).collect();
    new.retain(|grant_id| !known.contains(grant_id));
    new.sort_unstable();
    new.dedup();
    Ok(new)
}

/// Whether a paid period goes further than the running one and does not fit its cycle. The money
/// for a change of plan in the middle of a period ends with that period, and so begins no new
/// cycle.
fn is_new_anchor(db: &Db, current: &Subscription, paid: Span) -> Result<bool> {
    let Span { start, end: until } = paid;
    let goes_further = current.next_period_at.is_none_or(|next| until > next + GRACE);
    if !goes_further || start <= current.starts_at + GRACE {
        return Ok(false);
    }
    let cycle = cache::any_plan(db, &current.plan)?.cycle;
    let period = whole_period(cycle, current.anchor, start.saturating_add(GRACE));
    Ok((period.start - start).abs() > GRACE)
}

/// Begins a paid subscription after another one, with its full credits: what the other one granted
/// for the same time was paid, or free, by itself.
fn begin_paid(db: &Db, call: &SubscriptionCall<'_>, plan: &Plan, anchor: Moment, now: Moment) -> Result<()> {
    let (org_id, end) = (call.org_id, whole_period(plan.cycle, anchor, now).end);
    let mut grants = Vec::new();
    if let Some(credits) = plan.credits {
        grants = renewal::grant_amounts(db, org_id, plan, &[credits.amount], Span { start: now, end }, now)?;
    }
    periods::cut_period(db, org_id, now, now)?;
    for other in store::subscriptions(org_id).iter().filter(|s| s.by_default && !s.is_void()) {
        if other.ends_at.is_none_or(|end| end > now) {
            store::end(db, org_id, other.starts_at, now);
        }
    }
    let granted = plan.credits.map_or(0, |credits| credits.amount);
    let granted = Granted { grants, credits: granted, taken_back: 0 };
    begin(
        db,
        call,
        plan,
        Beginning { starts_at: now, anchor, next_period_at: end, granted, billing_provider: None },
        now,
    );
    Ok(())
}

/// Whether this subscription of a provider pays for the plan that runs.
pub fn is_billing_provider(org_id: Uuid, billing_provider: &Collector, now: Moment) -> bool {
    let all = store::subscriptions(org_id);
    current_subscription(&all, now)
        .is_some_and(|s| !s.by_default && s.billing_provider.as_ref() == Some(billing_provider))
}

/// Notes that the plan of a subscription which a provider collects for changes: with the next
/// period, or as soon as the difference is paid. The wallets must be locked.
pub fn schedule_plan_change(db: &Db, org_id: Uuid, plan: &Plan, now: Moment) {
    let all = store::subscriptions(org_id);
    if let Some(current) = current_subscription(&all, now).filter(|s| !s.by_default && s.starts_at <= now) {
        let pending = (current.plan != plan.name).then_some(plan.name.as_str());
        if current.pending_plan.as_deref() != pending {
            store::set_ending(db, org_id, current.starts_at, current.cancel_at_period_end, pending);
        }
    }
}

/// Lets the subscription end with its period, or go on. The wallets must be locked.
pub fn end_with_period(db: &Db, org_id: Uuid, ends: bool, now: Moment) {
    let all = store::subscriptions(org_id);
    if let Some(current) = current_subscription(&all, now).filter(|s| !s.by_default && s.cancel_at_period_end != ends) {
        store::set_ending(db, org_id, current.starts_at, ends, current.pending_plan.as_deref().filter(|_| !ends));
    }
}

/// Ends the subscription at once, if there is one. The wallets must be locked.
pub fn end_now(db: &Db, org_id: Uuid, now: Moment) -> Result<()> {
    let all = store::subscriptions(org_id);
    if let Some(current) = current_subscription(&all, now).filter(|s| !s.by_default && s.starts_at <= now) {
        periods::cut_period(db, org_id, now, now)?;
        // A period that waited for its money is as if it had never begun.
        let end = current.next_period_at.filter(|next| *next < now).unwrap_or(now);
        store::end(db, org_id, current.starts_at, end);
    }
    Ok(())
}

/// Ends an org's subscription with its period, or at once. Credits of the plan that are left stay
/// until they expire.
///
/// Errors: PT404 `unknown_subscription`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn cancel_subscription(org_id: Option<pgrx::Uuid>, at_period_end: default!(Option<bool>, true)) -> SubscriptionStatus {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let at_period_end = required("at_period_end", at_period_end)?;
        let call = SubscriptionCall::new(org_id, "cancel_subscription", &[], None, None)?;
        call.run(false, |db, all, now| {
            let current = current_subscription(all, now).filter(|s| !s.by_default);
            let current = current.ok_or_else(|| Error::no_subscription(&org_id.to_string()))?;
            if at_period_end && current.starts_at <= now {
                store::set_ending(db, org_id, current.starts_at, true, None);
                return status(db, org_id, now);
            }
            if current.starts_at <= now {
                periods::cut_period(db, org_id, now, now)?;
                store::end(db, org_id, current.starts_at, now);
            } else {
                withdraw(db, org_id, all, current, now)?;
            }
            let ended = Subscription { ends_at: Some(now.max(current.starts_at)), ..current.clone() };
            status_of(db, org_id, &ended, now)
        })
    }))
}

/// Gives an org its own allowance per period, or limit, for a metric; null leaves it to the plan.
/// Holds at once.
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
            // Backends look for an org's own terms only if a metric has any: the first ones must be
            // announced.
            if !known.own.allowance {
                cache::invalidate(db);
            }
            Ok(())
        })
    }));
}
