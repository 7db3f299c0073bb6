//! Subscriptions of orgs to plans, by SQL functions and by what providers report, and allowances of
//! single orgs.

mod call;
mod change;
mod collected;
pub mod provider_reports;
mod rules;
mod status;
mod store;

use crate::access;
use crate::base::error::Error;
use crate::base::time::Moment;
use crate::base::words::Word;
use crate::catalog::cache;
use crate::catalog::sections::plans::Limit;
use crate::pg::arguments::{required, required_uuid};
use crate::pg::jsonb::Jsonb;
use crate::pg::raise::or_raise;
use crate::pg::spi;
use crate::plans::period::Override;
use crate::plans::store as plans;
use crate::subscriptions::call::SubscriptionCall;
use crate::subscriptions::status::{SubscriptionStatus, status};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

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
        let starts_at = starts_at.map(Moment::from).map(rules::finite_start).transpose()?;
        let start = starts_at.map(|at| at.to_string());
        let call =
            SubscriptionCall::new(org_id, "subscribe", &[Some(name), start.as_deref()], idempotency_key, metadata)?;
        call.run(true, |db, all, now| {
            let plan = cache::plan(db, name)?;
            change::subscribe_to(db, &call, all, &plan, starts_at, now)
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
            let current = rules::running_subscription(all, now);
            let current = current.ok_or_else(|| Error::no_subscription(&org_id.to_string()))?;
            if at_period_end && current.plan != plan.name {
                plans::set_ending(db, org_id, current.starts_at, false, Some(&plan.name));
            } else {
                change::change_now(db, &call, all, current, &plan, now)?;
            }
            status(db, org_id, now)
        })
    }))
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
        call.run(false, |db, all, now| change::cancel(db, org_id, all, at_period_end, now))
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
            plans::set_own_terms(db, org_id, metric, Override { allowance, limit });
            // Backends look for an org's own terms only if a metric has any: the first ones must be
            // announced.
            if !known.own.allowance {
                cache::invalidate(db);
            }
            Ok(())
        })
    }));
}
