//! Payments that have not begun: making them, asking a worker to charge them, and the arguments that name who is charged.

use crate::access;
use crate::base::error::{Error, Result};
use crate::catalog::sections::packs::{Pack, Quote};
use crate::outbox;
use crate::payments::state::{Money, Status};
use crate::payments::store::{self, Payment};
use crate::pg::arguments::required;
use crate::pg::random;
use crate::pg::spi::Db;
use pgrx::pg_sys;
use serde_json::json;
use uuid::Uuid;

/// A time-ordered id (RFC 9562, version 7) that nobody can guess.
pub fn new_id() -> Uuid {
    let random = random::bytes::<10>();
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    // Milliseconds of the Unix epoch.
    let millis = u64::try_from(now / 1000 + 946_684_800_000).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

/// A payment for a pack that has not begun.
pub fn of_pack(org_id: Uuid, pack: &Pack, currency: &str, quote: Quote, (source, provider): (&str, &str)) -> Payment {
    Payment {
        org_id,
        payment_id: new_id(),
        money: Money { total: quote.total, ..Money::default() },
        source: source.to_owned(),
        provider: provider.to_owned(),
        pack: Some(pack.name.clone()),
        unit: pack.unit.clone(),
        currency: currency.to_owned(),
        validity: pack.validity.map(|validity| validity.to_string()),
        credits: quote.credits,
        bonus: quote.bonus,
        metrics: pack.metrics.clone(),
        priority: pack.priority,
        price: quote.price,
        tax: quote.tax,
        fee: quote.fee,
        ..Payment::default()
    }
}

/// Asks a worker to charge it.
pub fn request(db: &Db, payment: &mut Payment, attempt: i64) {
    payment.money.status = Status::Processing;
    outbox::emit(
        db,
        payment.org_id,
        "payment.requested",
        &json!({
            "payment_id": payment.payment_id.to_string(),
            "provider": payment.provider,
            "amount_minor": payment.money.total,
            "currency": payment.currency,
            "customer": payment.customer,
            "payment_method": payment.payment_method,
            "description": payment.pack,
            // Whoever is asked twice charges once.
            "idempotency_key": format!("pg_billing-{}-{attempt}", payment.payment_id),
        }),
    );
}

/// The names of providers are short and plain.
pub fn provider(name: Option<&str>) -> Result<&str> {
    let name = required("provider", name)?;
    let is_plain = (1..=40).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if is_plain { Ok(name) } else { Err(Error::invalid("provider", "must be 1 to 40 letters a-z or _")) }
}

/// Nobody charges another's card: a customer that is another org's is refused, and members name only one that is known to be
/// theirs.
pub fn check_customer(db: &Db, org_id: Uuid, provider: &str, customer: Option<&str>) -> Result<()> {
    let Some(customer) = customer else { return Ok(()) };
    match store::org_of_customer(db, provider, customer) {
        Some(owner) if owner == org_id => Ok(()),
        None if access::sees_every_org()? => Ok(()),
        _ => Err(Error::invalid("customer", "is not known to be a customer of this org")),
    }
}

/// An id of a provider.
pub fn provider_id(name: &str, value: Option<&str>) -> Result<Option<String>> {
    match value {
        Some(text) if text.is_empty() || text.len() > 200 => Err(Error::invalid(name, "must have 1 to 200 bytes")),
        value => Ok(value.map(str::to_owned)),
    }
}
