//! The start of each period of a subscription: its plan's grants, the credit that rolls over from
//! the last period, and changes that were due.
//!
//! A period is begun once: its start stands in the row, and is compared and set under the wallet's
//! lock.

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment};
use crate::base::units;
use crate::catalog::cache;
use crate::catalog::sections::plans::{Plan, Rollover};
use crate::ledger::kind::EntryKind;
use crate::ledger::wallet::{EntryContext, Grant, Operation, Part, Wallet};
use crate::ledger::{debts, store as ledger};
use crate::pg::spi::Db;
use crate::plans::period::{Span, prorated, whole_period};
use crate::plans::store::{self as plans, Subscription};
use crate::posting;
use crate::settlement::{rules, store};
use std::rc::Rc;
use uuid::Uuid;

const NO_METADATA: &str = "{}";

/// The subscription whose next period has begun by then, if there is one.
pub fn due(org_id: Uuid, as_of: Moment) -> Option<(Subscription, Moment)> {
    let all = plans::subscriptions(org_id);
    all.into_iter()
        .filter(|s| !s.awaiting_payment)
        .find_map(|s| s.next_period_at.filter(|at| *at <= as_of).map(|at| (s, at)))
}

/// Begins the period that starts at `start`, or ends the subscription there, or changes its plan;
/// answers whether a period was begun. The wallet must be locked.
pub fn renew(db: &Db, org_id: Uuid, old: &Subscription, start: Moment) -> Result<bool> {
    let mut wanted = old.pending_plan.clone();
    if old.ends_at.is_some_and(|end| end <= start) {
        plans::nothing_due(db, org_id, old.starts_at);
        return Ok(false);
    }
    if old.by_default {
        // An org on the default plan follows whatever that is by now.
        match cache::default_plan(db)?.0 {
            Some(plan) if plan.credits.is_some() => wanted = Some(plan.name.clone()).filter(|name| *name != old.plan),
            _ => {
                plans::end(db, org_id, old.starts_at, start);
                return Ok(false);
            }
        }
    }
    if old.cancel_at_period_end && start > old.starts_at {
        plans::end(db, org_id, old.starts_at, start);
        return Ok(false);
    }
    let before = cache::any_plan(db, &old.plan)?;
    let plan = match &wanted {
        Some(name) => cache::any_plan(db, name)?,
        None => Rc::clone(&before),
    };
    let anchor = if plan.cycle == before.cycle { old.anchor } else { start };
    let end = whole_period(plan.cycle, anchor, start).end;
    let (grants, granted) = grant(db, org_id, &plan, old, Span { start, end })?;
    if wanted.is_some() && start > old.starts_at {
        plans::end(db, org_id, old.starts_at, start);
        let new = Subscription {
            starts_at: start,
            ends_at: None,
            anchor,
            next_period_at: Some(end),
            plan: plan.name.clone(),
            pending_plan: None,
            cancel_at_period_end: false,
            by_default: old.by_default,
            grants,
            granted,
            taken_back: 0,
            awaiting_payment: false,
            billing_provider: old.billing_provider.clone(),
        };
        plans::begin(db, org_id, &new, start, "{}");
    } else if !plans::advance(db, org_id, old, start, end, (grants, granted)) {
        return Err(Error::contended());
    }
    Ok(true)
}

/// Grants the credits of a period that begins and those that roll over; gives the grants, and the
/// credit of the plan alone.
fn grant(db: &Db, org_id: Uuid, plan: &Plan, last: &Subscription, period: Span) -> Result<(Vec<i64>, i64)> {
    let start = period.start;
    let Some(credits) = plan.credits else { return Ok((Vec::new(), 0)) };
    let mut granted = credits.amount;
    if start == last.starts_at {
        // The default plan may take over in the middle of a month.
        let whole = whole_period(plan.cycle, last.anchor, start);
        granted = (prorated(granted, whole, start) - covered(db, org_id, last, start)?).max(0);
    }
    let mut amounts = vec![granted];
    if let Rollover::Capped(cap) = credits.rollover
        && !last.grants.is_empty()
    {
        // The lock keeps others from burning the credit while it is counted.
        let lane = ledger::lock_or_create(db, org_id, units::CREDIT, start)?;
        if lane.is_split() {
            let mut wallet = Wallet::new(lane, start);
            ledger::load(db, &mut wallet, &last.grants)?;
            ledger::reclaim_lanes(&mut wallet, |away| last.grants.contains(&away.slice.grant_id))?;
            posting::save(db, std::slice::from_mut(&mut wallet), NO_METADATA)?;
        }
        let expired = store::expired_credit(db, org_id, &last.grants, start) - last.taken_back;
        amounts.push(expired.clamp(0, cap));
    }
    Ok((grant_amounts(db, org_id, plan, &amounts, period, start)?, granted))
}

/// The credit that earlier subscriptions granted for time that is still to come, so that ending one
/// and beginning another does not grant it twice.
fn covered(db: &Db, org_id: Uuid, new: &Subscription, start: Moment) -> Result<i64> {
    let mut sum: i64 = 0;
    for old in plans::subscriptions(org_id) {
        let Some(end) = old.ends_at else { continue };
        if old.by_default != new.by_default || old.granted == 0 || end > start {
            continue;
        }
        let plan = cache::any_plan(db, &old.plan)?;
        let period = whole_period(plan.cycle, old.anchor, (end - 1).max(old.starts_at));
        sum = sum.saturating_add(prorated(old.granted, period, start));
    }
    Ok(sum)
}

/// Grants amounts of credit by a plan, to be spent until the period ends.
pub fn grant_amounts(
    db: &Db,
    org_id: Uuid,
    plan: &Plan,
    amounts: &[i64],
    period: Span,
    now: Moment,
) -> Result<Vec<i64>> {
    let lane = ledger::lock_or_create(db, org_id, units::CREDIT, now)?;
    let mut wallet = Wallet::new(lane, now);
    ledger::load(db, &mut wallet, &[])?;
    let mut grants = Vec::new();
    for amount in amounts.iter().filter(|amount| **amount > 0) {
        let grant =
            Grant { expires_at: rules::expiry(plan.credits, period.end), ..Grant::new(*amount, EntryKind::Plan, now) };
        let source_id = format!("{} {}", plan.name, time::display(period.start));
        let mut operation = Operation::new(EntryContext::from_source("plan", Some(source_id)));
        grants.push(wallet.grant(&mut operation, EntryKind::Plan, grant)?);
    }
    debts::pay(db, &mut wallet, &[])?;
    posting::save(db, std::slice::from_mut(&mut wallet), NO_METADATA)?;
    Ok(grants)
}

/// Takes back at most `credits` from these grants, as far as they are there, and gives how much it
/// was.
pub fn take_back(db: &Db, org_id: Uuid, grants: &[i64], credits: i64, now: Moment) -> Result<i64> {
    let lane = ledger::lock_or_create(db, org_id, units::CREDIT, now)?;
    let mut wallet = Wallet::new(lane, now);
    ledger::load(db, &mut wallet, grants)?;
    ledger::reclaim_lanes(&mut wallet, |away| grants.contains(&away.slice.grant_id))?;
    let mut missing = credits;
    for grant_id in grants {
        let credits = wallet.find_grant(*grant_id)?.remaining.min(missing);
        if credits > 0 {
            let part = Part { grant_id: *grant_id, credits };
            let mut operation = Operation::new(EntryContext::from_source("plan", None));
            wallet.write_off(&mut operation, EntryKind::Void, part)?;
            missing -= credits;
        }
    }
    posting::save(db, std::slice::from_mut(&mut wallet), NO_METADATA)?;
    Ok(credits - missing)
}
