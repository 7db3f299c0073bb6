//! What each fact that an event reports does to payments and subscriptions.

use crate::base::error::Result;
use crate::payments::report::Handled;
use crate::payments::store as payments;
use crate::pg::spi::Db;
use crate::providers::Provider;
use crate::providers::event::{DisputeFact, Event, Fact, Outcome, PaymentFact, RefundFact};
use crate::purchases::money;
use crate::subscriptions::provider_reports;
use crate::webhooks::{rules, store};
use serde_json::json;
use uuid::Uuid;

/// Does what the fact of an event asks for.
pub fn handle_fact(db: &Db, provider: &dyn Provider, event: &Event) -> Result<Handled> {
    match &event.fact {
        None => Ok(Handled::Ignored),
        Some(Fact::Payment(fact)) => handle_payment(db, provider, event, fact),
        Some(Fact::Refund(fact)) => handle_refund(db, provider.name(), fact),
        Some(Fact::Dispute(fact)) => handle_dispute(db, provider.name(), fact),
        Some(Fact::Invoice(fact)) => provider_reports::handle_invoice(db, provider.name(), fact, event.created),
        Some(Fact::Subscription(fact)) => {
            provider_reports::handle_subscription(db, provider.name(), fact, event.created)
        }
    }
}

/// The payment that a fact is about, by its id or by the provider's ids.
fn find_payment(
    db: &Db,
    provider: &str,
    refs: &[String],
    org_id: Option<Uuid>,
    payment_id: Option<Uuid>,
) -> Option<(Uuid, Uuid)> {
    if let Some(payment_id) = payment_id {
        let owner = store::owner_of_payment(db, payment_id);
        // A report about one org must not move the payment of another.
        if let Some(owner) = owner.filter(|owner| org_id.is_none_or(|org_id| org_id == *owner)) {
            return Some((owner, payment_id));
        }
    }
    payments::by_refs(db, provider, refs).filter(|(owner, _)| org_id.is_none_or(|org_id| org_id == *owner))
}

fn handle_payment(db: &Db, provider: &dyn Provider, event: &Event, fact: &PaymentFact) -> Result<Handled> {
    let found = find_payment(db, provider.name(), &fact.refs, fact.org_id, fact.payment_id);
    let Some((org_id, payment_id)) = found else {
        // The invoice reports what was paid of a subscription.
        if !fact.of_subscription {
            return Ok(Handled::Review("unknown_payment", fact.org_id));
        }
        if let (Some(org_id), Some(customer), Outcome::Paid) =
            (fact.org_id, rules::vouched_customer(provider, fact), fact.outcome)
        {
            payments::link(db, org_id, provider.name(), customer);
        }
        return Ok(Handled::Processed(fact.org_id));
    };
    // The same money came twice, once for a payment here and once for an invoice of a subscription.
    if payments::by_refs(db, provider.name(), &fact.refs).is_some_and(|(_, known)| known != payment_id) {
        return Ok(Handled::Review("paid_otherwise", Some(org_id)));
    }
    let payment = money::change(db, org_id, payment_id, |payment| {
        rules::apply_payment(payment, provider.name(), fact, event.created)
    })?;
    payments::add_refs(db, &payment, &fact.refs);
    // A payer whose payment failed may have named anybody's customer.
    if let (Some(customer), Outcome::Paid) = (rules::vouched_customer(provider, fact), fact.outcome) {
        payments::link(db, org_id, provider.name(), customer);
    }
    Ok(Handled::Processed(Some(org_id)))
}

fn handle_refund(db: &Db, provider: &str, fact: &RefundFact) -> Result<Handled> {
    let Some((org_id, payment_id)) = find_payment(db, provider, &fact.refs, fact.org_id, fact.payment_id) else {
        return Ok(Handled::Review("unknown_payment", fact.org_id));
    };
    let payment = money::change(db, org_id, payment_id, |payment| rules::apply_refund(payment, provider, fact))?;
    payments::add_refs(db, &payment, &fact.refs);
    Ok(Handled::Processed(Some(org_id)))
}

fn handle_dispute(db: &Db, provider: &str, fact: &DisputeFact) -> Result<Handled> {
    let Some((org_id, payment_id)) = find_payment(db, provider, &fact.refs, fact.org_id, fact.payment_id) else {
        return Ok(Handled::Review("unknown_payment", fact.org_id));
    };
    let payment = money::change(db, org_id, payment_id, |payment| rules::apply_dispute(payment, provider, fact))?;
    payments::add_refs(db, &payment, &fact.refs);
    if let Some((score, reason)) = rules::suspicion(fact.state) {
        payments::note_signal(
            db,
            org_id,
            "dispute",
            score,
            reason,
            &json!({"dispute": fact.id, "amount": fact.amount}),
        );
    }
    Ok(Handled::Processed(Some(org_id)))
}
