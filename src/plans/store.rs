//! The statements of plans: an org's subscriptions and its own allowances.

use crate::base::error::Result;
use crate::base::time::{INFINITY, Moment, NEG_INFINITY};
use crate::base::words::Word;
use crate::catalog::cache::{self, Metric};
use crate::catalog::sections::plans::Limit;
use crate::pg::spi::{Db, Timestamptz};
use crate::plans::period::{GRACE, Override, PlanTenure, Timeline};
use crate::schema::plans::{provider_subscriptions, subscriptions as table};
use crate::schema::{Snapshot, Table, at_one_moment};
use crate::{args, statements};
use std::collections::BTreeSet;
use uuid::Uuid;

statements! {
    OWN_TERMS(uuid, text) = "select allowance, limit_kind from billing.org_allowances where org_id = $1 and metric = $2";
    SET_BILLING_PROVIDER(uuid, timestamptz, text, text) =
        "update billing.subscriptions set provider = $3, provider_subscription = $4 where org_id = $1 and starts_at = $2";
    // A tenure that ended where it began never held, so it gives its place to the next one.
    BEGIN_TENURE(uuid, timestamptz, timestamptz, timestamptz, timestamptz, text, text, jsonb, int8s, int8, int8, text,
                  text) =
        "insert into billing.subscriptions as s
                (org_id, starts_at, anchor, next_period_at, created_at, plan, origin, metadata, grants, granted, taken_back,
                 provider, provider_subscription)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         on conflict (org_id, starts_at) do update
            set anchor = $3, next_period_at = $4, created_at = $5, plan = $6, origin = $7, metadata = $8, grants = $9,
                granted = $10, taken_back = $11, provider = $12, provider_subscription = $13, ends_at = null, pending_plan = null, cancel_at_period_end = false
          where s.ends_at = s.starts_at";
    END_TENURE(uuid, timestamptz, timestamptz) =
        "update billing.subscriptions
            set ends_at = greatest($3, starts_at), pending_plan = null, cancel_at_period_end = false,
                next_period_at = case when next_period_at < $3 then next_period_at end
          where org_id = $1 and starts_at = $2";
    REOPEN_TENURE(uuid, timestamptz, timestamptz) =
        "update billing.subscriptions set ends_at = null, next_period_at = $3 where org_id = $1 and starts_at = $2";
    NOTHING_DUE(uuid, timestamptz) =
        "update billing.subscriptions set next_period_at = null where org_id = $1 and starts_at = $2";
    // A period begins once only: a transaction that finds another start there than it saw comes too
    // late.
    ADVANCE(uuid, timestamptz, timestamptz, timestamptz, int8s, int8) =
        "update billing.subscriptions set next_period_at = $4, grants = $5, granted = $6, taken_back = 0
          where org_id = $1 and starts_at = $2 and next_period_at = $3";
    SET_ENDING(uuid, timestamptz, boolean, text) =
        "update billing.subscriptions set cancel_at_period_end = $3, pending_plan = $4 where org_id = $1 and starts_at = $2";
    SAVE_OWN_TERMS(uuid, text, int8, text) =
        "insert into billing.org_allowances (org_id, metric, allowance, limit_kind) values ($1, $2, $3, $4)
         on conflict (org_id, metric) do update set allowance = $3, limit_kind = $4";
    CLEAR_OWN_TERMS(uuid, text) = "delete from billing.org_allowances where org_id = $1 and metric = $2";
}

/// The columns of a row of `subscriptions` that say where periods begin and end.
struct TenureRow {
    starts_at: Moment,
    ends_at: Option<Moment>,
    anchor: Moment,
    plan: String,
    next_period_at: Option<Moment>,
    is_cancelled: bool,
    pending_plan: Option<String>,
    awaiting_payment: bool,
}

fn tenure(row: table::Row<'_>) -> TenureRow {
    TenureRow {
        starts_at: row.starts_at(),
        ends_at: row.ends_at(),
        anchor: row.anchor(),
        plan: row.plan().to_owned(),
        next_period_at: row.next_period_at(),
        is_cancelled: row.cancel_at_period_end(),
        pending_plan: row.pending_plan().map(str::to_owned),
        awaiting_payment: awaiting_payment(row),
    }
}

/// The plans that the org has and had. `fresh` is for a call that holds the wallet's lock: what is
/// committed by now counts.
pub fn timeline(db: &Db, org_id: Uuid, fresh: bool) -> Result<Timeline> {
    let (fallback, any) = cache::default_plan(db)?;
    if !any {
        return Ok(Timeline::default());
    }
    let rows = rows(org_id, fresh, tenure);
    let mut tenures = Vec::new();
    // A tenure that ended where it began never held.
    for row in rows.into_iter().filter(|row| row.ends_at.is_none_or(|at| at > row.starts_at)) {
        let mut tenure = PlanTenure {
            starts_at: row.starts_at,
            ends_at: row.ends_at.unwrap_or(INFINITY),
            anchor: row.anchor,
            plan: cache::any_plan(db, &row.plan)?,
            next_period_at: row.next_period_at,
            awaiting_payment: row.awaiting_payment,
        };
        // What is scheduled for the end of the period happens then, also before settlement books
        // it.
        let period_end = tenure.next_period_at.filter(|at| *at > tenure.starts_at);
        if let Some(period_end) = period_end
            && (row.is_cancelled || row.pending_plan.is_some())
        {
            tenure.ends_at = tenure.ends_at.min(period_end);
            tenure.next_period_at = None;
        }
        let next = match (period_end, row.pending_plan) {
            (Some(period_end), Some(name)) => {
                let plan = cache::any_plan(db, &name)?;
                let anchor = if plan.cycle == tenure.plan.cycle { tenure.anchor } else { period_end };
                Some(PlanTenure {
                    starts_at: period_end,
                    ends_at: INFINITY,
                    anchor,
                    plan,
                    next_period_at: Some(period_end),
                    awaiting_payment: tenure.awaiting_payment,
                })
            }
            _ => None,
        };
        tenures.push(tenure);
        tenures.extend(next);
    }
    Ok(Timeline { tenures, fallback })
}

/// All subscriptions of an org, in order, as `read` returns them. `fresh` is for a call that holds
/// the wallet's lock: what is committed by now counts.
fn rows<R>(org_id: Uuid, fresh: bool, read: impl Fn(table::Row<'_>) -> R) -> Vec<R> {
    at_one_moment(fresh, || {
        let mut found = Vec::new();
        Table::<table::Table>::to_read().each(&table::of_org(org_id), Snapshot::Callers, |row| {
            found.push(read(row));
            true
        });
        found
    })
}

/// Tells whether the next period waits because its provider has to collect for it first.
fn awaiting_payment(row: table::Row<'_>) -> bool {
    let (Some(next_period_at), Some(provider)) = (row.next_period_at(), row.provider()) else { return false };
    let Some(subscription) = row.provider_subscription() else { return true };
    let key = provider_subscriptions::one(row.org_id(), provider, subscription);
    let collected = Table::<provider_subscriptions::Table>::to_read();
    let paid_until = collected.find(&key, Snapshot::Callers, |row| row.paid_until().unwrap_or(NEG_INFINITY));
    paid_until.is_none_or(|at| next_period_at >= at.saturating_sub(GRACE))
}

/// The orgs, of those given, that have a period to begin by `as_of`.
pub fn due(db: &Db, orgs: Vec<Uuid>, as_of: Moment) -> Result<Vec<Uuid>> {
    let (fallback, any) = cache::default_plan(db)?;
    if !any {
        return Ok(Vec::new());
    }
    let enrolls = fallback.is_some_and(|plan| plan.credits.is_some());
    let is_due = |org_id: &Uuid| {
        let rows = rows(*org_id, true, tenure);
        let begins = |row: &TenureRow| row.next_period_at.is_some_and(|at| at <= as_of) && !row.awaiting_payment;
        let is_on = |row: &TenureRow| row.ends_at.is_none_or(|at| at > as_of);
        rows.iter().any(begins) || (enrolls && !rows.iter().any(is_on))
    };
    Ok(orgs.into_iter().collect::<BTreeSet<_>>().into_iter().filter(is_due).collect())
}

/// The terms that an org has of its own for a metric, if any.
pub fn own_terms(db: &Db, org_id: Uuid, metric: &Metric, fresh: bool) -> Option<Override> {
    if !metric.own.allowance {
        return None;
    }
    db.query(fresh, &OWN_TERMS, args![org_id, &metric.name])
        .first()
        .map(|row| Override { allowance: row.opt(0), limit: row.opt::<String>(1).and_then(|name| Limit::parse(&name)) })
}

/// A subscription: a row of `subscriptions`.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Subscription {
    pub starts_at: Moment,
    pub ends_at: Option<Moment>,
    pub anchor: Moment,
    pub next_period_at: Option<Moment>,
    pub plan: String,
    pub pending_plan: Option<String>,
    pub cancel_at_period_end: bool,
    /// Whether it is the default plan, begun by settlement.
    pub by_default: bool,
    pub grants: Vec<i64>,
    /// The credit that the plan granted in the current period, net of what was taken back.
    pub granted: i64,
    pub taken_back: i64,
    /// Whether the next period waits because the provider has to collect for it first.
    pub awaiting_payment: bool,
    /// The provider that collects for it, with the provider's id of the subscription; None where
    /// nobody has to pay first.
    pub billing_provider: Option<BillingProvider>,
}

/// A provider, and its id of a subscription.
pub type BillingProvider = (String, String);

impl Subscription {
    /// Tells whether it ended where it began, and so never held.
    pub fn is_void(&self) -> bool {
        self.ends_at == Some(self.starts_at)
    }
}

fn subscription(row: table::Row<'_>) -> Subscription {
    let text = |text: Option<&str>| text.map(str::to_owned);
    Subscription {
        starts_at: row.starts_at(),
        ends_at: row.ends_at(),
        anchor: row.anchor(),
        next_period_at: row.next_period_at(),
        plan: row.plan().to_owned(),
        pending_plan: text(row.pending_plan()),
        cancel_at_period_end: row.cancel_at_period_end(),
        by_default: row.origin() == "default",
        grants: row.grants(),
        granted: row.granted(),
        taken_back: row.taken_back(),
        awaiting_payment: awaiting_payment(row),
        billing_provider: text(row.provider()).zip(text(row.provider_subscription())),
    }
}

/// All subscriptions of an org, in order. The wallet must be locked.
pub fn subscriptions(org_id: Uuid) -> Vec<Subscription> {
    rows(org_id, true, subscription)
}

/// Begins a tenure, whose first period is to begin at `next_period_at`.
pub fn begin(db: &Db, org_id: Uuid, new: &Subscription, now: Moment, metadata: &str) {
    let origin = if new.by_default { "default" } else { "subscribed" };
    let metadata = crate::pg::jsonb::from_text(metadata);
    db.write(
        &BEGIN_TENURE,
        args![
            org_id,
            Timestamptz(new.starts_at),
            Timestamptz(new.anchor),
            new.next_period_at.map(Timestamptz),
            Timestamptz(now),
            &new.plan,
            origin,
            metadata,
            new.grants.clone(),
            new.granted,
            new.taken_back,
            new.billing_provider.as_ref().map(|(provider, _)| provider.clone()),
            new.billing_provider.as_ref().map(|(_, subscription)| subscription.clone()),
        ],
    );
}

/// Lets a provider collect for a subscription from now on.
pub fn set_billing_provider(db: &Db, org_id: Uuid, starts_at: Moment, billing_provider: &BillingProvider) {
    db.write(
        &SET_BILLING_PROVIDER,
        args![org_id, Timestamptz(starts_at), billing_provider.0.as_str(), billing_provider.1.as_str()],
    );
}

/// Ends a tenure.
pub fn end(db: &Db, org_id: Uuid, starts_at: Moment, at: Moment) {
    db.write(&END_TENURE, args![org_id, Timestamptz(starts_at), Timestamptz(at)]);
}

/// Lets a tenure that was to end go on.
pub fn reopen(db: &Db, org_id: Uuid, starts_at: Moment, next: Moment) {
    db.write(&REOPEN_TENURE, args![org_id, Timestamptz(starts_at), Timestamptz(next)]);
}

/// Notes that a tenure has no further period.
pub fn nothing_due(db: &Db, org_id: Uuid, starts_at: Moment) {
    db.write(&NOTHING_DUE, args![org_id, Timestamptz(starts_at)]);
}

/// Sets the start of the next period, if it still is the one that was seen; else false.
pub fn advance(db: &Db, org_id: Uuid, old: &Subscription, from: Moment, to: Moment, new: (Vec<i64>, i64)) -> bool {
    db.write(&ADVANCE, args![org_id, Timestamptz(old.starts_at), Timestamptz(from), Timestamptz(to), new.0, new.1])
        .count()
        == 1
}

/// Notes what is to happen at the end of the period.
pub fn set_ending(db: &Db, org_id: Uuid, starts_at: Moment, cancel: bool, plan: Option<&str>) {
    db.write(&SET_ENDING, args![org_id, Timestamptz(starts_at), cancel, plan]);
}

/// Sets the terms that an org has of its own for a metric, or clears them.
pub fn set_own_terms(db: &Db, org_id: Uuid, metric: &str, own: Override) {
    if own == Override::default() {
        db.write(&CLEAR_OWN_TERMS, args![org_id, metric]);
    } else {
        db.write(&SAVE_OWN_TERMS, args![org_id, metric, own.allowance, own.limit.map(Limit::name)]);
    }
}
