//! `check_limit`: may an org use so much more of a metric, and if not, what stops it.

use crate::access;
use crate::arguments::{positive, required, required_uuid};
use crate::catalog::cache;
use crate::catalog::plan::Limit;
use crate::clock;
use crate::error::{Error, Result};
use crate::ledger::totals;
use crate::limits::caps;
use crate::limits::standing::Reader;
use crate::raise::or_raise;
use crate::schema::ledger::freezes;
use crate::schema::{Snapshot, Table};
use crate::sql::{self, Db};
use crate::{receipt, units};
use pgrx::prelude::*;
use uuid::Uuid;

receipt! {
    /// Whether an org may go on, and what it has.
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

/// Whether somebody, or a score, has frozen the org.
fn is_frozen(org_id: Uuid) -> bool {
    let table = Table::<freezes::Table>::to_read();
    !table.is_known_empty() && table.find(&freezes::of_org(org_id), Snapshot::Callers, |_| true).is_some()
}

/// All that decides.
struct Facts<'a> {
    capped: bool,
    limit: Option<Limit>,
    /// Plan or org include some of it.
    included: bool,
    tier: Option<&'a str>,
    overage: i64,
    priced: bool,
    required: i64,
    available: i64,
}

/// Allowed or not, and why. Hard limits of a plan close also a core metric.
fn verdict(facts: &Facts<'_>) -> (bool, &'static str) {
    if facts.capped {
        return (false, "cap");
    }
    if facts.overage == 0 {
        return (true, "included");
    }
    let hard = facts.limit == Some(Limit::Hard);
    if facts.limit == Some(Limit::Soft) {
        return (true, "soft_limit");
    }
    if facts.priced && facts.required <= facts.available {
        return (true, "credits");
    }
    if !facts.priced && !facts.included && !hard {
        // Free, and in no plan.
        return (true, "included");
    }
    if facts.tier == Some("core") && !hard {
        return (true, "core");
    }
    if !facts.priced || ((facts.included || hard) && facts.available == 0) {
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
    let mut spendable = totals::spendable(db, org_id, unit, Some(&metric.name))?;
    if unit == units::CREDIT {
        spendable = spendable.saturating_add(reader.credits_due());
    }
    let available = (spendable - reader.owed(unit)?).max(0);
    let mut capped = false;
    let mut resets_at = standing.terms.span.end;
    for cap in metric.caps.iter().filter(|cap| cap.subject == "org") {
        if caps::used(db, org_id, cap, now)?.saturating_add(quantity) > cap.quantity {
            let end = caps::end(cap, now);
            resets_at = if capped { resets_at.max(end) } else { end };
            capped = true;
        }
    }
    let facts = Facts {
        capped,
        limit: standing.terms.limit,
        included: standing.terms.included,
        tier: metric.tier.as_deref(),
        overage: charge.overage,
        priced: price.is_some(),
        required: charge.credits,
        available,
    };
    let (allowed, reason) = if is_frozen(org_id) { (false, "frozen") } else { verdict(&facts) };
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

/// May the org use `quantity` more of the metric, why or why not, what is used, included and left, and when that starts anew.
///
/// Exact to the last recorded event. `reason`: included | credits | core | `soft_limit` when allowed; `plan_limit` |
/// `insufficient_credits` | cap | frozen when not. `included` and `remaining` are null where there is no limit. `credits_available` is
/// what is left for this metric once overage that was not paid yet is. A bounded number of index reads, however long the
/// history; takes no locks. Errors: 42501 for an org that is not the caller's; PT404 `unknown_metric`; 22023.
#[pg_extern(stable)]
fn check_limit(org_id: Option<pgrx::Uuid>, metric: Option<&str>, quantity: default!(Option<i64>, 1)) -> LimitStatus {
    or_raise(access::reader(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let metric = required("metric", metric)?;
        let quantity = positive("quantity", quantity)?;
        sql::connect(|db| {
            access::authorize(db, org_id)?;
            check(db, org_id, metric, quantity)
        })
    }))
}

/// Whether [`check_limit`] allows it: for the app's own row-level policies. False for an org that is not the caller's.
///
/// Errors: PT404 `unknown_metric`; 22023.
#[pg_extern(stable)]
fn allows(org_id: Option<pgrx::Uuid>, metric: Option<&str>, quantity: default!(Option<i64>, 1)) -> bool {
    or_raise(access::reader(|| {
        let metric = required("metric", metric)?;
        let quantity = positive("quantity", quantity)?;
        // A row that belongs to nobody is nobody's to insert.
        let Some(org_id) = org_id.map(|id| Uuid::from_bytes(*id.as_bytes())) else { return Ok(false) };
        sql::connect(|db| match access::authorize(db, org_id) {
            Ok(()) => check(db, org_id, metric, quantity).map(|status| status.allowed),
            Err(Error { sqlstate: [b'4', b'2', ..], .. }) => Ok(false),
            Err(error) => Err(error),
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts<'static> {
        Facts {
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
        assert_eq!(verdict(&Facts { overage: 0, ..facts() }), (true, "included"));
        assert_eq!(verdict(&Facts { overage: 0, capped: true, ..facts() }), (false, "cap"));
    }

    #[test]
    fn beyond_the_plan_credits_decide() {
        assert_eq!(verdict(&facts()), (false, "plan_limit"));
        assert_eq!(verdict(&Facts { available: 4, ..facts() }), (false, "insufficient_credits"));
        assert_eq!(verdict(&Facts { available: 5, ..facts() }), (true, "credits"));
        assert_eq!(verdict(&Facts { included: false, ..facts() }), (false, "insufficient_credits"));
        assert_eq!(verdict(&Facts { priced: false, required: 0, ..facts() }), (false, "plan_limit"));
        assert_eq!(verdict(&Facts { priced: false, included: false, required: 0, ..facts() }), (true, "included"));
    }

    #[test]
    fn soft_limits_and_core_metrics_stay_open_and_hard_ones_do_not() {
        let soft = Some(Limit::Soft);
        let hard = Some(Limit::Hard);
        assert_eq!(verdict(&Facts { limit: soft, ..facts() }), (true, "soft_limit"));
        assert_eq!(verdict(&Facts { tier: Some("core"), ..facts() }), (true, "core"));
        assert_eq!(verdict(&Facts { tier: Some("premium"), ..facts() }), (false, "plan_limit"));
        assert_eq!(verdict(&Facts { tier: Some("core"), limit: hard, ..facts() }), (false, "plan_limit"));
    }
}
