//! The rules of webhooks: what an event is about, and what its fact changes of a payment.

use crate::base::error::{Error, Result};
use crate::payments::state::Status;
use crate::payments::store::Payment;
use crate::providers::Provider;
use crate::providers::event::{DisputeFact, DisputeState, Event, Fact, Outcome, PaymentFact, RefundFact};

/// The provider's ids that an event names: payments, subscription, customer. Two events about the
/// same thing share one.
pub fn refs(event: &Event) -> Vec<String> {
    let mut all = match &event.fact {
        Some(Fact::Payment(fact)) => fact.refs.iter().chain(&fact.customer).cloned().collect(),
        Some(Fact::Refund(fact)) => fact.refs.clone(),
        Some(Fact::Dispute(fact)) => fact.refs.clone(),
        Some(Fact::Invoice(fact)) => {
            let own = std::iter::once(&fact.id).chain(&fact.subscription).chain(&fact.customer);
            fact.refs.iter().chain(own).cloned().collect()
        }
        Some(Fact::Subscription(fact)) => std::iter::once(&fact.id).chain(&fact.customer).cloned().collect(),
        None => Vec::new(),
    };
    all.sort_unstable();
    all.dedup();
    all
}

/// Refuses a report whose provider, amount or currency is not that of the payment.
fn check_terms(payment: &Payment, provider: &str, amount: Option<i64>, currency: Option<&str>) -> Result<()> {
    if payment.provider != provider {
        return Err(Error::mismatch("provider", &payment.provider, provider));
    }
    if let Some(currency) = currency.filter(|currency| *currency != payment.currency) {
        return Err(Error::mismatch("currency", &payment.currency, currency));
    }
    if let Some(amount) = amount.filter(|amount| *amount != payment.money.total) {
        return Err(Error::mismatch("amount", &payment.money.total.to_string(), &amount.to_string()));
    }
    Ok(())
}

/// The customer of a payment, if the provider vouches for whoever named it.
pub fn vouched_customer<'a>(provider: &dyn Provider, fact: &'a PaymentFact) -> Option<&'a String> {
    fact.customer.as_ref().filter(|_| provider.vouches_for_customer())
}

/// Changes a payment as a report about it says; `created` is the time of the report in Unix
/// seconds.
pub fn apply_payment(payment: &mut Payment, provider: &str, fact: &PaymentFact, created: i64) -> Result<()> {
    // A card that was declined must not be charged again; its fingerprint and customer still
    // help against fraud.
    let method = fact.payment_method.as_ref().filter(|_| fact.outcome != Outcome::Failed);
    for (place, news) in [
        (&mut payment.customer, fact.customer.as_ref()),
        (&mut payment.payment_method, method),
        (&mut payment.fingerprint, fact.fingerprint.as_ref()),
    ] {
        if news.is_some() {
            *place = news.cloned();
        }
    }
    match fact.outcome {
        Outcome::Paid => {
            check_terms(payment, provider, fact.amount, fact.currency.as_deref())?;
            payment.money.pay();
        }
        Outcome::Pending => {
            check_terms(payment, provider, fact.amount, fact.currency.as_deref())?;
            payment.money.report(Status::Pending, created);
        }
        Outcome::Failed => {
            check_terms(payment, provider, None, None)?;
            payment.money.report(Status::Failed, created);
            if payment.money.status() == Status::Failed {
                payment.failure.clone_from(&fact.failure);
            }
        }
    }
    Ok(())
}

/// Notes the money that went back.
pub fn apply_refund(payment: &mut Payment, provider: &str, fact: &RefundFact) -> Result<()> {
    check_terms(payment, provider, None, Some(&fact.currency))?;
    payment.money.refund(fact.refunded);
    Ok(())
}

/// Notes the state of a dispute, and the money that a lost one took.
pub fn apply_dispute(payment: &mut Payment, provider: &str, fact: &DisputeFact) -> Result<()> {
    check_terms(payment, provider, None, Some(&fact.currency))?;
    match fact.state {
        // The report that a dispute is open may come after that of its end.
        DisputeState::Open if payment.dispute.is_some() => {}
        DisputeState::Open => payment.dispute = Some("open".to_owned()),
        DisputeState::Won if payment.dispute.as_deref() == Some("lost") => {}
        DisputeState::Won => payment.dispute = Some("won".to_owned()),
        DisputeState::Lost => {
            payment.dispute = Some("lost".to_owned());
            payment.money.lose(fact.amount);
        }
    }
    Ok(())
}

/// How suspicious a dispute makes its org, and why; None if it does not.
pub fn suspicion(state: DisputeState) -> Option<(i32, &'static str)> {
    match state {
        DisputeState::Open => Some((40, "a payment is disputed")),
        DisputeState::Lost => Some((60, "a dispute was lost")),
        DisputeState::Won => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payments::state::Money;

    fn payment() -> Payment {
        let money = Money { total: 100, ..Money::default() };
        Payment { money, provider: "stripe".into(), currency: "EUR".into(), ..Payment::default() }
    }

    fn report(outcome: Outcome) -> PaymentFact {
        PaymentFact {
            outcome,
            refs: vec!["pi_1".into()],
            payment_id: None,
            org_id: None,
            customer: Some("cus_1".into()),
            payment_method: Some("pm_1".into()),
            amount: Some(100),
            currency: Some("EUR".into()),
            fingerprint: None,
            failure: Some("declined".into()),
            of_subscription: false,
        }
    }

    fn dispute(state: DisputeState) -> DisputeFact {
        DisputeFact {
            id: "dp_1".into(),
            refs: Vec::new(),
            state,
            amount: 100,
            currency: "EUR".into(),
            payment_id: None,
            org_id: None,
        }
    }

    #[test]
    fn a_report_must_match_the_payment() {
        for other in [
            PaymentFact { amount: Some(99), ..report(Outcome::Paid) },
            PaymentFact { currency: Some("USD".into()), ..report(Outcome::Paid) },
        ] {
            let mut known = payment();
            assert!(apply_payment(&mut known, "stripe", &other, 1).is_err() && !known.money.paid);
        }
        assert!(apply_payment(&mut payment(), "razorpay", &report(Outcome::Paid), 1).is_err());
        let mut known = payment();
        assert!(apply_payment(&mut known, "stripe", &report(Outcome::Paid), 1).is_ok() && known.money.paid);
    }

    #[test]
    fn a_card_that_was_declined_is_not_kept_for_charging() {
        let mut known = payment();
        assert!(apply_payment(&mut known, "stripe", &report(Outcome::Failed), 1).is_ok());
        assert_eq!((known.customer.as_deref(), known.payment_method.as_deref()), (Some("cus_1"), None));
        assert_eq!(known.failure.as_deref(), Some("declined"));
    }

    #[test]
    fn a_dispute_that_has_ended_is_not_opened_again() {
        let mut known = Payment { money: Money { paid: true, ..payment().money }, ..payment() };
        for (state, expected) in [
            (DisputeState::Open, "open"),
            (DisputeState::Lost, "lost"),
            (DisputeState::Open, "lost"),
            (DisputeState::Won, "lost"),
        ] {
            assert!(apply_dispute(&mut known, "stripe", &dispute(state)).is_ok());
            assert_eq!(known.dispute.as_deref(), Some(expected));
        }
        assert_eq!(known.money.status(), Status::Refunded);
    }

    #[test]
    fn two_events_about_the_same_thing_share_an_id() {
        let event = |fact| Event { id: "evt".into(), kind: "kind".into(), created: 0, fact };
        assert_eq!(refs(&event(Some(Fact::Payment(report(Outcome::Paid))))), ["cus_1", "pi_1"]);
        assert!(refs(&event(None)).is_empty());
    }
}
