//! Deciding what recorded usage comes to: what the allowance covers, what is charged. The wallets must be locked.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::base::units;
use crate::catalog::cache::{self, Metric};
use crate::catalog::price;
use crate::catalog::sections::metrics::Aggregation;
use crate::ledger::debts::Debt;
use crate::pg::spi::{Db, Row, Timestamptz};
use crate::plans::period::{Span, Timeline};
use crate::plans::store as plans;
use crate::usage::counters::{self, Counter};
use crate::{args, statements};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use uuid::Uuid;

statements! {
    // Metrics, and units in which something is owed.
    OPEN(uuid) =
        "select metric, null from billing_internal.unsettled_usage where org_id = $1
         union
         select metric, null from billing_internal.period_usage where org_id = $1 and level is not null and not carried
         union
         select null, unit from billing.unpaid_overage where org_id = $1";
    // What a writer holds is left for the next time. What reports its newest level waits for the end of the period.
    TAKE(uuid, timestamptz, timestamptz) =
        "delete from billing_internal.unsettled_usage
          where ctid = any (array(select s.ctid from billing_internal.unsettled_usage s
                                    join billing.metrics m using (metric)
                                   where s.org_id = $1 and s.period_start < $2
                                     and (m.aggregation <> 'last' or s.period_end <= $3)
                                     for update of s skip locked))
         returning metric, period_start, period_end, segment, quantity, level, level_at, events";
    DAYS(uuid, texts, timestamptzs, int8s, int8s, timestamptzs) =
        "insert into billing_internal.usage_days as d (org_id, metric, day, recorded, credits, level_at)
         select $1, u.metric, (u.segment at time zone 'UTC')::date,
                case m.aggregation
                when 'max' then max(u.quantity)
                when 'last' then (array_agg(u.quantity order by u.level_at desc))[1]
                else sum(u.quantity) end, sum(u.credits), max(u.level_at)
           from unnest($2, $3, $4, $5, $6) u (metric, segment, quantity, credits, level_at)
           join billing.metrics m using (metric)
          group by 2, 3, m.aggregation order by 2, 3
         on conflict (org_id, metric, day) do update
            set credits = d.credits + excluded.credits, level_at = greatest(d.level_at, excluded.level_at),
                recorded = case (select aggregation from billing.metrics m where m.metric = d.metric)
                           when 'max' then greatest(d.recorded, excluded.recorded)
                           when 'last' then case when d.level_at > excluded.level_at then d.recorded
                                                 else excluded.recorded end
                           else d.recorded + excluded.recorded end";
    LEVELS(uuid, timestamptz) =
        "select metric, period_start, period_end from billing_internal.period_usage
          where org_id = $1 and level is not null and not carried and period_end <= $2
          order by period_start, metric";
    EXISTS(uuid, text, timestamptz) =
        "select from billing_internal.period_usage where org_id = $1 and metric = $2 and period_start = $3";
    // What a writer holds is left: its segment tells the terms all the same.
    CUT_UNSETTLED(uuid, timestamptz) =
        "update billing_internal.unsettled_usage set period_end = $2
          where org_id = $1 and ctid = any (array(select s.ctid from billing_internal.unsettled_usage s
                                                   where s.org_id = $1 and s.period_start < $2 and s.period_end > $2
                                                     for update of s skip locked))";
    CUT_COUNTERS(uuid, timestamptz) =
        "update billing_internal.period_usage set period_end = $2
          where org_id = $1 and period_start < $2 and period_end > $2";
    JOIN_UNSETTLED(uuid, timestamptz, timestamptz, timestamptz) =
        "update billing_internal.unsettled_usage set period_end = $4
          where org_id = $1 and ctid = any (array(select s.ctid from billing_internal.unsettled_usage s
                                                   where s.org_id = $1 and s.period_start = $2 and s.period_end = $3
                                                     for update of s skip locked))";
    JOIN_COUNTERS(uuid, timestamptz, timestamptz, timestamptz) =
        "update billing_internal.period_usage set period_end = $4
          where org_id = $1 and period_start = $2 and period_end = $3";
    SET_END(uuid, text, timestamptz, timestamptz) =
        "update billing_internal.period_usage set period_end = $4 where org_id = $1 and metric = $2 and period_start = $3";
    CARRIED(uuid, text, timestamptz) =
        "update billing_internal.period_usage set carried = true where org_id = $1 and metric = $2 and period_start = $3";
}

/// A row of `unsettled_usage` that was taken.
struct Taken {
    segment: Moment,
    quantity: i64,
    level: Option<(i64, Moment)>,
    events: i64,
}

/// What reports of the usage are told.
struct Day {
    metric: Rc<Metric>,
    segment: Moment,
    quantity: i64,
    credits: i64,
    level_at: Moment,
}

/// The units in which an org will have to pay.
pub fn units(db: &Db, org_id: Uuid) -> Result<Vec<String>> {
    let now = crate::pg::clock::now();
    let mut units = BTreeSet::new();
    for row in db.write(&OPEN, args![org_id]).iter() {
        let Some(metric) = row.opt::<String>(0) else {
            units.insert(row.get(1));
            continue;
        };
        let metric = cache::any_metric(db, &metric)?;
        let price = cache::price(db, &metric, Some(org_id), now)?;
        units.insert(price.map_or_else(|| units::CREDIT.to_owned(), |p| p.unit.clone()));
    }
    Ok(units.into_iter().collect())
}

/// What was decided.
pub struct Charged {
    /// The number of events.
    pub events: i64,
    /// What is to be paid.
    pub debts: Vec<Debt>,
    /// The plans by which it was decided.
    pub timeline: Timeline,
}

/// What a settlement of one org works with, and finds.
struct Work<'a> {
    db: &'a Db,
    org_id: Uuid,
    timeline: Timeline,
    now: Moment,
    days: Vec<Day>,
    debts: Vec<Debt>,
}

/// Ends the periods that run at a moment, because the subscription does.
pub fn cut(db: &Db, org_id: Uuid, at: Moment) {
    db.write(&CUT_UNSETTLED, args![org_id, Timestamptz(at)]);
    db.write(&CUT_COUNTERS, args![org_id, Timestamptz(at)]);
}

/// Takes back what `cut` did at a moment: the period is the whole of `span` again.
pub fn join(db: &Db, org_id: Uuid, at: Moment, span: Span) {
    db.write(&JOIN_UNSETTLED, args![org_id, Timestamptz(span.start), Timestamptz(at), Timestamptz(span.end)]);
    db.write(&JOIN_COUNTERS, args![org_id, Timestamptz(span.start), Timestamptz(at), Timestamptz(span.end)]);
}

/// Decides what was recorded in periods that began before `before`, at `now`, by the plans of that moment.
pub fn charge(db: &Db, org_id: Uuid, before: Moment, now: Moment) -> Result<Charged> {
    // A period whose last moment this is has ended; the next one has not begun.
    let ended = now.saturating_add(1);
    let mut groups: BTreeMap<(String, Span), Vec<Taken>> = BTreeMap::new();
    for row in db.write(&TAKE, args![org_id, Timestamptz(before), Timestamptz(ended)]).iter() {
        let span = Span { start: row.get(1), end: row.get(2) };
        groups.entry((row.get(0), span)).or_default().push(taken(&row));
    }
    let timeline = plans::timeline(db, org_id, true)?;
    let mut work = Work { db, org_id, timeline, now, days: Vec::new(), debts: Vec::new() };
    let mut events = 0;
    if !groups.is_empty() {
        let names: Vec<_> = groups.keys().map(|(metric, span)| (org_id, metric.clone(), *span)).collect();
        let mut locked = counters::lock(&names);
        let mut order: Vec<_> = groups.into_iter().collect();
        order.sort_by_key(|((_, span), _)| span.start);
        for ((name, span), mut taken) in order {
            let metric = cache::any_metric(db, &name)?;
            let counter = locked.get_mut(&(org_id, name, span.start)).ok_or_else(missing)?;
            taken.sort_by_key(|t| t.segment);
            for part in taken {
                events += part.events;
                work.decide(&metric, counter, &part)?;
            }
        }
        counters::save(&locked.values().collect::<Vec<_>>());
    }
    // Most catalogs have none.
    if cache::all_metrics(db)?.iter().any(|metric| metric.is_gauge()) {
        work.carry_levels()?;
        work.close_levels()?;
    }
    note(db, org_id, &work.days);
    Ok(Charged { events, debts: work.debts, timeline: work.timeline })
}

fn taken(row: &Row) -> Taken {
    Taken { segment: row.get(3), quantity: row.get(4), level: row.opt(5).zip(row.opt(6)), events: row.get(7) }
}

fn missing() -> Error {
    Error::corrupt("a counter that was made is not there")
}

impl Work<'_> {
    /// Charges one stretch of recorded usage.
    fn decide(&mut self, metric: &Rc<Metric>, counter: &mut Counter, part: &Taken) -> Result<()> {
        if part.level.is_some_and(|(_, at)| counter.level.is_none_or(|(_, known)| at >= known)) {
            counter.level = part.level;
        }
        let (shown, quantity) = match metric.aggregation {
            // What goes beyond the highest level so far.
            Aggregation::Max => (part.quantity, (part.quantity - counter.tally.quantity).max(0)),
            // What the period comes to in the end: see close_levels().
            Aggregation::Last => (part.level.map_or(part.quantity, |(level, _)| level), 0),
            Aggregation::Sum | Aggregation::Unique => (part.quantity, part.quantity),
        };
        self.take(metric, counter, (quantity, shown), part.segment, part.level.map_or(0, |(_, at)| at))
    }

    /// Charges a quantity at the price that held in its segment.
    fn take(
        &mut self,
        metric: &Rc<Metric>,
        counter: &mut Counter,
        (quantity, shown): (i64, i64),
        segment: Moment,
        level_at: Moment,
    ) -> Result<()> {
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

    /// Periods that have ended by then, with levels that did not go on yet: metric and period.
    fn ended(&self, by: Moment) -> Vec<(String, Span)> {
        let rows = self.db.write(&LEVELS, args![self.org_id, Timestamptz(by)]);
        let mut ended = Vec::new();
        for row in rows.iter() {
            let (name, mut span) = (row.get::<String>(0), Span { start: row.get(1), end: row.get(2) });
            // The subscription may have changed since the end was noted.
            let period = self.timeline.period(span.start);
            if period.start == span.start && period.end != span.end {
                span.end = period.end;
                self.db.write(&SET_END, args![self.org_id, &name, Timestamptz(span.start), Timestamptz(span.end)]);
            }
            if span.end <= by {
                ended.push((name, span));
            }
        }
        ended
    }

    /// A period of `last` is charged in its last moment.
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
        let mut counter = counters::lock(&[name]).pop_first().ok_or_else(missing)?.1;
        if let Some((level, at)) = counter.level {
            let quantity = (level - counter.tally.quantity).max(0);
            self.take(metric, &mut counter, (quantity, level), span.end - 1, at)?;
            counters::save(&[&counter]);
        }
        Ok(())
    }

    /// Takes levels from periods that have ended into the next ones, until now. A period of `max` begins with the level that
    /// it finds.
    fn carry_levels(&mut self) -> Result<()> {
        loop {
            let Some((name, span)) = self.ended(self.now).into_iter().next() else { return Ok(()) };
            let metric = cache::any_metric(self.db, &name)?;
            self.carry_level(&metric, span)?;
        }
    }

    fn carry_level(&mut self, metric: &Rc<Metric>, span: Span) -> Result<()> {
        let (db, org_id) = (self.db, self.org_id);
        let from = counters::lock(&[(org_id, metric.name.clone(), span)]).pop_first().ok_or_else(missing)?.1;
        let next = self.timeline.period(span.end);
        if let Some((level, at)) = from.level
            && next.start > span.start
        {
            match metric.aggregation {
                Aggregation::Last => self.close_level(metric, span)?,
                Aggregation::Max | Aggregation::Sum | Aggregation::Unique => {}
            }
            // Nothing goes on as nothing, but where a period has it otherwise.
            let there = db.write(&EXISTS, args![org_id, &metric.name, Timestamptz(next.start)]).count() > 0;
            if level > 0 || there {
                let name = (org_id, metric.name.clone(), next);
                let mut to = counters::lock(&[name]).pop_first().ok_or_else(missing)?.1;
                if to.level.is_none_or(|(_, known)| known <= at) {
                    to.level = Some((level, at));
                }
                match metric.aggregation {
                    Aggregation::Max => {
                        let quantity = (level - to.tally.quantity).max(0);
                        self.take(metric, &mut to, (quantity, level), next.start, at)?;
                    }
                    Aggregation::Last | Aggregation::Sum | Aggregation::Unique => {}
                }
                counters::save(&[&to]);
            }
        }
        db.write(&CARRIED, args![org_id, &metric.name, Timestamptz(span.start)]);
        Ok(())
    }
}

/// Adds to the days of the reports.
fn note(db: &Db, org_id: Uuid, days: &[Day]) {
    if days.is_empty() {
        return;
    }
    db.write(
        &DAYS,
        args![
            org_id,
            days.iter().map(|d| d.metric.name.clone()).collect::<Vec<_>>(),
            days.iter().map(|d| Timestamptz(d.segment)).collect::<Vec<_>>(),
            days.iter().map(|d| d.quantity).collect::<Vec<_>>(),
            days.iter().map(|d| d.credits).collect::<Vec<_>>(),
            days.iter().map(|d| Timestamptz(d.level_at)).collect::<Vec<_>>(),
        ],
    );
}
