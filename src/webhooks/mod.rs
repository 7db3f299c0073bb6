//! Webhooks: a provider's report is verified, stored once, and handled in the transaction of its
//! delivery. A report that names something unknown is kept for a person.

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment};
use crate::payments::report::Handled;
use crate::payments::secrets;
use crate::payments::state::Status;
use crate::payments::store::{self, Payment};
use crate::pg::arguments::required;
use crate::pg::spi::{self, Db, Timestamptz};
use crate::pg::{clock, turn};
use crate::providers::Provider;
use crate::providers::event::{DisputeFact, DisputeState, Event, Fact, Outcome, PaymentFact, RefundFact};
use crate::purchases::money;
use crate::subscriptions::provider_reports;
use crate::{args, entry_point, receipt, statements};
use pgrx::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

receipt! {
    /// The answer of `handle_webhook` and `replay_webhook`.
    WebhookReceipt as "webhook_receipt" {
        event_id: String,
        event_type: String,
        status: String,
        reason: Option<String>,
        org_id: Option<Uuid>,
    }
}

statements! {
    RECEIVE(text, text, text, timestamptz, text) =
        "insert into billing.webhook_events (provider, event_id, type, status, received_at, payload)
         values ($1, $2, $3, 'review', $4, $5)
         on conflict (provider, event_id) do nothing";
    REPEAT(text, text) =
        "update billing.webhook_events set deliveries = deliveries + 1 where provider = $1 and event_id = $2
         returning type, status, reason, org_id";
    FINISH(text, text, text, text, timestamptz, uuid, texts) =
        "update billing.webhook_events
            set status = $3, reason = $4, processed_at = case when $3 <> 'review' then $5 end, org_id = coalesce($6, org_id),
                refs = $7
          where provider = $1 and event_id = $2";
    STORED(text, text) =
        "select payload, status, type, org_id from billing.webhook_events where provider = $1 and event_id = $2 for update";
    WAITING(text, texts) =
        "select event_id, payload from billing.webhook_events
          where provider = $1 and status = 'review' and refs && $2
          order by received_at for update skip locked";
    BY_ID(uuid) = "select org_id from billing.payments where payment_id = $1 limit 2";
}

/// The longest payload that is taken, in bytes.
const LONGEST: usize = 1 << 20;

fn verify(db: &Db, provider: &dyn Provider, payload: &str, signature: &str, now: Moment) -> Result<()> {
    let secrets = secrets::valid_secrets(db, provider.name(), now);
    if secrets.is_empty() {
        return Err(Error::bad_signature("no_secret").hint("Set it: select billing.set_webhook_secret(…);"));
    }
    let verified = provider.verify(payload.as_bytes(), signature, &secrets, time::to_unix(now));
    verified.map_err(|fault| Error::bad_signature(fault.name()))
}

/// The provider's ids that an event names: payments, subscription, customer. Two events about the
/// same thing share one.
fn refs(event: &Event) -> Vec<String> {
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

/// Handles an event, and the stored events that waited for what it tells.
fn handle_with_waiting(db: &Db, provider: &dyn Provider, event: &Event, now: Moment) -> WebhookReceipt {
    // An event and one that waits for it could miss each other if both were handled at once: so
    // events that share an id take turns, in one order, before anything else.
    for known in refs(event) {
        turn::take(("webhook", provider.name(), known));
    }
    let receipt = handle_one(db, provider, event, now);
    let mut resolved = if receipt.status == "processed" { refs(event) } else { Vec::new() };
    while !resolved.is_empty() {
        let waiting: Vec<(String, String)> = db
            .write(&WAITING, args![provider.name(), std::mem::take(&mut resolved)])
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        for (event_id, payload) in waiting {
            if let Ok(mut earlier) = provider.parse(&payload) {
                earlier.id = event_id;
                if handle_one(db, provider, &earlier, now).status == "processed" {
                    resolved.extend(refs(&earlier));
                }
            }
        }
    }
    receipt
}

/// Handles one event, or notes the reason why it waits for a person; then nothing of it is done.
fn handle_one(db: &Db, provider: &dyn Provider, event: &Event, now: Moment) -> WebhookReceipt {
    let mut outcome = Ok(Handled::Ignored);
    spi::in_subtransaction(|| {
        outcome = handle_fact(db, provider, event);
        !matches!(outcome, Err(_) | Ok(Handled::Review(..)))
    });
    let (status, reason, org_id) = match outcome {
        Ok(Handled::Processed(org_id)) => ("processed", None, org_id),
        Ok(Handled::Ignored) => ("ignored", None, None),
        Ok(Handled::Review(reason, org_id)) => ("review", Some(reason.to_owned()), org_id),
        Err(error) => ("review", Some(error.detail_json().to_string()), None),
    };
    let id = event.id.as_str();
    db.write(&FINISH, args![provider.name(), id, status, reason.as_deref(), Timestamptz(now), org_id, refs(event)]);
    let (event_id, event_type) = (event.id.clone(), event.kind.clone());
    WebhookReceipt { event_id, event_type, status: status.to_owned(), reason, org_id }
}

fn handle_fact(db: &Db, provider: &dyn Provider, event: &Event) -> Result<Handled> {
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
        let rows = db.write(&BY_ID, args![payment_id]);
        let owner = rows.first().map(|row| row.get::<Uuid>(0)).filter(|_| rows.count() == 1);
        // A report about one org must not move the payment of another.
        if let Some(owner) = owner.filter(|owner| org_id.is_none_or(|org_id| org_id == *owner)) {
            return Some((owner, payment_id));
        }
    }
    store::by_refs(db, provider, refs).filter(|(owner, _)| org_id.is_none_or(|org_id| org_id == *owner))
}

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
fn vouched_customer<'a>(provider: &dyn Provider, fact: &'a PaymentFact) -> Option<&'a String> {
    fact.customer.as_ref().filter(|_| provider.vouches_for_customer())
}

fn handle_payment(db: &Db, provider: &dyn Provider, event: &Event, fact: &PaymentFact) -> Result<Handled> {
    let found = find_payment(db, provider.name(), &fact.refs, fact.org_id, fact.payment_id);
    let Some((org_id, payment_id)) = found else {
        // The invoice reports what was paid of a subscription.
        if !fact.of_subscription {
            return Ok(Handled::Review("unknown_payment", fact.org_id));
        }
        if let (Some(org_id), Some(customer), Outcome::Paid) =
            (fact.org_id, vouched_customer(provider, fact), fact.outcome)
        {
            store::link(db, org_id, provider.name(), customer);
        }
        return Ok(Handled::Processed(fact.org_id));
    };
    // The same money came twice, once for a payment here and once for an invoice of a subscription.
    if store::by_refs(db, provider.name(), &fact.refs).is_some_and(|(_, known)| known != payment_id) {
        return Ok(Handled::Review("paid_otherwise", Some(org_id)));
    }
    let payment = money::change(db, org_id, payment_id, |payment| {
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
                check_terms(payment, provider.name(), fact.amount, fact.currency.as_deref())?;
                payment.money.pay();
            }
            Outcome::Pending => {
                check_terms(payment, provider.name(), fact.amount, fact.currency.as_deref())?;
                payment.money.report(Status::Pending, event.created);
            }
            Outcome::Failed => {
                check_terms(payment, provider.name(), None, None)?;
                payment.money.report(Status::Failed, event.created);
                if payment.money.status() == Status::Failed {
                    payment.failure.clone_from(&fact.failure);
                }
            }
        }
        Ok(())
    })?;
    store::add_refs(db, &payment, &fact.refs);
    // A payer whose payment failed may have named anybody's customer.
    if let (Some(customer), Outcome::Paid) = (vouched_customer(provider, fact), fact.outcome) {
        store::link(db, org_id, provider.name(), customer);
    }
    Ok(Handled::Processed(Some(org_id)))
}

fn handle_refund(db: &Db, provider: &str, fact: &RefundFact) -> Result<Handled> {
    let Some((org_id, payment_id)) = find_payment(db, provider, &fact.refs, fact.org_id, fact.payment_id) else {
        return Ok(Handled::Review("unknown_payment", fact.org_id));
    };
    let payment = money::change(db, org_id, payment_id, |payment| {
        check_terms(payment, provider, None, Some(&fact.currency))?;
        payment.money.refund(fact.refunded);
        Ok(())
    })?;
    store::add_refs(db, &payment, &fact.refs);
    Ok(Handled::Processed(Some(org_id)))
}

fn handle_dispute(db: &Db, provider: &str, fact: &DisputeFact) -> Result<Handled> {
    let Some((org_id, payment_id)) = find_payment(db, provider, &fact.refs, fact.org_id, fact.payment_id) else {
        return Ok(Handled::Review("unknown_payment", fact.org_id));
    };
    let payment = money::change(db, org_id, payment_id, |payment| {
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
    })?;
    store::add_refs(db, &payment, &fact.refs);
    let (score, reason) = match fact.state {
        DisputeState::Open => (40, "a payment is disputed"),
        DisputeState::Lost => (60, "a dispute was lost"),
        DisputeState::Won => return Ok(Handled::Processed(Some(org_id))),
    };
    store::note_signal(db, org_id, "dispute", score, reason, &json!({"dispute": fact.id, "amount": fact.amount}));
    Ok(Handled::Processed(Some(org_id)))
}

/// Takes what a payment provider reports: verifies the signature, and does the work of the event
/// once, in this transaction.
///
/// `provider`: stripe | razorpay. `payload`: the body as it came, byte for byte. `signature`: the
/// header Stripe-Signature or X-Razorpay-Signature. `event_id`: the header x-razorpay-event-id,
/// where there is one; Stripe's stands in the payload. `status`: processed, duplicate, ignored (a
/// type that is not used), or review: kept for a person, see [`replay_webhook`]. Only what is
/// refused should be delivered again. Errors: PT401 `invalid_signature`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn handle_webhook(
    provider: Option<&str>,
    payload: Option<&str>,
    signature: Option<&str>,
    event_id: default!(Option<&str>, "NULL"),
) -> WebhookReceipt {
    entry_point::service(|db| {
        let provider = secrets::provider(provider)?;
        let payload = required("payload", payload)?;
        if payload.len() > LONGEST {
            return Err(Error::invalid("payload", "must have at most 1048576 bytes"));
        }
        if event_id.is_some_and(|id| id.is_empty() || id.len() > 200) {
            return Err(Error::invalid("event_id", "must have 1 to 200 bytes"));
        }
        let now = clock::now();
        verify(db, provider, payload, signature.unwrap_or(""), now)?;
        let parsed = provider.parse(payload).map_err(|unreadable| unreadable.message());
        let id = match (&parsed, event_id) {
            (_, Some(id)) if provider.has_event_id_in_header() => id.to_owned(),
            (Ok(event), _) => event.id.clone(),
            // The provider has signed it, so it is kept, under a name that the same bytes get
            // again.
            (Err(_), _) => format!("sha256:{:x}", Sha256::digest(payload)),
        };
        let kind = parsed.as_ref().map_or_else(|_| "unreadable".to_owned(), |event| event.kind.clone());
        let is_new =
            db.write(&RECEIVE, args![provider.name(), id.as_str(), kind.as_str(), Timestamptz(now), payload]).count()
                > 0;
        if !is_new {
            let rows = db.write(&REPEAT, args![provider.name(), id.as_str()]);
            let row = rows.first().ok_or_else(Error::contended)?;
            let status: String = row.get(1);
            // A stored event may find now what it did not find at its first delivery.
            if status != "review" || parsed.is_err() {
                let status = if status == "review" { status } else { "duplicate".to_owned() };
                return Ok(WebhookReceipt {
                    event_id: id,
                    event_type: row.get(0),
                    status,
                    reason: row.opt(2),
                    org_id: row.opt(3),
                });
            }
        }
        match parsed {
            Ok(event) => Ok(handle_with_waiting(db, provider, &Event { id, ..event }, now)),
            Err(fault) => {
                let none: Option<Uuid> = None;
                let refs: Vec<String> = Vec::new();
                db.write(
                    &FINISH,
                    args![provider.name(), id.as_str(), "review", fault.as_str(), Timestamptz(now), none, refs],
                );
                Ok(WebhookReceipt {
                    event_id: id,
                    event_type: kind,
                    status: "review".to_owned(),
                    reason: Some(fault),
                    org_id: None,
                })
            }
        }
    })
}

/// Tries once more what was kept for a person, once its payment, org or price is known
/// (`link_payment`, `link_customer`, the catalog's `provider_ids`).
///
/// `status` as of `handle_webhook`; what was done already stays done: duplicate. Errors: PT404
/// `unknown_event`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn replay_webhook(provider: Option<&str>, event_id: Option<&str>) -> WebhookReceipt {
    entry_point::service(|db| {
        let provider = secrets::provider(provider)?;
        let id = required("event_id", event_id)?;
        let rows = db.write(&STORED, args![provider.name(), id]);
        let row = rows.first().ok_or_else(|| Error::unknown("unknown_event", id))?;
        let (payload, status): (String, String) = (row.get(0), row.get(1));
        let (event_id, event_type) = (id.to_owned(), row.get(2));
        if status == "processed" {
            let (status, org_id) = ("duplicate".to_owned(), row.opt(3));
            return Ok(WebhookReceipt { event_id, event_type, status, reason: None, org_id });
        }
        match provider.parse(&payload) {
            Ok(event) => Ok(handle_with_waiting(db, provider, &Event { id: event_id, ..event }, clock::now())),
            Err(unreadable) => {
                let (status, reason) = ("review".to_owned(), Some(unreadable.message()));
                Ok(WebhookReceipt { event_id, event_type, status, reason, org_id: None })
            }
        }
    })
}
