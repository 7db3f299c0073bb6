//! A subscription as it is now: the answer of the functions that change it.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::call::Answer;
use crate::pg::spi::Db;
use crate::plans::store::{self as plans, Subscription};
use crate::receipt;
use crate::subscriptions::rules;
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

/// The newest subscription as it is now.
pub fn status(db: &Db, org_id: Uuid, now: Moment) -> Result<SubscriptionStatus> {
    let all = plans::subscriptions(org_id);
    let newest = all.iter().rev().find(|s| !s.is_void()).or(all.last());
    let newest = newest.ok_or_else(|| Error::no_subscription(&org_id.to_string()))?;
    status_of(db, org_id, newest, now)
}

/// A subscription as it is now.
pub fn status_of(db: &Db, org_id: Uuid, newest: &Subscription, now: Moment) -> Result<SubscriptionStatus> {
    let ended = rules::has_ended(newest, now);
    let period = plans::timeline(db, org_id, true)?.period(now.max(newest.starts_at));
    Ok(SubscriptionStatus {
        org_id,
        plan: newest.plan.clone(),
        status: rules::status_name(newest, now).to_owned(),
        starts_at: Some(newest.starts_at),
        period_start: (!ended).then_some(period.start),
        period_end: (!ended).then_some(period.end),
        cancel_at_period_end: newest.cancel_at_period_end,
        pending_plan: newest.pending_plan.clone(),
        ends_at: newest.ends_at,
        replayed: false,
    })
}
