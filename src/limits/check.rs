//! `check_limit`: whether an org may use so much more of a metric, and if not, what stops it.

use crate::base::error::{Error, Result};
use crate::base::units;
use crate::catalog::cache;
use crate::catalog::sections::caps::CapSubject;
use crate::catalog::sections::metrics::Tier;
use crate::catalog::sections::plans::Limit;
use crate::ledger::spendable::spendable;
use crate::limits::caps;
use crate::limits::standing::Reader;
use crate::pg::arguments::{positive, required, required_uuid};
use crate::pg::clock;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db};
use crate::schema::ledger::freezes;
use crate::schema::{Snapshot, Table};
use crate::{access, receipt};
use pgrx::prelude::*;
use uuid::Uuid;

receipt! {
    /// The answer of `check_limit`.
    LimitStatus as "limit_status" {
        allowed: bool,
        reason: String,
        metric: String,
        used: i64,
        included: Option<i64>,
        remaining: Option<i64>,
        credits_required: i64,
        credits_available: i64,
        resets_at: Option<i64>,
    }
}

/// Whether a person, or a score, has frozen the org.
fn is_frozen(org_id: Uuid) -> bool {
    let table = Table::<freezes::Table>::to_read();
    !table.is_known_empty() && table.find(&freezes::of_org(org_id), Snapshot::Callers, |_| true).is_some()
}

/// The facts that decide whether an org may go on.
struct LimitInputs {
    capped: bool,
    limit: Option<Limit>,
    /// Whether the plan, or the org's own terms, include some of the metric.
    included: bool,
    tier: Option<Tier>,
    overage: i64,
    priced: bool,
    required: i64,
    available: i64,
}

/// Decides whether the usage is allowed, and why. A hard limit of a plan closes even a core metric.
fn verdict(inputs: &LimitInputs) -> (bool, &'static str) {
    if inputs.capped {
        return (false, "cap");
    }
    if inputs.overage == 0 {
        return (true, "included");
    }
    let hard = inputs.limit == Some(Limit::Hard);
    if inputs.limit == Some(Limit::Soft) {
        return (true, "soft_limit");
    }
    if inputs.priced && inputs.required <= inputs.available {
        return (true, "credits");
    }
    if !inputs.priced && !inputs.included && !hard {
        // A metric without a price that no plan names is free.
        return (true, "included");
    }
    if Tier::stays_open(inputs.tier) && !hard {
        return (true, "core");
    }
    if !inputs.priced || ((inputs.included || hard) && inputs.available == 0) {
        return (false, "plan_limit");
    }
    (false, "insufficient_credits")
}

fn check(db: &Db, org_id: Uuid, metric: &str, quantity: i64) -> Result<LimitStatus> {
    cache::require_installed(db)?;
    let metric = cache::metric(db, metric)?;
    let now = clock::now();
    let price = cache::price(db, &metric, Some(org_id), now)?;
    let unit = price.as_ref().map_or(units::CREDIT, |p| p.unit.as_str());
    let reader = Reader::new(db, org_id, now)?;
    let standing = reader.standing(&metric)?;
    let charge = standing.charge(quantity, price.as_deref())?;
    let mut spendable = spendable(db, org_id, unit, Some(&metric.name))?;
    if unit == units::CREDIT {
        spendable = spendable.saturating_add(reader.credits_due());
    }
    let available = (spendable - reader.owed(unit)?).max(0);
    let mut capped = false;
    let mut resets_at = standing.terms.span.end;
    for cap in metric.caps.iter().filter(|cap| cap.subject == CapSubject::Org) {
        if caps::used(db, org_id, cap, now)?.saturating_add(quantity) > cap.quantity {
            let end = cap.per.end(now);
            resets_at = if capped { resets_at.max(end) } else { end };
            capped = true;
        }
    }
    let inputs = LimitInputs {
        capped,
        limit: standing.terms.limit,
        included: standing.terms.included,
        tier: metric.tier,
        overage: charge.overage,
        priced: price.is_some(),
        required: charge.credits,
        available,
    };
    let (allowed, reason) = if is_frozen(org_id) { (false, "frozen") } else { verdict(&inputs) };
    Ok(LimitStatus {
        allowed,
        reason: reason.to_owned(),
        metric: metric.name.clone(),
        used: standing.used,
        included: standing.terms.allowance,
        remaining: standing.remaining(),
        credits_required: charge.credits,
        credits_available: available,
        resets_at: Some(resets_at),
    })
}

/// Tells whether the org may use `quantity` more of the metric, why or why not, what is used,
/// included and left, what it would cost, and when that starts anew.
///
/// Exact to the last recorded event. `reason`: included | credits | core | `soft_limit` when
/// allowed; `plan_limit` | `insufficient_credits` | cap | frozen when not. `included` and
/// `remaining` are null where there is no limit. `credits_available` is what is left for this
/// metric once overage that was not paid yet is. A bounded number of index reads, however long the
/// history; takes no locks. Errors: 42501 `not_authorized` for an org that is not the caller's;
/// PT404 `unknown_metric`; 22023.
#[pg_extern(stable)]
fn check_limit(org_id: Option<pgrx::Uuid>, metric: Option<&str>, quantity: default!(Option<i64>, 1)) -> LimitStatus {
    or_raise(access::reader(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let metric = required("metric", metric)?;
        let quantity = positive("quantity", quantity)?;
        spi::connect(|db| {
            access::authorize(db, org_id)?;
            check(db, org_id, metric, quantity)
        })
    }))
}

/// Tells whether [`check_limit`] allows it: for the app's own row-level policies. False for an org
/// that is not the caller's.
///
/// Errors: PT404 `unknown_metric`; 22023.
#[pg_extern(stable)]
fn allows(org_id: Option<pgrx::Uuid>, metric: Option<&str>, quantity: default!(Option<i64>, 1)) -> bool {
    or_raise(access::reader(|| {
        let metric = required("metric", metric)?;
        let quantity = positive("quantity", quantity)?;
        // A row without an org belongs to nobody, so nobody may insert it.
        let Some(org_id) = org_id.map(|id| Uuid::from_bytes(*id.as_bytes())) else { return Ok(false) };
        spi::connect(|db| match access::authorize(db, org_id) {
            Ok(()) => check(db, org_id, metric, quantity).map(|status| status.allowed),
            Err(Error { sqlstate: [b'4', b'2', ..], .. }) => Ok(false),
            Err(error) => Err(error),
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> LimitInputs {
        LimitInputs {
            capped: false,
            limit: None,
            included: true,
            tier: None,
            overage: 1,
            priced: true,
            required: 5,
            available: 0,
        }
    }

    #[test]
    fn what_is_left_of_the_plan_comes_first() {
        assert_eq!(verdict(&LimitInputs { overage: 0, ..inputs() }), (true, "included"));
        assert_eq!(verdict(&LimitInputs { overage: 0, capped: true, ..inputs() }), (false, "cap"));
    }

    #[test]
    fn beyond_the_plan_credits_decide() {
        assert_eq!(verdict(&inputs()), (false, "plan_limit"));
        assert_eq!(verdict(&LimitInputs { available: 4, ..inputs() }), (false, "insufficient_credits"));
        assert_eq!(verdict(&LimitInputs { available: 5, ..inputs() }), (true, "credits"));
        assert_eq!(verdict(&LimitInputs { included: false, ..inputs() }), (false, "insufficient_credits"));
        assert_eq!(verdict(&LimitInputs { priced: false, required: 0, ..inputs() }), (false, "plan_limit"));
        assert_eq!(
            verdict(&LimitInputs { priced: false, included: false, required: 0, ..inputs() }),
            (true, "included")
        );
    }

    #[test]
    fn soft_limits_and_core_metrics_stay_open_and_hard_ones_do_not() {
        let soft = Some(Limit::Soft);
        let hard = Some(Limit::Hard);
        assert_eq!(verdict(&LimitInputs { limit: soft, ..inputs() }), (true, "soft_limit"));
        assert_eq!(verdict(&LimitInputs { tier: Some(Tier::Core), ..inputs() }), (true, "core"));
        assert_eq!(verdict(&LimitInputs { tier: Some(Tier::Premium), ..inputs() }), (false, "plan_limit"));
        assert_eq!(verdict(&LimitInputs { tier: Some(Tier::Core), limit: hard, ..inputs() }), (false, "plan_limit"));
    }
}
