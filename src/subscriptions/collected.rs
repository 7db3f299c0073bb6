//! What a provider collects for: paid periods begin, whichever report comes first, and plans change
//! and end as the provider says. The org's wallets must be locked.

use crate::base::error::Result;
use crate::base::time::Moment;
use crate::catalog::cache;
use crate::catalog::cycle::Cycle;
use crate::catalog::sections::plans::Plan;
use crate::pg::spi::Db;
use crate::plans::period::{GRACE, Span, whole_period};
use crate::plans::store::{self as plans, BillingProvider, Subscription};
use crate::settlement::{periods, renewal};
use crate::subscriptions::call::SubscriptionCall;
use crate::subscriptions::change::{Beginning, Granted, begin, change_now, subscribe_to};
use crate::subscriptions::rules::{self, chosen_subscription, running_subscription};
use uuid::Uuid;

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
    billing_provider: &BillingProvider,
    now: Moment,
    note: impl FnOnce(),
) -> Result<Vec<i64>> {
    let PaidPeriod { start, until, is_money } = paid;
    let call = SubscriptionCall::new(org_id, "collect", &[], None, None)?;
    periods::catch_up(db, org_id, now)?;
    let before = plans::subscriptions(org_id);
    let running = running_subscription(&before, now);
    // Money for the time after the end takes a cancellation back.
    if let Some(current) = running.filter(|s| s.cancel_at_period_end)
        && current.next_period_at.is_some_and(|turn| until > turn + GRACE)
    {
        plans::set_ending(db, org_id, current.starts_at, false, None);
    }
    match running {
        // The org was on a free plan until now, or paid to another day: the periods begin with the
        // paid one.
        Some(current)
            if is_money
                && start <= now + GRACE
                && rules::is_new_anchor(current, cycle_of(db, current)?, Span { start, end: until }) =>
        {
            periods::cut_period(db, org_id, now, now)?;
            plans::end(db, org_id, current.starts_at, now);
            note();
            begin_paid(db, &call, plan, start.min(now), now)?;
        }
        Some(current) if current.plan == plan.name => {
            // Periods that nobody paid are skipped.
            if current.awaiting_payment
                && let Some(next) = current.next_period_at.filter(|next| start > *next + GRACE)
            {
                let paid = whole_period(plan.cycle, current.anchor, start.saturating_add(GRACE)).start;
                plans::reopen(db, org_id, current.starts_at, paid.max(next));
            }
            note();
        }
        // A period that was waiting for its money begins with the plan that was paid.
        Some(current) if current.next_period_at.is_some_and(|at| at <= now) => {
            plans::set_ending(db, org_id, current.starts_at, false, Some(&plan.name));
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
    let all = plans::subscriptions(org_id);
    if let Some(current) = chosen_subscription(&all, now) {
        plans::set_billing_provider(db, org_id, current.starts_at, billing_provider);
    }
    periods::catch_up(db, org_id, now)?;
    Ok(rules::new_grants(&before, &plans::subscriptions(org_id)))
}

fn cycle_of(db: &Db, subscription: &Subscription) -> Result<Cycle> {
    Ok(cache::any_plan(db, &subscription.plan)?.cycle)
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
    for other in plans::subscriptions(org_id).iter().filter(|s| s.by_default && !s.is_void()) {
        if other.ends_at.is_none_or(|end| end > now) {
            plans::end(db, org_id, other.starts_at, now);
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
pub fn is_billing_provider(org_id: Uuid, billing_provider: &BillingProvider, now: Moment) -> bool {
    let all = plans::subscriptions(org_id);
    chosen_subscription(&all, now).is_some_and(|s| s.billing_provider.as_ref() == Some(billing_provider))
}

/// Notes that the plan of a subscription which a provider collects for changes: with the next
/// period, or as soon as the difference is paid. The wallets must be locked.
pub fn schedule_plan_change(db: &Db, org_id: Uuid, plan: &Plan, now: Moment) {
    let all = plans::subscriptions(org_id);
    if let Some(current) = running_subscription(&all, now) {
        let pending = (current.plan != plan.name).then_some(plan.name.as_str());
        if current.pending_plan.as_deref() != pending {
            plans::set_ending(db, org_id, current.starts_at, current.cancel_at_period_end, pending);
        }
    }
}

/// Lets the subscription end with its period, or go on. The wallets must be locked.
pub fn end_with_period(db: &Db, org_id: Uuid, ends: bool, now: Moment) {
    let all = plans::subscriptions(org_id);
    if let Some(current) = chosen_subscription(&all, now).filter(|s| s.cancel_at_period_end != ends) {
        plans::set_ending(db, org_id, current.starts_at, ends, current.pending_plan.as_deref().filter(|_| !ends));
    }
}

/// Ends the subscription at once, if there is one. The wallets must be locked.
pub fn end_now(db: &Db, org_id: Uuid, now: Moment) -> Result<()> {
    let all = plans::subscriptions(org_id);
    if let Some(current) = running_subscription(&all, now) {
        periods::cut_period(db, org_id, now, now)?;
        // A period that waited for its money is as if it had never begun.
        let end = current.next_period_at.filter(|next| *next < now).unwrap_or(now);
        plans::end(db, org_id, current.starts_at, end);
    }
    Ok(())
}
