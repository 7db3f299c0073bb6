//! Purchases of packs: starting payments, and moving them by hand where no provider reports. The
//! credit that payments bring and take back is `money`'s.

pub mod money;
mod rules;
mod store;

use crate::access;
use crate::base::error::{Error, Result};
use crate::base::hash;
use crate::catalog::cache;
use crate::entry_point;
use crate::ledger::store as ledger;
use crate::payments::quote::quote;
use crate::payments::request;
use crate::payments::state::Status;
use crate::payments::store::{self as payments, Payment};
use crate::pg::arguments::{self, positive, required, required_uuid};
use crate::pg::clock;
use crate::pg::jsonb::Jsonb;
use crate::pg::spi::Db;
use crate::purchases::rules::{HOUR, MOST_AN_HOUR};
use crate::receipt;
use pgrx::prelude::*;
use uuid::Uuid;

receipt! {
    /// The answer of `start_purchase` and `set_payment_status`: a payment as it is now.
    PaymentStatus as "payment" {
        payment_id: Uuid,
        org_id: Uuid,
        status: String,
        pack: Option<String>,
        currency: String,
        price: i64,
        tax: i64,
        fee: i64,
        total: i64,
        credits: i64,
        bonus: i64,
        unit: String,
        refunded: i64,
        replayed: bool,
    }
}

impl From<Payment> for PaymentStatus {
    fn from(payment: Payment) -> Self {
        Self {
            payment_id: payment.payment_id,
            org_id: payment.org_id,
            status: payment.money.status().name().to_owned(),
            pack: payment.pack,
            currency: payment.currency,
            price: payment.price,
            tax: payment.tax,
            fee: payment.fee,
            total: payment.money.total,
            credits: payment.credits,
            bonus: payment.bonus,
            unit: payment.unit,
            refunded: payment.money.refunded,
            replayed: false,
        }
    }
}

/// Starts the purchase of a pack: notes what is to be paid and what it will bring. Nothing is
/// granted before the provider reports the money.
///
/// `currency`: null where the pack has a price in one only. Give `payment_id` and `org_id` to the
/// provider as metadata (Stripe) or notes (Razorpay), and charge `total` minor units. With
/// `customer`, a worker is asked to charge the customer's saved `payment_method` at once (topic
/// `payment.requested` of the outbox). `amount`: minor units, for packs of which any amount can be
/// paid. Members may name a customer that is linked to their org only, and begin 30 purchases of an
/// org within an hour.
/// Errors: PT404 `unknown_pack`; PT409 `idempotency_conflict`;
/// PT429 `too_many_purchases`; 42501 for an org that is not the caller's; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments)]
fn start_purchase(
    org_id: Option<pgrx::Uuid>,
    pack: Option<&str>,
    currency: default!(Option<&str>, "NULL"),
    provider: default!(Option<&str>, "'stripe'"),
    amount: default!(Option<i64>, "NULL"),
    customer: default!(Option<&str>, "NULL"),
    payment_method: default!(Option<&str>, "NULL"),
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> PaymentStatus {
    entry_point::customer(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let name = required("pack", pack)?;
        let provider = request::provider(provider)?;
        let amount = amount.map(|amount| positive("amount", Some(amount))).transpose()?;
        let customer = request::provider_id("customer", customer)?;
        let payment_method = request::provider_id("payment_method", payment_method)?;
        let key = arguments::key(idempotency_key)?;
        let metadata = arguments::metadata_text(metadata)?;
        let text = amount.map(|amount| amount.to_string());
        let hash = hash::fingerprint(
            "start_purchase",
            &[
                Some(name),
                currency,
                Some(provider),
                text.as_deref(),
                customer.as_deref(),
                payment_method.as_deref(),
                Some(&metadata),
            ],
        );
        access::authorize(db, org_id)?;
        let pack = cache::pack(db, name)?;
        // Of two identical calls at once, the second waits here and then finds the first one's
        // payment.
        ledger::lock_or_create(db, org_id, &pack.unit, clock::now())?;
        if let Some(key) = key
            && let Some(known) = payments::of_request(db, org_id, key)?
        {
            if known.request_hash != Some(hash) {
                return Err(Error::idempotency_conflict(key));
            }
            return Ok(PaymentStatus { replayed: true, ..known.into() });
        }
        check_rate(db, org_id)?;
        let currency = rules::currency_of(&pack, currency)?;
        let quote = quote(db, &pack, currency, amount)?;
        let mut payment = request::of_pack(org_id, &pack, currency, quote, "purchase", provider);
        payment.request_hash = Some(hash);
        let asks = customer.is_some();
        request::check_customer(db, org_id, provider, customer.as_deref())?;
        (payment.customer, payment.payment_method) = (customer, payment_method);
        if asks {
            request::request(db, &mut payment, 1);
        }
        payments::insert(db, &payment, key, &metadata, clock::now());
        payments::look_for_signals(db, org_id, None);
        Ok(payment.into())
    })
}

/// Refuses a member that has begun too many purchases: each is a row, and some charge a card.
fn check_rate(db: &Db, org_id: Uuid) -> Result<()> {
    if access::sees_every_org()? {
        return Ok(());
    }
    let now = clock::now();
    rules::check_rate(&store::newest_purchases(db, org_id, now.saturating_sub(HOUR), MOST_AN_HOUR))
}

/// Moves a payment by hand, where no provider reports: a bank transfer that came, or one that was
/// sent back.
///
/// `status`: processing | pending | succeeded | failed | refunded. Succeeded grants the credit;
/// refunded takes back what is left of it, and flags what was spent. The same status again changes
/// nothing. `reason`: kept where it failed. Errors: PT404 `unknown_payment`; PT409
/// `illegal_transition`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn set_payment_status(
    org_id: Option<pgrx::Uuid>,
    payment_id: Option<pgrx::Uuid>,
    status: Option<&str>,
    reason: default!(Option<&str>, "NULL"),
) -> PaymentStatus {
    entry_point::service(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let payment_id = required_uuid("payment_id", payment_id)?;
        let status = Status::parse(required("status", status)?)
            .ok_or(Error::invalid("status", "must be idle, processing, pending, succeeded, failed or refunded"))?;
        let reason = reason.map(|text| text.chars().take(500).collect::<String>());
        let payment =
            money::change(db, org_id, payment_id, |payment| rules::move_to(payment, status, reason, clock::now()))?;
        Ok(payment.into())
    })
}

/// Tells by which id a provider knows a payment, where its reports do not say: then replay what
/// waits for it.
///
/// Errors: PT404 `unknown_payment`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn link_payment(org_id: Option<pgrx::Uuid>, payment_id: Option<pgrx::Uuid>, provider_ref: Option<&str>) {
    entry_point::service(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let payment_id = required_uuid("payment_id", payment_id)?;
        let known = required("provider_ref", request::provider_id("provider_ref", provider_ref)?)?;
        let payment = money::change(db, org_id, payment_id, |_| Ok(()))?;
        payments::add_refs(db, &payment, &[known]);
        Ok(())
    });
}

/// Tells which org a provider's customer is, where its reports do not say: then replay what waits
/// for it.
///
/// Errors: 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn link_customer(org_id: Option<pgrx::Uuid>, provider: Option<&str>, customer: Option<&str>) {
    entry_point::service(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let provider = request::provider(provider)?;
        let customer = required("customer", request::provider_id("customer", customer)?)?;
        match payments::org_of_customer(db, provider, &customer) {
            Some(known) if known != org_id => {
                Err(Error::invalid("customer", "is another org's").with("org_id", known.to_string()))
            }
            _ => {
                payments::link(db, org_id, provider, &customer);
                Ok(())
            }
        }
    });
}
