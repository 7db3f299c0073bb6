//! The rows that count: what is decided of a metric in a period, and what is recorded and not settled.
//!
//! Counters are locked after the lanes of their wallets, in the order of (org, metric, period).

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::catalog::cache::Metric;
use crate::catalog::price::{self, Price};
use crate::ledger::rows::number;
use crate::pg::heap::{self, Attempt, Changed, Held, Is, Key, Snapshot, Table, Value, Write, shapes};
use crate::pg::spi::{Db, Row, Timestamptz, ToSql};
use crate::plans::period::{Span, Terms, Timeline};
use crate::plans::store as plans;
use crate::usage::record::column as unsettled;
use crate::usage::tally::{Charge, Tally};
use crate::{args, statements};
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

macro_rules! counter_columns {
    () => {
        "u.org_id, u.metric, u.period_start, u.period_end, u.quantity, u.overage, u.credits, u.priced, u.price_id,
         u.level, u.level_at"
    };
}

statements! {
    MAKE(uuids, texts, timestamptzs, timestamptzs) =
        "insert into billing_internal.period_usage (org_id, metric, period_start, period_end)
         select * from unnest($1, $2, $3, $4) order by 1, 2, 3
         on conflict do nothing";
    // The orgs are named once more, so that no plan reads those of others.
    LOCK(uuids, texts, timestamptzs) = concat!(
        "select ", counter_columns!(), " from unnest($1, $2, $3) k (org_id, metric, period_start)
           join billing_internal.period_usage u using (org_id, metric, period_start)
          where u.org_id = any ($1)
          order by u.org_id, u.metric, u.period_start for update of u");
    READ(uuid, text, timestamptz) = concat!(
        "select ", counter_columns!(), " from billing_internal.period_usage u where org_id = $1 and metric = $2 and period_start = $3");
    SAVE(uuids, texts, timestamptzs, int8s, int8s, int8s, int8s, int8s, int8s, timestamptzs, timestamptzs) =
        "update billing_internal.period_usage u
            set quantity = k.quantity, overage = k.overage, credits = k.credits, priced = k.priced, price_id = k.price_id,
                level = k.level, level_at = case when k.level is not null then k.level_at end, period_end = k.period_end,
                carried = u.carried and k.level is not distinct from u.level and k.level_at is not distinct from u.level_at
           from unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
                k (org_id, metric, period_start, quantity, overage, credits, priced, price_id, level, level_at, period_end)
          where u.org_id = k.org_id and u.metric = k.metric and u.period_start = k.period_start and u.org_id = any ($1)";
    UNSETTLED(uuids, texts, timestamptzs) =
        "select u.org_id, u.metric, sum(u.quantity)::int8 from unnest($1, $2, $3) k (org_id, metric, period_start)
           join billing_internal.unsettled_usage u using (org_id, metric, period_start)
          where u.org_id = any ($1)
          group by u.org_id, u.metric";
}

/// A row of `period_usage`.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Counter {
    pub org_id: Uuid,
    pub metric: String,
    pub span: Span,
    pub tally: Tally,
    /// Of max and last: the newest level and when it was reported.
    pub level: Option<(i64, Moment)>,
}

/// What names a counter.
pub type Name = (Uuid, String, Moment);

impl Counter {
    /// One that has counted nothing.
    pub fn new(org_id: Uuid, metric: &str, span: Span) -> Self {
        let (metric, tally) = (metric.to_owned(), Tally::default());
        Self { org_id, metric, span, tally, level: None }
    }

    /// See [`Name`].
    pub fn name(&self) -> Name {
        (self.org_id, self.metric.clone(), self.span.start)
    }
}

fn counter(row: &Row) -> Counter {
    Counter {
        org_id: row.get(0),
        metric: row.get(1),
        span: Span { start: row.get(2), end: row.get(3) },
        tally: Tally {
            quantity: row.get(4),
            overage: row.get(5),
            credits: row.get(6),
            priced: row.get(7),
            price_id: row.get(8),
        },
        level: row.opt(9).zip(row.opt(10)),
    }
}

/// Locks counters, making those that are missing.
pub fn lock(db: &Db, names: &[(Uuid, String, Span)]) -> BTreeMap<Name, Counter> {
    let mut names: Vec<_> = names.iter().collect();
    names.sort_by(|a, b| (a.0, &a.1, a.2.start).cmp(&(b.0, &b.1, b.2.start)));
    names.dedup();
    let (mut locked, mut rest) = (BTreeMap::new(), Vec::new());
    for name in names {
        // Once one takes a statement, all after it do: the order is kept.
        match rest.is_empty().then(|| lock_row(name)).flatten() {
            Some(counter) => drop(locked.insert(counter.name(), counter)),
            None => rest.push(name),
        }
    }
    if !rest.is_empty() {
        locked.extend(lock_by_statement(db, &rest));
    }
    locked
}

fn lock_by_statement(db: &Db, names: &[&(Uuid, String, Span)]) -> BTreeMap<Name, Counter> {
    let orgs = || names.iter().map(|n| n.0).collect::<Vec<_>>();
    let metrics = || names.iter().map(|n| n.1.clone()).collect::<Vec<_>>();
    let starts = || names.iter().map(|n| Timestamptz(n.2.start)).collect::<Vec<_>>();
    let read = || {
        let rows = db.write(&LOCK, args![orgs(), metrics(), starts()]);
        rows.iter().map(|row| counter(&row)).map(|c| (c.name(), c)).collect::<BTreeMap<_, _>>()
    };
    let found = read();
    if found.len() == names.len() {
        return found;
    }
    let ends: Vec<_> = names.iter().map(|n| Timestamptz(n.2.end)).collect();
    db.write(&MAKE, args![orgs(), metrics(), starts(), ends]);
    read()
}

/// Columns of `period_usage`.
mod column {
    pub const PERIOD_START: usize = 3;
    pub const QUANTITY: usize = 4;
    pub const CREDITS: usize = 5;
    pub const OVERAGE: usize = 6;
    pub const PRICED: usize = 7;
    pub const PRICE_ID: usize = 8;
    pub const LEVEL: usize = 9;
    pub const LEVEL_AT: usize = 10;
    pub const PERIOD_END: usize = 12;
}

/// The counters without levels, of which none belongs into the index of those.
fn open(write: Write) -> Option<Table> {
    Table::open(&shapes::PERIOD_USAGE, write)
}

fn key(org_id: Uuid, metric: &str, start: Moment) -> [Key; 3] {
    [Key(1, Is::Uuid, org_id.to_sql()), Key(2, Is::Text, metric.to_sql()), Key(3, Is::Moment, start.to_sql())]
}

/// As a row has it.
fn of_row(org_id: Uuid, metric: &str, row: &[Value]) -> Option<Counter> {
    let of = |column| number(row, column);
    Some(Counter {
        org_id,
        metric: metric.to_owned(),
        span: Span { start: of(column::PERIOD_START)?, end: of(column::PERIOD_END)? },
        tally: Tally {
            quantity: of(column::QUANTITY)?,
            overage: of(column::OVERAGE)?,
            credits: of(column::CREDITS)?,
            priced: of(column::PRICED)?,
            price_id: of(column::PRICE_ID)?,
        },
        level: of(column::LEVEL).zip(of(column::LEVEL_AT)),
    })
}

/// Locks or makes one without a statement; None where that takes one.
fn lock_row((org_id, metric, span): &(Uuid, String, Span)) -> Option<Counter> {
    let key = key(*org_id, metric, span.start);
    let queue = heap::queue((org_id, metric, span.start));
    // Those with a level are for statements.
    let read = |row: &[Value]| of_row(*org_id, metric, row).filter(|counter| counter.level.is_none());
    if let Some(found) = open(Write::Update)?.lock_one(&shapes::PERIOD_USAGE_KEY, &key, queue, read) {
        return found;
    }
    let zero = || 0_i64.to_sql();
    let row = [
        org_id.to_sql(),
        metric.to_sql(),
        span.start.to_sql(),
        zero(),
        zero(),
        zero(),
        zero(),
        zero(),
        None,
        None,
        false.to_sql(),
        span.end.to_sql(),
    ];
    let is_new = open(Write::Insert)?.insert_new(&shapes::PERIOD_USAGE_KEY, &row, Attempt::Told);
    is_new.then(|| Counter::new(*org_id, metric, *span))
}

/// Writes one that is locked without a statement; false where that takes one.
fn save_row(counter: &Counter) -> bool {
    let (Some(table), None) = (open(Write::Update), counter.level) else { return false };
    let key = key(counter.org_id, &counter.metric, counter.span.start);
    let changed = table.update_one(&shapes::PERIOD_USAGE_KEY, &key, Held::Ours, |row| {
        number(row, column::LEVEL).is_none().then(|| {
            vec![
                (column::QUANTITY, counter.tally.quantity.to_sql()),
                (column::OVERAGE, counter.tally.overage.to_sql()),
                (column::CREDITS, counter.tally.credits.to_sql()),
                (column::PRICED, counter.tally.priced.to_sql()),
                (column::PRICE_ID, counter.tally.price_id.to_sql()),
                (column::PERIOD_END, counter.span.end.to_sql()),
            ]
        })
    });
    changed == Changed::Yes
}

/// A counter for reading.
pub fn peek(db: &Db, org_id: Uuid, metric: &str, span: Span) -> Counter {
    let found = match look(org_id, &[(metric.to_owned(), span.start)]) {
        Some(mut found) => found.pop(),
        None => db.read(&READ, args![org_id, metric, Timestamptz(span.start)]).first().map(|row| counter(&row)),
    };
    found.unwrap_or_else(|| Counter::new(org_id, metric, span))
}

/// For reading, of an org's counters for these metrics, each of the period that begins then: those that there are. None where that takes
/// a statement.
pub fn look(org_id: Uuid, names: &[(String, Moment)]) -> Option<Vec<Counter>> {
    let table = Table::open_to_read(&shapes::PERIOD_USAGE)?;
    let mut finder = table.finder(&shapes::PERIOD_USAGE_KEY, Snapshot::Callers);
    let mut found = Vec::new();
    for (metric, start) in names {
        finder.read(&key(org_id, metric, *start), |row, _| found.extend(of_row(org_id, metric, row)));
    }
    Some(found)
}

/// Writes counters that are locked.
///
/// # Panics
/// Where one does not add up: this is the only place that writes them, and stands for the CHECKs that a statement would need.
pub fn save(db: &Db, counters: &[&Counter]) {
    assert!(counters.iter().all(|counter| counter.tally.is_sound()), "counters add up");
    let counters: Vec<_> = counters.iter().filter(|counter| !save_row(counter)).collect();
    if counters.is_empty() {
        return;
    }
    let numbers = |f: fn(&Counter) -> i64| counters.iter().map(|c| f(c)).collect::<Vec<i64>>();
    db.write(
        &SAVE,
        args![
            counters.iter().map(|c| c.org_id).collect::<Vec<_>>(),
            counters.iter().map(|c| c.metric.clone()).collect::<Vec<_>>(),
            counters.iter().map(|c| Timestamptz(c.span.start)).collect::<Vec<_>>(),
            numbers(|c| c.tally.quantity),
            numbers(|c| c.tally.overage),
            numbers(|c| c.tally.credits),
            numbers(|c| c.tally.priced),
            numbers(|c| c.tally.price_id),
            counters.iter().map(|c| c.level.map(|l| l.0)).collect::<Vec<_>>(),
            counters.iter().map(|c| Timestamptz(c.level.map_or(0, |l| l.1))).collect::<Vec<_>>(),
            counters.iter().map(|c| Timestamptz(c.span.end)).collect::<Vec<_>>(),
        ],
    );
}

/// What an org has of a metric in the current period, locked.
#[derive(Clone)]
pub struct Metered {
    /// What holds.
    pub terms: Terms,
    /// What is decided.
    pub counter: Counter,
    /// What is recorded and not settled.
    pub unsettled: i64,
    /// To be written.
    pub changed: bool,
}

impl Metered {
    /// What a consumption of so much comes to; refused where the allowance is used up and there is no price.
    pub fn charge(&self, metric: &Metric, quantity: i64, price: Option<&Price>) -> Result<Charge> {
        let tally = &self.counter.tally;
        let charge = tally.charge(quantity, self.terms.allowance, self.unsettled, price).map_err(price::too_large)?;
        if charge.overage > 0 && price.is_none() && self.terms.ends_at_allowance(metric.tier) {
            let remaining = tally.remaining(self.terms.allowance, self.unsettled).unwrap_or(0);
            return Err(Error::plan_limit(&metric.name, self.terms.allowance.unwrap_or(0), remaining, quantity));
        }
        Ok(charge)
    }

    /// Notes that it was made.
    pub fn take(&mut self, charge: Charge, price: Option<&Price>) -> Result<()> {
        self.changed = true;
        self.counter.tally.add(charge, price).map_err(price::too_large)
    }
}

/// Locks the counters of metrics at a moment. The lanes must be locked.
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
    let mut counters = lock(db, &names);
    let unsettled = unsettled(db, &names);
    Ok(all
        .into_iter()
        .map(|((org_id, metric), (terms, is_gauge))| {
            let name = (org_id, metric);
            let mut counter = counters
                .remove(&(name.0, name.1.clone(), terms.span.start))
                .unwrap_or_else(|| Counter::new(org_id, &name.1, terms.span));
            counter.span.end = terms.span.end;
            // A level adds nothing to what is consumed.
            let unsettled = if is_gauge { 0 } else { unsettled.get(&name).copied().unwrap_or(0) };
            (name, Metered { terms, counter, unsettled, changed: false })
        })
        .collect())
}

fn unsettled(db: &Db, names: &[(Uuid, String, Span)]) -> BTreeMap<(Uuid, String), i64> {
    if let Some(known) = unsettled_rows(names) {
        return known;
    }
    let orgs: Vec<_> = names.iter().map(|n| n.0).collect();
    let metrics: Vec<_> = names.iter().map(|n| n.1.clone()).collect();
    let starts: Vec<_> = names.iter().map(|n| Timestamptz(n.2.start)).collect();
    let rows = db.write(&UNSETTLED, args![orgs, metrics, starts]);
    rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}

/// The same without a statement; None where that takes one.
fn unsettled_rows(names: &[(Uuid, String, Span)]) -> Option<BTreeMap<(Uuid, String), i64>> {
    heap::look(true, || {
        let table = Table::open_to_read(&shapes::UNSETTLED_USAGE)?;
        if table.is_empty() {
            return Some(BTreeMap::new());
        }
        let mut sums = BTreeMap::new();
        for (org_id, metric, span) in names {
            let mut sum = Some(0_i64);
            let key = key(*org_id, metric, span.start);
            table.read(&shapes::UNSETTLED_USAGE_KEY, &key, Snapshot::Callers, |row, _| {
                sum = sum.zip(number(row, unsettled::QUANTITY)).and_then(|(sum, quantity)| sum.checked_add(quantity));
            });
            sums.insert((*org_id, metric.clone()), sum?);
        }
        Some(sums)
    })
}

#[cfg(test)]
mod tests {
    use super::column;
    use crate::pg::heap::shapes;

    #[test]
    fn columns_are_counted_as_they_stand() {
        shapes::PERIOD_USAGE.assert_numbers(&[
            (column::PERIOD_START, "period_start"),
            (column::QUANTITY, "quantity"),
            (column::CREDITS, "credits"),
            (column::OVERAGE, "overage"),
            (column::PRICED, "priced"),
            (column::PRICE_ID, "price_id"),
            (column::LEVEL, "level"),
            (column::LEVEL_AT, "level_at"),
            (column::PERIOD_END, "period_end"),
        ]);
    }
}
