//! The statements that the declarations of tables come to: for tables that are not, or not any more, as declared, and where
//! `billing.direct_rows` is off.
//!
//! They name all columns, so a row that they give is what the table's typed row expects. Each is prepared once per backend.

#[cfg(feature = "compare_ways")]
use crate::pg::heap::shapes::Column;
use crate::pg::heap::shapes::{Index, Shape};
use crate::pg::heap::{Change, Changed, Key, KeyType, LockPolicy, Snapshot, Value};
use crate::pg::spi::{self, Db, Plan, Row};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;

/// How rows that are found are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lock {
    None,
    /// Whoever holds one is waited for.
    Waiting,
    /// One row at most, that nobody holds.
    IfFree,
}

/// What a statement does with a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Form {
    /// By keys, in the order of these columns.
    Select {
        keys: Vec<(i16, KeyType)>,
        order: &'static [&'static str],
        lock: Lock,
    },
    /// One row, by the columns of the first index.
    Update,
    Insert,
    /// Or, where there is one with the columns of the first index, adds to columns of it and replaces others, counted from 1.
    Merge {
        sums: Vec<usize>,
        others: Vec<usize>,
    },
    /// Unless there is one with these columns, of the rows with that predicate.
    InsertNew {
        unique: &'static [&'static str],
        predicate: Option<&'static str>,
    },
}

thread_local! {
    /// By table, which is one of a few statics.
    static PLANS: RefCell<HashMap<(*const Shape, Form), Plan>> = RefCell::default();
}

fn plan(shape: &'static Shape, form: Form) -> Plan {
    PLANS.with_borrow_mut(|plans| {
        *plans.entry((std::ptr::from_ref(shape), form)).or_insert_with_key(|(_, form)| {
            let types: Vec<_> = numbers(shape, form).map(|number| shape.columns[number].kind.oid()).collect();
            spi::plan(&text(shape, form), &types)
        })
    })
}

/// The columns of the parameters, counted from 0.
fn numbers(shape: &'static Shape, form: &Form) -> Box<dyn Iterator<Item = usize>> {
    match form {
        Form::Select { keys, .. } => {
            let keys: Vec<_> = keys.iter().map(|(column, _)| position(*column)).collect();
            Box::new(keys.into_iter())
        }
        Form::Update | Form::Insert | Form::Merge { .. } | Form::InsertNew { .. } => Box::new(0..shape.columns.len()),
    }
}

fn position(column: i16) -> usize {
    usize::try_from(column - 1).unwrap_or_default()
}

fn text(shape: &Shape, form: &Form) -> String {
    let names: Vec<_> = shape.columns.iter().map(|column| column.name).collect();
    let columns = names.join(", ");
    let table = format!("{}.{}", shape.schema, shape.name);
    let insert = || {
        let values: Vec<_> = (1..=names.len()).map(|number| format!("${number}")).collect();
        format!("insert into {table} ({columns}) values ({})", values.join(", "))
    };
    match form {
        Form::Select { keys, order, lock } => {
            let conditions: Vec<_> = (1..)
                .zip(keys)
                .map(|(number, (column, key))| format!("{} {} ${number}", names[position(*column)], key.operator()))
                .collect();
            let mut text = format!("select {columns} from {table} where {}", conditions.join(" and "));
            if !order.is_empty() {
                let _ = write!(text, " order by {}", order.join(", "));
            }
            text.push_str(match lock {
                Lock::None => "",
                Lock::Waiting => " for no key update",
                Lock::IfFree => " limit 1 for no key update skip locked",
            });
            text
        }
        Form::Update => {
            let key = shape.indexes[0].columns;
            let parameters = || (1..).zip(&names).map(|(number, name)| (name, format!("{name} = ${number}")));
            let set: Vec<_> = parameters().filter(|(name, _)| !key.contains(name)).map(|(_, text)| text).collect();
            let of: Vec<_> = parameters().filter(|(name, _)| key.contains(name)).map(|(_, text)| text).collect();
            format!("update {table} set {} where {}", set.join(", "), of.join(" and "))
        }
        Form::Insert => insert(),
        Form::Merge { sums, others } => {
            let sum = |name: &str| format!("{name} = {}.{name} + excluded.{name}", shape.name);
            let new = |name: &str| format!("{name} = excluded.{name}");
            let sums = sums.iter().map(|column| sum(names[column - 1]));
            let set: Vec<_> = sums.chain(others.iter().map(|column| new(names[column - 1]))).collect();
            let key = shape.indexes[0].columns.join(", ");
            format!("{} on conflict ({key}) do update set {}", insert(), set.join(", "))
        }
        Form::InsertNew { unique, predicate } => {
            let predicate = predicate.map(|predicate| format!(" where {predicate}")).unwrap_or_default();
            format!("{} on conflict ({}){predicate} do nothing", insert(), unique.join(", "))
        }
    }
}

/// The columns of a row that a statement gives, which names all of the table.
fn values(shape: &Shape, row: &Row) -> Vec<Value> {
    shape.columns.iter().enumerate().map(|(index, column)| row.value(index, column.kind.read_from())).collect()
}

fn select(shape: &'static Shape, keys: &[Key], order: &'static [&'static str], lock: Lock) -> (Plan, Vec<Value>) {
    let form = Form::Select { keys: keys.iter().map(|Key(column, key, _)| (*column, *key)).collect(), order, lock };
    (plan(shape, form), keys.iter().map(|Key(_, _, value)| *value).collect())
}

/// Shows rows as long as `show` says so, in the order of an index where one is named.
pub(super) fn read(
    shape: &'static Shape,
    keys: &[Key],
    order: Option<&'static Index>,
    at: Snapshot,
    show: &mut dyn FnMut(&[Value]) -> bool,
) {
    spi::connect(|db| {
        let (plan, arguments) = select(shape, keys, order.map_or(&[], |index| index.columns), Lock::None);
        let read = || db.read_by(plan, &arguments);
        let rows = match at {
            Snapshot::Callers => read(),
            Snapshot::Latest => spi::at_newest_moment(read),
        };
        let _all = rows.iter().all(|row| show(&values(shape, &row)));
    });
}

/// Locks a row and shows it; not one that others hold, where the policy is to pass by.
pub(super) fn lock(shape: &'static Shape, keys: &[Key], policy: LockPolicy, show: &mut dyn FnMut(&[Value])) {
    let lock = if policy == LockPolicy::SkipLocked { Lock::IfFree } else { Lock::Waiting };
    spi::connect(|db| {
        let (plan, arguments) = select(shape, keys, &[], lock);
        if let Some(row) = db.write_by(plan, &arguments).first() {
            show(&values(shape, &row));
        }
    });
}

/// What became of a row to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// There is none, or none that is free.
    NotThere,
    LeftAlone,
    Changed,
}

fn lock_and_change(
    db: &Db,
    shape: &'static Shape,
    keys: &[Key],
    lock: Lock,
    change: &mut dyn FnMut(&[Value]) -> Change,
) -> Outcome {
    let (select, arguments) = select(shape, keys, &[], lock);
    let Some(row) = db.write_by(select, &arguments).first() else { return Outcome::NotThere };
    let mut row = values(shape, &row);
    let Some(changes) = change(&row) else { return Outcome::LeftAlone };
    for (column, value) in changes {
        row[column - 1] = value;
    }
    db.write_by(plan(shape, Form::Update), &row);
    Outcome::Changed
}

/// Changes one row, as [`crate::schema::Table::update`] does.
///
/// Whoever spends from a lane must not hold others that he has left alone, or two would wait for each other. So a row is looked at
/// without a lock at first, and a lock is given back with its subtransaction where the row was left alone after all.
pub(super) fn update(
    shape: &'static Shape,
    keys: &[Key],
    policy: LockPolicy,
    change: &mut dyn FnMut(&[Value]) -> Change,
) -> Changed {
    spi::connect(|db| {
        if policy == LockPolicy::AlreadyHeld {
            return match lock_and_change(db, shape, keys, Lock::Waiting, change) {
                Outcome::Changed => Changed::Yes,
                Outcome::NotThere | Outcome::LeftAlone => Changed::No,
            };
        }
        let mut is_wanted = false;
        read(shape, keys, None, Snapshot::Latest, &mut |row| {
            is_wanted = change(row).is_some();
            !is_wanted
        });
        if !is_wanted {
            return Changed::No;
        }
        let mut attempt = |lock| {
            let mut outcome = Outcome::NotThere;
            spi::in_subtransaction(|| {
                outcome = lock_and_change(db, shape, keys, lock, change);
                outcome == Outcome::Changed
            });
            outcome
        };
        if policy != LockPolicy::JoinQueue {
            match attempt(Lock::IfFree) {
                Outcome::Changed => return Changed::Yes,
                Outcome::LeftAlone => return Changed::No,
                Outcome::NotThere if policy == LockPolicy::SkipLocked => return Changed::Held,
                Outcome::NotThere => {}
            }
        }
        match attempt(Lock::Waiting) {
            Outcome::Changed => Changed::AfterWaiting,
            Outcome::NotThere | Outcome::LeftAlone => Changed::No,
        }
    })
}

/// Inserts a row of all columns.
pub(super) fn insert(shape: &'static Shape, row: &[Value]) {
    spi::connect(|db| db.write_by(plan(shape, Form::Insert), row));
}

/// Inserts a row of all columns, or merges it into the one that there is. Nothing is looked at for that: where all statements of a
/// transaction see the same, it need not be told to try again.
pub(super) fn merge(shape: &'static Shape, row: &[Value], sums: Vec<usize>, others: Vec<usize>) {
    spi::connect(|db| db.write_by(plan(shape, Form::Merge { sums, others }), row));
}

/// Inserts a row of all columns, unless there is one like it in a unique index.
pub(super) fn insert_new(shape: &'static Shape, unique: &'static Index, row: &[Value]) -> bool {
    let form = Form::InsertNew { unique: unique.columns, predicate: unique.predicate };
    spi::connect(|db| db.write_by(plan(shape, form), row).count() == 1)
}

/// What the columns of a row say, for comparing.
#[cfg(feature = "compare_ways")]
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Copied(Vec<(&'static str, Option<Vec<u8>>)>);

#[cfg(feature = "compare_ways")]
impl Copied {
    /// The first columns of a row.
    pub(super) fn of(shape: &'static Shape, row: &[Value]) -> Self {
        // SAFETY: columns of a table that is as declared, or was read by the types of its declaration.
        let bytes = |column: &Column, value: Value| value.map(|value| unsafe { column.kind.bytes(value) });
        Self(shape.columns.iter().zip(row).map(|(column, value)| (column.name, bytes(column, *value))).collect())
    }

    /// A row as a statement on the caller's snapshot finds it.
    pub(super) fn by_statement(shape: &'static Shape, keys: &[Key]) -> Option<Self> {
        let mut copied = None;
        read(shape, keys, None, Snapshot::Callers, &mut |row| {
            copied = Some(Self::of(shape, row));
            false
        });
        copied
    }

    /// Fails where a row that was found directly, of which the first columns are known, is another.
    pub(super) fn assert_same(&mut self, shape: &'static Shape, row: &[Value]) {
        self.0.truncate(row.len());
        assert_eq!(*self, Self::of(shape, row), "a row of {} by both ways", shape.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::ledger::{lanes, ledger};
    use crate::schema::table::Declaration;
    use crate::schema::usage::{fold_positions, usage_days};

    fn select(shape: &Shape, keys: &[(i16, KeyType)], order: &'static [&'static str], lock: Lock) -> String {
        text(shape, &Form::Select { keys: keys.to_vec(), order, lock })
    }

    #[test]
    fn statements_name_what_is_declared() {
        let folded = fold_positions::Table::SHAPE;
        let key = [(1, KeyType::Uuid), (2, KeyType::Small)];
        let found =
            "select org_id, slot, entry_id from billing_internal.fold_positions where org_id = $1 and slot = $2";
        assert_eq!(select(folded, &key, &[], Lock::None), found);
        assert_eq!(select(folded, &key, &[], Lock::Waiting), format!("{found} for no key update"));
        assert_eq!(select(folded, &key, &[], Lock::IfFree), format!("{found} limit 1 for no key update skip locked"));
        assert_eq!(
            text(folded, &Form::Update),
            "update billing_internal.fold_positions set entry_id = $3 where org_id = $1 and slot = $2"
        );
        assert_eq!(
            text(folded, &Form::Insert),
            "insert into billing_internal.fold_positions (org_id, slot, entry_id) values ($1, $2, $3)"
        );
        let days = select(usage_days::Table::SHAPE, &[(1, KeyType::Uuid), (3, KeyType::DayFrom)], &["day"], Lock::None);
        assert!(
            days.ends_with(" from billing_internal.usage_days where org_id = $1 and day >= $2 order by day"),
            "{days}"
        );
        assert_eq!(
            text(folded, &Form::Merge { sums: vec![3], others: vec![2] }),
            "insert into billing_internal.fold_positions (org_id, slot, entry_id) values ($1, $2, $3) on conflict (org_id, slot) do update \
             set entry_id = fold_positions.entry_id + excluded.entry_id, slot = excluded.slot"
        );
        let Index { columns, predicate, .. } = &ledger::REQUEST;
        let entry = text(ledger::Table::SHAPE, &Form::InsertNew { unique: columns, predicate: *predicate });
        assert!(
            entry.ends_with("$23) on conflict (org_id, request_id) where (request_id IS NOT NULL) do nothing"),
            "{entry}"
        );
    }

    #[test]
    fn parameters_are_of_the_columns() {
        let lanes = lanes::Table::SHAPE;
        let keys = vec![(1, KeyType::Uuid), (12, KeyType::Text), (10, KeyType::Small)];
        let of = |form: &Form| numbers(lanes, form).map(|number| lanes.columns[number].name).collect::<Vec<_>>();
        assert_eq!(of(&Form::Select { keys, order: &[], lock: Lock::None }), ["org_id", "unit", "lane"]);
        assert_eq!(of(&Form::Update).len(), lanes.columns.len());
    }
}
