//! `calculate_cost`: the cost of a quantity of a metric, or of a request made of several, for an
//! org now.

use crate::access;
use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::base::units;
use crate::catalog::cache;
use crate::catalog::price::{Overflow, too_large};
use crate::limits::standing::Reader;
use crate::pg::arguments::{self, positive, required};
use crate::pg::clock;
use crate::pg::jsonb::Jsonb;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db};
use pgrx::prelude::*;
use uuid::Uuid;

/// The cost of `quantity` of a metric for an org now, in the unit of its price: after what the org
/// used in this period, and beyond what its plan includes. Only for functions that read.
pub fn cost(db: &Db, metric: &str, quantity: i64, org_id: Option<Uuid>, now: Moment) -> Result<(String, i64)> {
    let metric = cache::metric(db, metric)?;
    let Some(price) = cache::price(db, &metric, org_id, now)? else {
        return Ok((units::CREDIT.to_owned(), 0));
    };
    let credits = match org_id {
        Some(org_id) if !metric.is_plain(Some(&price)) => {
            let standing = Reader::new(db, org_id, now)?.standing(&metric)?;
            standing.charge(quantity, Some(&price))?.credits
        }
        _ => price.charge(0, quantity).map_err(too_large)?,
    };
    Ok((price.unit.clone(), credits))
}

/// Tells what `quantity` units of a metric cost, in the unit of its price (credits by default).
///
/// With `org_id`: at the org's own price, after what it used in this period, less what its plan
/// still includes. Errors: PT404 `unknown_metric`; 42501 `not_authorized` for an org that is not
/// the caller's; 22023 for a quantity below 1, or a price beyond 63 bits.
#[pg_extern(stable)]
#[search_path(pg_catalog, pg_temp)]
fn calculate_cost(
    metric: Option<&str>,
    quantity: default!(Option<i64>, 1),
    org_id: default!(Option<pgrx::Uuid>, "NULL"),
) -> i64 {
    or_raise(access::reader(|| {
        let metric = required("metric", metric)?;
        let quantity = positive("quantity", quantity)?;
        total_cost(org_id, &[(metric, quantity)])
    }))
}

/// Tells what a request that uses several metrics costs: `{"query": 1, "tool": 2}`. Cast a literal
/// to jsonb.
///
/// Errors: as for one metric; 22023 also when the prices are in different units.
#[pg_extern(stable, name = "calculate_cost")]
#[search_path(pg_catalog, pg_temp)]
fn calculate_cost_of_items(items: Option<Jsonb>, org_id: default!(Option<pgrx::Uuid>, "NULL")) -> i64 {
    or_raise(access::reader(|| {
        let items = arguments::document("items", required("items", items)?)?;
        let items = items.as_object().ok_or(Error::invalid("items", "must be an object of metrics and quantities"))?;
        let items = items
            .iter()
            .map(|(metric, quantity)| {
                quantity
                    .as_i64()
                    .filter(|q| *q > 0)
                    .map(|q| (metric.as_str(), q))
                    .ok_or_else(|| Error::invalid("items", "a quantity must be a whole number from 1"))
            })
            .collect::<Result<Vec<_>>>()?;
        total_cost(org_id, &items)
    }))
}

fn total_cost(org_id: Option<pgrx::Uuid>, items: &[(&str, i64)]) -> Result<i64> {
    let org_id = org_id.map(|id| Uuid::from_bytes(*id.as_bytes()));
    let now = clock::now();
    spi::connect(|db| {
        cache::require_installed(db)?;
        if let Some(org_id) = org_id {
            access::authorize(db, org_id)?;
        }
        let mut unit: Option<String> = None;
        let mut total: i64 = 0;
        for (metric, quantity) in items {
            let (its_unit, credits) = cost(db, metric, *quantity, org_id, now)?;
            if credits > 0 && unit.replace(its_unit.clone()).is_some_and(|known| known != its_unit) {
                return Err(Error::invalid("items", "the prices are in different units"));
            }
            total = total.checked_add(credits).ok_or(too_large(Overflow))?;
        }
        Ok(total)
    })
}
