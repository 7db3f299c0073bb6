//! Deciding what recorded usage comes to: what the allowance covers, what is charged. The wallets must be locked.

use crate::catalog;
use crate::catalog::cache::{self, Metric};
use crate::error::{Error, Result};
use crate::plans::period::{Span, Timeline};
use crate::plans::store as plans;
use crate::sql::{At, Db, Row};
use crate::time::{INFINITY, Moment};
use crate::usage::counters::{self, Counter};
use crate::{args, statements, units};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use uuid::Uuid;

statements! {
    METRICS(uuid) =
        "select distinct metric from billing.unsettled_usage where org_id = $1
         union
         select metric from billing.period_usage where org_id = $1 and unpaid > 0
         union
         select metric from billing.period_usage where org_id = $1 and level > 0 and not carried";
    // What a writer holds is left for the next time. What reports its newest level waits for the end of the period.
    TAKE(uuid, timestamptz, timestamptz) =
        "delete from billing.unsettled_usage
          where ctid = any (array(select s.ctid from billing.unsettled_usage s
                                    join billing.metrics m using (metric)
                                   where s.org_id = $1 and s.period_start < $2
                                     and (m.aggregation <> 'last' or s.period_end <= $3)
                                     for update of s skip locked))
         returning metric, period_start, period_end, segment, quantity, level, level_at, events";
    DAYS(uuid, texts, timestamptzs, int8s, int8s, timestamptzs) =
        "insert into billing.usage_days as d (org_id, metric, day, recorded, credits, level_at)
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
    LEVELS(uuid, timestamptz, boolean) =
        "select u.metric, u.period_start, u.period_end from billing.period_usage u join billing.metrics m using (metric)
          where u.org_id = $1 and u.level > 0 and not u.carried and u.period_end <= $2
            and (m.aggregation = 'last' or not $3)
          order by u.period_start, u.metric limit 1";
    CARRIED(uuid, text, timestamptz) =
        "update billing.period_usage set carried = true where org_id = $1 and metric = $2 and period_start = $3";
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
    let now = crate::clock::now();
    let mut units = BTreeSet::new();
    for row in db.write(&METRICS, args![org_id]).iter() {
        let metric = cache::any_metric(db, &row.get::<String>(0))?;
        let price = cache::price(db, &metric, Some(org_id), now)?;
        units.insert(price.map_or_else(|| units::CREDIT.to_owned(), |p| p.unit.clone()));
    }
    Ok(units.into_iter().collect())
}

/// Decides what was recorded in periods that began before `before`, at `now`. Gives the number of events.
pub fn charge(db: &Db, org_id: Uuid, before: Moment, now: Moment) -> Result<i64> {
    let mut groups: BTreeMap<(String, Span), Vec<Taken>> = BTreeMap::new();
    // A period whose last moment this is has ended.
    for row in db.write(&TAKE, args![org_id, At(before), At(now.saturating_add(1))]).iter() {
        let span = Span { start: row.get(1), end: row.get(2) };
        groups.entry((row.get(0), span)).or_default().push(taken(&row));
    }
    let timeline = plans::timeline(db, org_id, true)?;
    let mut days = Vec::new();
    let mut events = 0;
    if !groups.is_empty() {
        let names: Vec<_> = groups.keys().map(|(metric, span)| (org_id, metric.clone(), *span)).collect();
        let mut locked = counters::lock(db, &names);
        let mut order: Vec<_> = groups.into_iter().collect();
        order.sort_by_key(|((_, span), _)| span.start);
        for ((name, span), mut taken) in order {
            let metric = cache::any_metric(db, &name)?;
            let counter = locked
                .get_mut(&(org_id, name, span.start))
                .ok_or(Error::corrupt("a counter that was made is not there"))?;
            taken.sort_by_key(|t| t.segment);
            for part in taken {
                events += part.events;
                days.push(decide(db, &timeline, &metric, counter, &part, now)?);
            }
        }
        counters::save(db, &locked.values().collect::<Vec<_>>());
    }
    // What begins a new period is for whoever charges that one.
    carry(db, org_id, &timeline, (now, before != INFINITY), &mut days)?;
    note(db, org_id, &days);
    Ok(events)
}

fn taken(row: &Row) -> Taken {
    Taken { segment: row.get(3), quantity: row.get(4), level: row.opt(5).zip(row.opt(6)), events: row.get(7) }
}

/// Charges one stretch of recorded usage.
fn decide(
    db: &Db,
    timeline: &Timeline,
    metric: &Rc<Metric>,
    counter: &mut Counter,
    part: &Taken,
    now: Moment,
) -> Result<Day> {
    if part.level.is_some_and(|(_, at)| counter.level.is_none_or(|(_, known)| at >= known)) {
        counter.level = part.level;
    }
    let (shown, quantity) = match metric.aggregation.as_str() {
        // What goes beyond the highest level so far.
        "max" => (part.quantity, (part.quantity - counter.tally.quantity).max(0)),
        // What the period comes to in the end: see carry().
        "last" => (part.level.map_or(part.quantity, |(level, _)| level), 0),
        _ => (part.quantity, part.quantity),
    };
    let credits = take(db, timeline, metric, counter, quantity, part.segment, now)?;
    Ok(Day {
        metric: Rc::clone(metric),
        segment: part.segment,
        quantity: shown,
        credits,
        level_at: part.level.map_or(0, |(_, at)| at),
    })
}

/// Charges a quantity at the price that held at `priced_at`.
fn take(
    db: &Db,
    timeline: &Timeline,
    metric: &Metric,
    counter: &mut Counter,
    quantity: i64,
    priced_at: Moment,
    now: Moment,
) -> Result<i64> {
    let span = counter.span;
    let own = plans::own_terms(db, counter.org_id, metric, true);
    let terms = timeline.terms(&metric.name, own, now.min(span.end - 1).max(span.start));
    let price = cache::price(db, metric, Some(counter.org_id), priced_at)?;
    let charge = counter.tally.settle(quantity, terms.allowance, price.as_deref()).map_err(catalog::too_large)?;
    counter.tally.add(charge, price.as_deref()).map_err(catalog::too_large)?;
    if let Some(price) = &price {
        if counter.unpaid > 0 && counter.unit.as_ref().is_some_and(|unit| *unit != price.unit) {
            return Err(Error::invalid("price", "is in another unit than what is still unpaid of the period"));
        }
        counter.unit = Some(price.unit.clone());
    }
    counter.unpaid = counter.unpaid.checked_add(charge.credits).ok_or(catalog::too_large(catalog::price::Overflow))?;
    Ok(charge.credits)
}

/// Takes levels from periods that have ended into the next ones, until now. A period of `last` is charged when it ends; one of
/// `max` begins with the level that it finds.
fn carry(
    db: &Db,
    org_id: Uuid,
    timeline: &Timeline,
    (now, only_closing): (Moment, bool),
    days: &mut Vec<Day>,
) -> Result<()> {
    loop {
        let rows = db.write(&LEVELS, args![org_id, At(now.saturating_add(1)), only_closing]);
        let Some(row) = rows.first() else { return Ok(()) };
        let (name, span) = (row.get::<String>(0), Span { start: row.get(1), end: row.get(2) });
        let metric = cache::any_metric(db, &name)?;
        let next = timeline.period(span.end);
        let mut both = counters::lock(db, &[(org_id, name.clone(), span), (org_id, name.clone(), next)]);
        let missing = || Error::corrupt("a counter that was made is not there");
        let mut from = both.remove(&(org_id, name.clone(), span.start)).ok_or_else(missing)?;
        let mut to = both.remove(&(org_id, name.clone(), next.start)).ok_or_else(missing)?;
        let Some((level, at)) = from.level else { return Ok(()) };
        if metric.aggregation == "last" {
            let quantity = (level - from.tally.quantity).max(0);
            let credits = take(db, timeline, &metric, &mut from, quantity, span.end - 1, now)?;
            days.push(day(&metric, span.end - 1, level, credits, at));
        }
        if to.level.is_none_or(|(_, known)| known <= at) {
            to.level = Some((level, at));
        }
        if metric.aggregation == "max" {
            let quantity = (level - to.tally.quantity).max(0);
            let credits = take(db, timeline, &metric, &mut to, quantity, next.start, now)?;
            days.push(day(&metric, next.start, level, credits, at));
        }
        counters::save(db, &[&from, &to]);
        db.write(&CARRIED, args![org_id, &name, At(span.start)]);
    }
}

fn day(metric: &Rc<Metric>, segment: Moment, quantity: i64, credits: i64, level_at: Moment) -> Day {
    Day { metric: Rc::clone(metric), segment, quantity, credits, level_at }
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
            days.iter().map(|d| At(d.segment)).collect::<Vec<_>>(),
            days.iter().map(|d| d.quantity).collect::<Vec<_>>(),
            days.iter().map(|d| d.credits).collect::<Vec<_>>(),
            days.iter().map(|d| At(d.level_at)).collect::<Vec<_>>(),
        ],
    );
}
