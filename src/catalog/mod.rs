//! The catalog: what things cost and how much may be used, as one document and by name.

mod apply;
pub mod cache;
pub mod cycle;
mod document;
mod faults;
mod fields;
pub mod price;
mod price_json;
mod section;
pub mod sections;

use crate::access;
use crate::base::error::Error;
use crate::base::time::Moment;
use crate::catalog::price_json::WrittenPrice;
use crate::pg::arguments::{self, required, required_uuid};
use crate::pg::clock;
use crate::pg::jsonb::{self, Jsonb};
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Timestamptz};
use crate::{args, statements};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

statements! {
    SAVE_ORG_PRICE(uuid, text, timestamptz, jsonb) =
        "insert into billing.org_prices (org_id, metric, effective_at, price) values ($1, $2, $3, $4)
         on conflict (org_id, metric, effective_at) do update set price = $4";
}

/// Makes the catalog what the document says and tells what that changes; with `dry_run`, only
/// tells.
///
/// `catalog`: `{"metrics": {name: {"unit", "aggregation", "unique_by", "category", "tier",
/// "price"}}, "plans": {name: {"period", "price", "credits", "allowances", "limits", "default"}},
/// "caps": [{"metric" or "category", "per", "for", "limit"}], "packs": {name: {"credits", "bonus",
/// "price", "minimum", "unit", "metrics", "validity", "recurring", "priority", "provider_ids"}},
/// "surcharges": {currency: {"tax", "fee"}}}`. A section that is absent is left alone, one that is
/// present is complete: what it does not name is retired. A changed price holds from now or from
/// its `effective_at`; the first one of a metric since ever. Changed allowances and limits hold at
/// once.
///
/// Errors: 22023 `invalid_catalog` with every fault and its path; nothing is applied then.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn apply_catalog(
    catalog: Option<Jsonb>,
    dry_run: default!(Option<bool>, false),
) -> TableIterator<'static, (name!(action, String), name!(kind, String), name!(name, String), name!(detail, pgrx::JsonB))>
{
    let changes = or_raise(access::service(|| {
        let (catalog, dry_run) = (required("catalog", catalog)?, required("dry_run", dry_run)?);
        let catalog = arguments::document("catalog", catalog)?;
        spi::connect(|db| apply::apply(db, &catalog, dry_run))
    }));
    TableIterator::new(
        changes.into_iter().map(|c| (c.action.name().to_owned(), c.kind.to_owned(), c.name, pgrx::JsonB(c.detail))),
    )
}

/// Gives the catalog as a document, with the prices in force now: applying it again changes
/// nothing.
#[pg_extern(stable)]
#[search_path(pg_catalog, pg_temp)]
fn export_catalog() -> pgrx::JsonB {
    pgrx::JsonB(or_raise(access::auditor(|| spi::connect(apply::export))))
}

/// Gives an org a price of its own for a metric, from `effective_at` or now on; a null price
/// returns it to the list price.
///
/// `price`: as in the catalog document. Errors: PT404 `unknown_metric`; 22023 `invalid_catalog` for
/// a bad price.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn set_org_price(
    org_id: Option<pgrx::Uuid>,
    metric: Option<&str>,
    price: Option<Jsonb>,
    effective_at: default!(Option<TimestampWithTimeZone>, "NULL"),
) {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let metric = required("metric", metric)?;
        let price = price.map(|value| arguments::document("price", value)).transpose()?;
        let WrittenPrice { price, effective_at: dated } = price
            .map_or_else(|| Ok(WrittenPrice::default()), |value| price_json::parse_alone(&value))
            .map_err(Error::invalid_catalog)?;
        let given = effective_at.map(Moment::from).or(dated);
        spi::connect(|db| {
            let known = cache::metric(db, metric)?;
            let from = given.unwrap_or_else(clock::now);
            let value = price.map(|price| jsonb::from_text(&price_json::to_column(Some(&price))));
            db.write(&SAVE_ORG_PRICE, args![org_id, metric, Timestamptz(from), value]);
            // The first such price of a metric makes every backend look for them from then on.
            if !known.own.price {
                cache::invalidate(db);
            }
            Ok(())
        })
    }));
}
