//! The rules of purchases: the currency, how many a member may begin, the moves of a payment by
//! hand, and the grants that a paid one brings.

use crate::base::error::{Error, Result};
use crate::base::time::{self, INFINITY, Moment};
use crate::base::validity::Validity;
use crate::catalog::sections::packs::Pack;
use crate::ledger::kind::EntryKind;
use crate::ledger::wallet::Grant;
use crate::payments::state::Status;
use crate::payments::store::Payment;

/// An hour, as moments are counted.
pub const HOUR: Moment = 3_600_000_000;

/// The number of purchases that a member may begin within an hour.
pub const MOST_AN_HOUR: usize = 30;

/// Refuses another purchase if there were too many in the last hour; `newest` tells when they were
/// begun, newest first.
pub fn check_rate(newest: &[Moment]) -> Result<()> {
    match newest.get(MOST_AN_HOUR - 1) {
        Some(first) => Err(Error::too_many_purchases(first.saturating_add(HOUR))),
        None => Ok(()),
    }
}

/// The named currency, or the only one in which the pack has a price.
pub fn currency_of<'a>(pack: &'a Pack, named: Option<&'a str>) -> Result<&'a str> {
    let mut all = pack.price.keys();
    match (named, all.next(), all.next()) {
        (Some(named), ..) => Ok(named),
        (None, Some(only), None) => Ok(only),
        _ => {
            Err(Error::invalid("currency", "must be named: the pack has prices in several")
                .with("pack", pack.name.clone()))
        }
    }
}

/// Moves a payment to another status by hand, if it may be moved there.
pub fn move_to(payment: &mut Payment, status: Status, reason: Option<String>, now: Moment) -> Result<()> {
    let from = payment.money.status();
    if from == status {
        return Ok(());
    }
    if !from.may_become(status) {
        return Err(Error::illegal_transition(from.name(), status.name()));
    }
    match status {
        Status::Succeeded => payment.money.pay(),
        Status::Refunded => payment.money.refund(payment.money.total),
        _ => {
            payment.money.status = status;
            // Reports of the provider that were made before this are older news.
            payment.money.last_report_at = time::to_unix(now);
        }
    }
    if status == Status::Failed {
        payment.failure = reason;
    }
    Ok(())
}

/// The grants that a paid payment brings: what was bought, and the bonus on it.
pub fn grants_of(payment: &Payment, now: Moment) -> Vec<(EntryKind, Grant)> {
    let expires_at = payment.validity.as_deref().and_then(Validity::parse).map_or(INFINITY, |v| v.after(now));
    let grant = |(kind, credits, paid): (EntryKind, i64, bool)| {
        let grant = Grant {
            priority: payment.priority,
            paid,
            // Tax and fee are not the price of the credit.
            cost_minor: if paid { payment.price } else { 0 },
            currency: paid.then(|| payment.currency.clone()),
            expires_at,
            metrics: payment.metrics.clone(),
            ..Grant::new(credits, kind, now)
        };
        (kind, grant)
    };
    let all = [(EntryKind::Purchase, payment.credits, true), (EntryKind::Bonus, payment.bonus, false)];
    all.into_iter().filter(|(_, credits, _)| *credits != 0).map(grant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_too_many_purchases_tells_when_the_next_may_begin() {
        let newest: Vec<Moment> = (1..=30).rev().collect();
        assert!(check_rate(&newest[..29]).is_ok());
        assert_eq!(check_rate(&newest), Err(Error::too_many_purchases(1 + HOUR)));
    }

    #[test]
    fn a_payment_that_is_moved_twice_stays_where_it_is() {
        let mut payment = Payment::default();
        assert!(move_to(&mut payment, Status::Failed, Some("no funds".into()), 0).is_ok());
        assert!(move_to(&mut payment, Status::Failed, Some("another".into()), 0).is_ok());
        assert_eq!(payment.failure.as_deref(), Some("no funds"));
        assert!(move_to(&mut payment, Status::Succeeded, None, 0).is_ok());
        assert_eq!(
            move_to(&mut payment, Status::Pending, None, 0),
            Err(Error::illegal_transition("succeeded", "pending"))
        );
    }

    #[test]
    fn what_was_bought_is_paid_credit_and_the_bonus_is_not() {
        let mut payment = Payment { credits: 100, bonus: 5, price: 900, currency: "EUR".into(), ..Payment::default() };
        let [(_, bought), (_, bonus)] = &grants_of(&payment, 7)[..] else { panic!("two grants") };
        assert_eq!((bought.amount, bought.paid, bought.cost_minor, bought.effective_at), (100, true, 900, 7));
        assert_eq!((bonus.amount, bonus.paid, bonus.cost_minor, &bonus.currency), (5, false, 0, &None));
        payment.bonus = 0;
        assert_eq!(grants_of(&payment, 7).len(), 1);
    }
}
