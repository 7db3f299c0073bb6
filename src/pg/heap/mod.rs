//! Rows of our own tables by the server's access methods, where to begin and end a statement costs several times its work.
//!
//! Only for tables that need no more than that: ordinary heaps with exactly the columns and indexes that we know ([`shapes`]), whose
//! triggers, checks and indexes a statement would not have to evaluate. [`Table::open`] gives nothing else, so a table to which
//! somebody adds a trigger or an index on an expression is written by statements again. What is known of a table is looked at
//! again when the server says that something about it changed. Columns are numbered from 1, as in the table's definition.

mod check;
mod finder;
mod index;
mod key;
mod known;
mod partition;
mod places;
mod queue;
mod relation;
mod setting;
pub mod shapes;
mod sight;
mod syscache;
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
use index::Written;
use known::{recall, relation_id};
use pgrx::pg_sys;
use places::TidHint;
use queue::RowQueueGuard;
use shapes::{Index, MOST_INDEXES, Shape};
use std::cell::OnceCell;
use std::ops::Deref;
use verdict::{Found, Intent};

/// A value of a column; None is NULL.
pub type Value = Option<pg_sys::Datum>;

/// Columns and their new values; None leaves the row alone.
pub type Change = Option<Vec<(usize, Value)>>;

/// What is to be written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Write {
    Insert,
    Update,
}

/// The policy for rows that other transactions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockPolicy {
    /// Rows that others hold, or keep changing, are passed by.
    SkipLocked,
    /// Nobody else can hold the row: this transaction has locked it, or something that stands for it.
    AlreadyHeld,
    /// Whoever holds the row is waited for, one transaction after the other in the row's queue. A row that is left alone after that
    /// is not held.
    Wait,
    /// Like [`LockPolicy::Wait`], for a row that was just seen held: its queue is joined without another look.
    JoinQueue,
}

/// What came of changing a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// At once.
    Yes,
    /// After others who held it.
    AfterWaiting,
    /// There is none, or it was left alone.
    No,
    /// Only such as others hold or keep changing.
    Held,
}

/// Which state of a table is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// What was committed by now.
    Latest,
    /// What the caller's statement sees.
    Callers,
}

/// Where the place of a row stands, this says that what stands there is a token: `SpecTokenOffsetNumber`.
const SPECULATIVE: u16 = 0xfffe;

/// How a row is inserted that may turn out to be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insertion {
    /// Speculatively, as by ON CONFLICT: others who would wait for the row learn at once when it is withdrawn.
    Speculative,
    /// As any row, and deleted again where it is not new: cheaper, where no two transactions insert the same at this moment.
    Plain,
}

/// No table of ours has more.
const MOST_COLUMNS: usize = 32;

/// How often a row that others changed meanwhile is looked for again.
const ATTEMPTS: usize = 4;

/// What came of looking for a row that can be changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Nothing,
    Changed,
    /// This transaction holds it.
    Held(pg_sys::TransactionId),
    /// Somebody changed it since the snapshot.
    Outdated,
}

/// Whether all statements of the transaction see the same.
pub fn has_one_snapshot() -> bool {
    // SAFETY: reads a global.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ.cast_signed() }
}

fn is_read_only() -> bool {
    // SAFETY: looks at the state of the transaction.
    unsafe { pg_sys::XactReadOnly || pg_sys::IsInParallelMode() }
}

fn is_serializable() -> bool {
    // SAFETY: reads a global.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_SERIALIZABLE.cast_signed() }
}

/// What is read as the newest from here on has what this transaction, and the command that called us, has done so far: as a
/// statement that may write begins.
fn next_command() {
    // SAFETY: in a transaction; nothing happens where nothing was written.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Whether single rows can be changed here one after the other, as each is found: not in a transaction that is to fail where a row
/// changed since its snapshot, nor in one that only reads.
pub fn may_change_rows() -> bool {
    !is_read_only() && !has_one_snapshot()
}

/// Lets `look` read rows by the caller's snapshot. `fresh`: for a call that holds locks, by one that sees what was committed by now,
/// or where all statements of the transaction see the same, what this transaction has done besides.
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
    /// How it is locked.
    mode: pg_sys::LOCKMODE,
    /// The indexes of its shape.
    known: [pg_sys::Oid; MOST_INDEXES],
    /// All of them, once they were needed.
    indexes: OnceCell<Vec<Written>>,
    /// How many blocks it had when that was needed: it does not become shorter as long as we have it.
    blocks: OnceCell<u32>,
}

/// How often a table is opened that others rename meanwhile.
const RENAMED: usize = 10;

impl Table {
    /// None where the table is not as its shape says, or a statement is needed to write it: also in a read-only transaction, which
    /// must fail, and to change rows in one that has one snapshot, which must fail where a row changed since.
    pub fn open(shape: &'static Shape, write: Write) -> Option<Self> {
        Self::open_to_write(shape, shape.name, write).map(|(table, _)| table)
    }

    /// A table for reading its rows as they are.
    pub fn open_to_read(shape: &'static Shape) -> Option<Self> {
        Self::open_for(shape, shape.name, Intent::Read).map(|(table, _)| table)
    }

    /// A partition for inserting what is told by that moment, as its parent would.
    pub fn open_partition(shape: &'static Shape, name: &str, at: Moment) -> Option<Self> {
        if !setting::is_on() || is_read_only() {
            return None;
        }
        // Locked as by a statement, and first, so that nobody attaches, detaches or watches anything meanwhile.
        let parent = shape.parent?;
        let parent = lock(parent, parent.name, pg_sys::RowExclusiveLock.cast_signed())?;
        let (table, found) = Self::open_to_write(shape, name, Write::Insert)?;
        found.bounds.is_some_and(|bounds| bounds.parent == parent && bounds.hold(at)).then_some(table)
    }

    fn open_to_write(shape: &'static Shape, name: &str, write: Write) -> Option<(Self, Found)> {
        if is_read_only() || (has_one_snapshot() && write == Write::Update) {
            return None;
        }
        let intent = match write {
            Write::Insert => Intent::Insert,
            Write::Update => Intent::Update,
        };
        Self::open_for(shape, name, intent)
    }

    fn open_for(shape: &'static Shape, name: &str, intent: Intent) -> Option<(Self, Found)> {
        if !setting::is_on() {
            return None;
        }
        let mode = if intent == Intent::Read { pg_sys::AccessShareLock } else { pg_sys::RowExclusiveLock };
        let mode = mode.cast_signed();
        let id = lock(shape, name, mode)?;
        // SAFETY: it is there, and locked; closed when it is dropped, and by the end of the transaction on errors.
        let relation = unsafe { pg_sys::table_open(id, pg_sys::NoLock.cast_signed()) };
        let known = [pg_sys::Oid::INVALID; MOST_INDEXES];
        let mut table = Self { relation, shape, mode, known, indexes: OnceCell::new(), blocks: OnceCell::new() };
        let found = recall((shape, id), intent, || check::look(&table, name, intent))?;
        table.known = found.indexes;
        Some((table, found))
    }

    fn index_id(&self, index: &'static Index) -> pg_sys::Oid {
        let number = self.shape.indexes.iter().position(|known| std::ptr::eq(*known, index));
        self.known[number.expect("an index of this table")]
    }

    /// Whether it is known, without its indexes, that it has no rows for any snapshot that there is by now. A serializable transaction
    /// has to look: what it did not find is noted where the index is asked.
    pub fn is_empty(&self) -> bool {
        // SAFETY: an open relation.
        !is_serializable()
            && unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM) == 0 }
    }

    fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: an open relation.
        unsafe { (*self.relation).rd_att }
    }

    fn columns(&self) -> usize {
        // SAFETY: the descriptor of an open relation.
        usize::try_from(unsafe { (*self.descriptor()).natts }).unwrap_or_default()
    }

    fn indexes(&self) -> &[Written] {
        // SAFETY: an open relation; the list is ours.
        self.indexes.get_or_init(|| unsafe {
            let list = pg_sys::RelationGetIndexList(self.relation);
            let count = list.as_ref().map_or(0, |l| usize::try_from(l.length).unwrap_or_default());
            let all = (0..count).map(|n| Written::open((*(*list).elements.add(n)).oid_value, self.mode)).collect();
            pg_sys::list_free(list);
            all
        })
    }

    fn form(&self, row: &[Value]) -> pg_sys::HeapTuple {
        assert_eq!(self.columns(), row.len(), "columns of a row");
        let (mut values, mut nulls) = split(row);
        // SAFETY: an open relation; as many values as it has columns, of their types.
        unsafe { pg_sys::heap_form_tuple(self.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr()) }
    }

    /// Inserts a row of all columns; gives its place.
    pub fn insert(&self, row: &[Value]) -> TidHint {
        let tuple = self.form(row);
        // SAFETY: a tuple of this table.
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

    /// The same for a row that will be looked for by these keys of a unique index.
    pub fn insert_as(&self, index: &'static Index, keys: &[Key], row: &[Value]) {
        let place = self.insert(row);
        if let Some(name) = Key::hash(self.index_id(index), keys) {
            finder::note(name, place);
        }
    }

    /// Inserts a row of all columns, unless there may be one like it in a unique index: one that is there, or is being inserted.
    /// Does not wait to learn which: that is for a statement with ON CONFLICT.
    ///
    /// A row that turns out to be no news is gone at once also for others who would wait for us, where they are told that it is
    /// only an attempt, as by ON CONFLICT. That takes a lock and a record in the WAL, so it can be left out where no two others
    /// insert the same at this moment: they would wait for each other.
    pub fn insert_new(&self, unique: &'static Index, row: &[Value], insertion: Insertion) -> bool {
        let unique = self.index_id(unique);
        let tuple = self.form(row);
        // Logical decoding passes on what was inserted and deleted again, but not what was only attempted.
        // SAFETY: reads a global.
        let is_decoded = unsafe { pg_sys::wal_level } >= pg_sys::WalLevel::WAL_LEVEL_LOGICAL.cast_signed();
        let is_told = insertion == Insertion::Speculative || is_decoded;
        // SAFETY: a tuple of this table; the lock of the token is given back, on errors by the end of the transaction.
        unsafe {
            let transaction = pg_sys::GetCurrentTransactionId();
            let mut options = 0;
            if is_told {
                let token = pg_sys::SpeculativeInsertionLockAcquire(transaction);
                let place = &raw mut (*(*tuple).t_data).t_ctid;
                pgrx::itemptr::item_pointer_set_all(&mut *place, token, SPECULATIVE);
                options = pg_sys::HEAP_INSERT_SPECULATIVE.cast_signed();
            }
            pg_sys::heap_insert(self.relation, tuple, pg_sys::GetCurrentCommandId(true), options, std::ptr::null_mut());
            let place = &raw mut (*tuple).t_self;
            let (first, others): (Vec<_>, Vec<_>) = self.indexes().iter().partition(|index| index.id() == unique);
            let is_new = first.iter().chain(&others).all(|index| index.insert(self, tuple, row, index.id() == unique));
            if is_told {
                if is_new {
                    pg_sys::heap_finish_speculative(self.relation, place);
                } else {
                    pg_sys::heap_abort_speculative(self.relation, place);
                }
                pg_sys::SpeculativeInsertionLockRelease(transaction);
            }
            pg_sys::CommandCounterIncrement();
            if !is_new && !is_told {
                pg_sys::simple_heap_delete(self.relation, place);
                pg_sys::CommandCounterIncrement();
            }
            pg_sys::heap_freetuple(tuple);
            is_new
        }
    }

    /// Changes one row with these keys: `change` gets its columns as they are, and gives those that change, or leaves the row
    /// alone. What it gets is what it changes: where somebody was faster, it is asked again. The snapshot is of this moment, or that of
    /// who has just looked at the row: where nobody has changed it since, another look at what is committed is saved.
    pub fn update_found<'a>(
        &'a self,
        mut finder: Option<Finder<'a>>,
        index: &'static Index,
        keys: &[Key],
        policy: LockPolicy,
        mut change: impl FnMut(&[Value]) -> Change,
    ) -> Changed {
        let mut turn = match policy {
            LockPolicy::JoinQueue => {
                // Nothing is pinned while we wait.
                finder = None;
                Some(RowQueueGuard::take(self, keys))
            }
            LockPolicy::SkipLocked | LockPolicy::AlreadyHeld | LockPolicy::Wait => None,
        };
        let mut attempts = 0;
        while attempts < ATTEMPTS || matches!(policy, LockPolicy::Wait | LockPolicy::JoinQueue) {
            pgrx::check_for_interrupts!();
            attempts += 1;
            let mut found = Outcome::Nothing;
            let mut finder = finder.take().unwrap_or_else(|| self.finder(index, Snapshot::Latest));
            finder.show_all();
            // SAFETY: a tuple of this table.
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
                    // SAFETY: what was changed is seen from now on.
                    unsafe { pg_sys::CommandCounterIncrement() };
                    return turn.map_or(Changed::Yes, |turn| {
                        turn.keep();
                        Changed::AfterWaiting
                    });
                }
                Outcome::Held(holder) => match (policy, &turn) {
                    (LockPolicy::SkipLocked | LockPolicy::AlreadyHeld, _) => return Changed::Held,
                    (LockPolicy::Wait | LockPolicy::JoinQueue, None) => turn = Some(RowQueueGuard::take(self, keys)),
                    (LockPolicy::Wait | LockPolicy::JoinQueue, Some(_)) => self.wait_for(holder),
                },
                // The next snapshot sees what came of it.
                Outcome::Outdated => {}
                Outcome::Nothing => return Changed::No,
            }
        }
        Changed::Held
    }

    /// Locks the row with these keys, and gives what `read` makes of its columns; None where there is none, or somebody holds it and
    /// is not waited for. Who waits does so in the row's queue.
    pub fn lock_one<T>(
        &self,
        index: &'static Index,
        keys: &[Key],
        policy: LockPolicy,
        mut read: impl FnMut(&[Value]) -> T,
    ) -> Option<T> {
        let mut turn: Option<RowQueueGuard> = None;
        let mut attempts = 0;
        loop {
            let waiting = match turn {
                None => pg_sys::LockWaitPolicy::LockWaitSkip,
                Some(_) => pg_sys::LockWaitPolicy::LockWaitBlock,
            };
            pgrx::check_for_interrupts!();
            let (mut locked, mut status) = (None, None);
            // SAFETY: a tuple of this table.
            self.finder(index, Snapshot::Latest).visit(Purpose::Write, keys, |tuple, row| unsafe {
                let found = self.lock(tuple, waiting);
                locked = (found == pg_sys::TM_Result::TM_Ok).then(|| read(row));
                status = Some(found);
                false
            });
            match status {
                None => return None,
                Some(pg_sys::TM_Result::TM_Ok) => {
                    if let Some(turn) = turn {
                        turn.keep();
                    }
                    return locked;
                }
                Some(_) if policy == LockPolicy::SkipLocked => {
                    attempts += 1;
                    if status == Some(pg_sys::TM_Result::TM_WouldBlock) || attempts == ATTEMPTS {
                        return None;
                    }
                }
                // Somebody holds it, or has changed it since: then the next snapshot sees what came of it.
                Some(_) => {
                    turn.get_or_insert_with(|| RowQueueGuard::take(self, keys));
                }
            }
        }
    }

    /// Locks a version of a row, unless it is no longer the newest, or somebody holds it and that is not waited for.
    ///
    /// # Safety
    /// A tuple of this table, with its place.
    unsafe fn lock(&self, tuple: pg_sys::HeapTuple, policy: pg_sys::LockWaitPolicy::Type) -> pg_sys::TM_Result::Type {
        // SAFETY: the caller's promise; the buffer is released in any case.
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
        // SAFETY: the place is told only to who is told of a deadlock.
        unsafe {
            let mut place: pg_sys::ItemPointerData = std::mem::zeroed();
            pg_sys::XactLockTableWait(holder, self.relation, &raw mut place, pg_sys::XLTW_Oper::XLTW_None);
        }
    }

    /// Shows the columns of rows with these keys, in the order of the index, as long as `show` says so.
    pub fn read_while(
        &self,
        index: &'static Index,
        keys: &[Key],
        at: Snapshot,
        mut show: impl FnMut(&[Value]) -> bool,
    ) {
        self.visit(index, keys, at, |_, row| show(row));
    }

    /// Goes over the rows with these keys as long as `visit` says so.
    fn visit(
        &self,
        index: &'static Index,
        keys: &[Key],
        at: Snapshot,
        mut visit: impl FnMut(pg_sys::HeapTuple, &[Value]) -> bool,
    ) {
        let snapshot = RegisteredSnapshot::new(at);
        // SAFETY: an index of this table.
        unsafe { self.scan(self.index_id(index), keys, &snapshot, |tuple, row, _| visit(tuple, row)) };
    }

    /// For looking at single rows by a unique index.
    pub fn finder(&self, index: &'static Index, at: Snapshot) -> Finder<'_> {
        Finder::new(self, index, RegisteredSnapshot::new(at))
    }

    /// Goes over the rows with these keys as long as `visit` says so; shows also the place by which the index knows each.
    ///
    /// An index that leads to another row is not believed: a row is what it says itself.
    ///
    /// # Safety
    /// An index of this table with columns for all keys.
    unsafe fn scan(
        &self,
        index: pg_sys::Oid,
        keys: &[Key],
        snapshot: &RegisteredSnapshot,
        mut visit: impl FnMut(pg_sys::HeapTuple, &[Value], TidHint) -> bool,
    ) {
        // SAFETY: an open relation and an index of it; what is begun is ended, and by the end of the transaction on errors.
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

    /// # Safety
    /// A tuple of this table that stays where it is as long as the values are used.
    unsafe fn deform(&self, tuple: pg_sys::HeapTuple) -> Row {
        let columns = self.columns();
        assert!(columns <= MOST_COLUMNS, "a table of ours");
        let (mut values, mut nulls) = ([pg_sys::Datum::from(0); MOST_COLUMNS], [true; MOST_COLUMNS]);
        // SAFETY: the caller's promise; at least as many places as it has columns.
        unsafe { pg_sys::heap_deform_tuple(tuple, self.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr()) };
        Row::of(&values, &nulls, columns)
    }

    /// Tries to change a version of a row. Nothing is locked before it is known that it will be changed, so most rows are
    /// written once.
    ///
    /// # Safety
    /// A tuple of this table, with its place and its columns.
    unsafe fn update_row(
        &self,
        tuple: pg_sys::HeapTuple,
        row: &[Value],
        policy: LockPolicy,
        change: &mut impl FnMut(&[Value]) -> Change,
    ) -> Outcome {
        // SAFETY: the caller's promise.
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
                // Held by several, ourselves among them perhaps: the server knows.
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

    /// Changes a version of a row, unless somebody holds or has changed it. `is_ours`: we hold it.
    ///
    /// # Safety
    /// A tuple of this table that is in a pinned buffer, and its columns.
    unsafe fn update(
        &self,
        tuple: pg_sys::HeapTuple,
        row: &[Value],
        is_ours: bool,
        change: &mut impl FnMut(&[Value]) -> Change,
    ) -> Outcome {
        // SAFETY: the caller's promise; the new tuple has as many columns.
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

/// Locks a table until the end of the transaction; None where there is none of that name.
fn lock(shape: &'static Shape, name: &str, mode: pg_sys::LOCKMODE) -> Option<pg_sys::Oid> {
    for _ in 0..RENAMED {
        let id = relation_id(shape, name)?;
        // SAFETY: one that is gone can be locked all the same.
        unsafe { pg_sys::LockRelationOid(id, mode) };
        // With the lock comes what others did until then: it may be gone, or called something else.
        if relation_id(shape, name) == Some(id) {
            return Some(id);
        }
        // SAFETY: locked above.
        unsafe { pg_sys::UnlockRelationOid(id, mode) };
    }
    None
}

/// The columns of a row.
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
        // An error closes everything by itself.
        if !std::thread::panicking() {
            // SAFETY: opened above; the lock stays until the end of the transaction.
            unsafe {
                pg_sys::table_close(self.relation, pg_sys::NoLock.cast_signed());
            }
        }
    }
}

// What is assumed of the server's layouts: values that are passed by value fit a datum, a place is a block and a number, and the
// header of a row has its flags where they are looked at.
const _: () = assert!(size_of::<pg_sys::Datum>() == 8, "numbers of 64 bits are passed by value");
const _: () = assert!(size_of::<pg_sys::ItemPointerData>() == 6, "a place is a block and a number");
const _: () =
    assert!(std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_ctid) == 12, "three numbers precede the place");
const _: () = assert!(std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_infomask2) == 18, "flags of a row");
const _: () = assert!(std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_infomask) == 20, "flags of a row");
const _: () = assert!(pg_sys::HEAP_XMAX_COMMITTED & pg_sys::HEAP_XMAX_INVALID == 0, "two flags");
const _: () = assert!(size_of::<pg_sys::LOCKTAG>() == 16, "a lock is named by four numbers and two classes");

/// The other transaction under way that has changed or locked a row, if there is one.
///
/// # Safety
/// A tuple in a pinned buffer.
unsafe fn holder(tuple: pg_sys::HeapTuple) -> Option<pg_sys::TransactionId> {
    // SAFETY: the caller's promise.
    unsafe {
        let header = &*(*tuple).t_data;
        let (mask, holder) = (u32::from(header.t_infomask), header.t_choice.t_heap.t_xmax);
        let is_over = mask & (pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_COMMITTED) != 0;
        // Several hold it: whoever wants it finds out.
        let is_many = mask & pg_sys::HEAP_XMAX_IS_MULTI != 0;
        let is_held = !is_over
            && !is_many
            && !pg_sys::TransactionIdIsCurrentTransactionId(holder)
            && pg_sys::TransactionIdIsInProgress(holder);
        is_held.then_some(holder)
    }
}

/// Whether another transaction held a row, as the snapshot that sees it knows: who has changed it was under way then, or the
/// server would have noted that nothing came of it. Who only locks it is asked for.
///
/// # Safety
/// A tuple in a pinned buffer, just found visible by a snapshot.
unsafe fn was_held(tuple: pg_sys::HeapTuple) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let mask = u32::from((*(*tuple).t_data).t_infomask);
        let is_over = mask & (pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_COMMITTED) != 0;
        let is_only_locked = mask & (pg_sys::HEAP_XMAX_LOCK_ONLY | pg_sys::HEAP_XMAX_IS_MULTI) != 0;
        !is_over && (!is_only_locked || holder(tuple).is_some())
    }
}

/// Values and whether they are null, as the server takes them.
fn split(row: &[Value]) -> (Vec<pg_sys::Datum>, Vec<bool>) {
    (row.iter().map(|v| v.unwrap_or(pg_sys::Datum::from(0))).collect(), row.iter().map(Option::is_none).collect())
}

/// Puts a new version of a row in the place of one, unless somebody holds it or was faster; gives who. The server asks to be
/// allowed to wait where it is us who hold it.
///
/// # Safety
/// An open relation, the place of a row of it, and a tuple of it.
unsafe fn replace(
    relation: pg_sys::Relation,
    place: pg_sys::ItemPointer,
    new: pg_sys::HeapTuple,
    is_ours: bool,
) -> (pg_sys::TM_Result::Type, pg_sys::TransactionId) {
    // SAFETY: the caller's promise.
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
