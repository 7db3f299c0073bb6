//! Quotes: the price of a pack for an org, before it pays.

use crate::base::error::{Error, Result};
use crate::base::time::INFINITY;
use crate::catalog::cache;
use crate::catalog::sections::packs::{Pack, Quote, QuoteError};
use crate::pg::arguments::{optional_uuid, positive, required};
use crate::pg::clock;
use crate::pg::spi::Db;
use crate::{access, entry_point, receipt};
use pgrx::prelude::*;

receipt! {
    /// The answer of `quote_pack`: price and credit of a purchase.
    PackQuote as "pack_quote" {
        pack: String,
        currency: String,
        price: i64,
        tax: i64,
        fee: i64,
        total: i64,
        credits: i64,
        bonus: i64,
        unit: String,
        valid_until: Option<i64>,
    }
}

/// The quote of a pack in a currency.
pub fn quote(db: &Db, pack: &Pack, currency: &str, amount: Option<i64>) -> Result<Quote> {
    let surcharge = cache::surcharge(db, currency)?;
    pack.quote(currency, amount, surcharge).map_err(|why| match why {
        QuoteError::Currency => {
            Error::invalid("currency", "the pack has no price in it").with("pack", pack.name.clone())
        }
        QuoteError::Fixed => Error::invalid("amount", "the price of the pack is fixed").with("pack", pack.name.clone()),
        QuoteError::Minimum(least) => Error::invalid("amount", "is below the minimum").with("minimum", least),
        QuoteError::Range => Error::invalid("amount", "buys nothing, or the sum would not fit 63 bits"),
    })
}

/// Tells what a pack costs and brings: price, tax, platform fee and total in minor units of the
/// currency; credits, bonus on top of them, and until when they would be good (null: for ever).
///
/// `amount`: minor units, for packs of which any amount can be paid; null: the listed price.
/// Errors: PT404 `unknown_pack`; 22023 for a currency without a price, an amount below the minimum;
/// 42501 for an org that is not the caller's.
#[pg_extern(stable)]
#[search_path(pg_catalog, pg_temp)]
fn quote_pack(
    pack: Option<&str>,
    currency: Option<&str>,
    org_id: default!(Option<pgrx::Uuid>, "NULL"),
    amount: default!(Option<i64>, "NULL"),
) -> PackQuote {
    entry_point::reader(|db| {
        let pack = required("pack", pack)?;
        let currency = required("currency", currency)?;
        let amount = amount.map(|amount| positive("amount", Some(amount))).transpose()?;
        if let Some(org_id) = optional_uuid(org_id) {
            access::authorize(db, org_id)?;
        }
        let pack = cache::pack(db, pack)?;
        let quote = quote(db, &pack, currency, amount)?;
        Ok(PackQuote {
            pack: pack.name.clone(),
            currency: currency.to_owned(),
            price: quote.price,
            tax: quote.tax,
            fee: quote.fee,
            total: quote.total,
            credits: quote.credits,
            bonus: quote.bonus,
            unit: pack.unit.clone(),
            valid_until: pack.validity.map(|v| v.after(clock::now())).filter(|end| *end < INFINITY),
        })
    })
}
