//! Folding the ledger into days and months, so that reports need not read it.
//!
//! Settlement folds, and now and then a call that writes entries does. The wallet must be locked.
//! Entries that are not folded yet are read, or their sums are known to their lane (`recent.rs`),
//! so a report is never behind. It is done without statements if possible (`heap`), because calls
//! that somebody waits for do it.

use crate::base::time::{Moment, NEG_INFINITY, Period, day, start_of};
use crate::ledger::recent::{Entry, LaneSummary, Sum};
use crate::ledger::rows::{self, number};
use crate::pg::heap::shapes::{self, Index, Shape};
use crate::pg::heap::{Change, Changed, Held, Is, Key, Snapshot, Table, Value, Write};
use crate::pg::spi::{Db, Row, Timestamptz, ToSql};
use crate::reports::tail::{self, UnfoldedEntries};
use crate::{args, statements};
use std::collections::BTreeMap;
use uuid::Uuid;

statements! {
    BEHIND(uuid) =
        "select coalesce(f.entry_id, l.slot::int8 << 40), l.last_entry_id, l.unit, l.lane
           from billing.lanes l left join billing.folded f on f.org_id = l.org_id and f.slot = l.slot
          where l.org_id = $1 order by l.slot";
    ENTRIES(uuid, int8, int8) =
        "select operation_id, kind, metric, source, created_at, quantity, amount, entry_id
           from billing.entries where org_id = $1 and entry_id > $2 and entry_id <= $3 order by entry_id";
    DAYS(uuid, texts, timestamptzs, int8s, int8s) =
        "insert into billing.usage_days as d (org_id, metric, day, consumed, credits)
         select $1, n.metric, (n.day at time zone 'UTC')::date, n.consumed, n.credits
           from unnest($2, $3, $4, $5) n (metric, day, consumed, credits) order by 2, 3
         on conflict (org_id, metric, day) do update
            set consumed = d.consumed + excluded.consumed, credits = d.credits + excluded.credits";
    MONTHS(uuid, text, timestamptzs, texts, texts, int8s) =
        "insert into billing.credit_months as m (org_id, unit, month, kind, metric, credits)
         select $1, $2, (n.month at time zone 'UTC')::date, n.kind, n.metric, n.credits
           from unnest($3, $4, $5, $6) n (month, kind, metric, credits) order by 3, 4, 5
         on conflict (org_id, unit, month, kind, metric) do update set credits = m.credits + excluded.credits";
    ADVANCE(uuid, int8) =
        "insert into billing.folded as f (org_id, slot, entry_id) values ($1, ($2 >> 40)::int2, $2)
         on conflict (org_id, slot) do update set entry_id = excluded.entry_id";
}

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
pub fn fold_all(db: &Db, org_id: Uuid) {
    let tails = tail::tails(org_id, Snapshot::Latest).unwrap_or_else(|| {
        let tail = |row: Row| UnfoldedEntries {
            from: row.get(0),
            last: row.get(1),
            unit: row.get(2),
            lane: row.get(3),
            recent: None,
        };
        db.write(&BEHIND, args![org_id]).iter().map(tail).collect()
    });
    for tail in &tails {
        if tail.from < tail.last {
            fold_tail(db, org_id, tail);
            // Lane 0 is written only under the wallet's lock; others might be held by a consumer.
            if tail.lane == 0 {
                rows::keep_recent(org_id, &tail.unit, &LaneSummary::after(tail.last));
            }
        }
    }
}

/// Folds the entries of a lane up to `last`, its newest; `recent` has their sums if they are known.
/// The wallet must be locked.
pub fn fold(db: &Db, org_id: Uuid, unit: &str, last: i64, recent: Option<LaneSummary>) {
    match tail::folded_until(org_id, last, Snapshot::Latest) {
        Some(from) if from < last => {
            let recent = recent.filter(|recent| recent.after == from && recent.last == last);
            fold_tail(db, org_id, &UnfoldedEntries { unit: unit.to_owned(), lane: 0, from, last, recent });
        }
        Some(_) => {}
        None => fold_all(db, org_id),
    }
}

fn fold_tail(db: &Db, org_id: Uuid, tail: &UnfoldedEntries) {
    let reports = match &tail.recent {
        Some(recent) => Reports::of(&recent.sums),
        None => Reports::of(&read(db, org_id, tail).sums),
    };
    add_days(db, org_id, reports.days);
    add_months(db, org_id, &tail.unit, reports.months);
    let key = [Key(1, Is::Uuid, org_id.to_sql()), Key(2, Is::Small, tail.slot().to_sql())];
    if !change(&shapes::FOLDED, &shapes::FOLDED_KEY, &key, |_| Some(vec![(3, tail.last.to_sql())])) {
        db.write(&ADVANCE, args![org_id, tail.last]);
    }
}

/// The sums of a lane's unfolded entries, read from the ledger.
fn read(db: &Db, org_id: Uuid, tail: &UnfoldedEntries) -> LaneSummary {
    tail::read(org_id, tail, Snapshot::Latest, NEG_INFINITY).unwrap_or_else(|| {
        let mut recent = LaneSummary::after(tail.from);
        for row in db.write(&ENTRIES, args![org_id, tail.from, tail.last]).iter() {
            recent.add(Entry {
                entry_id: row.get(7),
                operation_id: row.get(0),
                kind: &row.get::<String>(1),
                metric: row.opt::<String>(2).as_deref(),
                source: row.opt::<String>(3).as_deref(),
                created_at: row.get(4),
                quantity: row.opt(5),
                amount: row.get(6),
            });
        }
        recent
    })
}

/// Changes a row that the wallet's lock protects; false where there is none, or where that needs a
/// statement.
fn change(table: &'static Shape, index: &'static Index, key: &[Key], change: impl FnMut(&[Value]) -> Change) -> bool {
    let table = Table::open(table, Write::Update);
    table.is_some_and(|table| table.update_one(index, key, Held::Ours, change) == Changed::Yes)
}

/// The new value of a column to which something is added.
fn increased(row: &[Value], column: usize, more: i64) -> Option<(usize, Value)> {
    Some((column, number(row, column)?.checked_add(more)?.to_sql()))
}

fn add_days(db: &Db, org_id: Uuid, mut days: BTreeMap<DayOf, (i64, i64)>) {
    days.retain(|(metric, on), (quantity, credits)| {
        let key = [Key(1, Is::Uuid, org_id.to_sql()), Key(2, Is::Text, metric.to_sql()), Key(3, Is::Day, on.to_sql())];
        !change(&shapes::USAGE_DAYS, &shapes::USAGE_DAYS_KEY, &key, |row| {
            Some(vec![increased(row, 4, *quantity)?, increased(row, 6, *credits)?])
        })
    });
    if !days.is_empty() {
        db.write(
            &DAYS,
            args![
                org_id,
                days.keys().map(|k| k.0.clone()).collect::<Vec<_>>(),
                days.keys().map(|k| Timestamptz(start_of(k.1))).collect::<Vec<_>>(),
                days.values().map(|v| v.0).collect::<Vec<_>>(),
                days.values().map(|v| v.1).collect::<Vec<_>>(),
            ],
        );
    }
}

fn add_months(db: &Db, org_id: Uuid, unit: &str, mut months: BTreeMap<MonthOf, i64>) {
    months.retain(|(month, kind, metric), credits| {
        let key = [
            Key(1, Is::Uuid, org_id.to_sql()),
            Key(2, Is::Text, unit.to_sql()),
            Key(3, Is::Day, day(*month).to_sql()),
            Key(4, Is::Text, kind.to_sql()),
            Key(5, Is::Text, metric.to_sql()),
        ];
        !change(&shapes::CREDIT_MONTHS, &shapes::CREDIT_MONTHS_KEY, &key, |row| {
            Some(vec![increased(row, 6, *credits)?])
        })
    });
    if !months.is_empty() {
        db.write(
            &MONTHS,
            args![
                org_id,
                unit,
                months.keys().map(|k| Timestamptz(k.0)).collect::<Vec<_>>(),
                months.keys().map(|k| k.1.clone()).collect::<Vec<_>>(),
                months.keys().map(|k| k.2.clone()).collect::<Vec<_>>(),
                months.values().copied().collect::<Vec<_>>(),
            ],
        );
    }
}
