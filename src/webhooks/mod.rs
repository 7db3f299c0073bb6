//! Webhooks: a provider's report is verified, stored once, and handled in the transaction of its
//! delivery. A report that names something unknown is kept for a person.

mod dispatch;
mod handle;
mod rules;
mod store;

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment};
use crate::entry_point;
use crate::payments::secrets;
use crate::pg::arguments::required;
use crate::pg::clock;
use crate::pg::spi::Db;
use crate::providers::Provider;
use crate::webhooks::dispatch::WebhookReceipt;
use pgrx::prelude::*;

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
        dispatch::accept(db, provider, payload, event_id, now)
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
        dispatch::replay(db, provider, id, clock::now())
    })
}
