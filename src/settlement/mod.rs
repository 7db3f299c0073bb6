//! Settlement: recorded usage is charged, periods begin, expired credit is booked, reports and
//! alerts are brought up to date.
//!
//! Each org is settled in one transaction, under the locks of its wallets. Missed periods are made
//! up for one by one, as if settlement had run at the end of each. The counters decide what is
//! charged, so running it again charges nothing.

mod charge;
pub mod renewal;

use crate::alerts::rules::BalanceChange;
use crate::alerts::store::ActiveAlerts;
use crate::alerts::sync::sync_org;
use crate::base::error::{Error, Result};
use crate::base::time::{Moment, Period};
use crate::base::units;
use crate::catalog::cache;
use crate::ledger::debts::{self, Debt};
use crate::ledger::store as ledger;
use crate::ledger::wallet::Wallet;
use crate::pg::arguments::required_uuid;
use crate::pg::clock;
use crate::pg::spi::{self, Db};
use crate::plans::period::whole_period;
use crate::plans::store::{self as plans, Subscription};
use crate::recharge::attempt::on_balance_change;
use crate::reports::fold;
use crate::{contention, entry_point, posting, receipt};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use uuid::Uuid;

receipt! {
    /// The answer of `settle_org`.
    SettlementReceipt as "settlement_receipt" { org_id: Uuid, charged: i64, unpaid: i64, renewed: i64, events: i64 }
}

/// Begins the periods that are due, each after the usage before it is charged; gives the numbers of
/// periods and events. The wallet must be locked.
pub fn catch_up(db: &Db, org_id: Uuid, as_of: Moment) -> Result<(i64, i64)> {
    let (mut renewed, mut events) = (0, 0);
    loop {
        let Some((subscription, start)) = renewal::due(org_id, as_of) else {
            if enroll(db, org_id, as_of)? {
                continue;
            }
            return Ok((renewed, events));
        };
        // The credits of the old period pay for its usage, in its last moment.
        let units = charge::units(db, org_id)?;
        ledger::lock_org(db, org_id, &units, as_of)?;
        let charged = charge::charge(db, org_id, start, start - 1)?;
        events += charged.events;
        pay(db, org_id, start - 1, charged.debts)?;
        renewed += i64::from(renewal::renew(db, org_id, &subscription, start)?);
    }
}

/// Ends the running period where a subscription begins or ends. The usage before is charged now,
/// unless `at` is in the future.
pub fn cut_period(db: &Db, org_id: Uuid, now: Moment, at: Moment) -> Result<()> {
    if at > now {
        charge::cut(db, org_id, at);
        return Ok(());
    }
    let units = charge::units(db, org_id)?;
    ledger::lock_org(db, org_id, &units, now)?;
    let charged = charge::charge(db, org_id, now.saturating_add(1), now)?;
    charge::cut(db, org_id, at);
    pay(db, org_id, now, charged.debts).map(drop)
}

/// Undoes `cut_period` for a moment in the future: the period goes on.
pub fn join_period(db: &Db, org_id: Uuid, at: Moment) -> Result<()> {
    charge::join(db, org_id, at, plans::timeline(db, org_id, true)?.period(at - 1));
    Ok(())
}

/// Burns debts, old and new ones, as far as the wallets go, and books expired credit; gives what
/// was paid and what is still owed.
fn pay(db: &Db, org_id: Uuid, now: Moment, mut debts: Vec<Debt>) -> Result<(i64, i64)> {
    let (mut paid, mut unpaid) = (0_i64, 0_i64);
    for lane in ledger::lock_org(db, org_id, &[], now)? {
        let mut wallet = Wallet::new(lane, now);
        if !wallet.is_fresh() || wallet.lane.is_split() {
            ledger::load(db, &mut wallet, &[])?;
        }
        contention::merge_idle_lanes(db, &mut wallet)?;
        let (mine, others) = debts.into_iter().partition(|debt: &Debt| debt.unit == wallet.lane.unit);
        debts = others;
        let (more, left) = debts::pay(db, &mut wallet, &mine)?;
        paid = paid.saturating_add(more);
        unpaid = unpaid.saturating_add(left);
        posting::save(db, std::slice::from_mut(&mut wallet), "{}")?;
    }
    // These debts are in a unit in which the org has no wallet.
    unpaid = debts.iter().fold(unpaid, |sum, debt| sum.saturating_add(debt.credits));
    debts::owe(db, org_id, &debts);
    Ok((paid, unpaid))
}

/// Gives an org without a subscription, whose default plan grants credits, a row of its own, so
/// that its periods are begun.
fn enroll(db: &Db, org_id: Uuid, now: Moment) -> Result<bool> {
    let (Some(plan), _) = cache::default_plan(db)? else { return Ok(false) };
    let known = plans::subscriptions(org_id);
    if plan.credits.is_none() || known.iter().any(|s| !s.is_void() && s.ends_at.is_none_or(|end| end > now)) {
        return Ok(false);
    }
    // It begins with the running period, or with the end of the subscription before.
    let anchor = Period::Month.start(now);
    let start = whole_period(plan.cycle, anchor, now).start;
    let ended = known.iter().filter_map(|s| s.ends_at).filter(|end| *end <= now).max();
    let start = ended.map_or(start, |end| end.max(start));
    let new = Subscription {
        starts_at: start,
        ends_at: None,
        anchor,
        next_period_at: Some(start),
        plan: plan.name.clone(),
        pending_plan: None,
        cancel_at_period_end: false,
        by_default: true,
        grants: Vec::new(),
        granted: 0,
        taken_back: 0,
        awaiting_payment: false,
        billing_provider: None,
    };
    plans::begin(db, org_id, &new, now, "{}");
    Ok(true)
}

/// Begins the periods that are due, for a call that is about to lock wallets of these orgs. An org
/// that fails is left to settlement.
pub fn begin_due(db: &Db, orgs: Vec<Uuid>) -> Result<()> {
    let due = plans::due(db, orgs.clone(), clock::now())?;
    if !due.is_empty() {
        // All wallets of all orgs of the call are locked here, in their order, or calls for several
        // orgs could wait for each other in a circle.
        ledger::lock_orgs(db, orgs);
        for org_id in due {
            // A fault in one org's plan is for settlement to report: it must not fail a call that
            // spends from another org's wallet.
            spi::isolate_faults(|| spi::connect(|db| begin_periods_of(db, org_id).map(drop)))?;
        }
    }
    Ok(())
}

/// Settles an org as of a moment.
fn settle(db: &Db, org_id: Uuid, as_of: Moment) -> Result<SettlementReceipt> {
    let units = charge::units(db, org_id)?;
    let lanes = ledger::lock_org(db, org_id, &units, as_of)?;
    if lanes.is_empty() {
        return Ok(SettlementReceipt { org_id, charged: 0, unpaid: 0, renewed: 0, events: 0 });
    }
    let before: i64 = lanes.iter().fold(0, |sum, lane| lane.consumed.saturating_add(sum));
    let (renewed, mut events) = catch_up(db, org_id, as_of)?;
    let charged = charge::charge(db, org_id, as_of.saturating_add(1), as_of)?;
    events += charged.events;
    let (_, unpaid) = pay(db, org_id, as_of, charged.debts)?;
    let lanes = ledger::lock_org(db, org_id, &[], as_of)?;
    let open = ActiveAlerts::read(db, org_id);
    for lane in &lanes {
        let (balance, base, threshold) = (ledger::balance(lane), lane.alert_base, lane.alert_below);
        let change = BalanceChange { unit: &lane.unit, balance, base, threshold };
        on_balance_change(db, org_id, &open, change, as_of)?;
    }
    fold::fold_all(org_id);
    sync_org(db, org_id, &open, charged.timeline, &lanes, as_of)?;
    let after: i64 = lanes.iter().fold(0, |sum, lane| lane.consumed.saturating_add(sum));
    Ok(SettlementReceipt { org_id, charged: after - before, unpaid, renewed, events })
}

/// The moment as of which to settle: null is now, and the future cannot be settled.
fn moment(as_of: Option<TimestampWithTimeZone>) -> Result<Moment> {
    let now = clock::now();
    match as_of.map(Moment::from) {
        None => Ok(now),
        Some(at) if at > now => Err(Error::invalid("as_of", "must not be in the future")),
        Some(crate::base::time::NEG_INFINITY) => Err(Error::invalid("as_of", "must be finite")),
        Some(at) => Ok(at),
    }
}

/// Begins the periods of one org that are due; gives their number.
fn begin_periods_of(db: &Db, org_id: Uuid) -> Result<i64> {
    ledger::lock_org(db, org_id, &[units::CREDIT.to_owned()], clock::now())?;
    let now = clock::now();
    Ok(catch_up(db, org_id, now)?.0)
}

/// Begins the periods of an org that are due, each after the usage before it is charged; gives
/// their number. Consumption does it by itself.
///
/// Errors: 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn begin_periods(org_id: Option<pgrx::Uuid>) -> i64 {
    entry_point::service(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        begin_periods_of(db, org_id)
    })
}

/// Settles one org as of a moment (null: now): charges recorded usage beyond what is included,
/// begins periods that are due, books what expired, brings reports and alerts up to date.
///
/// `charged`: credits burned; `unpaid`: what the wallet could not pay, and the next credit that
/// comes in will; `renewed`: periods begun; `events`: recorded events that were settled. Run again,
/// it charges nothing. Errors: 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn settle_org(org_id: Option<pgrx::Uuid>, as_of: default!(Option<TimestampWithTimeZone>, "NULL")) -> SettlementReceipt {
    entry_point::service(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let as_of = moment(as_of)?;
        settle(db, org_id, as_of)
    })
}
