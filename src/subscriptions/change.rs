//! Changes of an org's subscription: beginning, changing the plan, ending, and taking back what has
//! not begun. The org's wallets must be locked.

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment};
use crate::catalog::cache;
use crate::catalog::sections::plans::Plan;
use crate::pg::spi::Db;
use crate::plans::period::{Span, whole_period};
use crate::plans::store::{self as plans, BillingProvider, Subscription};
use crate::settlement::{periods, renewal};
use crate::subscriptions::call::SubscriptionCall;
use crate::subscriptions::rules::{self, PlanShare};
use crate::subscriptions::status::{SubscriptionStatus, status, status_of};
use uuid::Uuid;

/// Puts an org on a plan: begins a subscription, or changes the plan of the one that runs.
pub fn subscribe_to(
    db: &Db,
    call: &SubscriptionCall<'_>,
    all: &[Subscription],
    plan: &Plan,
    starts_at: Option<Moment>,
    now: Moment,
) -> Result<SubscriptionStatus> {
    let org_id = call.org_id;
    match rules::running_subscription(all, now) {
        Some(current) => {
            let end = current.next_period_at.unwrap_or(now);
            match starts_at.filter(|at| *at > now) {
                None => change_now(db, call, all, current, plan, now)?,
                Some(at) if at == end => plans::set_ending(db, org_id, current.starts_at, false, Some(&plan.name)),
                Some(_) => {
                    return Err(Error::invalid("starts_at", "must be null or the end of the current period")
                        .with("period_end", time::display(end)));
                }
            }
        }
        None => {
            let starts_at = starts_at.unwrap_or(now);
            rules::check_start(all, starts_at, now)?;
            if let Some(scheduled) = rules::chosen_subscription(all, now) {
                withdraw(db, org_id, all, scheduled, now)?;
            }
            periods::cut_period(db, org_id, now, starts_at)?;
            // The default plan goes on until the subscription begins.
            for other in plans::subscriptions(org_id).iter().filter(|s| s.by_default && !s.is_void()) {
                if other.ends_at.is_none_or(|end| end > starts_at) {
                    plans::end(db, org_id, other.starts_at, starts_at);
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
    plans::end(db, org_id, at, at);
    for before in all.iter().filter(|s| s.by_default && !s.is_void() && s.ends_at == Some(at)) {
        let cycle = cache::any_plan(db, &before.plan)?.cycle;
        let next = whole_period(cycle, before.anchor, now).end;
        plans::reopen(db, org_id, before.starts_at, before.next_period_at.unwrap_or(next));
    }
    periods::join_period(db, org_id, at)
}

/// The credit that was granted for the current period already.
#[derive(Default)]
#[allow(missing_docs)]
pub struct Granted {
    pub grants: Vec<i64>,
    /// The credit that the grants came to, less what was taken back.
    pub credits: i64,
    pub taken_back: i64,
}

/// The start of a subscription on a plan.
#[allow(missing_docs)]
pub struct Beginning {
    pub starts_at: Moment,
    pub anchor: Moment,
    pub next_period_at: Moment,
    pub granted: Granted,
    pub billing_provider: Option<BillingProvider>,
}

impl Beginning {
    /// A subscription whose periods begin at a moment, with nothing granted yet.
    fn at(moment: Moment, billing_provider: Option<BillingProvider>) -> Self {
        let granted = Granted::default();
        Self { starts_at: moment, anchor: moment, next_period_at: moment, granted, billing_provider }
    }
}

/// Begins a subscription on a plan.
pub fn begin(db: &Db, call: &SubscriptionCall<'_>, plan: &Plan, beginning: Beginning, now: Moment) {
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
    plans::begin(db, call.org_id, &new, now, &call.metadata);
}

/// Changes the plan for the rest of the period, with allowances and credits in proportion to the
/// time.
pub fn change_now(
    db: &Db,
    call: &SubscriptionCall<'_>,
    all: &[Subscription],
    current: &Subscription,
    plan: &Plan,
    now: Moment,
) -> Result<()> {
    let org_id = call.org_id;
    if current.plan == plan.name {
        plans::set_ending(db, org_id, current.starts_at, false, None);
        return Ok(());
    }
    let old = cache::any_plan(db, &current.plan)?;
    if old.cycle != plan.cycle {
        periods::cut_period(db, org_id, now, now)?;
        plans::end(db, org_id, current.starts_at, now);
        begin(db, call, plan, Beginning::at(now, current.billing_provider.clone()), now);
        return periods::catch_up(db, org_id, now).map(drop);
    }
    let whole = whole_period(plan.cycle, current.anchor, now);
    // All plans of the period count, less what was granted: many changes bring no more than one.
    let credits = |plan: &Plan| plan.credits.map_or(0, |credits| credits.amount);
    let mut shares = vec![
        PlanShare { credits: credits(plan), from: now, until: None },
        PlanShare { credits: credits(&old), from: current.starts_at, until: Some(now) },
    ];
    for earlier in all.iter().filter(|s| s.anchor == current.anchor && s.starts_at < current.starts_at) {
        let known = cache::any_plan(db, &earlier.plan)?;
        let until = Some(earlier.ends_at.unwrap_or(now));
        shares.push(PlanShare { credits: credits(&known), from: earlier.starts_at, until });
    }
    let difference = rules::credit_by_time(whole, &shares) - current.granted;
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
    plans::end(db, org_id, current.starts_at, now);
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

/// Ends the subscription that an org chose, with its period or at once.
pub fn cancel(
    db: &Db,
    org_id: Uuid,
    all: &[Subscription],
    at_period_end: bool,
    now: Moment,
) -> Result<SubscriptionStatus> {
    let current = rules::chosen_subscription(all, now);
    let current = current.ok_or_else(|| Error::no_subscription(&org_id.to_string()))?;
    if at_period_end && current.starts_at <= now {
        plans::set_ending(db, org_id, current.starts_at, true, None);
        return status(db, org_id, now);
    }
    if current.starts_at <= now {
        periods::cut_period(db, org_id, now, now)?;
        plans::end(db, org_id, current.starts_at, now);
    } else {
        withdraw(db, org_id, all, current, now)?;
    }
    let ended = Subscription { ends_at: Some(now.max(current.starts_at)), ..current.clone() };
    status_of(db, org_id, &ended, now)
}
