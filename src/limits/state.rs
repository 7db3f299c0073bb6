//! What is recorded of an org and not settled, what it has not paid, and its counters: what every look at where it stands begins with.

use crate::base::time::Moment;
use crate::ledger::rows::{number, text};
use crate::pg::heap::{self, Is, Key, Snapshot, Table, Value, shapes};
use crate::pg::spi::{Db, Timestamptz, ToSql};
use crate::plans::period::Span;
use crate::usage::counters::{self, Counter};
use crate::usage::record::column as unsettled;
use crate::usage::tally::Tally;
use crate::{args, statements};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

statements! {
    // One statement, because each costs as much to begin as its look-ups.
    STATE(uuid, texts, timestamptzs) =
        "select 0, metric, period_start, period_end, segment, quantity, level, level_at,
                null::int8, null::int8, null::int8, null::int8
           from billing_internal.unsettled_usage where org_id = $1
         union all
         select 1, metric, period_start, period_end, null, quantity, level, level_at, overage, credits, priced, price_id
           from billing_internal.period_usage where org_id = $1 and metric = any ($2) and period_start = any ($3)
         union all
         select 2, unit, period_start, period_start, null, credits, null, null, null, null, null, null
           from billing.unpaid_overage where org_id = $1";
}

/// A row of `unsettled_usage`.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct UnsettledRow {
    pub metric: String,
    pub span: Span,
    pub segment: Moment,
    pub quantity: i64,
    pub level: Option<(i64, Moment)>,
}

/// What the first look finds of an org, whatever the metric.
#[derive(Default)]
pub struct UnsettledState {
    /// By metric, period and segment.
    pub pending: Vec<UnsettledRow>,
    /// Unpaid overage by unit.
    pub unpaid: BTreeMap<String, i64>,
    /// Of the metrics and periods that were asked for: what there is.
    pub counters: BTreeMap<(String, Moment), Option<Counter>>,
}

impl UnsettledState {
    /// With the counters of these metrics, each in the period that begins then. `fresh`: for a call that holds locks.
    pub fn look(db: &Db, org_id: Uuid, names: Vec<(String, Moment)>, fresh: bool) -> Self {
        let found = heap::look(fresh, || by_rows(org_id, &names));
        let mut state = found.unwrap_or_else(|| by_statement(db, org_id, &names, fresh));
        for name in names {
            state.counters.entry(name).or_default();
        }
        state.pending.sort_by(|a, b| (&a.metric, a.span, a.segment).cmp(&(&b.metric, b.span, b.segment)));
        state
    }

    fn owes(&mut self, unit: String, credits: i64) {
        let sum = self.unpaid.entry(unit).or_default();
        *sum = sum.saturating_add(credits);
    }
}

fn by_statement(db: &Db, org_id: Uuid, names: &[(String, Moment)], fresh: bool) -> UnsettledState {
    let starts: BTreeSet<_> = names.iter().map(|(_, start)| *start).collect();
    let metrics: Vec<_> = names.iter().map(|(metric, _)| metric.clone()).collect();
    let starts: Vec<_> = starts.into_iter().map(Timestamptz).collect();
    let mut state = UnsettledState::default();
    for row in db.query(fresh, &STATE, args![org_id, metrics, starts]).iter() {
        let (name, span) = (row.get::<String>(1), Span { start: row.get(2), end: row.get(3) });
        let (quantity, level) = (row.get::<i64>(5), row.opt(6).zip(row.opt(7)));
        match row.get::<i32>(0) {
            0 => state.pending.push(UnsettledRow { metric: name, span, segment: row.get(4), quantity, level }),
            1 => {
                let mut found = Counter::new(org_id, &name, span);
                found.tally = Tally {
                    quantity,
                    overage: row.get(8),
                    credits: row.get(9),
                    priced: row.get(10),
                    price_id: row.get(11),
                };
                found.level = level;
                state.counters.insert((name, span.start), Some(found));
            }
            _ => state.owes(name, quantity),
        }
    }
    state
}

/// The same without a statement; None where that takes one.
fn by_rows(org_id: Uuid, names: &[(String, Moment)]) -> Option<UnsettledState> {
    let of_org = || Key(1, Is::Uuid, org_id.to_sql());
    let mut state = UnsettledState::default();
    let recorded = Table::open_to_read(&shapes::UNSETTLED_USAGE)?;
    if !recorded.is_empty() {
        recorded.read(&shapes::UNSETTLED_USAGE_KEY, &[of_org()], Snapshot::Callers, |row, _| {
            state.pending.extend(pending(row));
        });
    }
    let unpaid = Table::open_to_read(&shapes::UNPAID_OVERAGE)?;
    if !unpaid.is_empty() {
        unpaid.read(&shapes::UNPAID_OVERAGE_KEY, &[of_org()], Snapshot::Callers, |row, _| {
            if let Some((unit, credits)) = text(row, 2).zip(number(row, 5)) {
                state.owes(unit, credits);
            }
        });
    }
    for counter in counters::look(org_id, names)? {
        state.counters.insert((counter.metric.clone(), counter.span.start), Some(counter));
    }
    Some(state)
}

fn pending(row: &[Value]) -> Option<UnsettledRow> {
    Some(UnsettledRow {
        metric: text(row, unsettled::METRIC)?,
        span: Span { start: number(row, unsettled::PERIOD_START)?, end: number(row, unsettled::PERIOD_END)? },
        segment: number(row, unsettled::SEGMENT)?,
        quantity: number(row, unsettled::QUANTITY)?,
        level: number(row, unsettled::LEVEL).zip(number(row, unsettled::LEVEL_AT)),
    })
}
