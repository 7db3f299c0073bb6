//! The unsettled state of an org: its recorded usage that is not settled, its unpaid overage and
//! its counters. Every check of its limits begins with reading these.

use crate::base::time::Moment;
use crate::plans::period::Span;
use crate::schema::ledger::unpaid_overage;
use crate::schema::usage::unsettled_usage;
use crate::schema::{Snapshot, Table, at_one_moment};
use crate::usage::counters::{self, Counter};
use std::collections::BTreeMap;
use uuid::Uuid;

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

/// The unsettled state of an org.
#[derive(Default)]
pub struct UnsettledState {
    /// The unsettled usage, in the order of metric, period and segment.
    pub pending: Vec<UnsettledRow>,
    /// The unpaid overage by unit.
    pub unpaid: BTreeMap<String, i64>,
    /// The counters that were asked for by metric and start of the period; None where there is
    /// none.
    pub counters: BTreeMap<(String, Moment), Option<Counter>>,
}

impl UnsettledState {
    /// Reads the state, with the counters of these metrics, each in the period that begins at its
    /// moment. `fresh` is for a call that holds locks.
    pub fn read(org_id: Uuid, names: Vec<(String, Moment)>, fresh: bool) -> Self {
        let mut state = at_one_moment(fresh, || read_rows(org_id, &names));
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

fn read_rows(org_id: Uuid, names: &[(String, Moment)]) -> UnsettledState {
    let mut state = UnsettledState::default();
    let recorded = Table::<unsettled_usage::Table>::to_read();
    if !recorded.is_known_empty() {
        recorded.each(&unsettled_usage::of_org(org_id), Snapshot::Callers, |row| {
            state.pending.push(UnsettledRow {
                metric: row.metric().to_owned(),
                span: Span { start: row.period_start(), end: row.period_end() },
                segment: row.segment(),
                quantity: row.quantity(),
                level: row.level().zip(row.level_at()),
            });
            true
        });
    }
    let unpaid = Table::<unpaid_overage::Table>::to_read();
    if !unpaid.is_known_empty() {
        unpaid.each(&unpaid_overage::of_org(org_id), Snapshot::Callers, |row| {
            state.owes(row.unit().to_owned(), row.credits());
            true
        });
    }
    for counter in counters::read(org_id, names) {
        state.counters.insert((counter.metric.clone(), counter.span.start), Some(counter));
    }
    state
}
