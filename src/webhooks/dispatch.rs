//! Storing a report and handling it once, and the stored reports that waited for what it tells.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::payments::report::Handled;
use crate::pg::spi::{self, Db};
use crate::pg::turn;
use crate::providers::Provider;
use crate::providers::event::Event;
use crate::receipt;
use crate::webhooks::handle::handle_fact;
use crate::webhooks::rules::refs;
use crate::webhooks::store::{self, Finish};
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

/// Stores a report that was verified and handles it, unless it was handled before.
pub fn accept(
    db: &Db,
    provider: &dyn Provider,
    payload: &str,
    event_id: Option<&str>,
    now: Moment,
) -> Result<WebhookReceipt> {
    let parsed = provider.parse(payload).map_err(|unreadable| unreadable.message());
    let id = match (&parsed, event_id) {
        (_, Some(id)) if provider.has_event_id_in_header() => id.to_owned(),
        (Ok(event), _) => event.id.clone(),
        // The provider has signed it, so it is kept, under a name that the same bytes get
        // again.
        (Err(_), _) => format!("sha256:{:x}", Sha256::digest(payload)),
    };
    let kind = parsed.as_ref().map_or_else(|_| "unreadable".to_owned(), |event| event.kind.clone());
    if !store::receive(db, provider.name(), &id, &kind, payload, now) {
        let stored = store::repeat(db, provider.name(), &id)?;
        // A stored event may find now what it did not find at its first delivery.
        if stored.status != "review" || parsed.is_err() {
            let status = if stored.status == "review" { stored.status } else { "duplicate".to_owned() };
            return Ok(WebhookReceipt {
                event_id: id,
                event_type: stored.event_type,
                status,
                reason: stored.reason,
                org_id: stored.org_id,
            });
        }
    }
    match parsed {
        Ok(event) => Ok(handle_with_waiting(db, provider, &Event { id, ..event }, now)),
        Err(fault) => {
            store::finish(
                db,
                provider.name(),
                &id,
                Finish { status: "review", reason: Some(&fault), ..Finish::default() },
                now,
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
}

/// Handles a stored report once more, unless that is done.
pub fn replay(db: &Db, provider: &dyn Provider, id: &str, now: Moment) -> Result<WebhookReceipt> {
    let stored = store::lock(db, provider.name(), id).ok_or_else(|| Error::unknown("unknown_event", id))?;
    let (event_id, event_type) = (id.to_owned(), stored.event_type);
    if stored.status == "processed" {
        let (status, org_id) = ("duplicate".to_owned(), stored.org_id);
        return Ok(WebhookReceipt { event_id, event_type, status, reason: None, org_id });
    }
    match provider.parse(&stored.payload) {
        Ok(event) => Ok(handle_with_waiting(db, provider, &Event { id: event_id, ..event }, now)),
        Err(unreadable) => {
            let (status, reason) = ("review".to_owned(), Some(unreadable.message()));
            Ok(WebhookReceipt { event_id, event_type, status, reason, org_id: None })
        }
    }
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
        let waiting = store::lock_waiting(db, provider.name(), std::mem::take(&mut resolved));
        for stored in waiting {
            if let Ok(mut earlier) = provider.parse(&stored.payload) {
                earlier.id = stored.event_id;
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
    let finish = Finish { status, reason: reason.as_deref(), org_id, refs: refs(event) };
    store::finish(db, provider.name(), &event.id, finish, now);
    let (event_id, event_type) = (event.id.clone(), event.kind.clone());
    WebhookReceipt { event_id, event_type, status: status.to_owned(), reason, org_id }
}
