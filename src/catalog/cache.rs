//! The catalog as this backend knows it, and whether the tables fit the library.
//!
//! Loaded on first use. `apply_catalog` and `install` send a relcache invalidation of `billing.metrics`, which reaches
//! every backend (and standby) with the commit and drops what was known: so a transaction that starts after the commit
//! sees the new prices.

use crate::catalog::pack::{Pack, Surcharge};
use crate::catalog::plan::{Cap, Plan};
use crate::catalog::price::Price;
use crate::error::{Error, Result};
use crate::install;
use crate::invalidation::{self, Watcher};
use crate::sql::{self, Db};
use crate::time::Moment;
use crate::{args, statements};
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use uuid::Uuid;

/// Versions of a price with the moment from which each holds, in order of time. None: free.
type Versions = Vec<(Moment, Option<Rc<Price>>)>;

/// A metric and the versions of its list price.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Metric {
    pub name: String,
    pub unit: Option<String>,
    pub aggregation: String,
    pub unique_by: Option<String>,
    pub category: Option<String>,
    pub tier: Option<String>,
    pub retired: bool,
    pub versions: Versions,
    /// Whether any org has terms of its own for it.
    pub own: Own,
    /// Some plan names it: what is free, or stops, depends on what was used in the period.
    pub planned: bool,
    /// What bounds it per day or month.
    pub caps: Vec<Rc<Cap>>,
}

/// What some org has of its own for a metric.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    /// A price.
    pub price: bool,
    /// An allowance or limit.
    pub allowance: bool,
}

impl Metric {
    /// The charge of a quantity does not depend on what was used before, nor can usage be refused but for lack of credit.
    pub fn is_plain(&self, price: Option<&Price>) -> bool {
        !self.planned && !self.own.allowance && self.caps.is_empty() && price.is_none_or(Price::is_linear)
    }

    /// Reports levels, not quantities: max and last.
    pub fn is_gauge(&self) -> bool {
        matches!(self.aggregation.as_str(), "max" | "last")
    }

    /// The list price in force.
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

/// When alerts are raised.
#[derive(Debug, Clone)]
pub struct AlertSettings {
    /// Percent of an allowance, cap or balance.
    pub shares: Vec<i64>,
    /// Days before a grant expires.
    pub expiring_days: i64,
    /// Into the outbox, too.
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
    TABLES() = "select to_regclass('billing.metrics')::oid::int8, to_regclass('billing.migrations')::oid::int8";
    VERSION() = "select coalesce(max(version), 0)::int8 from billing.migrations";
    METRICS() =
        "select m.metric, m.unit, m.aggregation, m.category, m.tier, m.retired_at is not null,
                exists (select from billing.org_prices o where o.metric = m.metric),
                exists (select from billing.org_allowances o where o.metric = m.metric), m.unique_by
           from billing.metrics m";
    PLANS() = "select plan, terms::text, retired_at is not null from billing.plans";
    PACKS() = "select pack, terms::text, retired_at is not null from billing.packs";
    SURCHARGES() = "select currency, terms::text from billing.surcharges";
    CAPS() = "select cap, metric, category, per, subject, quantity from billing.caps order by cap";
    ALERTS() = "select (value -> 'shares')::text, (value ->> 'expiring_days')::int8, (value ->> 'deliver')::boolean from billing.settings where name = 'alerts'";
    PRICES() = "select metric, effective_at, price::text from billing.prices order by metric, effective_at";
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
    if let Some(oid) = db.read(&TABLES, &[]).first().and_then(|row| row.opt::<i64>(0)) {
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
    // The newest snapshot, also in a repeatable-read transaction: what is kept must not be older than the invalidation
    // that asked for it.
    sql::on_newest_snapshot(|| load(db))
}

fn load(db: &Db) -> Result<Known> {
    let tables = db.read(&TABLES, &[]);
    let row = tables.first().ok_or(Error::not_installed(0, install::LATEST))?;
    let (Some(metrics), Some(_)) = (row.opt::<i64>(0), row.opt::<i64>(1)) else {
        return Err(Error::not_installed(0, install::LATEST));
    };
    let version = db.scan(&VERSION, &[]).first().map_or(0, |row| row.get::<i64>(0));
    if version != install::LATEST {
        return Err(Error::not_installed(version, install::LATEST));
    }
    RELATION.set(pg_sys::Oid::from(u32::try_from(metrics).unwrap_or(0)));
    let mut versions: HashMap<String, Versions> = HashMap::new();
    for row in db.scan(&PRICES, &[]).iter() {
        let price = stored_price(&row.get::<String>(2))?;
        versions.entry(row.get(0)).or_default().push((row.get(1), price));
    }
    let (plans, fallback) = load_plans(db)?;
    let caps = load_caps(db);
    let rows = db.scan(&METRICS, &[]);
    let metrics = rows.iter().map(|row| {
        let name: String = row.get(0);
        let category: Option<String> = row.opt(3);
        let concerns =
            |cap: &Cap| cap.metric.as_ref().map_or_else(|| cap.category == category, |metric| *metric == name);
        let metric = Metric {
            caps: caps.iter().filter(|cap| concerns(cap)).cloned().collect(),
            planned: plans.values().any(|(plan, _)| plan.metrics().any(|metric| *metric == name)),
            unit: row.opt(1),
            aggregation: row.get(2),
            tier: row.opt(4),
            retired: row.get(5),
            own: Own { price: row.get(6), allowance: row.get(7) },
            unique_by: row.opt(8),
            versions: versions.remove(&name).unwrap_or_default(),
            name: name.clone(),
            category,
        };
        (name, Rc::new(metric))
    });
    let (packs, surcharges) = load_packs(db)?;
    Ok(Known { metrics: metrics.collect(), plans, fallback, caps, packs, surcharges, alerts: load_alerts(db) })
}

type Packs = HashMap<String, (Rc<Pack>, bool)>;

fn load_packs(db: &Db) -> Result<(Packs, BTreeMap<String, Surcharge>)> {
    let unreadable = Error::corrupt("a stored pack cannot be read");
    let mut packs = HashMap::new();
    for row in db.scan(&PACKS, &[]).iter() {
        let name: String = row.get(0);
        let pack = serde_json::from_str(&row.get::<String>(1)).ok().and_then(|terms| Pack::stored(&name, &terms));
        packs.insert(name, (Rc::new(pack.ok_or_else(|| unreadable.clone())?), row.get(2)));
    }
    let mut surcharges = BTreeMap::new();
    for row in db.scan(&SURCHARGES, &[]).iter() {
        let currency: String = row.get(0);
        let terms = serde_json::from_str(&row.get::<String>(1)).ok();
        let surcharge = terms.and_then(|terms| Surcharge::stored(&currency, &terms));
        surcharges.insert(currency, surcharge.ok_or_else(|| unreadable.clone())?);
    }
    Ok((packs, surcharges))
}

type Plans = HashMap<String, (Rc<Plan>, bool)>;

fn load_plans(db: &Db) -> Result<(Plans, Option<Rc<Plan>>)> {
    let mut plans = HashMap::new();
    let mut fallback = None;
    for row in db.scan(&PLANS, &[]).iter() {
        let name: String = row.get(0);
        let terms = serde_json::from_str(&row.get::<String>(1)).ok();
        let plan = terms
            .and_then(|terms| Plan::stored(&name, &terms))
            .map(Rc::new)
            .ok_or(Error::corrupt("a stored plan cannot be read"))?;
        let retired: bool = row.get(2);
        if plan.default && !retired {
            fallback = Some(Rc::clone(&plan));
        }
        plans.insert(name, (plan, retired));
    }
    Ok((plans, fallback))
}

fn load_caps(db: &Db) -> Vec<Rc<Cap>> {
    let cap = |row: sql::Row| Cap {
        name: row.get(0),
        metric: row.opt(1),
        category: row.opt(2),
        per: row.get(3),
        subject: row.get(4),
        quantity: row.get(5),
        position: 0,
    };
    db.scan(&CAPS, &[]).iter().map(|row| Rc::new(cap(row))).collect()
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

fn stored_price(text: &str) -> Result<Option<Rc<Price>>> {
    let price: Option<Price> =
        serde_json::from_str(text).map_err(|_| Error::corrupt("a stored price cannot be read"))?;
    Ok(price.map(Rc::new))
}

/// Refuses to go on when the tables are missing or of another version than the library.
pub fn require_installed(db: &Db) -> Result<()> {
    known(db).map(drop)
}

/// A metric of the catalog.
pub fn metric(db: &Db, name: &str) -> Result<Rc<Metric>> {
    match known(db)?.metrics.get(name) {
        Some(metric) if !metric.retired => Ok(Rc::clone(metric)),
        _ => Err(Error::unknown("unknown_metric", name)),
    }
}

/// A metric whose usage is still to be settled, though it may be retired.
pub fn any_metric(db: &Db, name: &str) -> Result<Rc<Metric>> {
    known(db)?.metrics.get(name).cloned().ok_or_else(|| Error::unknown("unknown_metric", name))
}

/// A plan that can be subscribed to.
pub fn plan(db: &Db, name: &str) -> Result<Rc<Plan>> {
    match known(db)?.plans.get(name) {
        Some((plan, false)) => Ok(Rc::clone(plan)),
        _ => Err(Error::unknown("unknown_plan", name)),
    }
}

/// A plan that somebody is on, though it may be retired.
pub fn any_plan(db: &Db, name: &str) -> Result<Rc<Plan>> {
    let plan = known(db)?.plans.get(name).map(|(plan, _)| Rc::clone(plan));
    plan.ok_or(Error::corrupt("a subscription names a plan that does not exist"))
}

/// All plans, and whether each is retired.
pub fn all_plans(db: &Db) -> Result<Vec<(Rc<Plan>, bool)>> {
    Ok(known(db)?.plans.values().cloned().collect())
}

/// The plan of orgs without a subscription; and whether there are plans at all.
pub fn default_plan(db: &Db) -> Result<(Option<Rc<Plan>>, bool)> {
    let known = known(db)?;
    Ok((known.fallback.clone(), !known.plans.is_empty()))
}

/// A pack that can be bought.
pub fn pack(db: &Db, name: &str) -> Result<Rc<Pack>> {
    match known(db)?.packs.get(name) {
        Some((pack, false)) => Ok(Rc::clone(pack)),
        _ => Err(Error::unknown("unknown_pack", name)),
    }
}

/// All packs, and whether each is retired.
pub fn all_packs(db: &Db) -> Result<Vec<(Rc<Pack>, bool)>> {
    Ok(known(db)?.packs.values().cloned().collect())
}

/// What comes on top of the price of a pack in a currency.
pub fn surcharge(db: &Db, currency: &str) -> Result<Surcharge> {
    Ok(known(db)?.surcharges.get(currency).copied().unwrap_or_default())
}

/// By currency.
pub fn all_surcharges(db: &Db) -> Result<BTreeMap<String, Surcharge>> {
    Ok(known(db)?.surcharges.clone())
}

/// All caps.
pub fn all_caps(db: &Db) -> Result<Vec<Rc<Cap>>> {
    Ok(known(db)?.caps.clone())
}

/// When alerts are raised.
pub fn alert_settings(db: &Db) -> Result<AlertSettings> {
    Ok(known(db)?.alerts.clone())
}

/// All metrics, retired ones too.
pub fn all_metrics(db: &Db) -> Result<Vec<Rc<Metric>>> {
    Ok(known(db)?.metrics.values().cloned().collect())
}

/// Since when the price that was in force for an org at a moment held.
pub fn price_since(db: &Db, metric: &Metric, org_id: Uuid, at: Moment) -> Moment {
    let list = metric.versions.iter().rev().map(|(from, _)| *from).find(|from| *from <= at);
    let own = if metric.own.price {
        let rows = db.write(&ORG_PRICE_SINCE, args![org_id, &metric.name, sql::Timestamptz(at)]);
        rows.first().and_then(|row| row.opt::<Moment>(0))
    } else {
        None
    };
    list.into_iter().chain(own).max().unwrap_or(crate::time::NEVER_YET)
}

/// The price in force for an org: its own, else the list price. None: free.
pub fn price(db: &Db, metric: &Metric, org_id: Option<Uuid>, at: Moment) -> Result<Option<Rc<Price>>> {
    if metric.own.price
        && let Some(org_id) = org_id
        && let Some(row) = db.read(&ORG_PRICE, args![org_id, &metric.name, sql::Timestamptz(at)]).first()
        && let Some(text) = row.opt::<String>(0)
    {
        return stored_price(&text);
    }
    Ok(metric.list_price(at))
}
