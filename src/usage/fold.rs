//! Folding the ledger into days and months, so that reports need not read it: by settlement, and now and then by the calls that
//! write entries. The wallet must be locked. What is not folded yet is read from the entries, so a report is never behind.
//!
//! Done without statements where that can be (`heap.rs`), because calls that wait for an answer do it.

use crate::heap::{Change, Changed, Held, Is, Key, Snapshot, Table, Value, Write};
use crate::ledger::rows::{self, entry as column, number, text};
use crate::sql::{At, Db, ToSql};
use crate::time::{Moment, Period};
use crate::usage::tail::{self, Tail, day};
use crate::{args, statements};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A lane is folded by the call that writes its entry of such a number: often enough that reading the rest costs `check_limit`
/// little.
const EVERY: i64 = 16;

statements! {
    BEHIND(uuid) =
        "select coalesce(f.entry_id, l.slot::int8 << 40), l.last_entry_id
           from billing.lanes l left join billing.folded f on f.org_id = l.org_id and f.slot = l.slot
          where l.org_id = $1 order by l.slot";
    ENTRIES(uuid, int8, int8) =
        "select operation_id, kind, metric, source, unit, created_at, quantity, amount
           from billing.entries where org_id = $1 and entry_id > $2 and entry_id <= $3 order by entry_id";
    DAYS(uuid, texts, timestamptzs, int8s, int8s) =
        "insert into billing.usage_days as d (org_id, metric, day, consumed, credits)
         select $1, n.metric, (n.day at time zone 'UTC')::date, n.consumed, n.credits
           from unnest($2, $3, $4, $5) n (metric, day, consumed, credits) order by 2, 3
         on conflict (org_id, metric, day) do update
            set consumed = d.consumed + excluded.consumed, credits = d.credits + excluded.credits";
    MONTHS(uuid, texts, timestamptzs, texts, texts, int8s) =
        "insert into billing.credit_months as m (org_id, unit, month, kind, metric, credits)
         select $1, n.unit, (n.month at time zone 'UTC')::date, n.kind, n.metric, n.credits
           from unnest($2, $3, $4, $5, $6) n (unit, month, kind, metric, credits) order by 2, 3, 4, 5
         on conflict (org_id, unit, month, kind, metric) do update set credits = m.credits + excluded.credits";
    ADVANCE(uuid, int8) =
        "insert into billing.folded as f (org_id, slot, entry_id) values ($1, ($2 >> 40)::int2, $2)
         on conflict (org_id, slot) do update set entry_id = excluded.entry_id";
}

/// What of an entry is told by the reports.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    operation_id: i64,
    kind: String,
    metric: Option<String>,
    source: Option<String>,
    unit: String,
    created_at: Moment,
    quantity: Option<i64>,
    amount: i64,
}

/// Metric and day.
type DayOf = (String, Moment);

/// Unit, month, kind and, for usage, metric.
type MonthOf = (String, Moment, String, String);

/// What some entries of a lane, one after the other, come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    /// Quantity and credits.
    days: BTreeMap<DayOf, (i64, i64)>,
    months: BTreeMap<MonthOf, i64>,
    /// The last consumption that was counted, and its day.
    counted: Option<(i64, Moment)>,
}

impl Sums {
    fn add(&mut self, entry: Entry) {
        let is_usage = entry.kind == "usage";
        let metric = entry.metric.unwrap_or_default();
        // What settlement burns counted when it was recorded.
        if is_usage && entry.source.as_deref() != Some("settlement") {
            let known = self.counted.filter(|(operation_id, _)| *operation_id == entry.operation_id);
            let on = known.map_or_else(|| Period::Day.start(entry.created_at), |(_, on)| on);
            let (quantity, credits) = self.days.entry((metric.clone(), on)).or_default();
            // The quantity stands in each entry of a consumption.
            if known.is_none() {
                *quantity = quantity.saturating_add(entry.quantity.unwrap_or(0));
            }
            *credits = credits.saturating_sub(entry.amount);
            self.counted = Some((entry.operation_id, on));
        }
        let month = Period::Month.start(entry.created_at);
        let name = (entry.unit, month, entry.kind, if is_usage { metric } else { String::new() });
        let credits = self.months.entry(name).or_default();
        *credits = credits.saturating_add(entry.amount);
    }
}

/// Folds all lanes of an org, whose wallets are locked.
pub fn fold_all(db: &Db, org_id: Uuid) {
    let tails = tail::tails(org_id, Snapshot::Latest).unwrap_or_else(|| {
        let tail = |from, last| Tail { from, last };
        db.write(&BEHIND, args![org_id]).iter().map(|row| tail(row.get(0), row.get(1))).collect()
    });
    for tail in tails {
        fold_tail(db, org_id, &tail);
    }
}

/// Whether one of the entries after `from` up to `to` has a number at which its lane is folded.
pub fn is_due(from: i64, to: i64) -> bool {
    from / EVERY != to / EVERY
}

/// Folds the entries of a lane up to its newest one. The wallet must be locked.
pub fn fold(db: &Db, org_id: Uuid, last_entry_id: i64) {
    match tail::folded_until(org_id, last_entry_id, Snapshot::Latest) {
        Some(from) => fold_tail(db, org_id, &Tail { from, last: last_entry_id }),
        None => fold_all(db, org_id),
    }
}

fn fold_tail(db: &Db, org_id: Uuid, tail: &Tail) {
    if tail.from >= tail.last {
        return;
    }
    let mut sums = Sums::default();
    if !tail::visit(org_id, tail, Snapshot::Latest, |row| sums.add(entry(row))) {
        sums = Sums::default();
        for row in db.write(&ENTRIES, args![org_id, tail.from, tail.last]).iter() {
            sums.add(Entry {
                operation_id: row.get(0),
                kind: row.get(1),
                metric: row.opt(2),
                source: row.opt(3),
                unit: row.get(4),
                created_at: row.get(5),
                quantity: row.opt(6),
                amount: row.get(7),
            });
        }
    }
    add_days(db, org_id, sums.days);
    add_months(db, org_id, sums.months);
    let key = [Key(1, Is::Uuid, org_id.to_sql()), Key(2, Is::Small, tail.slot().to_sql())];
    if !change("folded", 3, "folded_pkey", &key, |_| Some(vec![(3, tail.last.to_sql())])) {
        db.write(&ADVANCE, args![org_id, tail.last]);
    }
}

fn entry(row: &[Value]) -> Entry {
    Entry {
        operation_id: rows::operation_of(row).unwrap_or_default(),
        kind: rows::unusual_kind(row).unwrap_or_else(|| "usage".to_owned()),
        metric: text(row, column::METRIC),
        source: text(row, column::SOURCE),
        unit: rows::unit_of(row),
        created_at: number(row, column::CREATED_AT).unwrap_or_default(),
        quantity: number(row, column::QUANTITY),
        amount: number(row, column::AMOUNT).unwrap_or_default(),
    }
}

/// Changes a row that the wallet's lock keeps others from; false where there is none, or it takes a statement.
fn change(table: &str, columns: usize, index: &str, key: &[Key], change: impl FnMut(&[Value]) -> Change) -> bool {
    let table = Table::open(table, columns, Write::Update);
    table.is_some_and(|table| table.update_one(index, key, Held::Ours, change) == Changed::Yes)
}

/// A column to which something is added.
fn plus(row: &[Value], column: usize, more: i64) -> Option<(usize, Value)> {
    Some((column, number(row, column)?.checked_add(more)?.to_sql()))
}

fn add_days(db: &Db, org_id: Uuid, mut days: BTreeMap<DayOf, (i64, i64)>) {
    days.retain(|(metric, on), (quantity, credits)| {
        let key =
            [Key(1, Is::Uuid, org_id.to_sql()), Key(2, Is::Text, metric.to_sql()), Key(3, Is::Day, day(*on).to_sql())];
        !change("usage_days", 7, "usage_days_pkey", &key, |row| {
            Some(vec![plus(row, 4, *quantity)?, plus(row, 6, *credits)?])
        })
    });
    if !days.is_empty() {
        db.write(
            &DAYS,
            args![
                org_id,
                days.keys().map(|k| k.0.clone()).collect::<Vec<_>>(),
                days.keys().map(|k| At(k.1)).collect::<Vec<_>>(),
                days.values().map(|v| v.0).collect::<Vec<_>>(),
                days.values().map(|v| v.1).collect::<Vec<_>>(),
            ],
        );
    }
}

fn add_months(db: &Db, org_id: Uuid, mut months: BTreeMap<MonthOf, i64>) {
    months.retain(|(unit, month, kind, metric), credits| {
        let key = [
            Key(1, Is::Uuid, org_id.to_sql()),
            Key(2, Is::Text, unit.to_sql()),
            Key(3, Is::Day, day(*month).to_sql()),
            Key(4, Is::Text, kind.to_sql()),
            Key(5, Is::Text, metric.to_sql()),
        ];
        !change("credit_months", 6, "credit_months_pkey", &key, |row| Some(vec![plus(row, 6, *credits)?]))
    });
    if !months.is_empty() {
        db.write(
            &MONTHS,
            args![
                org_id,
                months.keys().map(|k| k.0.clone()).collect::<Vec<_>>(),
                months.keys().map(|k| At(k.1)).collect::<Vec<_>>(),
                months.keys().map(|k| k.2.clone()).collect::<Vec<_>>(),
                months.keys().map(|k| k.3.clone()).collect::<Vec<_>>(),
                months.values().copied().collect::<Vec<_>>(),
            ],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(operation_id: i64, kind: &str, source: Option<&str>, at: &str, amount: i64) -> Entry {
        Entry {
            operation_id,
            kind: kind.to_owned(),
            metric: Some("call".to_owned()),
            source: source.map(str::to_owned),
            unit: "credit".to_owned(),
            created_at: crate::time::parse(at).unwrap(),
            quantity: Some(3),
            amount,
        }
    }

    #[test]
    fn a_consumption_counts_once_however_many_grants_paid_it() {
        let (one, two) = ("2026-01-31T23:59:59Z", "2026-02-01T00:00:00Z");
        let mut sums = Sums::default();
        sums.add(entry(1, "bonus", Some("bonus"), one, 100));
        sums.add(entry(2, "usage", None, one, -10));
        sums.add(entry(2, "usage", None, one, -5));
        sums.add(entry(4, "usage", None, two, -7));
        sums.add(entry(5, "usage", Some("settlement"), two, -50));
        let at = |text| crate::time::parse(text).unwrap();
        let on = |text| ("call".to_owned(), at(text));
        assert_eq!(sums.days, BTreeMap::from([(on("2026-01-31"), (3, 15)), (on("2026-02-01"), (3, 7))]));
        let of = |month, kind: &str, metric: &str| ("credit".to_owned(), at(month), kind.to_owned(), metric.to_owned());
        assert_eq!(
            sums.months,
            BTreeMap::from([
                (of("2026-01-01", "bonus", ""), 100),
                (of("2026-01-01", "usage", "call"), -15),
                (of("2026-02-01", "usage", "call"), -57),
            ])
        );
    }
}
