//! The catalog as this backend knows it, for lookups by name; and whether the tables fit the
//! library.
//!
//! It is loaded on first use. `apply_catalog` and `install` send a relcache invalidation of
//! `billing.metrics`, which reaches every backend (and standby) with the commit and drops what was
//! known: so a transaction that starts after the commit sees the new prices.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::catalog::price::Price;
use crate::catalog::price_json;
use crate::catalog::section::Section;
use crate::catalog::sections::caps::{Cap, Caps};
use crate::catalog::sections::metrics::{Aggregation, MetricRow, Metrics, Own, Tier, Versions};
use crate::catalog::sections::packs::{Pack, Packs};
use crate::catalog::sections::plans::{Plan, Plans};
use crate::catalog::sections::surcharges::{Surcharge, Surcharges};
use crate::pg::invalidation::{self, Watcher};
use crate::pg::spi::{self, Db};
use crate::schema::version;
use crate::{args, statements};
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use uuid::Uuid;

/// A metric with everything of the catalog that concerns it.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Metric {
    pub name: String,
    pub aggregation: Aggregation,
    pub unique_by: Option<String>,
    pub tier: Option<Tier>,
    pub retired: bool,
    pub versions: Versions,
    /// The kinds of terms that some org has of its own for it.
    pub own: Own,
    /// Whether some plan names it: the usage of the period then decides what is free and what
    /// stops.
    pub planned: bool,
    /// The caps of the metric and of its category.
    pub caps: Vec<Rc<Cap>>,
}

impl Metric {
    /// Whether a charge needs no counter: it does not depend on what was used before, and only a
    /// lack of credit refuses it.
    pub fn is_plain(&self, price: Option<&Price>) -> bool {
        !self.planned && !self.own.allowance && self.caps.is_empty() && price.is_none_or(Price::is_linear)
    }

    /// Whether events report levels, not quantities.
    pub fn is_gauge(&self) -> bool {
        self.aggregation.is_gauge()
    }

    /// The list price in force at a moment; None: free.
    pub fn list_price(&self, at: Moment) -> Option<Rc<Price>> {
        self.versions.iter().rev().find(|(from, _)| *from <= at).and_then(|(_, price)| price.clone())
    }
}

struct Known {
    metrics: HashMap<String, Rc<Metric>>,
    plans: HashMap<String, (Rc<Plan>, bool)>,
    fallback: Option<Rc<Plan>>,
    caps: Vec<Rc<Cap>>,
    packs: HashMap<String, (Rc<Pack>, bool)>,
    surcharges: BTreeMap<String, Surcharge>,
    alerts: AlertSettings,
}

/// The settings of alerts.
#[derive(Debug, Clone)]
pub struct AlertSettings {
    /// The percentages of an allowance, cap or balance at which an alert is raised.
    pub shares: Vec<i64>,
    /// The days before a grant expires at which an alert is raised.
    pub expiring_days: i64,
    /// Whether alerts go into the outbox, too.
    pub deliver: bool,
}

impl Default for AlertSettings {
    fn default() -> Self {
        Self { shares: vec![50, 75, 90, 100], expiring_days: 7, deliver: false }
    }
}

thread_local! {
    static KNOWN: RefCell<Option<Rc<Known>>> = const { RefCell::new(None) };
    static RELATION: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::Oid::INVALID) };
    // Counts invalidations: one that comes while the catalog is being loaded must not be lost.
    static INVALIDATIONS: Cell<u64> = const { Cell::new(0) };
}

statements! {
    TABLE() = "select to_regclass('billing.metrics')::oid::int8";
    ALERTS() =
        "select (value -> 'shares')::text, (value ->> 'expiring_days')::int8, (value ->> 'deliver')::boolean
           from billing_internal.settings where name = 'alerts'";
    ORG_PRICE_SINCE(uuid, text, timestamptz) =
        "select max(effective_at) from billing.org_prices where org_id = $1 and metric = $2 and effective_at <= $3";
    ORG_PRICE(uuid, text, timestamptz) =
        "select price::text from billing.org_prices
          where org_id = $1 and metric = $2 and effective_at <= $3 order by effective_at desc limit 1";
}

/// Lets a backend forget the catalog when it changes; once per backend.
pub fn watch_invalidations() {
    static WATCHER: Watcher = Watcher {
        relation: forget,
        // Under a schema that was renamed, or took the name of another, the catalog is another.
        catalog: |_| forget(pg_sys::Oid::INVALID),
        catalogs: &[pg_sys::SysCacheIdentifier::NAMESPACEOID],
    };
    invalidation::watch(&WATCHER);
}

fn forget(relation: pg_sys::Oid) {
    let ours = RELATION.get();
    if relation == pg_sys::Oid::INVALID || relation == ours || ours == pg_sys::Oid::INVALID {
        INVALIDATIONS.set(INVALIDATIONS.get().wrapping_add(1));
        // Borrows are short and take no invalidation inside.
        KNOWN.with(|known| known.try_borrow_mut().map(|mut k| k.take()).ok());
    }
}

/// Tells every backend, with the commit, that the catalog or the tables changed.
pub fn invalidate(db: &Db) {
    if let Some(oid) = db.read(&TABLE, &[]).first().and_then(|row| row.opt::<i64>(0)) {
        let oid = pg_sys::Oid::from(u32::try_from(oid).unwrap_or(0));
        // SAFETY: the relation exists.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(oid) };
    }
}

fn known(db: &Db) -> Result<Rc<Known>> {
    if let Some(known) = KNOWN.with_borrow(Clone::clone) {
        return Ok(known);
    }
    loop {
        let before = INVALIDATIONS.get();
        let loaded = Rc::new(load_newest(db)?);
        if INVALIDATIONS.get() == before {
            KNOWN.with_borrow_mut(|known| *known = Some(Rc::clone(&loaded)));
            return Ok(loaded);
        }
    }
}

fn load_newest(db: &Db) -> Result<Known> {
    // The newest snapshot, also in a repeatable-read transaction: what is kept must not be older
    // than the invalidation that asked for it.
    spi::on_newest_snapshot(|| load(db))
}

fn load(db: &Db) -> Result<Known> {
    version::require(db)?;
    let table = db.read(&TABLE, &[]);
    let metrics = table.first().and_then(|row| row.opt::<i64>(0)).unwrap_or(0);
    RELATION.set(pg_sys::Oid::from(u32::try_from(metrics).unwrap_or(0)));
    let mut fallback = None;
    let mut plans = HashMap::new();
    for (name, row) in Plans::load(db)? {
        let plan = Rc::new(row.item);
        if plan.default && !row.retired {
            fallback = Some(Rc::clone(&plan));
        }
        plans.insert(name, (plan, row.retired));
    }
    let caps: Vec<_> = Caps::load(db)?.into_values().map(Rc::new).collect();
    let metrics = Metrics::load(db)?.into_iter().map(|(name, row)| {
        let metric = metric_of(name.clone(), row, &plans, &caps);
        (name, Rc::new(metric))
    });
    let metrics = metrics.collect();
    let packs = Packs::load(db)?.into_iter().map(|(name, row)| (name, (Rc::new(row.item), row.retired))).collect();
    let surcharges = Surcharges::load(db)?;
    Ok(Known { metrics, plans, fallback, caps, packs, surcharges, alerts: load_alerts(db) })
}

/// Puts a metric together with the plans and caps that concern it.
fn metric_of(name: String, row: MetricRow, plans: &HashMap<String, (Rc<Plan>, bool)>, caps: &[Rc<Cap>]) -> Metric {
    let spec = row.spec;
    let concerns =
        |cap: &Cap| cap.metric.as_ref().map_or_else(|| cap.category == spec.category, |metric| *metric == name);
    Metric {
        caps: caps.iter().filter(|cap| concerns(cap)).cloned().collect(),
        planned: plans.values().any(|(plan, _)| plan.metrics().any(|metric| *metric == name)),
        aggregation: spec.aggregation,
        unique_by: spec.unique_by,
        tier: spec.tier,
        retired: row.retired,
        versions: row.versions,
        own: row.own,
        name,
    }
}

fn load_alerts(db: &Db) -> AlertSettings {
    let rows = db.scan(&ALERTS, &[]);
    let Some(row) = rows.first() else { return AlertSettings::default() };
    let default = AlertSettings::default();
    let shares = row.opt::<String>(0).and_then(|text| serde_json::from_str(&text).ok());
    AlertSettings {
        shares: shares.unwrap_or(default.shares),
        expiring_days: row.opt(1).unwrap_or(default.expiring_days),
        deliver: row.opt(2).unwrap_or(default.deliver),
    }
}

/// Refuses to go on where the tables are missing, or of another version than the library.
pub fn require_installed(db: &Db) -> Result<()> {
    known(db).map(drop)
}

/// Finds a metric that can be used.
pub fn metric(db: &Db, name: &str) -> Result<Rc<Metric>> {
    match known(db)?.metrics.get(name) {
        Some(metric) if !metric.retired => Ok(Rc::clone(metric)),
        _ => Err(Error::unknown("unknown_metric", name)),
    }
}

/// Finds a metric, though it may be retired: its usage is still to be settled.
pub fn any_metric(db: &Db, name: &str) -> Result<Rc<Metric>> {
    known(db)?.metrics.get(name).cloned().ok_or_else(|| Error::unknown("unknown_metric", name))
}

/// Finds a plan that can be subscribed to.
pub fn plan(db: &Db, name: &str) -> Result<Rc<Plan>> {
    match known(db)?.plans.get(name) {
        Some((plan, false)) => Ok(Rc::clone(plan)),
        _ => Err(Error::unknown("unknown_plan", name)),
    }
}

/// Finds a plan, though it may be retired: some org is on it.
pub fn any_plan(db: &Db, name: &str) -> Result<Rc<Plan>> {
    let plan = known(db)?.plans.get(name).map(|(plan, _)| Rc::clone(plan));
    plan.ok_or(Error::corrupt("a subscription names a plan that does not exist"))
}

/// Lists all plans, and whether each is retired.
pub fn all_plans(db: &Db) -> Result<Vec<(Rc<Plan>, bool)>> {
    Ok(known(db)?.plans.values().cloned().collect())
}

/// Finds the plan of orgs without a subscription; and tells whether there are plans at all.
pub fn default_plan(db: &Db) -> Result<(Option<Rc<Plan>>, bool)> {
    let known = known(db)?;
    Ok((known.fallback.clone(), !known.plans.is_empty()))
}

/// Finds a pack that can be bought.
pub fn pack(db: &Db, name: &str) -> Result<Rc<Pack>> {
    match known(db)?.packs.get(name) {
        Some((pack, false)) => Ok(Rc::clone(pack)),
        _ => Err(Error::unknown("unknown_pack", name)),
    }
}

/// Lists all packs, and whether each is retired.
pub fn all_packs(db: &Db) -> Result<Vec<(Rc<Pack>, bool)>> {
    Ok(known(db)?.packs.values().cloned().collect())
}

/// Finds the surcharge on the prices of packs in a currency.
pub fn surcharge(db: &Db, currency: &str) -> Result<Surcharge> {
    Ok(known(db)?.surcharges.get(currency).copied().unwrap_or_default())
}

/// Lists all caps, in the order of their names.
pub fn all_caps(db: &Db) -> Result<Vec<Rc<Cap>>> {
    Ok(known(db)?.caps.clone())
}

/// Tells when alerts are raised.
pub fn alert_settings(db: &Db) -> Result<AlertSettings> {
    Ok(known(db)?.alerts.clone())
}

/// Lists all metrics, retired ones too.
pub fn all_metrics(db: &Db) -> Result<Vec<Rc<Metric>>> {
    Ok(known(db)?.metrics.values().cloned().collect())
}

/// Tells since when the price held that was in force for an org at a moment.
pub fn price_since(db: &Db, metric: &Metric, org_id: Uuid, at: Moment) -> Moment {
    let list = metric.versions.iter().rev().map(|(from, _)| *from).find(|from| *from <= at);
    let own = if metric.own.price {
        let rows = db.write(&ORG_PRICE_SINCE, args![org_id, &metric.name, spi::Timestamptz(at)]);
        rows.first().and_then(|row| row.opt::<Moment>(0))
    } else {
        None
    };
    list.into_iter().chain(own).max().unwrap_or(crate::base::time::NEG_INFINITY)
}

/// Finds the price in force for an org: its own, else the list price. None: free.
pub fn price(db: &Db, metric: &Metric, org_id: Option<Uuid>, at: Moment) -> Result<Option<Rc<Price>>> {
    if metric.own.price
        && let Some(org_id) = org_id
        && let Some(row) = db.read(&ORG_PRICE, args![org_id, &metric.name, spi::Timestamptz(at)]).first()
        && let Some(text) = row.opt::<String>(0)
    {
        return price_json::from_column(&text);
    }
    Ok(metric.list_price(at))
}
