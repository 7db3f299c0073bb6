//! Finders, which look single rows up: first at the place where they were found the last time, and
//! else by the index.

use crate::pg::heap::page_reader::{self, PageReader};
use crate::pg::heap::shapes::Index;
use crate::pg::heap::tid_cache::{KeyHash, TidCache, TidHint};
use crate::pg::heap::{Key, MOST_COLUMNS, Row, Snapshot, Table, Value, is_serializable, next_command, was_held};
use pgrx::pg_sys;
use std::cell::RefCell;

thread_local! {
    /// The places where this backend found rows.
    static TID_CACHE: RefCell<TidCache> = RefCell::default();
}

/// Remembers the place of a row.
pub(super) fn note(hash: KeyHash, place: TidHint) {
    TID_CACHE.with_borrow_mut(|cache| cache.note(hash, place));
}

/// A registered snapshot, which the server keeps until this is dropped.
pub(super) struct RegisteredSnapshot(pub(super) pg_sys::Snapshot);

impl RegisteredSnapshot {
    pub(super) fn new(at: Snapshot) -> Self {
        if at == Snapshot::Latest {
            next_command();
        }
        // SAFETY: the snapshot is registered, and on errors the end of the transaction releases it.
        unsafe {
            Self(pg_sys::RegisterSnapshot(match at {
                Snapshot::Latest => pg_sys::GetLatestSnapshot(),
                Snapshot::Callers => pg_sys::GetActiveSnapshot(),
            }))
        }
    }
}

impl Drop for RegisteredSnapshot {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the snapshot was registered by `new`.
            unsafe { pg_sys::UnregisterSnapshot(self.0) };
        }
    }
}

/// The purpose for which a row is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The row is only read.
    Read,
    /// The row is to be locked or changed, so room is made on its page for a new version.
    Write,
}

/// A finder of single rows of a table, all on one snapshot.
pub struct Finder<'a> {
    pub(super) table: &'a Table,
    /// The unique index by which the rows are looked up.
    pub(super) index: &'static Index,
    /// The snapshot on which all rows are read.
    pub(super) seen: RegisteredSnapshot,
    /// The pinned buffer of the last row, kept since rows that are looked up together often share a
    /// page.
    pub(super) buffer: pg_sys::Buffer,
    /// The buffer that was pruned last, so that it is not pruned again for each row.
    pruned: pg_sys::Buffer,
    /// The prefix of columns that is read, or None for all columns.
    first: Option<ColumnPrefix>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(table: &'a Table, index: &'static Index, seen: RegisteredSnapshot) -> Self {
        let none = pg_sys::InvalidBuffer.cast_signed();
        Self { table, index, seen, buffer: none, pruned: none, first: None }
    }

    /// Restricts the finder to the first columns, so that those behind them are not deformed. The
    /// first columns must be as old as the table, for the default of a column that was added later
    /// is not known here.
    pub fn show_first(&mut self, columns: usize) {
        self.first = Some(ColumnPrefix::of(self.table, columns));
    }

    /// Lifts the restriction of [`Finder::show_first`].
    pub(super) fn show_all(&mut self) {
        self.first = None;
    }

    /// Shows the columns of the first row with these keys, if there is one, and whether another
    /// transaction held it at the moment of this look.
    pub fn read(&mut self, keys: &[Key], mut show: impl FnMut(&[Value], bool)) {
        self.visit(Purpose::Read, keys, |tuple, row| {
            // SAFETY: the tuple is in a pinned buffer, and the snapshot sees it.
            show(row, unsafe { was_held(tuple) });
            false
        });
    }

    /// Runs `work` with the snapshot of this finder as the active one.
    #[cfg(feature = "compare_ways")]
    pub fn at_its_moment<R>(&self, work: impl FnOnce() -> R) -> R {
        crate::pg::spi::on_snapshot(self.seen.0, work)
    }

    /// Visits the rows with these keys until `visit` returns false. Where the keys name a single
    /// row, it is looked for at its remembered place first, and then by the index.
    pub(super) fn visit(
        &mut self,
        purpose: Purpose,
        keys: &[Key],
        mut visit: impl FnMut(pg_sys::HeapTuple, &[Value]) -> bool,
    ) {
        let index = self.table.index_id(self.index);
        // A serializable transaction has to take its predicate locks in the index, or a conflict
        // with a concurrent insert would go unnoticed.
        let is_whole = self.index.is_unique && self.index.columns.len() == keys.len() && !is_serializable();
        let hash = if is_whole { Key::hash(index, keys) } else { None };
        let place = hash.and_then(|hash| TID_CACHE.with_borrow(|cache| cache.get(hash)));
        // SAFETY: the keys are of this table, and the index has a column for each of them.
        unsafe {
            if let Some((hash, place)) = hash.zip(place)
                && let Some(seen) = self.visit_at(purpose, place, keys, &mut visit)
            {
                let found = TidHint { seen, buffer: self.buffer, ..place };
                if found != place {
                    note(hash, found);
                }
                return;
            }
            self.table.scan(index, keys, &self.seen, |tuple, row, place| {
                if let Some(hash) = hash {
                    note(hash, place);
                }
                visit(tuple, row)
            });
        }
    }

    /// Visits the row at a remembered place, if it has these keys, and returns the item number of
    /// its version.
    ///
    /// # Safety
    /// The keys are of this table.
    unsafe fn visit_at(
        &mut self,
        purpose: Purpose,
        place: TidHint,
        keys: &[Key],
        visit: &mut impl FnMut(pg_sys::HeapTuple, &[Value]) -> bool,
    ) -> Option<u16> {
        // SAFETY: the relation is open, and the buffer is released, on errors by the end of the
        // transaction.
        unsafe {
            let relation = self.table.relation;
            if !self.pin(purpose, place) {
                return None;
            }
            let (buffer, snapshot) = (self.buffer, self.seen.0);
            if purpose == Purpose::Write && self.pruned != buffer {
                // An index scan prunes as well: without that, new versions would soon leave the
                // page.
                pg_sys::heap_page_prune_opt(relation, buffer);
                self.pruned = buffer;
            }
            let (columns, descriptor) = match &self.first {
                Some(first) => (first.columns, first.descriptor),
                None => (self.table.columns(), self.table.descriptor()),
            };
            assert!(columns <= MOST_COLUMNS, "a table of ours");
            let at = PageReader { relation, buffer, snapshot, descriptor };
            // The version may be gone and its item be used by another row; then the chain is
            // followed from the item that the index knows.
            [(place.seen, false), (place.number, true)].into_iter().find_map(|(number, is_first)| {
                let mut version = at.version(place.block, number, is_first)?;
                let row = Row::of(&version.values, &version.nulls, columns);
                let is_it = keys.iter().all(|key| key.is_of(&row));
                is_it.then(|| {
                    visit(&raw mut version.tuple, &row);
                    pgrx::itemptr::item_pointer_get_both(version.tuple.t_self).1
                })
            })
        }
    }

    /// Pins the block of a remembered place; false if the table no longer has that block.
    fn pin(&mut self, purpose: Purpose, place: TidHint) -> bool {
        let relation = self.table.relation;
        let none = pg_sys::InvalidBuffer.cast_signed();
        // SAFETY: the relation is open, and has the block.
        unsafe {
            if self.buffer != none && pg_sys::BufferGetBlockNumber(self.buffer) == place.block {
                return true;
            }
            let before = std::mem::replace(&mut self.buffer, none);
            // A buffer that is pinned like this does not count as used, so it would be evicted
            // before others. Hence this way is only for rows that are read besides another, and
            // that other transactions change.
            let is_beside = before != none && purpose == Purpose::Read;
            if is_beside && place.buffer != none {
                if page_reader::swap(relation, before, place) {
                    self.buffer = place.buffer;
                    return true;
                }
            } else if before != none {
                pg_sys::ReleaseBuffer(before);
            }
            let main = pg_sys::ForkNumber::MAIN_FORKNUM;
            let blocks = self.table.blocks.get_or_init(|| pg_sys::RelationGetNumberOfBlocksInFork(relation, main));
            let is_there = place.block < *blocks;
            if is_there {
                self.buffer = pg_sys::ReadBuffer(relation, place.block);
            }
            is_there
        }
    }
}

/// A prefix of a table's columns, with the descriptor to deform them.
struct ColumnPrefix {
    columns: usize,
    descriptor: pg_sys::TupleDesc,
}

impl ColumnPrefix {
    fn of(table: &Table, columns: usize) -> Self {
        let columns = columns.min(table.columns());
        let count = i32::try_from(columns).unwrap_or_default();
        // SAFETY: the relation is open, and only the first columns of the copied descriptor count.
        unsafe {
            #[cfg(feature = "pg18")]
            let descriptor = pg_sys::CreateTupleDescTruncatedCopy(table.descriptor(), count);
            #[cfg(not(feature = "pg18"))]
            let descriptor = pg_sys::CreateTupleDescCopy(table.descriptor());
            #[cfg(not(feature = "pg18"))]
            {
                (*descriptor).natts = count;
            }
            Self { columns, descriptor }
        }
    }
}

impl Drop for ColumnPrefix {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the descriptor is a copy that this owns.
            unsafe { pg_sys::FreeTupleDesc(self.descriptor) };
        }
    }
}

impl Drop for Finder<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.buffer != pg_sys::InvalidBuffer.cast_signed() {
            // SAFETY: the buffer was pinned by `pin`.
            unsafe { pg_sys::ReleaseBuffer(self.buffer) };
        }
    }
}
