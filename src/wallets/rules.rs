//! The rules of grants: which arguments make one, and what a receiver of credit gets.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::base::units;
use crate::base::words::Word;
use crate::ledger::kind::EntryKind;
use crate::ledger::wallet::{Grant, Part};

/// The most metrics on which a grant may be spent.
const MOST_METRICS: usize = 100;

/// The kind of the entry for a grant of that source: kinds and sources share their names.
pub fn kind_of(source: &str) -> Result<EntryKind> {
    let kind = EntryKind::parse(source).filter(|kind| kind.is_source());
    kind.ok_or_else(|| {
        Error::invalid("source", "must be purchase, plan, bonus, gift_card, voucher, refund, adjustment or transfer")
    })
}

/// Whether a grant of that category is paid credit; without one, whether its source says so.
pub fn is_paid(category: Option<&str>, kind: EntryKind) -> Result<bool> {
    match category {
        None => Ok(matches!(kind, EntryKind::Purchase | EntryKind::Transfer | EntryKind::Refund)),
        Some("paid") => Ok(true),
        Some("promotional") => Ok(false),
        Some(_) => Err(Error::invalid("category", "must be paid or promotional")),
    }
}

/// Checks what was paid for a grant.
pub fn check_cost(cost_minor: i64, currency: Option<&str>) -> Result<()> {
    if cost_minor < 0 {
        return Err(Error::invalid("cost_minor", "must not be negative"));
    }
    match currency {
        Some(code) if !units::is_currency(code) => Err(Error::invalid("currency", "must be an ISO 4217 currency")),
        None if cost_minor > 0 => Err(Error::invalid("currency", "is needed with cost_minor")),
        _ => Ok(()),
    }
}

/// Sorts the metrics of a scope and drops repetitions, so that the same request has the same
/// fingerprint.
pub fn scope(metrics: Option<Vec<Option<String>>>) -> Result<Option<Vec<String>>> {
    let Some(metrics) = metrics else { return Ok(None) };
    let mut all =
        metrics.into_iter().collect::<Option<Vec<String>>>().ok_or(Error::invalid("metrics", "must not hold null"))?;
    all.sort_unstable();
    all.dedup();
    if all.is_empty() || all.len() > MOST_METRICS {
        return Err(Error::invalid("metrics", "must name 1 to 100 metrics, or be null for any"));
    }
    Ok(Some(all))
}

/// The grant that the receiver gets for a part of a grant: with its category, priority and expiry,
/// and its share of the cost.
pub fn received(grant: &Grant, part: Part, now: Moment) -> Grant {
    // Each share is the difference of two rounded sums, so that all shares together are the whole
    // cost.
    let share_until =
        |left: i64| i128::from(grant.cost_minor) * i128::from(grant.amount - left) / i128::from(grant.amount.max(1));
    let share = share_until(grant.remaining - part.credits) - share_until(grant.remaining);
    Grant {
        paid: grant.paid,
        priority: grant.priority,
        expires_at: grant.expires_at,
        cost_minor: i64::try_from(share).unwrap_or(grant.cost_minor),
        currency: grant.currency.clone(),
        metrics: grant.metrics.clone(),
        ..Grant::new(part.credits, EntryKind::Transfer, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_sorted_and_not_empty() {
        let scope = |names: &[&str]| scope(Some(names.iter().map(|&name| Some(name.to_owned())).collect()));
        assert_eq!(scope(&["b", "a", "b"]), Ok(Some(vec!["a".to_owned(), "b".to_owned()])));
        assert!(scope(&[]).is_err());
        assert!(super::scope(Some(vec![None])).is_err());
        assert_eq!(super::scope(None), Ok(None));
    }

    #[test]
    fn what_was_paid_for_makes_credit_paid() {
        assert_eq!(is_paid(None, EntryKind::Purchase), Ok(true));
        assert_eq!(is_paid(None, EntryKind::Bonus), Ok(false));
        assert_eq!(is_paid(Some("paid"), EntryKind::Bonus), Ok(true));
        assert!(is_paid(Some("free"), EntryKind::Bonus).is_err());
        assert!(kind_of("plan").is_ok() && kind_of("usage").is_err() && kind_of("").is_err());
    }

    #[test]
    fn a_cost_has_a_currency() {
        assert!(check_cost(0, None).is_ok() && check_cost(5, Some("EUR")).is_ok());
        assert!(check_cost(-1, Some("EUR")).is_err() && check_cost(5, None).is_err());
        assert!(check_cost(0, Some("credit")).is_err());
    }

    #[test]
    fn shares_of_a_cost_come_to_the_whole() {
        let mut grant = Grant { cost_minor: 100, paid: true, ..Grant::new(3, EntryKind::Purchase, 0) };
        (grant.remaining, grant.priority, grant.expires_at) = (3, 7, 99);
        let mut costs = Vec::new();
        for _ in 0..3 {
            let share = received(&grant, Part { grant_id: 1, credits: 1 }, 5);
            assert_eq!((share.amount, share.priority, share.expires_at, share.effective_at), (1, 7, 99, 5));
            assert!(share.paid && share.source == "transfer");
            costs.push(share.cost_minor);
            grant.remaining -= 1;
        }
        assert_eq!((costs.iter().sum::<i64>(), costs.len()), (100, 3));
    }
}
