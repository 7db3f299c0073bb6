//! Direct rows: single rows of our own tables, read and written by the table's access method. To
//! begin and end a statement costs several times the work that is done in it.
//!
//! Only tables that need no more than that are opened: ordinary heaps with exactly the declared
//! columns and indexes ([`shapes`]), and without triggers, checks and indexes that a statement
//! would have to evaluate. [`Table::open`] gives None for all others, so a table to which somebody
//! adds a trigger or an index on an expression is written by statements again. What was verified of
//! a table is verified again after an invalidation. Columns are numbered from 1, as in the
//! catalogs.

mod check;
mod finder;
mod index;
mod key;
mod known;
mod page_reader;
mod partition;
mod queue;
mod relation;
mod setting;
pub mod shapes;
mod syscache;
mod tid_cache;
mod verdict;

pub use finder::Finder;
pub use key::{Key, KeyType};
pub use known::watch_invalidations;
pub use setting::define_setting;

use crate::base::error::Error;
use crate::base::time::Moment;
use crate::pg::raise::or_raise;
use crate::pg::spi;
use finder::{Purpose, RegisteredSnapshot};
use index::OpenIndex;
use known::{recall, relation_id};
use pgrx::pg_sys;
use queue::RowQueueGuard;
use shapes::{Index, MOST_INDEXES, Shape};
use std::cell::OnceCell;
use std::ops::Deref;
use tid_cache::TidHint;
use verdict::{Intent, TableFacts};

/// A value of a column; None is NULL.
pub type Value = Option<pg_sys::Datum>;

/// New values of columns by their numbers; None leaves the row as it is.
pub type Change = Option<Vec<(usize, Value)>>;

/// The kind of write that a table is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Write {
    Insert,
    Update,
}

/// The policy for rows that other transactions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockPolicy {
    /// Rows that others hold, or keep changing, are skipped.
    SkipLocked,
    /// Nobody else can hold the row, since this transaction holds it or a lock that stands for it.
    AlreadyHeld,
    /// Whoever holds the row is waited for, one transaction after the other in the row's queue. A
    /// row that is left as it is after the wait is not locked.
    Wait,
    /// The row was just seen held, so its queue is joined without another look; the rest is as for
    /// [`LockPolicy::Wait`].
    JoinQueue,
}

/// The result of changing a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// The row was changed at once.
    Yes,
    /// The row was changed after a wait for those who held it.
    AfterWaiting,
    /// There is no such row, or it was left as it is.
    No,
    /// All such rows are held, or keep being changed, by others.
    Held,
}

/// The snapshot on which a table is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// A new snapshot, which sees everything that is committed by now.
    Latest,
    /// The snapshot of the statement that called us.
    Callers,
}

/// The item number that marks a `t_ctid` as the token of a speculative insertion: the server's
/// `SpecTokenOffsetNumber`.
const SPECULATIVE_TOKEN: u16 = 0xfffe;

/// The way to insert a row that may turn out to be a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insertion {
    /// The insertion is speculative, as for ON CONFLICT: others who would wait for the row learn at
    /// once when it is withdrawn.
    Speculative,
    /// The row is inserted plainly, and deleted again if it is a duplicate. This is cheaper, and
    /// right only where no two transactions insert the same row at once.
    Plain,
}

/// The most columns of a declared table, which bounds the arrays of values.
const MOST_COLUMNS: usize = 32;

/// The number of times that a row is looked up again because others keep changing it.
const MOST_ATTEMPTS: usize = 4;

/// The result of trying to change the version of a row that was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// There is no such row, or it was left as it is.
    Nothing,
    /// The row was changed.
    Changed,
    /// The transaction of this number holds the row.
    Held(pg_sys::TransactionId),
    /// The row was changed by somebody after the snapshot was taken.
    Outdated,
}

/// Tells whether all statements of the transaction have the same snapshot, as from REPEATABLE READ
/// on.
pub fn has_one_snapshot() -> bool {
    // SAFETY: only a global is read.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ.cast_signed() }
}

fn is_read_only() -> bool {
    // SAFETY: only the state of the transaction is read.
    unsafe { pg_sys::XactReadOnly || pg_sys::IsInParallelMode() }
}

fn is_serializable() -> bool {
    // SAFETY: only a global is read.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_SERIALIZABLE.cast_signed() }
}

/// Begins a new command id, as a statement that may write does. Snapshots from here on see what
/// this transaction, and the command that called us, have written so far.
fn next_command() {
    // SAFETY: a transaction is in progress; where nothing was written the call has no effect.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Tells whether rows may be changed directly, each in the version that is found. A statement is
/// needed where a change since the snapshot must raise a serialization failure, and in a read-only
/// transaction, which must fail.
pub fn may_change_rows() -> bool {
    !is_read_only() && !has_one_snapshot()
}

/// Lets `look` read rows on one snapshot: that of the caller, or with `fresh`, for a call that
/// holds locks, one that sees everything committed by now. Where the whole transaction has one
/// snapshot, `fresh` only adds what this transaction has written.
pub fn at_one_moment<R>(fresh: bool, look: impl FnOnce() -> R) -> R {
    if !fresh {
        return look();
    }
    next_command();
    if has_one_snapshot() { spi::on_transaction_snapshot(look) } else { spi::on_newest_snapshot(look) }
}

/// A table that is open, and locked until the end of the transaction.
pub struct Table {
    relation: pg_sys::Relation,
    shape: &'static Shape,
    /// The lock mode in which the table and its indexes are opened.
    mode: pg_sys::LOCKMODE,
    /// The ids of the indexes of the shape, in the same order.
    index_ids: [pg_sys::Oid; MOST_INDEXES],
    /// The indexes to which a write adds entries, opened when the first is needed.
    indexes: OnceCell<Vec<OpenIndex>>,
    /// The number of blocks, read once: the table cannot be truncated while it is locked.
    blocks: OnceCell<u32>,
}

/// The number of times that a name is resolved again because others rename tables meanwhile.
const MOST_RESOLUTIONS: usize = 10;

impl Table {
    /// Opens a table for writing. None where the table is not as declared, or the write needs a
    /// statement: in a read-only transaction, which must fail, and for updates in one with a single
    /// snapshot, which must fail where a row was changed since.
    pub fn open(shape: &'static Shape, write: Write) -> Option<Self> {
        Self::open_to_write(shape, shape.name, write).map(|(table, _)| table)
    }

    /// Opens a table for reading only.
    pub fn open_to_read(shape: &'static Shape) -> Option<Self> {
        Self::open_for(shape, shape.name, Intent::Read).map(|(table, _)| table)
    }

    /// Opens the partition into which its parent would route rows of the moment `at`.
    pub fn open_partition(shape: &'static Shape, name: &str, at: Moment) -> Option<Self> {
        if !setting::is_on() || is_read_only() {
            return None;
        }
        // The parent is locked first, as by a statement, so that nobody attaches or detaches a
        // partition, or adds a trigger, before the row is in.
        let parent = shape.parent?;
        let parent = lock(parent, parent.name, pg_sys::RowExclusiveLock.cast_signed())?;
        let (table, found) = Self::open_to_write(shape, name, Write::Insert)?;
        found.bounds.is_some_and(|bounds| bounds.parent == parent && bounds.hold(at)).then_some(table)
    }

    fn open_to_write(shape: &'static Shape, name: &str, write: Write) -> Option<(Self, TableFacts)> {
        if is_read_only() || (has_one_snapshot() && write == Write::Update) {
            return None;
        }
        let intent = match write {
            Write::Insert => Intent::Insert,
            Write::Update => Intent::Update,
        };
        Self::open_for(shape, name, intent)
    }

    fn open_for(shape: &'static Shape, name: &str, intent: Intent) -> Option<(Self, TableFacts)> {
        if !setting::is_on() {
            return None;
        }
        let mode = if intent == Intent::Read { pg_sys::AccessShareLock } else { pg_sys::RowExclusiveLock };
        let mode = mode.cast_signed();
        let id = lock(shape, name, mode)?;
        // SAFETY: the table exists and is locked; it is closed on drop, on errors by the end of the
        // transaction.
        let relation = unsafe { pg_sys::table_open(id, pg_sys::NoLock.cast_signed()) };
        let index_ids = [pg_sys::Oid::INVALID; MOST_INDEXES];
        let mut table = Self { relation, shape, mode, index_ids, indexes: OnceCell::new(), blocks: OnceCell::new() };
        let found = recall((shape, id), intent, || check::verify(&table, name, intent))?;
        table.index_ids = found.indexes;
        Some((table, found))
    }

    fn index_id(&self, index: &'static Index) -> pg_sys::Oid {
        let number = self.shape.indexes.iter().position(|known| std::ptr::eq(*known, index));
        self.index_ids[number.expect("an index of this table")]
    }

    /// Tells whether the table has no block, and so no row for any snapshot that exists by now. A
    /// serializable transaction gets false, since the predicate lock for what it did not find is
    /// taken in the index.
    pub fn is_empty(&self) -> bool {
        // SAFETY: the relation is open.
        !is_serializable()
            && unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM) == 0 }
    }

    fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: the relation is open.
        unsafe { (*self.relation).rd_att }
    }

    fn columns(&self) -> usize {
        // SAFETY: the relation is open, and so is its descriptor.
        usize::try_from(unsafe { (*self.descriptor()).natts }).unwrap_or_default()
    }

    fn indexes(&self) -> &[OpenIndex] {
        // SAFETY: the relation is open, and the list is a copy that this frees.
        self.indexes.get_or_init(|| unsafe {
            let list = pg_sys::RelationGetIndexList(self.relation);
            let count = list.as_ref().map_or(0, |l| usize::try_from(l.length).unwrap_or_default());
            let all = (0..count).map(|n| OpenIndex::open((*(*list).elements.add(n)).oid_value, self.mode)).collect();
            pg_sys::list_free(list);
            all
        })
    }

    fn form(&self, row: &[Value]) -> pg_sys::HeapTuple {
        assert_eq!(self.columns(), row.len(), "columns of a row");
        let (mut values, mut nulls) = split(row);
        // SAFETY: the relation is open, and there is a value of the right type for each of its
        // columns.
        unsafe { pg_sys::heap_form_tuple(self.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr()) }
    }

    /// Inserts a row of all columns and returns its place.
    pub fn insert(&self, row: &[Value]) -> TidHint {
        let tuple = self.form(row);
        // SAFETY: the tuple was formed for this table.
        unsafe {
            pg_sys::heap_insert(self.relation, tuple, pg_sys::GetCurrentCommandId(true), 0, std::ptr::null_mut());
            for index in self.indexes() {
                index.insert(self, tuple, row, false);
            }
            let (block, number) = pgrx::itemptr::item_pointer_get_both((*tuple).t_self);
            pg_sys::heap_freetuple(tuple);
            pg_sys::CommandCounterIncrement();
            TidHint { seen: number, ..TidHint::new(block, number) }
        }
    }

    /// Inserts a row of all columns, and remembers its place under these keys of a unique index, by
    /// which it will be looked up.
    pub fn insert_as(&self, index: &'static Index, keys: &[Key], row: &[Value]) {
        let place = self.insert(row);
        if let Some(name) = Key::hash(self.index_id(index), keys) {
            finder::note(name, place);
        }
    }

    /// Inserts a row of all columns, unless the unique index may have one like it already,
    /// committed or being inserted. It does not wait to learn which of the two, since a statement
    /// with ON CONFLICT does that better.
    ///
    /// A speculative insertion that fails is withdrawn at once also for others who would wait for
    /// us. It takes a lock and a WAL record, so it can be left out where no two transactions insert
    /// the same row at once: those would deadlock.
    pub fn insert_new(&self, unique: &'static Index, row: &[Value], insertion: Insertion) -> bool {
        let unique = self.index_id(unique);
        let tuple = self.form(row);
        // Logical decoding would pass on a plain insertion and its deletion, but drops a
        // speculative one that is withdrawn.
        // SAFETY: only a global is read.
        let is_decoded = unsafe { pg_sys::wal_level } >= pg_sys::WalLevel::WAL_LEVEL_LOGICAL.cast_signed();
        let is_speculative = insertion == Insertion::Speculative || is_decoded;
        // SAFETY: the tuple was formed for this table; the lock of the token is released, on errors
        // by the end of the transaction.
        unsafe {
            let transaction = pg_sys::GetCurrentTransactionId();
            let mut options = 0;
            if is_speculative {
                let token = pg_sys::SpeculativeInsertionLockAcquire(transaction);
                let place = &raw mut (*(*tuple).t_data).t_ctid;
                pgrx::itemptr::item_pointer_set_all(&mut *place, token, SPECULATIVE_TOKEN);
                options = pg_sys::HEAP_INSERT_SPECULATIVE.cast_signed();
            }
            pg_sys::heap_insert(self.relation, tuple, pg_sys::GetCurrentCommandId(true), options, std::ptr::null_mut());
            let place = &raw mut (*tuple).t_self;
            let (first, others): (Vec<_>, Vec<_>) = self.indexes().iter().partition(|index| index.id() == unique);
            let is_new = first.iter().chain(&others).all(|index| index.insert(self, tuple, row, index.id() == unique));
            if is_speculative {
                if is_new {
                    pg_sys::heap_finish_speculative(self.relation, place);
                } else {
                    pg_sys::heap_abort_speculative(self.relation, place);
                }
                pg_sys::SpeculativeInsertionLockRelease(transaction);
            }
            pg_sys::CommandCounterIncrement();
            if !is_new && !is_speculative {
                pg_sys::simple_heap_delete(self.relation, place);
                pg_sys::CommandCounterIncrement();
            }
            pg_sys::heap_freetuple(tuple);
            is_new
        }
    }

    /// Changes one row with these keys: `change` gets its columns, and returns new values, or None
    /// to leave the row as it is. `change` is asked again where somebody else has changed the row
    /// meanwhile, so it always decides on the version that it replaces. A `finder` that has just
    /// read the row saves another look.
    pub fn update_found<'a>(
        &'a self,
        mut finder: Option<Finder<'a>>,
        index: &'static Index,
        keys: &[Key],
        policy: LockPolicy,
        mut change: impl FnMut(&[Value]) -> Change,
    ) -> Changed {
        let mut queue_guard = match policy {
            LockPolicy::JoinQueue => {
                // No buffer may stay pinned during the wait, or a vacuum of the page would wait as
                // well.
                finder = None;
                Some(RowQueueGuard::take(self, keys))
            }
            LockPolicy::SkipLocked | LockPolicy::AlreadyHeld | LockPolicy::Wait => None,
        };
        let mut attempts = 0;
        while attempts < MOST_ATTEMPTS || matches!(policy, LockPolicy::Wait | LockPolicy::JoinQueue) {
            pgrx::check_for_interrupts!();
            attempts += 1;
            let mut found = Outcome::Nothing;
            let mut finder = finder.take().unwrap_or_else(|| self.finder(index, Snapshot::Latest));
            finder.show_all();
            // SAFETY: the tuple is of this table.
            finder.visit(Purpose::Write, keys, |tuple, row| unsafe {
                match self.update_row(tuple, row, policy, &mut change) {
                    Outcome::Nothing => {}
                    other => found = other,
                }
                found != Outcome::Changed
            });
            drop(finder);
            match found {
                Outcome::Changed => {
                    // SAFETY: a transaction is in progress; from here on it sees what it has
                    // changed.
                    unsafe { pg_sys::CommandCounterIncrement() };
                    return queue_guard.map_or(Changed::Yes, |queue_guard| {
                        queue_guard.keep();
                        Changed::AfterWaiting
                    });
                }
                Outcome::Held(holder) => match (policy, &queue_guard) {
                    (LockPolicy::SkipLocked | LockPolicy::AlreadyHeld, _) => return Changed::Held,
                    (LockPolicy::Wait | LockPolicy::JoinQueue, None) => {
                        queue_guard = Some(RowQueueGuard::take(self, keys));
                    }
                    (LockPolicy::Wait | LockPolicy::JoinQueue, Some(_)) => self.wait_for(holder),
                },
                // The next attempt takes a new snapshot, which sees the newer version.
                Outcome::Outdated => {}
                Outcome::Nothing => return Changed::No,
            }
        }
        Changed::Held
    }

    /// Locks the row with these keys, and returns what `read` makes of its columns; None where
    /// there is no such row, or it is held and the policy is to skip it. A wait takes place in the
    /// row's queue.
    pub fn lock_one<T>(
        &self,
        index: &'static Index,
        keys: &[Key],
        policy: LockPolicy,
        mut read: impl FnMut(&[Value]) -> T,
    ) -> Option<T> {
        let mut queue_guard: Option<RowQueueGuard> = None;
        let mut attempts = 0;
        loop {
            let waiting = match queue_guard {
                None => pg_sys::LockWaitPolicy::LockWaitSkip,
                Some(_) => pg_sys::LockWaitPolicy::LockWaitBlock,
            };
            pgrx::check_for_interrupts!();
            let (mut locked, mut status) = (None, None);
            // SAFETY: the tuple is of this table.
            self.finder(index, Snapshot::Latest).visit(Purpose::Write, keys, |tuple, row| unsafe {
                let found = self.lock(tuple, waiting);
                locked = (found == pg_sys::TM_Result::TM_Ok).then(|| read(row));
                status = Some(found);
                false
            });
            match status {
                None => return None,
                Some(pg_sys::TM_Result::TM_Ok) => {
                    if let Some(queue_guard) = queue_guard {
                        queue_guard.keep();
                    }
                    return locked;
                }
                Some(_) if policy == LockPolicy::SkipLocked => {
                    attempts += 1;
                    if status == Some(pg_sys::TM_Result::TM_WouldBlock) || attempts == MOST_ATTEMPTS {
                        return None;
                    }
                }
                // The row is held, or was changed since: the next snapshot sees what came of that.
                Some(_) => {
                    queue_guard.get_or_insert_with(|| RowQueueGuard::take(self, keys));
                }
            }
        }
    }

    /// Locks a version of a row. The result says where it is no longer the newest, or is held by
    /// somebody for whom the policy does not wait.
    ///
    /// # Safety
    /// `tuple` is of this table, with its place.
    unsafe fn lock(&self, tuple: pg_sys::HeapTuple, policy: pg_sys::LockWaitPolicy::Type) -> pg_sys::TM_Result::Type {
        // SAFETY: the caller keeps its promise, and the buffer is released in any case.
        unsafe {
            let mut row = *tuple;
            let mut buffer = pg_sys::InvalidBuffer.cast_signed();
            let mut failure = std::mem::zeroed();
            let status = pg_sys::heap_lock_tuple(
                self.relation,
                &raw mut row,
                pg_sys::GetCurrentCommandId(true),
                pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
                policy,
                false,
                &raw mut buffer,
                &raw mut failure,
            );
            pg_sys::ReleaseBuffer(buffer);
            status
        }
    }

    fn wait_for(&self, holder: pg_sys::TransactionId) {
        // SAFETY: the place is only used in the context of an error message, which is switched off.
        unsafe {
            let mut place: pg_sys::ItemPointerData = std::mem::zeroed();
            pg_sys::XactLockTableWait(holder, self.relation, &raw mut place, pg_sys::XLTW_Oper::XLTW_None);
        }
    }

    /// Shows the columns of the rows with these keys, in the order of the index, until `show`
    /// returns false.
    pub fn read_while(
        &self,
        index: &'static Index,
        keys: &[Key],
        at: Snapshot,
        mut show: impl FnMut(&[Value]) -> bool,
    ) {
        self.visit(index, keys, at, |_, row| show(row));
    }

    /// Visits the rows with these keys until `visit` returns false.
    fn visit(
        &self,
        index: &'static Index,
        keys: &[Key],
        at: Snapshot,
        mut visit: impl FnMut(pg_sys::HeapTuple, &[Value]) -> bool,
    ) {
        let snapshot = RegisteredSnapshot::new(at);
        // SAFETY: the index is one of this table.
        unsafe { self.scan(self.index_id(index), keys, &snapshot, |tuple, row, _| visit(tuple, row)) };
    }

    /// A finder of single rows by a unique index.
    pub fn finder(&self, index: &'static Index, at: Snapshot) -> Finder<'_> {
        Finder::new(self, index, RegisteredSnapshot::new(at))
    }

    /// Visits the rows with these keys until `visit` returns false, each with the place by which
    /// the index knows it.
    ///
    /// A row that does not have the keys raises an error: it means that the index is corrupt, and
    /// with it a charge could go to the wrong wallet.
    ///
    /// # Safety
    /// `index` is an index of this table with columns for all keys.
    unsafe fn scan(
        &self,
        index: pg_sys::Oid,
        keys: &[Key],
        snapshot: &RegisteredSnapshot,
        mut visit: impl FnMut(pg_sys::HeapTuple, &[Value], TidHint) -> bool,
    ) {
        // SAFETY: the relation is open, the index is one of it, and the scan is ended, on errors by
        // the end of the transaction.
        unsafe {
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock.cast_signed());
            let form = &*(*index).rd_index;
            let columns = form.indkey.values.as_slice(usize::try_from(form.indnatts).unwrap_or_default());
            let of_index = |column: i16| columns.iter().zip(1..).find(|(c, _)| **c == column).map_or(0, |(_, n)| n);
            let mut scan_keys: Vec<pg_sys::ScanKeyData> = Vec::with_capacity(keys.len());
            for Key(column, is, value) in keys {
                let mut key = std::mem::zeroed();
                let value = value.unwrap_or(pg_sys::Datum::from(0));
                pg_sys::ScanKeyInit(&raw mut key, of_index(*column), is.strategy(), is.procedure(), value);
                scan_keys.push(key);
            }
            let count = i32::try_from(keys.len()).unwrap_or_default();
            let slot = pg_sys::table_slot_create(self.relation, std::ptr::null_mut());
            #[cfg(not(feature = "pg18"))]
            let scan = pg_sys::index_beginscan(self.relation, index, snapshot.0, count, 0);
            #[cfg(feature = "pg18")]
            let scan = pg_sys::index_beginscan(self.relation, index, snapshot.0, std::ptr::null_mut(), count, 0);
            pg_sys::index_rescan(scan, scan_keys.as_mut_ptr(), count, std::ptr::null_mut(), 0);
            loop {
                let row = pg_sys::index_getnext_tid(scan, pg_sys::ScanDirection::ForwardScanDirection);
                if row.is_null() {
                    break;
                }
                let (block, number) = pgrx::itemptr::item_pointer_get_both(*row);
                if !pg_sys::index_fetch_heap(scan, slot) {
                    continue;
                }
                let mut is_copy = false;
                let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, &raw mut is_copy);
                let row = self.deform(tuple);
                if !keys.iter().all(|key| key.is_of(&row)) {
                    or_raise::<()>(Err(Error::corrupt_index(self.shape.name)));
                }
                if !visit(tuple, &row, TidHint::new(block, number)) {
                    break;
                }
            }
            pg_sys::index_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::index_close(index, pg_sys::NoLock.cast_signed());
        }
    }

    /// Takes a tuple apart into its columns.
    ///
    /// # Safety
    /// `tuple` is of this table, and stays where it is as long as the values are used.
    unsafe fn deform(&self, tuple: pg_sys::HeapTuple) -> Row {
        let columns = self.columns();
        assert!(columns <= MOST_COLUMNS, "a table of ours");
        let (mut values, mut nulls) = ([pg_sys::Datum::from(0); MOST_COLUMNS], [true; MOST_COLUMNS]);
        // SAFETY: the caller keeps its promise, and the arrays have room for all columns.
        unsafe { pg_sys::heap_deform_tuple(tuple, self.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr()) };
        Row::of(&values, &nulls, columns)
    }

    /// Tries to change a version of a row. Nothing is locked before `change` has decided, so most
    /// rows are written once.
    ///
    /// # Safety
    /// `tuple` is of this table, with its place, and `row` has its columns.
    unsafe fn update_row(
        &self,
        tuple: pg_sys::HeapTuple,
        row: &[Value],
        policy: LockPolicy,
        change: &mut impl FnMut(&[Value]) -> Change,
    ) -> Outcome {
        // SAFETY: the caller keeps its promise.
        unsafe {
            if let Some(holder) = holder(tuple) {
                return Outcome::Held(holder);
            }
            let found = self.update(tuple, row, policy == LockPolicy::AlreadyHeld, change);
            let is_many = u32::from((*(*tuple).t_data).t_infomask) & pg_sys::HEAP_XMAX_IS_MULTI != 0;
            match (found, policy) {
                (Outcome::Held(holder), _) if !is_many && pg_sys::TransactionIdIsCurrentTransactionId(holder) => {
                    self.update(tuple, row, true, change)
                }
                // Several transactions hold the row, ours perhaps among them: only the server can
                // tell who is in the way.
                (Outcome::Held(_), LockPolicy::Wait | LockPolicy::JoinQueue) if is_many => {
                    let status = self.lock(tuple, pg_sys::LockWaitPolicy::LockWaitBlock);
                    if status == pg_sys::TM_Result::TM_Ok {
                        self.update(tuple, row, true, change)
                    } else {
                        Outcome::Outdated
                    }
                }
                (found, _) => found,
            }
        }
    }

    /// Changes a version of a row, unless somebody holds it or has changed it. `is_ours` says that
    /// this transaction holds it.
    ///
    /// # Safety
    /// `tuple` is of this table and in a pinned buffer, and `row` has its columns.
    unsafe fn update(
        &self,
        tuple: pg_sys::HeapTuple,
        row: &[Value],
        is_ours: bool,
        change: &mut impl FnMut(&[Value]) -> Change,
    ) -> Outcome {
        // SAFETY: the caller keeps its promise, and the new tuple has as many columns.
        unsafe {
            let Some(changed) = change(row) else { return Outcome::Nothing };
            let mut row = row.to_vec();
            for (column, value) in changed {
                row[column - 1] = value;
            }
            let new = self.form(&row);
            let (status, holder) = replace(self.relation, &raw mut (*tuple).t_self, new, is_ours);
            let found = match status {
                pg_sys::TM_Result::TM_Ok => Outcome::Changed,
                pg_sys::TM_Result::TM_BeingModified => Outcome::Held(holder),
                _ => Outcome::Outdated,
            };
            let is_heap_only = u32::from((*(*new).t_data).t_infomask2) & pg_sys::HEAP_ONLY_TUPLE != 0;
            if found == Outcome::Changed && !is_heap_only {
                for index in self.indexes() {
                    index.insert(self, new, &row, false);
                }
            }
            pg_sys::heap_freetuple(new);
            found
        }
    }
}

/// Locks a table until the end of the transaction and returns its id; None where there is no table
/// of that name.
fn lock(shape: &'static Shape, name: &str, mode: pg_sys::LOCKMODE) -> Option<pg_sys::Oid> {
    for _ in 0..MOST_RESOLUTIONS {
        let id = relation_id(shape, name)?;
        // SAFETY: also a table that is gone can be locked.
        unsafe { pg_sys::LockRelationOid(id, mode) };
        // The wait for the lock lets in the invalidations of others: the table may be dropped or
        // renamed by now, and then the name has to be resolved again.
        if relation_id(shape, name) == Some(id) {
            return Some(id);
        }
        // SAFETY: the table was locked above.
        unsafe { pg_sys::UnlockRelationOid(id, mode) };
    }
    None
}

/// The columns of a tuple.
struct Row {
    values: [Value; MOST_COLUMNS],
    columns: usize,
}

impl Row {
    fn of(values: &[pg_sys::Datum; MOST_COLUMNS], nulls: &[bool; MOST_COLUMNS], columns: usize) -> Self {
        let mut row = Self { values: [None; MOST_COLUMNS], columns };
        for ((column, value), null) in row.values.iter_mut().zip(values).zip(nulls).take(columns) {
            *column = (!null).then_some(*value);
        }
        row
    }
}

impl Deref for Row {
    type Target = [Value];
    fn deref(&self) -> &[Value] {
        &self.values[..self.columns]
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // On an error the end of the transaction closes everything.
        if !std::thread::panicking() {
            // SAFETY: the relation was opened by `open_for`; its lock stays until the end of the
            // transaction.
            unsafe {
                pg_sys::table_close(self.relation, pg_sys::NoLock.cast_signed());
            }
        }
    }
}

// These layouts of the server are assumed: a `bigint` fits a datum, an item pointer is a block and
// a number, and the header of a tuple has its flags where they are read here.
const _: () = assert!(size_of::<pg_sys::Datum>() == 8, "numbers of 64 bits are passed by value");
const _: () = assert!(size_of::<pg_sys::ItemPointerData>() == 6, "a place is a block and a number");
const _: () =
    assert!(std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_ctid) == 12, "three numbers precede the place");
const _: () = assert!(std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_infomask2) == 18, "flags of a row");
const _: () = assert!(std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_infomask) == 20, "flags of a row");
const _: () = assert!(pg_sys::HEAP_XMAX_COMMITTED & pg_sys::HEAP_XMAX_INVALID == 0, "two flags");
const _: () = assert!(size_of::<pg_sys::LOCKTAG>() == 16, "a lock is named by four numbers and two classes");

/// The other transaction in progress that has changed or locked a row, if it is a single one.
///
/// # Safety
/// `tuple` is in a pinned buffer.
unsafe fn holder(tuple: pg_sys::HeapTuple) -> Option<pg_sys::TransactionId> {
    // SAFETY: the caller keeps its promise.
    unsafe {
        let header = &*(*tuple).t_data;
        let (mask, holder) = (u32::from(header.t_infomask), header.t_choice.t_heap.t_xmax);
        let is_over = mask & (pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_COMMITTED) != 0;
        // Several transactions hold the row: whoever wants to change it finds out.
        let is_many = mask & pg_sys::HEAP_XMAX_IS_MULTI != 0;
        let is_held = !is_over
            && !is_many
            && !pg_sys::TransactionIdIsCurrentTransactionId(holder)
            && pg_sys::TransactionIdIsInProgress(holder);
        is_held.then_some(holder)
    }
}

/// Tells whether another transaction held a row at the moment of the snapshot that sees it. Whoever
/// has changed it was in progress then, or the server would have set the hint bit. Only a mere
/// locker has to be asked for.
///
/// # Safety
/// `tuple` is in a pinned buffer, and was just found visible by a snapshot.
unsafe fn was_held(tuple: pg_sys::HeapTuple) -> bool {
    // SAFETY: the caller keeps its promise.
    unsafe {
        let mask = u32::from((*(*tuple).t_data).t_infomask);
        let is_over = mask & (pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_COMMITTED) != 0;
        let is_only_locked = mask & (pg_sys::HEAP_XMAX_LOCK_ONLY | pg_sys::HEAP_XMAX_IS_MULTI) != 0;
        !is_over && (!is_only_locked || holder(tuple).is_some())
    }
}

/// The values and null flags of a row, as the server takes them.
fn split(row: &[Value]) -> (Vec<pg_sys::Datum>, Vec<bool>) {
    (row.iter().map(|v| v.unwrap_or(pg_sys::Datum::from(0))).collect(), row.iter().map(Option::is_none).collect())
}

/// Replaces a version of a row by a new one, unless somebody holds it or was faster; returns who.
/// For a row that this transaction holds, the server has to be told that it may wait (`is_ours`).
///
/// # Safety
/// `relation` is open, `place` is that of one of its rows, and `new` is a tuple of it.
unsafe fn replace(
    relation: pg_sys::Relation,
    place: pg_sys::ItemPointer,
    new: pg_sys::HeapTuple,
    is_ours: bool,
) -> (pg_sys::TM_Result::Type, pg_sys::TransactionId) {
    // SAFETY: the caller keeps its promise.
    unsafe {
        let mut failure: pg_sys::TM_FailureData = std::mem::zeroed();
        let mut mode = std::mem::zeroed();
        let command = pg_sys::GetCurrentCommandId(true);
        let any = std::ptr::null_mut();
        #[cfg(feature = "pg15")]
        let status = pg_sys::heap_update(relation, place, new, command, any, is_ours, &raw mut failure, &raw mut mode);
        #[cfg(not(feature = "pg15"))]
        let status = pg_sys::heap_update(
            relation,
            place,
            new,
            command,
            any,
            is_ours,
            &raw mut failure,
            &raw mut mode,
            &mut std::mem::zeroed(),
        );
        (status, failure.xmax)
    }
}
