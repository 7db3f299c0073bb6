//! Folding the ledger into days and months, so that reports need not read it.

use crate::base::time::{Moment, NEG_INFINITY, Period, day, start_of};
use crate::ledger::recent::{LaneSummary, Sum};
use crate::ledger::rows;
use crate::reports::tail::{self, UnfoldedEntries};
use crate::schema::usage::{credit_months, fold_positions, usage_days};
use crate::schema::{Snapshot, Table};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A metric and a day.
type DayOf = (String, i32);

/// A month, a kind and, for usage, a metric.
type MonthOf = (Moment, String, String);

/// The sums that are added to the reports.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reports {
    /// The quantity and the credits of each day.
    days: BTreeMap<DayOf, (i64, i64)>,
    months: BTreeMap<MonthOf, i64>,
}

impl Reports {
    fn of(sums: &[Sum]) -> Self {
        let mut reports = Self::default();
        for sum in sums {
            if sum.is_consumed() {
                let (quantity, credits) = reports.days.entry((sum.metric.clone(), sum.day)).or_default();
                *quantity = quantity.saturating_add(sum.quantity);
                *credits = credits.saturating_sub(sum.amount);
            }
            let month = Period::Month.start(start_of(sum.day));
            let credits = reports.months.entry((month, sum.kind().to_owned(), sum.metric.clone())).or_default();
            *credits = credits.saturating_add(sum.amount);
        }
        reports
    }
}

/// Folds all lanes of an org, whose wallets must be locked.
pub fn fold_all(org_id: Uuid) {
    let tails = tail::tails(org_id, Snapshot::Latest);
    for tail in &tails {
        if tail.from < tail.last {
            fold_tail(org_id, tail);
            // Lane 0 is written only under the wallet's lock; others might be held by a consumer.
            if tail.lane == 0 {
                rows::keep_recent(org_id, &tail.unit, &LaneSummary::after(tail.last));
            }
        }
    }
}

/// Folds the entries of a lane up to `last`, its newest; `recent` has their sums if they are known.
/// The wallet must be locked.
pub fn fold(org_id: Uuid, unit: &str, last: i64, recent: Option<LaneSummary>) {
    let from = tail::folded_until(org_id, last, Snapshot::Latest);
    if from < last {
        let recent = recent.filter(|recent| recent.after == from && recent.last == last);
        fold_tail(org_id, &UnfoldedEntries { unit: unit.to_owned(), lane: 0, from, last, recent });
    }
}

fn fold_tail(org_id: Uuid, tail: &UnfoldedEntries) {
    let reports = match &tail.recent {
        Some(recent) => Reports::of(&recent.sums),
        None => Reports::of(&tail::read(org_id, tail, Snapshot::Latest, NEG_INFINITY).sums),
    };
    add_days(org_id, reports.days);
    add_months(org_id, &tail.unit, reports.months);
    let (slot, entry_id) = (tail.slot(), tail.last);
    let new = fold_positions::New { org_id, slot, entry_id };
    let key = fold_positions::of_lane(org_id, slot);
    Table::<fold_positions::Table>::to_update().merge(&key, &new, &[], &[fold_positions::Table::entry_id]);
}

fn add_days(org_id: Uuid, days: BTreeMap<DayOf, (i64, i64)>) {
    let table = Table::<usage_days::Table>::to_update();
    for ((metric, day), (consumed, credits)) in days {
        let new = usage_days::New { org_id, metric: &metric, day, consumed, recorded: 0, credits, level_at: None };
        table.merge(
            &usage_days::one(org_id, &metric, day),
            &new,
            &[usage_days::Table::consumed, usage_days::Table::credits],
            &[],
        );
    }
}

fn add_months(org_id: Uuid, unit: &str, months: BTreeMap<MonthOf, i64>) {
    let table = Table::<credit_months::Table>::to_update();
    for ((month, kind, metric), credits) in months {
        let month = day(month);
        let new = credit_months::New { org_id, unit, month, kind: &kind, metric: &metric, credits };
        let key = credit_months::one(org_id, unit, month, &kind, &metric);
        table.merge(&key, &new, &[credit_months::Table::credits], &[]);
    }
}
