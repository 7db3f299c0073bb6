//! Counters: the rows of the usage that is decided of a metric in a period, and the sums of
//! recorded usage that is not settled.
//!
//! Counters are locked after the lanes of their wallets, in the order of (org, metric, period).

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::catalog::cache::Metric;
use crate::catalog::price::{self, Overflow, Price};
use crate::pg::spi::Db;
use crate::plans::period::{Span, Terms, Timeline};
use crate::plans::store as plans;
use crate::schema::usage::{period_usage, unsettled_usage};
use crate::schema::{Insertion, LockPolicy, Snapshot, Table, at_one_moment};
use crate::usage::tally::{Charge, Tally};
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

/// A counter: a row of `period_usage`.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Counter {
    pub org_id: Uuid,
    pub metric: String,
    pub span: Span,
    pub tally: Tally,
    /// The newest level of a metric with the aggregation max or last, and when it was reported.
    pub level: Option<(i64, Moment)>,
}

/// The key of a counter: org, metric and start of the period.
pub type CounterKey = (Uuid, String, Moment);

impl Counter {
    /// A counter that has counted nothing.
    pub fn new(org_id: Uuid, metric: &str, span: Span) -> Self {
        let (metric, tally) = (metric.to_owned(), Tally::default());
        Self { org_id, metric, span, tally, level: None }
    }

    /// The key of this counter.
    pub fn key(&self) -> CounterKey {
        (self.org_id, self.metric.clone(), self.span.start)
    }
}

fn counter(row: period_usage::Row<'_>) -> Counter {
    Counter {
        org_id: row.org_id(),
        metric: row.metric().to_owned(),
        span: Span { start: row.period_start(), end: row.period_end() },
        tally: Tally {
            quantity: row.quantity(),
            overage: row.overage(),
            credits: row.credits(),
            priced: row.priced(),
            price_id: row.price_id(),
        },
        level: row.level().zip(row.level_at()),
    }
}

/// Locks counters, and creates those that are missing.
pub fn lock(names: &[(Uuid, String, Span)]) -> BTreeMap<CounterKey, Counter> {
    let mut names: Vec<_> = names.iter().collect();
    names.sort_by(|a, b| (a.0, &a.1, a.2.start).cmp(&(b.0, &b.1, b.2.start)));
    names.dedup();
    names.into_iter().map(lock_one).map(|counter| (counter.key(), counter)).collect()
}

fn lock_one((org_id, metric, span): &(Uuid, String, Span)) -> Counter {
    let key = period_usage::one(*org_id, metric, span.start);
    loop {
        if let Some(found) = Table::<period_usage::Table>::to_update().lock(&key, LockPolicy::Wait, counter) {
            return found;
        }
        let new = period_usage::New {
            org_id: *org_id,
            metric,
            period_start: span.start,
            quantity: 0,
            credits: 0,
            overage: 0,
            priced: 0,
            price_id: 0,
            level: None,
            level_at: None,
            carried: false,
            period_end: span.end,
        };
        let table = Table::<period_usage::Table>::to_insert();
        if table.insert_new(&period_usage::KEY, &new, Insertion::Speculative, || false) {
            return Counter::new(*org_id, metric, *span);
        }
    }
}

/// Reads a counter on the caller's snapshot; one that has counted nothing where there is no row.
pub fn read_one(org_id: Uuid, metric: &str, span: Span) -> Counter {
    let found = read(org_id, &[(metric.to_owned(), span.start)]).pop();
    found.unwrap_or_else(|| Counter::new(org_id, metric, span))
}

/// Reads counters of an org on the caller's snapshot, by metric and start of the period. Those
/// without a row are missing from the result.
pub fn read(org_id: Uuid, names: &[(String, Moment)]) -> Vec<Counter> {
    let table = Table::<period_usage::Table>::to_read();
    let find = |(metric, start): &(String, Moment)| {
        table.find(&period_usage::one(org_id, metric, *start), Snapshot::Callers, counter)
    };
    names.iter().filter_map(find).collect()
}

/// Saves counters that are locked.
///
/// # Panics
/// A counter that does not add up panics: direct rows evaluate no CHECK, and no other place writes
/// counters.
pub fn save(counters: &[&Counter]) {
    assert!(counters.iter().all(|counter| counter.tally.is_sound()), "counters add up");
    let table = Table::<period_usage::Table>::to_update();
    for counter in counters {
        let key = period_usage::one(counter.org_id, &counter.metric, counter.span.start);
        let (tally, level) = (&counter.tally, counter.level);
        table.update(&key, LockPolicy::AlreadyHeld, |row| {
            let mut new = period_usage::Set::new()
                .quantity(tally.quantity)
                .overage(tally.overage)
                .credits(tally.credits)
                .priced(tally.priced)
                .price_id(tally.price_id)
                .period_end(counter.span.end);
            // The new level has to be carried into the next period, which settlement does for rows
            // that are not marked.
            if level != row.level().zip(row.level_at()) {
                new = new.level(level.map(|(level, _)| level)).level_at(level.map(|(_, at)| at)).carried(false);
            }
            Some(new)
        });
    }
}

/// The usage of a metric in the current period, with the counter locked.
#[derive(Clone)]
pub struct Metered {
    /// The terms of the org's plan for the metric.
    pub terms: Terms,
    /// The counter, with the usage that is decided.
    pub counter: Counter,
    /// The recorded usage that is not settled.
    pub unsettled: i64,
    /// Whether the counter has to be saved.
    pub changed: bool,
}

impl Metered {
    /// Decides a consumption without counting it. It is refused where the allowance is used up and
    /// overage has no price.
    pub fn charge(&self, metric: &Metric, quantity: i64, price: Option<&Price>) -> Result<Charge> {
        let tally = &self.counter.tally;
        let charge = tally.charge(quantity, self.terms.allowance, self.unsettled, price).map_err(price::too_large)?;
        if charge.overage > 0 && price.is_none() && self.terms.ends_at_allowance(metric.tier) {
            let remaining = tally.remaining(self.terms.allowance, self.unsettled).unwrap_or(0);
            return Err(Error::plan_limit(&metric.name, self.terms.allowance.unwrap_or(0), remaining, quantity));
        }
        Ok(charge)
    }

    /// Counts a consumption that was decided.
    pub fn take(&mut self, charge: Charge, price: Option<&Price>) -> Result<()> {
        self.changed = true;
        self.counter.tally.add(charge, price).map_err(price::too_large)
    }
}

/// Locks the counters of metrics in the periods of a moment. The lanes must be locked.
pub fn lock_metered(db: &Db, wanted: &[(Uuid, Rc<Metric>)], now: Moment) -> Result<BTreeMap<(Uuid, String), Metered>> {
    let mut timelines: BTreeMap<Uuid, Timeline> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for (org_id, metric) in wanted {
        if !timelines.contains_key(org_id) {
            timelines.insert(*org_id, plans::timeline(db, *org_id, true)?);
        }
        let terms = timelines[org_id].terms(&metric.name, plans::own_terms(db, *org_id, metric, true), now);
        all.insert((*org_id, metric.name.clone()), (terms, metric.is_gauge()));
    }
    if all.is_empty() {
        return Ok(BTreeMap::new());
    }
    let names: Vec<_> = all.iter().map(|((org, metric), (terms, _))| (*org, metric.clone(), terms.span)).collect();
    let mut counters = lock(&names);
    let unsettled = unsettled(&names)?;
    Ok(all
        .into_iter()
        .map(|((org_id, metric), (terms, is_gauge))| {
            let name = (org_id, metric);
            let mut counter = counters
                .remove(&(name.0, name.1.clone(), terms.span.start))
                .unwrap_or_else(|| Counter::new(org_id, &name.1, terms.span));
            counter.span.end = terms.span.end;
            // A level is not consumed, so reports of it take nothing of the allowance.
            let unsettled = if is_gauge { 0 } else { unsettled.get(&name).copied().unwrap_or(0) };
            (name, Metered { terms, counter, unsettled, changed: false })
        })
        .collect())
}

fn unsettled(names: &[(Uuid, String, Span)]) -> Result<BTreeMap<(Uuid, String), i64>> {
    at_one_moment(true, || {
        let table = Table::<unsettled_usage::Table>::to_read();
        let mut sums = BTreeMap::new();
        if table.is_known_empty() {
            return Ok(sums);
        }
        for (org_id, metric, span) in names {
            let mut sum = Some(0_i64);
            table.each(&unsettled_usage::of_period(*org_id, metric, span.start), Snapshot::Callers, |row| {
                sum = sum.and_then(|sum| sum.checked_add(row.quantity()));
                true
            });
            sums.insert((*org_id, metric.clone()), sum.ok_or(Overflow).map_err(price::too_large)?);
        }
        Ok(sums)
    })
}
