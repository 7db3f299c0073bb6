//! Beginning the periods of an org that are due, each after the usage before it is charged, and
//! ending the running one where a subscription begins or ends.

use crate::base::error::Result;
use crate::base::time::{Moment, Period};
use crate::base::units;
use crate::catalog::cache;
use crate::ledger::store as ledger;
use crate::pg::clock;
use crate::pg::spi::{self, Db};
use crate::plans::period::whole_period;
use crate::plans::store::{self as plans, Subscription};
use crate::settlement::pay::pay;
use crate::settlement::{charge, renewal, store};
use uuid::Uuid;

/// The periods that were begun, and the recorded events that were charged before.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct Begun {
    pub periods: i64,
    pub events: i64,
}

/// Begins the periods that are due, each after the usage before it is charged. The wallet must be
/// locked.
pub fn catch_up(db: &Db, org_id: Uuid, as_of: Moment) -> Result<Begun> {
    let mut begun = Begun::default();
    loop {
        let Some((subscription, start)) = renewal::due(org_id, as_of) else {
            if enroll(db, org_id, as_of)? {
                continue;
            }
            return Ok(begun);
        };
        // The credits of the old period pay for its usage, in its last moment.
        let units = charge::units(db, org_id)?;
        ledger::lock_org(db, org_id, &units, as_of)?;
        let charged = charge::charge(db, org_id, start, start - 1)?;
        begun.events += charged.events;
        pay(db, org_id, start - 1, charged.debts)?;
        begun.periods += i64::from(renewal::renew(db, org_id, &subscription, start)?);
    }
}

/// Ends the running period where a subscription begins or ends. The usage before is charged now,
/// unless `at` is in the future.
pub fn cut_period(db: &Db, org_id: Uuid, now: Moment, at: Moment) -> Result<()> {
    if at > now {
        store::cut_period(db, org_id, at);
        return Ok(());
    }
    let units = charge::units(db, org_id)?;
    ledger::lock_org(db, org_id, &units, now)?;
    let charged = charge::charge(db, org_id, now.saturating_add(1), now)?;
    store::cut_period(db, org_id, at);
    pay(db, org_id, now, charged.debts).map(drop)
}

/// Undoes `cut_period` for a moment in the future: the period goes on.
pub fn join_period(db: &Db, org_id: Uuid, at: Moment) -> Result<()> {
    store::join_period(db, org_id, at, plans::timeline(db, org_id, true)?.period(at - 1));
    Ok(())
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
            spi::isolate_faults(|| spi::connect(|db| begin(db, org_id).map(drop)))?;
        }
    }
    Ok(())
}

/// Begins the periods of one org that are due; gives their number.
pub fn begin(db: &Db, org_id: Uuid) -> Result<i64> {
    ledger::lock_org(db, org_id, &[units::CREDIT.to_owned()], clock::now())?;
    let now = clock::now();
    Ok(catch_up(db, org_id, now)?.periods)
}
