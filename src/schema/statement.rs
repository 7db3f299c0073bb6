//! The statements of declared tables: the way to rows of a table that is not as declared, or where
//! `billing.direct_rows` is off.
//!
//! A statement names all columns, so the rows that it returns are what the typed row of the table
//! expects. Each is prepared once per backend.

#[cfg(feature = "compare_ways")]
use crate::pg::heap::shapes::Column;
use crate::pg::heap::shapes::{Index, Shape};
use crate::pg::heap::{Change, Changed, Key, KeyType, LockPolicy, Snapshot, Value};
use crate::pg::spi::{self, Db, Plan, Row};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;

/// The locking clause of a statement that selects rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lock {
    /// The rows are not locked.
    None,
    /// The rows are locked, after a wait for whoever holds them.
    Waiting,
    /// A single row is locked, of those that nobody holds.
    IfFree,
}

/// The action of a statement on a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Action {
    /// The statement selects rows by keys, in the order of these columns.
    Select { keys: Vec<(i16, KeyType)>, order: &'static [&'static str], lock: Lock },
    /// The statement updates one row, found by the columns of the first index.
    Update,
    /// The statement inserts a row.
    Insert,
    /// The statement inserts a row. Where there is one with the same columns of the first index, it
    /// adds to some columns of that and replaces others, counted from 1.
    Merge { sums: Vec<usize>, others: Vec<usize> },
    /// The statement inserts a row, unless there is one with the same of these columns, among the
    /// rows with that predicate.
    InsertNew { unique: &'static [&'static str], predicate: Option<&'static str> },
}

thread_local! {
    /// The plans by the address of the shape, which is a static, and by the action.
    static PLANS: RefCell<HashMap<(*const Shape, Action), Plan>> = RefCell::default();
}

fn plan(shape: &'static Shape, action: Action) -> Plan {
    PLANS.with_borrow_mut(|plans| {
        *plans.entry((std::ptr::from_ref(shape), action)).or_insert_with_key(|(_, action)| {
            let types: Vec<_> =
                parameter_columns(shape, action).map(|number| shape.columns[number].kind.oid()).collect();
            spi::plan(&text(shape, action), &types)
        })
    })
}

/// The columns that the parameters are of, counted from 0.
fn parameter_columns(shape: &'static Shape, action: &Action) -> Box<dyn Iterator<Item = usize>> {
    match action {
        Action::Select { keys, .. } => {
            let keys: Vec<_> = keys.iter().map(|(column, _)| position(*column)).collect();
            Box::new(keys.into_iter())
        }
        Action::Update | Action::Insert | Action::Merge { .. } | Action::InsertNew { .. } => {
            Box::new(0..shape.columns.len())
        }
    }
}

fn position(column: i16) -> usize {
    usize::try_from(column - 1).unwrap_or_default()
}

fn text(shape: &Shape, action: &Action) -> String {
    let names: Vec<_> = shape.columns.iter().map(|column| column.name).collect();
    let columns = names.join(", ");
    let table = format!("{}.{}", shape.schema, shape.name);
    let insert = || {
        let values: Vec<_> = (1..=names.len()).map(|number| format!("${number}")).collect();
        format!("insert into {table} ({columns}) values ({})", values.join(", "))
    };
    match action {
        Action::Select { keys, order, lock } => {
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
        Action::Update => {
            let key = shape.indexes[0].columns;
            let parameters = || (1..).zip(&names).map(|(number, name)| (name, format!("{name} = ${number}")));
            let set: Vec<_> = parameters().filter(|(name, _)| !key.contains(name)).map(|(_, text)| text).collect();
            let of: Vec<_> = parameters().filter(|(name, _)| key.contains(name)).map(|(_, text)| text).collect();
            format!("update {table} set {} where {}", set.join(", "), of.join(" and "))
        }
        Action::Insert => insert(),
        Action::Merge { sums, others } => {
            let sum = |name: &str| format!("{name} = {}.{name} + excluded.{name}", shape.name);
            let new = |name: &str| format!("{name} = excluded.{name}");
            let sums = sums.iter().map(|column| sum(names[column - 1]));
            let set: Vec<_> = sums.chain(others.iter().map(|column| new(names[column - 1]))).collect();
            let key = shape.indexes[0].columns.join(", ");
            format!("{} on conflict ({key}) do update set {}", insert(), set.join(", "))
        }
        Action::InsertNew { unique, predicate } => {
            let predicate = predicate.map(|predicate| format!(" where {predicate}")).unwrap_or_default();
            format!("{} on conflict ({}){predicate} do nothing", insert(), unique.join(", "))
        }
    }
}

/// The columns of a row of a result, which has all columns of the table.
fn values(shape: &Shape, row: &Row) -> Vec<Value> {
    shape.columns.iter().enumerate().map(|(index, column)| row.value(index, column.kind.read_from())).collect()
}

fn select(shape: &'static Shape, keys: &[Key], order: &'static [&'static str], lock: Lock) -> (Plan, Vec<Value>) {
    let action = Action::Select { keys: keys.iter().map(|Key(column, key, _)| (*column, *key)).collect(), order, lock };
    (plan(shape, action), keys.iter().map(|Key(_, _, value)| *value).collect())
}

/// Shows rows until `show` returns false, in the order of an index where one is named.
pub(super) fn read(
    shape: &'static Shape,
    keys: &[Key],
    order: Option<&'static Index>,
    at: Snapshot,
    show: &mut dyn FnMut(&[Value]) -> bool,
) {
    spi::connect(|db| {
        let (plan, arguments) = select(shape, keys, order.map_or(&[], |index| index.columns), Lock::None);
        let mut show = |row: &Row| show(&values(shape, row));
        let read = || match order {
            // There may be many, of which only the first are wanted.
            Some(_) => db.read_while(plan, &arguments, show),
            None => drop(db.read_by(plan, &arguments).iter().all(|row| show(&row))),
        };
        match at {
            Snapshot::Callers => read(),
            Snapshot::Latest => spi::at_newest_moment(read),
        }
    });
}

/// Locks a row and shows it. A row that others hold is left out where the policy is to skip it.
pub(super) fn lock(shape: &'static Shape, keys: &[Key], policy: LockPolicy, show: &mut dyn FnMut(&[Value])) {
    let lock = if policy == LockPolicy::SkipLocked { Lock::IfFree } else { Lock::Waiting };
    spi::connect(|db| {
        let (plan, arguments) = select(shape, keys, &[], lock);
        if let Some(row) = db.write_by(plan, &arguments).first() {
            show(&values(shape, &row));
        }
    });
}

/// The result of trying to change a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// There is no such row, or none that is free.
    NotFound,
    /// The row was left as it is.
    Unchanged,
    /// The row was changed.
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
    let Some(row) = db.write_by(select, &arguments).first() else { return Outcome::NotFound };
    let mut row = values(shape, &row);
    let Some(changes) = change(&row) else { return Outcome::Unchanged };
    for (column, value) in changes {
        row[column - 1] = value;
    }
    db.write_by(plan(shape, Action::Update), &row);
    Outcome::Changed
}

/// Changes one row, as [`crate::schema::Table::update`] does.
///
/// The row is read without a lock at first, and a lock is given back with its subtransaction where
/// the row was left as it is after all. Otherwise a transaction would hold lanes that it does not
/// spend from, and two of them would deadlock.
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
                Outcome::NotFound | Outcome::Unchanged => Changed::No,
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
            let mut outcome = Outcome::NotFound;
            spi::in_subtransaction(|| {
                outcome = lock_and_change(db, shape, keys, lock, change);
                outcome == Outcome::Changed
            });
            outcome
        };
        if policy != LockPolicy::JoinQueue {
            match attempt(Lock::IfFree) {
                Outcome::Changed => return Changed::Yes,
                Outcome::Unchanged => return Changed::No,
                Outcome::NotFound if policy == LockPolicy::SkipLocked => return Changed::Held,
                Outcome::NotFound => {}
            }
        }
        match attempt(Lock::Waiting) {
            Outcome::Changed => Changed::AfterWaiting,
            Outcome::NotFound | Outcome::Unchanged => Changed::No,
        }
    })
}

/// Inserts a row of all columns.
pub(super) fn insert(shape: &'static Shape, row: &[Value]) {
    spi::connect(|db| db.write_by(plan(shape, Action::Insert), row));
}

/// Inserts a row of all columns, or merges it into the one that there is. The statement reads
/// nothing first, so a transaction with a single snapshot gets no serialization failure.
pub(super) fn merge(shape: &'static Shape, row: &[Value], sums: Vec<usize>, others: Vec<usize>) {
    spi::connect(|db| db.write_by(plan(shape, Action::Merge { sums, others }), row));
}

/// Inserts a row of all columns, unless there is one like it in a unique index.
pub(super) fn insert_new(shape: &'static Shape, unique: &'static Index, row: &[Value]) -> bool {
    let action = Action::InsertNew { unique: unique.columns, predicate: unique.predicate };
    spi::connect(|db| db.write_by(plan(shape, action), row).count() == 1)
}

/// A copy of a row's bytes, for comparing the two ways.
#[cfg(feature = "compare_ways")]
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RowCopy(Vec<(&'static str, Option<Vec<u8>>)>);

#[cfg(feature = "compare_ways")]
impl RowCopy {
    /// Copies the first columns of a row.
    pub(super) fn of(shape: &'static Shape, row: &[Value]) -> Self {
        // SAFETY: the columns are of the declared types: the table was verified, or the row was
        // read by those types.
        let bytes = |column: &Column, value: Value| value.map(|value| unsafe { column.kind.bytes(value) });
        Self(shape.columns.iter().zip(row).map(|(column, value)| (column.name, bytes(column, *value))).collect())
    }

    /// Copies the row that a statement finds on the caller's snapshot.
    pub(super) fn by_statement(shape: &'static Shape, keys: &[Key]) -> Option<Self> {
        let mut copy = None;
        read(shape, keys, None, Snapshot::Callers, &mut |row| {
            copy = Some(Self::of(shape, row));
            false
        });
        copy
    }

    /// Panics where a row that was found directly differs in its first columns, all that are known
    /// of it.
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
        text(shape, &Action::Select { keys: keys.to_vec(), order, lock })
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
            text(folded, &Action::Update),
            "update billing_internal.fold_positions set entry_id = $3 where org_id = $1 and slot = $2"
        );
        assert_eq!(
            text(folded, &Action::Insert),
            "insert into billing_internal.fold_positions (org_id, slot, entry_id) values ($1, $2, $3)"
        );
        let days = select(usage_days::Table::SHAPE, &[(1, KeyType::Uuid), (3, KeyType::DayFrom)], &["day"], Lock::None);
        assert!(
            days.ends_with(" from billing_internal.usage_days where org_id = $1 and day >= $2 order by day"),
            "{days}"
        );
        assert_eq!(
            text(folded, &Action::Merge { sums: vec![3], others: vec![2] }),
            "insert into billing_internal.fold_positions (org_id, slot, entry_id) values ($1, $2, $3) on conflict (org_id, slot) do update \
             set entry_id = fold_positions.entry_id + excluded.entry_id, slot = excluded.slot"
        );
        let Index { columns, predicate, .. } = &ledger::REQUEST;
        let entry = text(ledger::Table::SHAPE, &Action::InsertNew { unique: columns, predicate: *predicate });
        assert!(
            entry.ends_with("$23) on conflict (org_id, request_id) where (request_id IS NOT NULL) do nothing"),
            "{entry}"
        );
    }

    #[test]
    fn parameters_are_of_the_columns() {
        let lanes = lanes::Table::SHAPE;
        let keys = vec![(1, KeyType::Uuid), (12, KeyType::Text), (10, KeyType::Small)];
        let of = |action: &Action| {
            parameter_columns(lanes, action).map(|number| lanes.columns[number].name).collect::<Vec<_>>()
        };
        assert_eq!(of(&Action::Select { keys, order: &[], lock: Lock::None }), ["org_id", "unit", "lane"]);
        assert_eq!(of(&Action::Update).len(), lanes.columns.len());
    }
}
