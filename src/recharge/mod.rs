//! Automatic recharging: a pack is bought when a wallet runs low.
//!
//! There is one payment at a time; after a failure the next attempt comes later each time, and
//! after the last one none. A worker makes the payment, which is asked for through the outbox.

pub mod attempt;
mod rules;
mod store;

use crate::access;
use crate::alerts::sync::resolve_alert;
use crate::base::error::Error;
use crate::catalog::cache;
use crate::entry_point;
use crate::ledger::store as ledger;
use crate::payments::quote::quote;
use crate::payments::request;
use crate::pg::arguments::{positive, required, required_uuid};
use crate::pg::clock;
use crate::receipt;
use crate::recharge::store::NewRecharge;
use pgrx::prelude::*;
use uuid::Uuid;

receipt! {
    /// The answer of `configure_auto_recharge`: automatic recharging as it is set.
    RechargeStatus as "auto_recharge" {
        org_id: Uuid,
        unit: String,
        enabled: bool,
        threshold: i64,
        pack: String,
        currency: String,
        monthly_ceiling: Option<i64>,
        failures: i32,
        stopped_at: Option<i64>,
    }
}

/// Lets a pack be bought whenever the credit that can be spent, and that is on its way, is together
/// below a threshold.
///
/// `threshold`: in the unit of the pack's wallet. `monthly_ceiling`: minor units that it may charge
/// in a calendar month (UTC), null for none, which is not for members; nor is a `threshold` of more
/// than ten packs. At most three payments are asked for within an hour. `customer`,
/// `payment_method`: the provider's ids of what is to be charged; without a customer, the one that
/// is linked to the org. Members may name a linked one only. Setting it again starts it again after
/// failures. Errors: PT404 `unknown_pack`; 42501; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments)]
fn configure_auto_recharge(
    org_id: Option<pgrx::Uuid>,
    threshold: Option<i64>,
    pack: Option<&str>,
    currency: Option<&str>,
    monthly_ceiling: default!(Option<i64>, "NULL"),
    provider: default!(Option<&str>, "'stripe'"),
    customer: default!(Option<&str>, "NULL"),
    payment_method: default!(Option<&str>, "NULL"),
    enabled: default!(Option<bool>, true),
) -> RechargeStatus {
    entry_point::customer(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let threshold = positive("threshold", threshold)?;
        let name = required("pack", pack)?;
        let currency = required("currency", currency)?;
        let ceiling = monthly_ceiling.map(|ceiling| positive("monthly_ceiling", Some(ceiling))).transpose()?;
        let provider = request::provider(provider)?;
        let customer = request::provider_id("customer", customer)?;
        let payment_method = request::provider_id("payment_method", payment_method)?;
        let enabled = required("enabled", enabled)?;
        access::authorize(db, org_id)?;
        request::check_customer(db, org_id, provider, customer.as_deref())?;
        let pack = cache::pack(db, name)?;
        let quote = quote(db, &pack, currency, None)?;
        if ceiling.is_some_and(|ceiling| ceiling < quote.total) {
            return Err(Error::invalid("monthly_ceiling", "does not suffice for one pack").with("total", quote.total));
        }
        if !access::sees_every_org()? {
            rules::check_member_limits(ceiling, threshold, quote.credits.saturating_add(quote.bonus))?;
        }
        let now = clock::now();
        ledger::lock_or_create(db, org_id, &pack.unit, now)?;
        let new = NewRecharge {
            org_id,
            unit: &pack.unit,
            threshold,
            pack: name,
            currency,
            provider,
            customer,
            payment_method,
            monthly_ceiling: ceiling,
            enabled,
        };
        store::configure(db, new);
        for kind in ["recharge_stopped", "recharge_ceiling"] {
            resolve_alert(db, org_id, kind, &pack.unit, now);
        }
        // Usually the consumption that crosses the threshold starts the purchase; but the threshold
        // may be crossed already.
        attempt::check_balance(db, org_id, &pack.unit, now)?;
        Ok(RechargeStatus {
            org_id,
            unit: pack.unit.clone(),
            enabled,
            threshold,
            pack: name.to_owned(),
            currency: currency.to_owned(),
            monthly_ceiling: ceiling,
            failures: 0,
            stopped_at: None,
        })
    })
}
