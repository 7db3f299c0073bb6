//! The server programming interface (SPI), which no other file names.
//!
//! Statements are prepared once per backend and their plans kept. A backend has one thread, so
//! thread-local statics are its globals. Errors of the server are not swallowed: they unwind to the
//! function call and roll its statement back.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::pg::raise::or_raise;
use crate::pg::search_path::{self, Pinned};
use pgrx::datum::{FromDatum, IntoDatum};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::PgSqlErrorCode;
use std::any::Any;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_long};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use uuid::Uuid;

/// A value that can be a parameter of a statement.
pub trait ToSql {
    /// The value as a datum; None is NULL.
    fn to_sql(self) -> Option<pg_sys::Datum>;
}

/// A parameter of a statement; None is NULL.
pub type Argument = Option<pg_sys::Datum>;

/// A value that can be a column of a result.
pub trait FromSql: Sized {
    /// The ids of the SQL types that are read as this type.
    const TYPES: &'static [pg_sys::Oid];

    /// Reads a column that is not null.
    ///
    /// # Safety
    /// `datum` is of one of [`Self::TYPES`].
    unsafe fn from_sql(datum: pg_sys::Datum) -> Self;
}

macro_rules! convert_by_pgrx {
    ($($type:ty: $($sql:ident)*),* $(,)?) => { $(
        impl ToSql for $type {
            fn to_sql(self) -> Option<pg_sys::Datum> { self.into_datum() }
        }
        impl FromSql for $type {
            const TYPES: &'static [pg_sys::Oid] = &[$(types::$sql),*];

            unsafe fn from_sql(datum: pg_sys::Datum) -> Self {
                // SAFETY: the caller keeps its promise, and the column is not null.
                unsafe { <$type>::from_datum(datum, false).expect("a column that is not null") }
            }
        }
    )* };
}
convert_by_pgrx!(
    i64: int8 timestamptz,
    i32: int4 date,
    i16: int2,
    bool: boolean,
    String: text varchar,
    Vec<u8>: bytea,
    Vec<i64>: int8s,
    Vec<i16>: int2s,
    Vec<bool>: booleans,
    Vec<String>: texts varchars,
    Vec<Option<String>>: texts varchars,
    Vec<Option<i64>>: int8s,
);

impl ToSql for &str {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        self.into_datum()
    }
}
impl ToSql for &String {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        self.as_str().into_datum()
    }
}
impl ToSql for &[u8] {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        self.into_datum()
    }
}
impl ToSql for Vec<Vec<u8>> {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        self.into_datum()
    }
}
impl ToSql for crate::pg::jsonb::Jsonb {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        self.into_datum()
    }
}
impl ToSql for Uuid {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        pgrx::Uuid::from_bytes(self.into_bytes()).into_datum()
    }
}
impl FromSql for Uuid {
    const TYPES: &'static [pg_sys::Oid] = &[types::uuid];

    unsafe fn from_sql(datum: pg_sys::Datum) -> Self {
        // SAFETY: the caller keeps its promise, and the column is not null.
        let bytes = unsafe { pgrx::Uuid::from_datum(datum, false) };
        Self::from_bytes(*bytes.expect("a column that is not null").as_bytes())
    }
}
impl ToSql for Vec<Uuid> {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        let all: Vec<_> = self.into_iter().map(|u| pgrx::Uuid::from_bytes(u.into_bytes())).collect();
        all.into_datum()
    }
}
impl ToSql for Vec<Option<Uuid>> {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        let all: Vec<_> = self.into_iter().map(|u| u.map(|u| pgrx::Uuid::from_bytes(u.into_bytes()))).collect();
        all.into_datum()
    }
}
/// A moment as a `timestamptz` parameter: without it, its 64 bits would be taken for a `bigint`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamptz(pub Moment);
impl ToSql for Timestamptz {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        self.0.into_datum()
    }
}
impl ToSql for Vec<Timestamptz> {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        // The infinities are no calendar dates, and must not raise an error.
        let infinite = pgrx::datum::TimestampWithTimeZone::positive_infinity;
        let all: Vec<_> = self
            .into_iter()
            .map(|at| pgrx::datum::TimestampWithTimeZone::try_from(at.0).unwrap_or_else(|_| infinite()))
            .collect();
        all.into_datum()
    }
}
impl<T: ToSql> ToSql for Option<T> {
    fn to_sql(self) -> Option<pg_sys::Datum> {
        self.and_then(ToSql::to_sql)
    }
}

/// A statement, with its kept plan once it has been used in this backend.
pub struct Statement {
    text: &'static str,
    types: &'static [pg_sys::Oid],
    plan: Cell<pg_sys::SPIPlanPtr>,
}

impl Statement {
    /// The statement of a text and its parameters' types; [`statements!`] calls this.
    pub const fn new(text: &'static str, types: &'static [pg_sys::Oid]) -> Self {
        Self { text, types, plan: Cell::new(std::ptr::null_mut()) }
    }

    fn plan(&self) -> pg_sys::SPIPlanPtr {
        if self.plan.get().is_null() {
            let text = CString::new(self.text).expect("a statement without NUL");
            self.plan.set(prepare(&text, self.types));
        }
        self.plan.get()
    }
}

/// Declares statements: `NAME(uuid, text) = "select …";`
#[macro_export]
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident($($type:ident),* $(,)?) = $text:expr;)*) => { $(
        thread_local! {
            $(#[$doc])*
            static $name: $crate::pg::spi::Statement =
                const { $crate::pg::spi::Statement::new($text, &[$($crate::pg::spi::types::$type),*]) };
        }
    )* };
}

/// The types of parameters, by their names in SQL.
#[allow(missing_docs, non_upper_case_globals)]
pub mod types {
    use pgrx::pg_sys;
    pub const uuid: pg_sys::Oid = pg_sys::UUIDOID;
    pub const text: pg_sys::Oid = pg_sys::TEXTOID;
    pub const int8: pg_sys::Oid = pg_sys::INT8OID;
    pub const varchar: pg_sys::Oid = pg_sys::VARCHAROID;
    pub const date: pg_sys::Oid = pg_sys::DATEOID;
    pub const int4: pg_sys::Oid = pg_sys::INT4OID;
    pub const int2: pg_sys::Oid = pg_sys::INT2OID;
    pub const boolean: pg_sys::Oid = pg_sys::BOOLOID;
    pub const bytea: pg_sys::Oid = pg_sys::BYTEAOID;
    pub const jsonb: pg_sys::Oid = pg_sys::JSONBOID;
    pub const timestamptz: pg_sys::Oid = pg_sys::TIMESTAMPTZOID;
    pub const uuids: pg_sys::Oid = pg_sys::UUIDARRAYOID;
    pub const texts: pg_sys::Oid = pg_sys::TEXTARRAYOID;
    pub const varchars: pg_sys::Oid = pg_sys::VARCHARARRAYOID;
    pub const booleans: pg_sys::Oid = pg_sys::BOOLARRAYOID;
    pub const int2s: pg_sys::Oid = pg_sys::INT2ARRAYOID;
    pub const int8s: pg_sys::Oid = pg_sys::INT8ARRAYOID;
    pub const timestamptzs: pg_sys::Oid = pg_sys::TIMESTAMPTZARRAYOID;
    pub const byteas: pg_sys::Oid = pg_sys::BYTEAARRAYOID;
}

/// Makes the parameters of a statement.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::pg::spi::ToSql::to_sql($value)),*] };
}

/// The planner settings for plans that go by index, restored on drop. Statistics of a table that
/// was empty when it was analyzed would make the plan read all of it, and go on doing so while the
/// table grows.
struct IndexPlans([bool; 4]);

impl IndexPlans {
    fn begin() -> Self {
        Self(Self::set([false; 4]))
    }

    fn set(new: [bool; 4]) -> [bool; 4] {
        // SAFETY: a backend has one thread, so nobody else writes these globals.
        unsafe {
            use pg_sys::{enable_hashjoin, enable_mergejoin, enable_seqscan, jit_enabled};
            let old = [enable_seqscan, enable_hashjoin, enable_mergejoin, jit_enabled];
            // A disabled kind of node costs so much that the server would otherwise compile the
            // plan.
            [enable_seqscan, enable_hashjoin, enable_mergejoin, jit_enabled] = new;
            old
        }
    }
}

impl Drop for IndexPlans {
    // This runs also while an error unwinds, or the settings would stay for the whole session.
    fn drop(&mut self) {
        Self::set(self.0);
    }
}

/// An open connection to SPI, by which statements are run.
pub struct Db {
    /// The pinned search path, from the first statement on, where the called function does not pin
    /// it itself.
    pinned: Cell<Option<Pinned>>,
}

/// Runs `work` connected to SPI. The memory of its results is freed at the end.
pub fn connect<R>(work: impl FnOnce(&Db) -> R) -> R {
    // SAFETY: SPI_finish follows; when an error unwinds, the end of the transaction cleans up.
    unsafe {
        pg_sys::SPI_connect();
    }
    let db = Db { pinned: Cell::default() };
    let result = work(&db);
    drop(db);
    // SAFETY: the connection was opened above.
    unsafe {
        pg_sys::SPI_finish();
    }
    result
}

/// Runs `work` in a subtransaction, and rolls it back where `work` returns false. An error rolls it
/// back as well and goes on, since whoever catches it outside must find the transaction as it was.
pub fn in_subtransaction(work: impl FnOnce() -> bool) -> bool {
    // A search path that a statement pins inside would end with the subtransaction, so it is pinned
    // outside.
    let _pinned = Pinned::begin();
    // SAFETY: the calls follow the order of the procedural languages, and SPI is connected.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let done = catch_unwind(AssertUnwindSafe(work));
        if matches!(done, Ok(true)) {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        done.unwrap_or_else(|error| resume_unwind(error))
    }
}

/// Runs `work` in a subtransaction; where it fails, that is rolled back and the error dropped, as
/// by `exception when others` in PL/pgSQL.
///
/// A failure that concerns the whole transaction goes on: a serialization failure, a deadlock, a
/// query that was cancelled.
pub fn isolate_faults(work: impl FnOnce() -> Result<()>) -> Result<()> {
    // A guard that an error unwinds leaves the path to the end of the transaction, which goes on here.
    let _pinned = Pinned::begin();
    let mut refusal = Ok(());
    let done = catch_unwind(AssertUnwindSafe(|| {
        in_subtransaction(|| {
            refusal = work();
            refusal.is_ok()
        })
    }));
    match (done, refusal) {
        (Err(error), _) if ends_transaction(error.as_ref()) => resume_unwind(error),
        (Ok(false), Err(error)) if error.sqlstate == *b"40001" => Err(error),
        _ => Ok(()),
    }
}

fn ends_transaction(error: &(dyn Any + Send)) -> bool {
    use PgSqlErrorCode::{
        ERRCODE_ASSERT_FAILURE, ERRCODE_QUERY_CANCELED, ERRCODE_T_R_DEADLOCK_DETECTED,
        ERRCODE_T_R_SERIALIZATION_FAILURE,
    };
    let raised = match error.downcast_ref() {
        Some(CaughtError::PostgresError(raised) | CaughtError::ErrorReport(raised)) => raised.sql_error_code(),
        _ => return false,
    };
    matches!(
        raised,
        ERRCODE_ASSERT_FAILURE
            | ERRCODE_QUERY_CANCELED
            | ERRCODE_T_R_DEADLOCK_DETECTED
            | ERRCODE_T_R_SERIALIZATION_FAILURE
    )
}

/// Runs `work` on the newest snapshot, which also sees what this transaction has written so far.
pub fn at_newest_moment<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: a transaction is in progress; where nothing was written the call has no effect.
    unsafe { pg_sys::CommandCounterIncrement() };
    on_newest_snapshot(work)
}

/// Runs `work` on a snapshot that sees everything committed by now, under any isolation level.
pub fn on_newest_snapshot<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: the pop follows; when an error unwinds, the end of the transaction pops the snapshot.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let result = work();
    // SAFETY: the snapshot was pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    result
}

/// Runs `work` on a given snapshot.
#[cfg(feature = "compare_ways")]
pub fn on_snapshot<R>(snapshot: pg_sys::Snapshot, work: impl FnOnce() -> R) -> R {
    // SAFETY: the snapshot is registered, and the pop follows; on errors the end of the transaction
    // pops it.
    unsafe { pg_sys::PushActiveSnapshot(snapshot) };
    let result = work();
    // SAFETY: the snapshot was pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    result
}

/// Runs `work` on the snapshot of the transaction. From REPEATABLE READ on, that is the one of all
/// its statements.
pub fn on_transaction_snapshot<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: the pop follows; when an error unwinds, the end of the transaction pops the snapshot.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let result = work();
    // SAFETY: the snapshot was pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    result
}

/// The process id of this backend.
pub fn backend_id() -> i32 {
    // SAFETY: only a global is read.
    unsafe { pg_sys::MyProcPid }
}

/// The full id of the transaction, which no other transaction ever has.
pub fn transaction_number() -> i64 {
    // SAFETY: a transaction that may write is in progress.
    unsafe { pg_sys::GetTopFullTransactionId() }.value.cast_signed()
}

/// Prepares a statement whose text is made at run time, and keeps its plan.
pub fn prepare(text: &CStr, types: &[pg_sys::Oid]) -> pg_sys::SPIPlanPtr {
    let mut types = types.to_vec();
    let count = i32::try_from(types.len()).expect("few parameters");
    // SAFETY: SPI is connected, and the plan is moved to permanent memory before it is used.
    unsafe {
        // The plan is generic from the first call on: every statement goes by keys, whatever their
        // values, so five custom plans first would only cost time.
        let options = pg_sys::CURSOR_OPT_GENERIC_PLAN.cast_signed();
        let plan = pg_sys::SPI_prepare_cursor(text.as_ptr(), count, types.as_mut_ptr(), options);
        assert!(!plan.is_null(), "statement could not be prepared: {text:?}");
        assert_eq!(pg_sys::SPI_keepplan(plan), 0, "statement could not be kept");
        plan
    }
}

/// A prepared statement, whose plan is kept as long as the backend lives.
#[derive(Debug, Clone, Copy)]
pub struct Plan(pg_sys::SPIPlanPtr);

/// Prepares a statement for the life of the backend.
pub fn plan(text: &str, types: &[pg_sys::Oid]) -> Plan {
    Plan(prepare(&CString::new(text).expect("a statement without NUL"), types))
}

// `self` is the proof of an open connection.
#[allow(clippy::unused_self)]
impl Db {
    /// Runs a statement on the caller's snapshot. It takes no lock and no transaction id, so it
    /// also works on a standby.
    pub fn read(&self, statement: &'static std::thread::LocalKey<Statement>, args: &[Argument]) -> Rows {
        let _settings = IndexPlans::begin();
        statement.with(|s| self.execute(s, args, true))
    }

    /// Runs a statement on a snapshot of its own, so that it sees what others committed before it
    /// started.
    pub fn write(&self, statement: &'static std::thread::LocalKey<Statement>, args: &[Argument]) -> Rows {
        let _settings = IndexPlans::begin();
        statement.with(|s| self.execute(s, args, false))
    }

    /// Runs a statement by [`Db::write`] if `fresh`, as a call that holds locks needs it, and else
    /// by [`Db::read`].
    pub fn query(&self, fresh: bool, statement: &'static std::thread::LocalKey<Statement>, args: &[Argument]) -> Rows {
        if fresh { self.write(statement, args) } else { self.read(statement, args) }
    }

    /// Runs a statement like [`Db::read`], but with the planner's own choice, for whole tables.
    pub fn scan(&self, statement: &'static std::thread::LocalKey<Statement>, args: &[Argument]) -> Rows {
        statement.with(|s| self.execute(s, args, true))
    }

    /// Runs a script of several statements, for install().
    pub fn script(&self, text: &str) {
        let text = CString::new(text).expect("a script without NUL");
        // SAFETY: SPI is connected, and errors of the server unwind.
        let status = unsafe { pg_sys::SPI_execute(text.as_ptr(), false, 0) };
        assert!(status > 0, "a script failed with SPI status {status}");
    }

    /// Runs the plan of a declared table like [`Db::read`].
    pub fn read_by(&self, plan: Plan, args: &[Argument]) -> Rows {
        self.read_plan(plan.0, args)
    }

    /// Runs a plan like [`Db::read_by`], some rows at a time and as long as `show` says so: what
    /// comes after that is not read.
    pub fn read_while(&self, plan: Plan, args: &[Argument], mut show: impl FnMut(&Row) -> bool) {
        const AT_ONCE: c_long = 100;
        self.pin_path();
        let (mut values, nulls) = parameters(args);
        let settings = IndexPlans::begin();
        // SAFETY: the plan is kept and has as many parameters of these types; the cursor is closed
        // below, and after an error by the end of the (sub)transaction.
        let cursor =
            unsafe { pg_sys::SPI_cursor_open(std::ptr::null(), plan.0, values.as_mut_ptr(), nulls.as_ptr(), true) };
        drop(settings);
        let mut goes_on = true;
        while goes_on {
            // SAFETY: the cursor is open; its rows live until they are freed below.
            let rows = unsafe {
                pg_sys::SPI_tuptable = std::ptr::null_mut();
                pg_sys::SPI_cursor_fetch(cursor, true, AT_ONCE);
                Rows { table: pg_sys::SPI_tuptable, processed: pg_sys::SPI_processed }
            };
            goes_on = rows.count() > 0 && rows.iter().all(|row| show(&row));
            // SAFETY: nobody has a row of this fetch any more.
            unsafe { pg_sys::SPI_freetuptable(rows.table) };
        }
        // SAFETY: the cursor was opened above.
        unsafe { pg_sys::SPI_cursor_close(cursor) };
    }

    /// Runs the plan of a declared table like [`Db::write`].
    pub fn write_by(&self, plan: Plan, args: &[Argument]) -> Rows {
        let _settings = IndexPlans::begin();
        self.pin_path();
        self.run(plan.0, args, false)
    }

    /// Runs a plan that was prepared at run time like [`Db::read`].
    pub fn read_plan(&self, plan: pg_sys::SPIPlanPtr, args: &[Argument]) -> Rows {
        let _settings = IndexPlans::begin();
        self.pin_path();
        self.run(plan, args, true)
    }

    fn execute(&self, statement: &Statement, args: &[Argument], read_only: bool) -> Rows {
        assert_eq!(args.len(), statement.types.len(), "parameters of {}", statement.text);
        self.pin_path();
        self.run(statement.plan(), args, read_only)
    }

    fn pin_path(&self) {
        if !search_path::is_pinned() {
            // Somebody has set another path since the last statement. That setting goes with the
            // level in which it was made, which must end before a new one begins.
            drop(self.pinned.take());
            self.pinned.set(Pinned::begin());
        }
    }

    fn run(&self, plan: pg_sys::SPIPlanPtr, args: &[Argument], read_only: bool) -> Rows {
        let (mut values, nulls) = parameters(args);
        // SAFETY: the plan is kept and has as many parameters of these types; the result lives
        // until SPI_finish.
        unsafe {
            pg_sys::SPI_tuptable = std::ptr::null_mut();
            let status = pg_sys::SPI_execute_plan(plan, values.as_mut_ptr(), nulls.as_ptr(), read_only, 0);
            assert!(status > 0, "SPI status {status} of a statement");
            Rows { table: pg_sys::SPI_tuptable, processed: pg_sys::SPI_processed }
        }
    }
}

/// The most parameters of a statement.
const MOST_PARAMETERS: usize = 32;

/// Parameters as the server takes them: values, and which of them are null.
fn parameters(args: &[Argument]) -> ([pg_sys::Datum; MOST_PARAMETERS], [c_char; MOST_PARAMETERS]) {
    let mut values = [pg_sys::Datum::from(0); MOST_PARAMETERS];
    let mut nulls = [b' '.cast_signed(); MOST_PARAMETERS];
    for (i, arg) in args.iter().enumerate() {
        match arg {
            Some(datum) => values[i] = *datum,
            None => nulls[i] = b'n'.cast_signed(),
        }
    }
    (values, nulls)
}

/// The result of a statement.
pub struct Rows {
    table: *mut pg_sys::SPITupleTable,
    processed: u64,
}

impl Rows {
    /// The number of rows that were returned or changed.
    pub fn count(&self) -> usize {
        usize::try_from(self.processed).unwrap_or(usize::MAX)
    }

    /// The first row, if there is one.
    pub fn first(&self) -> Option<Row> {
        (self.count() > 0).then(|| self.row(0))
    }

    /// All rows of the result.
    pub fn iter(&self) -> impl Iterator<Item = Row> + '_ {
        (0..self.count()).map(|i| self.row(i))
    }

    fn row(&self, index: usize) -> Row {
        assert!(!self.table.is_null() && index < self.count(), "a row of a result");
        // SAFETY: the table holds `processed` tuples of that descriptor until SPI_finish.
        unsafe {
            let descriptor = (*self.table).tupdesc;
            let count = usize::try_from((*descriptor).natts).unwrap_or(0);
            let mut columns = Vec::with_capacity(count);
            let mut nulls = Vec::<bool>::with_capacity(count);
            pg_sys::heap_deform_tuple(
                *(*self.table).vals.add(index),
                descriptor,
                columns.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            columns.set_len(count);
            nulls.set_len(count);
            Row { columns, nulls, descriptor }
        }
    }
}

/// A row of a result.
pub struct Row {
    columns: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    /// The descriptor, which lives as long as what the columns point to.
    descriptor: pg_sys::TupleDesc,
}

impl Row {
    /// A column that cannot be null; the first is 0. A column of another type raises an error,
    /// since somebody may have altered the table.
    pub fn get<T: FromSql>(&self, index: usize) -> T {
        assert!(!self.nulls[index], "column {index} is null");
        // SAFETY: the descriptor has as many columns as the row, and `nulls[index]` exists.
        let found = unsafe { attribute(self.descriptor, index) };
        if !T::TYPES.contains(&found.atttypid) {
            or_raise::<()>(Err(type_mismatch(found, T::TYPES)));
        }
        // SAFETY: the column is of one of those types.
        unsafe { T::from_sql(self.columns[index]) }
    }

    /// A column as a datum. A column of none of these types raises an error, since somebody may
    /// have altered the table.
    pub fn value(&self, index: usize, types: &[pg_sys::Oid]) -> Argument {
        // SAFETY: the descriptor lives as long as the row, and a missing column panics.
        let found = unsafe { attribute(self.descriptor, index) };
        if !types.contains(&found.atttypid) {
            or_raise::<()>(Err(type_mismatch(found, types)));
        }
        (!self.nulls[index]).then_some(self.columns[index])
    }

    /// A column that may be null.
    pub fn opt<T: FromSql>(&self, index: usize) -> Option<T> {
        if self.nulls[index] { None } else { Some(self.get(index)) }
    }
}

#[cold]
fn type_mismatch(found: &pg_sys::FormData_pg_attribute, types: &[pg_sys::Oid]) -> Error {
    // SAFETY: the types are in the catalogs, and names end with NUL.
    let (column, name) = unsafe {
        let name = |id| CStr::from_ptr(pg_sys::format_type_be(id)).to_string_lossy();
        (CStr::from_ptr(found.attname.data.as_ptr()).to_string_lossy(), name)
    };
    let expected: Vec<_> = types.iter().map(|id| name(*id)).collect();
    Error::table_changed(&column, &expected.join(" or "), &name(found.atttypid))
}

/// The description of a column in a descriptor; the first is 0.
///
/// # Safety
/// `descriptor` has that column, and lives as long as the result is used.
pub unsafe fn attribute<'a>(descriptor: pg_sys::TupleDesc, index: usize) -> &'a pg_sys::FormData_pg_attribute {
    // SAFETY: the caller keeps its promise.
    unsafe {
        let count = usize::try_from((*descriptor).natts).unwrap_or_default();
        assert!(index < count, "a column");
        #[cfg(not(feature = "pg18"))]
        let all = (*descriptor).attrs.as_ptr();
        // In version 18 the array of columns follows that of their compact forms, as
        // `TupleDescAttr` has it.
        #[cfg(feature = "pg18")]
        let all = (*descriptor).compact_attrs.as_ptr().add(count).cast::<pg_sys::FormData_pg_attribute>();
        &*all.add(index)
    }
}
