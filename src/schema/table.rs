//! `table!`, which declares a table, and [`Table`], the one way to its rows.

use crate::base::time::Moment;
use crate::pg::heap::shapes::{Index, Shape};
use crate::pg::heap::{self, Changed, Insertion, Key, KeyType, LockPolicy, Snapshot, Value, Write};
use crate::pg::spi::{FromSql, ToSql};
use crate::schema::kinds::Kind;
use crate::schema::statement;
use pgrx::pg_sys;
use std::marker::PhantomData;

/// A declared table.
pub trait Declaration: 'static {
    /// The shape with which the table in the database is compared before its rows are touched
    /// directly.
    const SHAPE: &'static Shape;
    /// The shape of a partition, where the rows are in partitions.
    const PARTITION: Option<&'static Shape>;
    /// A row that was read. Its columns are converted when they are asked for.
    type Row<'a>;
    /// A row to be inserted.
    type New<'a>: Insertable;
    /// New values of columns.
    type Set: Changes;

    /// Wraps the columns of a row.
    ///
    /// # Safety
    /// `values` are those of all columns of the table, in order and of their types; or of the first
    /// ones, and no other is asked for.
    unsafe fn view(values: &[Value]) -> Self::Row<'_>;
}

/// A row that can be inserted.
pub trait Insertable {
    /// Shows the values of all columns, in order.
    fn show<R>(&self, show: impl FnOnce(&[Value]) -> R) -> R;
}

/// A set of new values of columns.
pub trait Changes {
    /// Returns the columns, counted from 1, and their values.
    fn into_changes(self) -> Vec<(usize, Value)>;
}

/// A column of a table, which only the table's declaration can name.
pub struct Column<D>(pub(in crate::schema) usize, pub(in crate::schema) PhantomData<D>);

/// The most columns of a key.
const MOST_KEYS: usize = 5;

/// A lookup: the keys of the rows that are wanted, and the index by which they are found.
pub struct Lookup<D> {
    index: &'static Index,
    keys: [Key; MOST_KEYS],
    count: usize,
    table: PhantomData<D>,
}

impl<D: Declaration> Lookup<D> {
    /// A lookup of the rows with these keys.
    #[inline]
    pub(in crate::schema) fn new<const COUNT: usize>(index: &'static Index, wanted: [Key; COUNT]) -> Self {
        const { assert!(COUNT <= MOST_KEYS, "columns of a key") };
        let mut keys = [Key(0, KeyType::Big, None); MOST_KEYS];
        keys[..COUNT].copy_from_slice(&wanted);
        Self { index, keys, count: COUNT, table: PhantomData }
    }

    /// Replaces the value of the last key.
    pub(in crate::schema) fn set_last(&mut self, value: Value) {
        self.keys[self.count - 1].2 = value;
    }

    #[inline]
    fn keys(&self) -> &[Key] {
        &self.keys[..self.count]
    }
}

/// A table that is open. Its rows are read and written directly where it is as declared, and else
/// by statements, to the same effect.
pub struct Table<D> {
    direct: Option<heap::Table>,
    table: PhantomData<D>,
}

impl<D: Declaration> Table<D> {
    #[inline]
    fn new(direct: Option<heap::Table>) -> Self {
        Self { direct, table: PhantomData }
    }

    /// Opens the table for reading its rows.
    pub fn to_read() -> Self {
        Self::new(heap::Table::open_to_read(D::SHAPE))
    }

    /// Opens the table for changing and locking its rows.
    pub fn to_update() -> Self {
        Self::new(heap::Table::open(D::SHAPE, Write::Update))
    }

    /// Opens the table for inserting rows.
    pub fn to_insert() -> Self {
        Self::new(heap::Table::open(D::SHAPE, Write::Insert))
    }

    /// Opens the partition of that name for inserting rows of a moment. A statement names the
    /// parent, and the server routes the row.
    pub fn partition_to_insert(name: &str, at: Moment) -> Self {
        Self::new(D::PARTITION.and_then(|shape| heap::Table::open_partition(shape, name, at)))
    }

    /// Tells whether the table is known to have no rows, without a look at an index.
    pub fn is_known_empty(&self) -> bool {
        self.direct.as_ref().is_some_and(heap::Table::is_empty)
    }

    /// A finder of single rows, all on one snapshot.
    pub fn finder(&self, rows: &Lookup<D>, at: Snapshot) -> Finder<'_, D> {
        Finder { direct: self.direct.as_ref().map(|table| table.finder(rows.index, at)), at, table: PhantomData }
    }

    /// Finds a row and returns what `read` makes of it; None where there is no such row.
    pub fn find<R>(&self, row: &Lookup<D>, at: Snapshot, mut read: impl FnMut(D::Row<'_>) -> R) -> Option<R> {
        self.finder(row, at).read(row, |row, _| read(row))
    }

    /// Shows the rows in the order of the index until `show` returns false.
    pub fn each(&self, rows: &Lookup<D>, at: Snapshot, mut show: impl FnMut(D::Row<'_>) -> bool) {
        // SAFETY: the row has all columns of this table: it was verified, or the row was read by
        // the declared names and types.
        let mut show = |row: &[Value]| unsafe { show(D::view(row)) };
        match &self.direct {
            Some(table) => table.read_while(rows.index, rows.keys(), at, show),
            None => statement::read(D::SHAPE, rows.keys(), Some(rows.index), at, &mut show),
        }
    }

    /// Locks a row and returns what `read` makes of it; None where there is no such row, or it is
    /// held and the policy is to skip it.
    pub fn lock<R>(&self, row: &Lookup<D>, policy: LockPolicy, mut read: impl FnMut(D::Row<'_>) -> R) -> Option<R> {
        // SAFETY: the row has all columns of this table, as in `each`.
        let mut read = |row: &[Value]| unsafe { read(D::view(row)) };
        match &self.direct {
            Some(table) => table.lock_one(row.index, row.keys(), policy, read),
            None => {
                let mut found = None;
                statement::lock(D::SHAPE, row.keys(), policy, &mut |row| found = Some(read(row)));
                found
            }
        }
    }

    /// Changes one row: `change` gets it, and returns new values, or None to leave it as it is.
    /// `change` is asked again where somebody else has changed the row meanwhile.
    pub fn update(
        &self,
        row: &Lookup<D>,
        policy: LockPolicy,
        change: impl FnMut(D::Row<'_>) -> Option<D::Set>,
    ) -> Changed {
        self.update_seen(None, row, policy, change)
    }

    /// Changes one row like [`Table::update`], given the finder that has just read it. Where nobody
    /// has changed the row since, another look is saved.
    pub fn update_seen<'a>(
        &'a self,
        seen: Option<Finder<'a, D>>,
        row: &Lookup<D>,
        policy: LockPolicy,
        mut change: impl FnMut(D::Row<'_>) -> Option<D::Set>,
    ) -> Changed {
        // SAFETY: the row has all columns of this table, as in `each`.
        let mut change = |row: &[Value]| unsafe { change(D::view(row)) }.map(Changes::into_changes);
        if let Some(table) = &self.direct {
            let seen = seen.and_then(|finder| finder.direct);
            let changed = table.update_found(seen, row.index, row.keys(), policy, &mut change);
            // The row has several holders, as by FOR KEY SHARE: only the server can tell whether
            // they conflict with an update.
            if changed != Changed::Held || policy == LockPolicy::SkipLocked {
                return changed;
            }
        }
        statement::update(D::SHAPE, row.keys(), policy, &mut change)
    }

    /// Inserts a row.
    pub fn insert(&self, row: &D::New<'_>) {
        row.show(|row| match &self.direct {
            Some(table) => drop(table.insert(row)),
            None => statement::insert(D::SHAPE, row),
        });
    }

    /// Inserts a row and remembers its place, for one that will soon be looked up.
    pub fn insert_as(&self, key: &Lookup<D>, row: &D::New<'_>) {
        row.show(|row| match &self.direct {
            Some(table) => table.insert_as(key.index, key.keys(), row),
            None => statement::insert(D::SHAPE, row),
        });
    }

    /// Inserts a row, unless there is one like it in a unique index. Where another transaction may
    /// be inserting one, `is_known` is asked first, and only then it waits for that transaction.
    pub fn insert_new(
        &self,
        unique: &'static Index,
        row: &D::New<'_>,
        insertion: Insertion,
        is_known: impl FnOnce() -> bool,
    ) -> bool {
        row.show(|row| {
            self.direct.as_ref().is_some_and(|table| table.insert_new(unique, row, insertion))
                || !is_known() && statement::insert_new(D::SHAPE, unique, row)
        })
    }

    /// Inserts a row. Where there is one with its key, it adds the columns `sums` of the new row to
    /// that and replaces the columns `others`.
    pub fn merge(&self, key: &Lookup<D>, row: &D::New<'_>, sums: &[Column<D>], others: &[Column<D>]) {
        let numbers = |columns: &[Column<D>]| columns.iter().map(|column| column.0).collect::<Vec<_>>();
        row.show(|new| {
            let merged = |row: &[Value]| {
                // SAFETY: the columns are of type bigint.
                let number = |value: Value| value.map(|datum| unsafe { i64::from_sql(datum) });
                let sum = |Column(column, _): &Column<D>| {
                    let sum = number(row[column - 1])?.checked_add(number(new[column - 1])?)?;
                    Some((*column, sum.to_sql()))
                };
                let mut changes = sums.iter().map(sum).collect::<Option<Vec<_>>>()?;
                changes.extend(others.iter().map(|Column(column, _)| (*column, new[column - 1])));
                Some(changes)
            };
            let update =
                |table: &heap::Table| table.update_found(None, key.index, key.keys(), LockPolicy::AlreadyHeld, merged);
            if self.direct.as_ref().map(update) != Some(Changed::Yes) {
                statement::merge(D::SHAPE, new, numbers(sums), numbers(others));
            }
        });
    }
}

/// A finder of single rows of a table, all on one snapshot.
pub struct Finder<'a, D> {
    direct: Option<heap::Finder<'a>>,
    at: Snapshot,
    table: PhantomData<D>,
}

impl<D: Declaration> Finder<'_, D> {
    /// Restricts the finder to the columns up to `last`, so that those behind it are not deformed.
    /// The columns up to it must be as old as the table.
    pub fn show_up_to(&mut self, last: &Column<D>) {
        if let Some(finder) = &mut self.direct {
            finder.show_first(last.0);
        }
    }

    /// Finds a row and returns what `read` makes of it. `read` also learns whether another
    /// transaction held the row at the moment of this look, as far as that is known.
    pub fn read<R>(&mut self, row: &Lookup<D>, mut read: impl FnMut(D::Row<'_>, bool) -> R) -> Option<R> {
        let mut found = None;
        // SAFETY: the row has the columns of this table up to the last one that is asked for.
        let mut show = |row: &[Value], is_held: bool| found = Some(unsafe { read(D::view(row), is_held) });
        match &mut self.direct {
            Some(finder) => {
                #[cfg(feature = "compare_ways")]
                let mut known = finder.at_its_moment(|| statement::RowCopy::by_statement(D::SHAPE, row.keys()));
                #[cfg(feature = "compare_ways")]
                let mut is_found = false;
                finder.read(row.keys(), |row, is_held| {
                    #[cfg(feature = "compare_ways")]
                    {
                        is_found = true;
                        known.as_mut().expect("a row that a statement finds too").assert_same(D::SHAPE, row);
                    }
                    show(row, is_held);
                });
                #[cfg(feature = "compare_ways")]
                assert_eq!(is_found, known.is_some(), "a row that both ways find");
            }
            None => statement::read(D::SHAPE, row.keys(), None, self.at, &mut |row| {
                show(row, false);
                false
            }),
        }
        found
    }
}

/// Reads the value of a column that is never null.
///
/// # Safety
/// `value` keeps the promise of [`Kind::read`].
#[inline]
pub(in crate::schema) unsafe fn present<'a, K: Kind>(value: Value, name: &'static str) -> K::Out<'a> {
    match value {
        // SAFETY: the caller keeps its promise.
        Some(datum) => unsafe { K::read(datum) },
        None => missing(name),
    }
}

/// Reads the value of a column that may be null.
///
/// # Safety
/// `value` keeps the promise of [`Kind::read`].
#[inline]
pub(in crate::schema) unsafe fn optional<'a, K: Kind>(value: Option<pg_sys::Datum>) -> Option<K::Out<'a>> {
    // SAFETY: the caller keeps its promise.
    value.map(|datum| unsafe { K::read(datum) })
}

#[cold]
fn missing(name: &'static str) -> ! {
    panic!("column {name} is null")
}

/// Declares a table: a module with its typed rows, its indexes, and what finds rows by them.
///
/// ```text
/// table! {
///     /// The rows that the table has.
///     name in schema {
///         column: Kind,
///         other: Kind null,
///     }
///     indexes {
///         /// The first index tells rows apart.
///         KEY (column);
///         OTHER (other) where "(other IS NOT NULL)";
///     }
///     find {
///         /// Finds the rows that are equal in these columns: each line makes a function.
///         one by KEY (column);
///         later by KEY (column above);
///     }
///     partial "(other IS NOT NULL)" has |row| row.other().is_some();
/// }
/// ```
macro_rules! table {
    (
        $(#[$doc:meta])*
        $table:ident in $schema:ident $(in $partition:ident)? {
            $($column:ident: $kind:ident $($null:ident)?),* $(,)?
        }
        $(indexes { $($(#[$index_doc:meta])* $index:ident ($($of:ident),*) $(where $predicate:literal)?;)* })?
        $(find { $($(#[$find_doc:meta])* $find:ident by $by:ident ($($key:ident $($op:ident)?),*);)* })?
        $(partial $partial:literal has $belongs:expr;)?
    ) => {
        $(#[$doc])*
        pub mod $table {
            #![allow(missing_docs, dead_code, unused_imports, clippy::cast_sign_loss, clippy::clone_on_copy, clippy::redundant_closure_for_method_calls,
                clippy::elidable_lifetime_names, clippy::missing_panics_doc, clippy::new_without_default)]
            use $crate::pg::heap::shapes::{Column, Index, Partial, PartialIndexMembership, Shape};
            use $crate::pg::heap::{Key, KeyType, Value};
            use $crate::schema::kinds::{self, Kind, KeyKind};
            use $crate::schema::table::{self, Changes, Declaration, Insertable, Lookup};

            /// The position of each column, counted from 0.
            #[allow(non_camel_case_types)]
            #[repr(i16)]
            enum Position { $($column),* }

            $(
                #[allow(non_camel_case_types)]
                pub type $column = kinds::$kind;
            )*

            const COLUMNS: &[Column] = &[$(Column {
                name: stringify!($column),
                kind: <kinds::$kind as Kind>::TYPE,
                nullable: $crate::schema::table::table!(@is_null $($null)?),
            }),*];
            const INDEXES: &[&Index] = &[$($(&$index),*)?];
            $($($(#[$index_doc])* pub static $index: Index = Index {
                columns: &[$(stringify!($of)),*],
                is_unique: true,
                predicate: $crate::schema::table::table!(@predicate $($predicate)?),
            };)*)?
            pub(in $crate::schema) static SHAPE: Shape = Shape::new(stringify!($schema), stringify!($table), COLUMNS, INDEXES)
                $(.with_partial($partial, |row| {
                    let belongs: fn(&Row<'_>) -> bool = $belongs;
                    belongs(&Row(row))
                }))?;
            $(pub(in $crate::schema) static PARTITION: Shape = $crate::schema::table::table!(@partition_of $partition);)?

            /// The table, with the names of its columns, for callers that want only some of them.
            pub struct Table;

            #[allow(non_upper_case_globals)]
            impl Table {
                $(pub const $column: table::Column<Self> =
                    table::Column(Position::$column as usize + 1, std::marker::PhantomData);)*
            }

            impl Declaration for Table {
                const SHAPE: &'static Shape = &SHAPE;
                const PARTITION: Option<&'static Shape> = $crate::schema::table::table!(@partition $($partition)?);
                type Row<'a> = Row<'a>;
                type New<'a> = New<'a>;
                type Set = Set;

                #[inline]
                unsafe fn view(values: &[Value]) -> Row<'_> {
                    Row(values)
                }
            }

            /// A row that was read.
            #[derive(Clone, Copy)]
            pub struct Row<'a>(&'a [Value]);

            impl<'a> Row<'a> {
                $(
                    #[inline]
                    pub fn $column(self) -> $crate::schema::table::table!(@out 'a $kind $($null)?) {
                        let value = self.0[Position::$column as usize];
                        // SAFETY: a row has columns of the declared types.
                        unsafe { $crate::schema::table::table!(@read $kind value $column $($null)?) }
                    }
                )*
            }

            /// A row to be inserted.
            pub struct New<'a> {
                $(pub $column: $crate::schema::table::table!(@in 'a $kind $($null)?)),*
            }

            impl Insertable for New<'_> {
                #[inline]
                fn show<R>(&self, show: impl FnOnce(&[Value]) -> R) -> R {
                    show(&[$($crate::schema::table::table!(@write $kind (self.$column.clone()) $($null)?)),*])
                }
            }

            /// New values of columns.
            pub struct Set(Vec<(usize, Value)>);

            impl Set {
                #[inline]
                pub fn new() -> Self {
                    Self(Vec::with_capacity(COLUMNS.len()))
                }
                $(
                    #[inline]
                    #[must_use]
                    pub fn $column(mut self, value: $crate::schema::table::table!(@in '_ $kind $($null)?)) -> Self {
                        self.0.push((Position::$column as usize + 1, $crate::schema::table::table!(@write $kind value $($null)?)));
                        self
                    }
                )*
            }

            impl Changes for Set {
                #[inline]
                fn into_changes(self) -> Vec<(usize, Value)> {
                    self.0
                }
            }

            $($(
                $(#[$find_doc])*
                #[inline]
                pub fn $find($($key: <$key as Kind>::In<'_>),*) -> Lookup<Table> {
                    Lookup::new(&$by, [$(Key(
                        Position::$key as i16 + 1,
                        $crate::schema::table::table!(@key $key $(, $op)?),
                        <$key as Kind>::write($key),
                    )),*])
                }
            )*)?
        }
    };
    (@is_null) => { false };
    (@is_null null) => { true };
    (@predicate) => { None };
    (@predicate $predicate:literal) => { Some($predicate) };
    (@partition_of partitions) => { Shape::partition_of(&SHAPE) };
    (@partition) => { None };
    (@partition $by:ident) => { Some(&PARTITION) };
    (@out $life:lifetime $kind:ident) => { <kinds::$kind as Kind>::Out<$life> };
    (@out $life:lifetime $kind:ident null) => { Option<<kinds::$kind as Kind>::Out<$life>> };
    (@in $life:lifetime $kind:ident) => { <kinds::$kind as Kind>::In<$life> };
    (@in $life:lifetime $kind:ident null) => { Option<<kinds::$kind as Kind>::In<$life>> };
    (@read $kind:ident $value:ident $column:ident) => { table::present::<kinds::$kind>($value, stringify!($column)) };
    (@read $kind:ident $value:ident $column:ident null) => { table::optional::<kinds::$kind>($value) };
    (@write $kind:ident $value:tt) => { <kinds::$kind as Kind>::write($value) };
    (@write $kind:ident $value:tt null) => { $value.and_then(<kinds::$kind as Kind>::write) };
    (@key $kind:ty) => { <$kind as KeyKind>::KEY };
    (@key $kind:ty, above) => { KeyType::BigAbove };
    (@key $kind:ty, from) => { KeyType::DayFrom };
}
pub(in crate::schema) use table;
