//! Charging recorded usage: what the allowance covers, and what is to be paid. The wallets must be
//! locked.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::base::units;
use crate::catalog::cache::{self, Metric};
use crate::catalog::price;
use crate::catalog::sections::metrics::Aggregation;
use crate::ledger::debts::Debt;
use crate::pg::spi::Db;
use crate::plans::period::{Span, Timeline};
use crate::plans::store as plans;
use crate::settlement::rules::{self, TakenUsage, Usage};
use crate::settlement::store::{self, Day, Owed};
use crate::usage::counters::{self, Counter};
use std::collections::BTreeSet;
use std::rc::Rc;
use uuid::Uuid;

/// The units in which an org will have to pay.
pub fn units(db: &Db, org_id: Uuid) -> Result<Vec<String>> {
    let now = crate::pg::clock::now();
    let mut units = BTreeSet::new();
    for owed in store::owed(db, org_id) {
        match owed {
            Owed::Overage(unit) => {
                units.insert(unit);
            }
            Owed::Usage(metric) => {
                let metric = cache::any_metric(db, &metric)?;
                let price = cache::price(db, &metric, Some(org_id), now)?;
                units.insert(price.map_or_else(|| units::CREDIT.to_owned(), |p| p.unit.clone()));
            }
        }
    }
    Ok(units.into_iter().collect())
}

/// The outcome of charging an org's usage.
pub struct Charged {
    /// The number of recorded events that were decided.
    pub events: i64,
    /// The debts that follow.
    pub debts: Vec<Debt>,
    /// The plans by which it was decided.
    pub timeline: Timeline,
}

/// The settlement of one org in progress.
struct OrgCharger<'a> {
    db: &'a Db,
    org_id: Uuid,
    timeline: Timeline,
    now: Moment,
    days: Vec<Day>,
    debts: Vec<Debt>,
}

/// Charges the usage that was recorded in periods which began before `before`, as of `now`, by the
/// plans of that moment.
pub fn charge(db: &Db, org_id: Uuid, before: Moment, now: Moment) -> Result<Charged> {
    // The period that ends right after `now` has ended; the next one has not begun.
    let groups = store::take_unsettled(db, org_id, before, now.saturating_add(1));
    let timeline = plans::timeline(db, org_id, true)?;
    let mut charger = OrgCharger { db, org_id, timeline, now, days: Vec::new(), debts: Vec::new() };
    let mut events = 0;
    if !groups.is_empty() {
        let names: Vec<_> = groups.keys().map(|(metric, span)| (org_id, metric.clone(), *span)).collect();
        let mut locked = counters::lock(&names);
        let mut order: Vec<_> = groups.into_iter().collect();
        order.sort_by_key(|((_, span), _)| span.start);
        for ((name, span), mut taken) in order {
            let metric = cache::any_metric(db, &name)?;
            let counter = locked.get_mut(&(org_id, name, span.start)).ok_or_else(missing_counter)?;
            taken.sort_by_key(|t| t.segment);
            for part in taken {
                events += part.events;
                charger.charge_row(&metric, counter, &part)?;
            }
        }
        counters::save(&locked.values().collect::<Vec<_>>());
    }
    // Most catalogs have no gauges, and need not look for levels.
    if cache::all_metrics(db)?.iter().any(|metric| metric.is_gauge()) {
        charger.carry_levels()?;
        charger.close_levels()?;
    }
    store::add_to_reports(db, org_id, &charger.days);
    Ok(Charged { events, debts: charger.debts, timeline: charger.timeline })
}

fn missing_counter() -> Error {
    Error::corrupt("a counter that was made is not there")
}

impl OrgCharger<'_> {
    /// Charges one row of recorded usage.
    fn charge_row(&mut self, metric: &Rc<Metric>, counter: &mut Counter, part: &TakenUsage) -> Result<()> {
        if part.level.is_some_and(|(_, at)| counter.level.is_none_or(|(_, known)| at >= known)) {
            counter.level = part.level;
        }
        self.charge_usage(metric, counter, rules::usage_of(metric.aggregation, part, counter.tally.quantity))
    }

    /// Charges a quantity at the price that held in its segment.
    fn charge_usage(&mut self, metric: &Rc<Metric>, counter: &mut Counter, usage: Usage) -> Result<()> {
        let Usage { quantity, shown, segment, level_at } = usage;
        let own = plans::own_terms(self.db, self.org_id, metric, true);
        let terms = self.timeline.terms(&metric.name, own, segment.max(counter.span.start));
        let price = cache::price(self.db, metric, Some(self.org_id), segment)?;
        let price = price.as_deref();
        let today = cache::price(self.db, metric, Some(self.org_id), self.now)?;
        let superseded = price != today.as_deref();
        let charge = counter.tally.settle(quantity, terms.allowance, price, superseded).map_err(price::too_large)?;
        if charge.credits > 0 {
            self.debts.push(Debt {
                unit: price.map_or_else(|| units::CREDIT.to_owned(), |p| p.unit.clone()),
                metric: metric.name.clone(),
                period_start: counter.span.start,
                credits: charge.credits,
            });
        }
        let metric = Rc::clone(metric);
        self.days.push(Day { metric, segment, quantity: shown, credits: charge.credits, level_at });
        Ok(())
    }

    /// The metrics and periods that have ended by then, and whose levels were not carried on yet.
    fn ended(&self, by: Moment) -> Vec<(String, Span)> {
        let mut ended = Vec::new();
        for (name, mut span) in store::ended_levels(self.db, self.org_id, by) {
            // The subscription may have changed since the end was noted.
            let period = self.timeline.period(span.start);
            if period.start == span.start && period.end != span.end {
                span.end = period.end;
                store::set_period_end(self.db, self.org_id, &name, span);
            }
            if span.end <= by {
                ended.push((name, span));
            }
        }
        ended
    }

    /// Charges the periods of `last` metrics that have ended, in their last moment.
    fn close_levels(&mut self) -> Result<()> {
        for (name, span) in self.ended(self.now.saturating_add(1)) {
            let metric = cache::any_metric(self.db, &name)?;
            match metric.aggregation {
                Aggregation::Last => self.close_level(&metric, span)?,
                Aggregation::Max | Aggregation::Sum | Aggregation::Unique => {}
            }
        }
        Ok(())
    }

    fn close_level(&mut self, metric: &Rc<Metric>, span: Span) -> Result<()> {
        let name = (self.org_id, metric.name.clone(), span);
        let mut counter = counters::lock(&[name]).pop_first().ok_or_else(missing_counter)?.1;
        if let Some((level, at)) = counter.level {
            let usage = Usage::of_level(level, at, counter.tally.quantity, span.end - 1);
            self.charge_usage(metric, &mut counter, usage)?;
            counters::save(&[&counter]);
        }
        Ok(())
    }

    /// Carries levels from periods that have ended into the next ones, until now. A period of `max`
    /// begins with the level that it finds.
    fn carry_levels(&mut self) -> Result<()> {
        loop {
            let Some((name, span)) = self.ended(self.now).into_iter().next() else { return Ok(()) };
            let metric = cache::any_metric(self.db, &name)?;
            self.carry_level(&metric, span)?;
        }
    }

    fn carry_level(&mut self, metric: &Rc<Metric>, span: Span) -> Result<()> {
        let (db, org_id) = (self.db, self.org_id);
        let from = counters::lock(&[(org_id, metric.name.clone(), span)]).pop_first().ok_or_else(missing_counter)?.1;
        let next = self.timeline.period(span.end);
        if let Some((level, at)) = from.level
            && next.start > span.start
        {
            match metric.aggregation {
                Aggregation::Last => self.close_level(metric, span)?,
                Aggregation::Max | Aggregation::Sum | Aggregation::Unique => {}
            }
            // A level of zero needs no counter, unless the period has another level already.
            let there = store::has_counter(db, org_id, &metric.name, next.start);
            if level > 0 || there {
                let name = (org_id, metric.name.clone(), next);
                let mut to = counters::lock(&[name]).pop_first().ok_or_else(missing_counter)?.1;
                if to.level.is_none_or(|(_, known)| known <= at) {
                    to.level = Some((level, at));
                }
                match metric.aggregation {
                    Aggregation::Max => {
                        let usage = Usage::of_level(level, at, to.tally.quantity, next.start);
                        self.charge_usage(metric, &mut to, usage)?;
                    }
                    Aggregation::Last | Aggregation::Sum | Aggregation::Unique => {}
                }
                counters::save(&[&to]);
            }
        }
        store::mark_carried(db, org_id, &metric.name, span.start);
        Ok(())
    }
}
