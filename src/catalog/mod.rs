//! What things cost: metrics and their prices.

pub mod cache;
pub mod document;
pub mod pack;
pub mod plan;
pub mod price;

use crate::access;
use crate::arguments::{required, required_uuid};
use crate::catalog::document::{Change, Current, CurrentPlan, Document, MetricSpec};
use crate::catalog::pack::Pack;
use crate::catalog::plan::Cap;
use crate::catalog::price::{Overflow, Price};
use crate::clock;
use crate::error::{Error, Result};
use crate::json::Jsonb;
use crate::limits::standing::Reader;
use crate::raise::or_raise;
use crate::sql::{self, Db, Timestamptz};
use crate::time::Moment;
use crate::{args, statements};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use uuid::Uuid;

statements! {
    SAVE_METRIC(text, text, text, text, text, timestamptz, text) =
        "insert into billing.metrics (metric, unit, aggregation, category, tier, created_at, unique_by)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (metric) do update
            set unit = $2, aggregation = $3, category = $4, tier = $5, unique_by = $7, retired_at = null";
    COUNTED(text) =
        "select exists (select from billing.unsettled_usage where metric = $1)
             or exists (select from billing.period_usage where metric = $1)";
    SAVE_PLAN(text, jsonb, timestamptz) =
        "insert into billing.plans (plan, terms, created_at) values ($1, $2, $3)
         on conflict (plan) do update set terms = $2, retired_at = null";
    RETIRE_PLAN(text, timestamptz) = "update billing.plans set retired_at = $2 where plan = $1";
    SAVE_CAP(text, text, text, text, text, int8, timestamptz) =
        "insert into billing.caps (cap, metric, category, per, subject, quantity, created_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (cap) do update set quantity = $6";
    SAVE_PACK(text, jsonb, timestamptz) =
        "insert into billing.packs (pack, terms, created_at) values ($1, $2, $3)
         on conflict (pack) do update set terms = $2, retired_at = null";
    RETIRE_PACK(text, timestamptz) = "update billing.packs set retired_at = $2 where pack = $1";
    SAVE_SURCHARGE(text, jsonb) =
        "insert into billing.surcharges (currency, terms) values ($1, $2) on conflict (currency) do update set terms = $2";
    REMOVE_SURCHARGE(text) = "delete from billing.surcharges where currency = $1";
    REMOVE_CAP(text) = "delete from billing.caps where cap = $1";
    SAVE_PRICE(text, timestamptz, jsonb) =
        "insert into billing.prices (metric, effective_at, price) values ($1, $2, $3)
         on conflict (metric, effective_at) do update set price = $3";
    RETIRE(text, timestamptz) = "update billing.metrics set retired_at = $2 where metric = $1";
    // One document at a time; readers go on with the old one until the commit.
    LOCK_CATALOG() = "lock table billing.metrics in share row exclusive mode";
    SAVE_ORG_PRICE(uuid, text, timestamptz, jsonb) =
        "insert into billing.org_prices (org_id, metric, effective_at, price) values ($1, $2, $3, $4)
         on conflict (org_id, metric, effective_at) do update set price = $4";
}

fn current(db: &Db, now: Moment) -> Result<BTreeMap<String, Current>> {
    let all = cache::all_metrics(db)?.into_iter().map(|metric| {
        let versions: Vec<_> = metric.versions.iter().map(|(at, price)| (*at, price.as_deref().cloned())).collect();
        // A price that has only a future is shown with its date.
        let (effective_at, price) = match versions.iter().rev().find(|(at, _)| *at <= now) {
            Some((_, price)) => (None, price.clone()),
            None => versions.first().map_or((None, None), |(at, price)| (Some(*at), price.clone())),
        };
        let spec = MetricSpec {
            unit: metric.unit.clone(),
            aggregation: metric.aggregation.clone(),
            unique_by: metric.unique_by.clone(),
            category: metric.category.clone(),
            tier: metric.tier.clone(),
            price,
            effective_at,
        };
        (metric.name.clone(), Current { spec, versions, retired: metric.retired })
    });
    Ok(all.collect())
}

fn apply(catalog: &Value, dry_run: bool) -> Result<Vec<Change>> {
    let document = Document::parse(catalog).map_err(Error::invalid_catalog)?;
    let now = clock::now();
    sql::connect(|db| {
        cache::require_installed(db)?;
        if !dry_run {
            db.write(&LOCK_CATALOG, &[]);
        }
        let (metrics, plans, caps) = (current(db, now)?, current_plans(db)?, current_caps(db)?);
        let mut faults = document.check_references(&metrics, &plans);
        for (name, spec) in document.metrics.iter().flatten() {
            let counts_otherwise = metrics.get(name).is_some_and(|known| known.spec.aggregation != spec.aggregation);
            if counts_otherwise && db.scan(&COUNTED, args![name]).first().is_some_and(|row| row.get(0)) {
                faults.push(serde_json::json!({
                    "path": format!("metrics.{name}.aggregation"),
                    "fault": "cannot change once something was counted: make another metric",
                }));
            }
        }
        if !faults.is_empty() {
            return Err(Error::invalid_catalog(faults));
        }
        let mut changes = Vec::new();
        if let Some(wanted) = &document.metrics {
            changes.extend(document::diff_metrics(wanted, &metrics, now));
        }
        if let Some(wanted) = &document.plans {
            changes.extend(document::diff_plans(wanted, &plans));
        }
        if let Some(wanted) = &document.caps {
            changes.extend(document::diff_caps(wanted, &caps));
        }
        if let Some(wanted) = &document.packs {
            changes.extend(document::diff_packs(wanted, &current_packs(db)?));
        }
        if let Some(wanted) = &document.surcharges {
            changes.extend(document::diff_surcharges(wanted, &cache::all_surcharges(db)?));
        }
        if !dry_run && !changes.is_empty() {
            for change in &changes {
                store(db, change, &document, now);
            }
            cache::invalidate(db);
        }
        Ok(changes)
    })
}

fn current_plans(db: &Db) -> Result<BTreeMap<String, CurrentPlan>> {
    let all = cache::all_plans(db)?.into_iter();
    Ok(all.map(|(plan, retired)| (plan.name.clone(), CurrentPlan { plan: (*plan).clone(), retired })).collect())
}

fn current_packs(db: &Db) -> Result<BTreeMap<String, Pack>> {
    let all = cache::all_packs(db)?.into_iter().filter(|(_, retired)| !retired);
    Ok(all.map(|(pack, _)| (pack.name.clone(), (*pack).clone())).collect())
}

fn current_caps(db: &Db) -> Result<BTreeMap<String, Cap>> {
    Ok(cache::all_caps(db)?.into_iter().map(|cap| (cap.name.clone(), (*cap).clone())).collect())
}

/// A document of ours, parsed.
fn readable(argument: &str, value: Jsonb) -> Result<Value> {
    value.value().ok_or_else(|| Error::invalid(argument, "holds a number or a depth that is out of range"))
}

fn store(db: &Db, change: &Change, document: &Document, now: Moment) {
    let name = &change.name;
    match change.kind {
        "metric" => match document.metrics.as_ref().and_then(|all| all.get(name)) {
            Some(spec) => store_metric(db, change, spec, now),
            None => drop(db.write(&RETIRE, args![name, Timestamptz(now)])),
        },
        "plan" => match document.plans.as_ref().and_then(|all| all.get(name)) {
            Some(plan) => {
                let terms = crate::json::from_text(&plan.to_json().to_string());
                db.write(&SAVE_PLAN, args![name, terms, Timestamptz(now)]);
            }
            None => drop(db.write(&RETIRE_PLAN, args![name, Timestamptz(now)])),
        },
        "pack" => match document.packs.as_ref().and_then(|all| all.get(name)) {
            Some(pack) => {
                let terms = crate::json::from_text(&pack.to_json().to_string());
                db.write(&SAVE_PACK, args![name, terms, Timestamptz(now)]);
            }
            None => drop(db.write(&RETIRE_PACK, args![name, Timestamptz(now)])),
        },
        "surcharge" => match document.surcharges.as_ref().and_then(|all| all.get(name)) {
            Some(surcharge) => {
                let terms = crate::json::from_text(&surcharge.to_json().to_string());
                db.write(&SAVE_SURCHARGE, args![name, terms]);
            }
            None => drop(db.write(&REMOVE_SURCHARGE, args![name])),
        },
        _ => match document.caps.as_ref().and_then(|all| all.get(name)) {
            Some(cap) => {
                let (metric, category) = (cap.metric.as_deref(), cap.category.as_deref());
                db.write(
                    &SAVE_CAP,
                    args![name, metric, category, &cap.per, &cap.subject, cap.quantity, Timestamptz(now)],
                );
            }
            None => drop(db.write(&REMOVE_CAP, args![name])),
        },
    }
}

fn store_metric(db: &Db, change: &Change, spec: &MetricSpec, now: Moment) {
    db.write(
        &SAVE_METRIC,
        args![
            &change.name,
            spec.unit.as_deref(),
            &spec.aggregation,
            spec.category.as_deref(),
            spec.tier.as_deref(),
            Timestamptz(now),
            spec.unique_by.as_deref(),
        ],
    );
    if let Some(from) = change.new_price {
        db.write(&SAVE_PRICE, args![&change.name, Timestamptz(from), stored(spec.price.as_ref())]);
    }
}

fn stored(price: Option<&Price>) -> Jsonb {
    crate::json::from_text(&serde_json::to_string(&price).unwrap_or_else(|_| "null".to_owned()))
}

/// Makes the catalog what the document says and tells what that changes; with `dry_run`, only tells.
///
/// `catalog`: `{"metrics": {name: {"unit", "aggregation", "unique_by", "category", "tier", "price"}}, "plans": {name:
/// {"period", "price", "credits", "allowances", "limits", "default"}}, "caps": [{"metric" or "category", "per", "for",
/// "limit"}], "packs": {name: {"credits", "bonus", "price", "minimum", "unit", "metrics", "validity", "recurring", "priority",
/// "provider_ids"}}, "surcharges": {currency: {"tax", "fee"}}}`. A section that is absent is left alone, one that is present is complete: what it does not name is retired. A
/// changed price holds from now or from its `effective_at`; the first one of a metric since ever. Changed allowances and
/// limits hold at once.
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
        apply(&readable("catalog", catalog)?, dry_run)
    }));
    TableIterator::new(
        changes.into_iter().map(|c| (c.action.to_owned(), c.kind.to_owned(), c.name, pgrx::JsonB(c.detail))),
    )
}

/// The catalog as a document: applying it again changes nothing. Prices are those in force now.
#[pg_extern(stable)]
#[search_path(pg_catalog, pg_temp)]
fn export_catalog() -> pgrx::JsonB {
    let (metrics, plans, caps, packs, surcharges) = or_raise(access::auditor(|| {
        sql::connect(|db| {
            let (packs, surcharges) = (current_packs(db)?, cache::all_surcharges(db)?);
            Ok((current(db, clock::now())?, current_plans(db)?, current_caps(db)?, packs, surcharges))
        })
    }));
    let metrics: Map<String, Value> =
        metrics.into_iter().filter(|(_, c)| !c.retired).map(|(name, c)| (name, c.spec.to_json())).collect();
    let plans: Map<String, Value> =
        plans.into_iter().filter(|(_, c)| !c.retired).map(|(name, c)| (name, c.plan.to_json())).collect();
    let caps: Vec<Value> = caps.values().map(Cap::to_json).collect();
    let packs: Map<String, Value> = packs.iter().map(|(name, pack)| (name.clone(), pack.to_json())).collect();
    let surcharges: Map<String, Value> = surcharges.iter().map(|(name, s)| (name.clone(), s.to_json())).collect();
    pgrx::JsonB(serde_json::json!({
        "metrics": metrics, "plans": plans, "caps": caps, "packs": packs, "surcharges": surcharges,
    }))
}

/// Gives an org a price of its own for a metric, from `effective_at` or now on; a null price returns it to the list price.
///
/// `price`: as in the catalog document. Errors: PT404 `unknown_metric`; 22023 `invalid_catalog` for a bad price.
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
        let (price, dated) = match price {
            Some(value) => document::parse_price(&readable("price", value)?).map_err(Error::invalid_catalog)?,
            None => (None, None),
        };
        let given = effective_at.map(Moment::from).or(dated);
        sql::connect(|db| {
            let known = cache::metric(db, metric)?;
            let from = given.unwrap_or_else(clock::now);
            let value = price.as_ref().map(|p| stored(Some(p)));
            db.write(&SAVE_ORG_PRICE, args![org_id, metric, Timestamptz(from), value]);
            // The first such price of a metric makes every backend look for them from then on.
            if !known.own.price {
                cache::invalidate(db);
            }
            Ok(())
        })
    }));
}

/// What `quantity` of a metric costs an org now, after what it used in this period and beyond what its plan includes, in the
/// unit of the price. For functions that only read.
pub fn cost(db: &Db, metric: &str, quantity: i64, org_id: Option<Uuid>, now: Moment) -> Result<(String, i64)> {
    let metric = cache::metric(db, metric)?;
    let Some(price) = cache::price(db, &metric, org_id, now)? else {
        return Ok((crate::units::CREDIT.to_owned(), 0));
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

/// The error of a price whose result does not fit.
pub fn too_large(_: Overflow) -> Error {
    Error::invalid("quantity", "the quantity of the period or its price would not fit 63 bits")
}

/// What `quantity` units of a metric cost, in the unit of its price (credits by default).
///
/// With `org_id`: at the org's own price, after what it used in this period, less what its plan still includes. Errors: PT404 `unknown_metric`;
/// 22023 for a quantity below 1, or a price beyond 63 bits.
#[pg_extern(stable)]
#[search_path(pg_catalog, pg_temp)]
fn calculate_cost(
    metric: Option<&str>,
    quantity: default!(Option<i64>, 1),
    org_id: default!(Option<pgrx::Uuid>, "NULL"),
) -> i64 {
    or_raise(access::reader(|| {
        let metric = required("metric", metric)?;
        let quantity = crate::arguments::positive("quantity", quantity)?;
        total_cost(org_id, &[(metric, quantity)])
    }))
}

/// What a request made of several metrics costs: `{"query": 1, "tool": 2}`.
///
/// Errors: as for one metric; 22023 also when the prices are in different units.
#[pg_extern(stable, name = "calculate_cost")]
#[search_path(pg_catalog, pg_temp)]
fn calculate_cost_of_items(items: Option<Jsonb>, org_id: default!(Option<pgrx::Uuid>, "NULL")) -> i64 {
    or_raise(access::reader(|| {
        let items = readable("items", required("items", items)?)?;
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
    sql::connect(|db| {
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
