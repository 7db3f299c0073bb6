//! Looking at single rows: where they were found the last time, and else by the index.

use crate::pg::heap::places::{KeyHash, TidCache, TidHint};
use crate::pg::heap::shapes::Index;
use crate::pg::heap::sight::{self, PageReader};
use crate::pg::heap::{Key, MOST_COLUMNS, Row, Snapshot, Table, Value, is_serializable, next_command, was_held};
use pgrx::pg_sys;
use std::cell::RefCell;

thread_local! {
    /// Where rows were found.
    static PLACES: RefCell<TidCache> = RefCell::default();
}

/// Notes where a row is.
pub(super) fn note(name: KeyHash, place: TidHint) {
    PLACES.with_borrow_mut(|places| places.note(name, place));
}

/// A snapshot that is kept as long as this is.
pub(super) struct RegisteredSnapshot(pub(super) pg_sys::Snapshot);

impl RegisteredSnapshot {
    pub(super) fn new(at: Snapshot) -> Self {
        if at == Snapshot::Latest {
            next_command();
        }
        // SAFETY: registered, and so forgotten by the end of the transaction on errors.
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
            // SAFETY: registered before.
            unsafe { pg_sys::UnregisterSnapshot(self.0) };
        }
    }
}

/// What a row is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    /// To be locked or changed.
    Write,
}

/// Looks for single rows of a table, all at one moment.
pub struct Finder<'a> {
    pub(super) table: &'a Table,
    pub(super) index: &'static Index,
    pub(super) seen: RegisteredSnapshot,
    /// Where the last row was: rows that are looked at together often stand together.
    pub(super) buffer: pg_sys::Buffer,
    /// Where room was made for new versions.
    pruned: pg_sys::Buffer,
    /// Of the rows that are read, where not all columns are wanted.
    first: Option<First>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(table: &'a Table, index: &'static Index, seen: RegisteredSnapshot) -> Self {
        let none = pg_sys::InvalidBuffer.cast_signed();
        Self { table, index, seen, buffer: none, pruned: none, first: None }
    }

    /// From now on only so many columns are shown: what comes after those is not taken apart. They must be as old as the table, for the
    /// values that rows from before a column have in it are not known here.
    pub fn show_first(&mut self, columns: usize) {
        self.first = Some(First::of(self.table, columns));
    }

    /// All of them again.
    pub(super) fn show_all(&mut self) {
        self.first = None;
    }

    /// Shows the columns of the first row with these keys, where there is one; and whether another transaction held it at the
    /// moment of this look.
    pub fn read(&mut self, keys: &[Key], mut show: impl FnMut(&[Value], bool)) {
        self.visit(Purpose::Read, keys, |tuple, row| {
            // SAFETY: a tuple in a pinned buffer that the snapshot sees.
            show(row, unsafe { was_held(tuple) });
            false
        });
    }

    /// Lets `work` read by the snapshot of this finder.
    #[cfg(feature = "compare_ways")]
    pub fn at_its_moment<R>(&self, work: impl FnOnce() -> R) -> R {
        crate::pg::spi::on_snapshot(self.seen.0, work)
    }

    /// Goes over the rows with these keys as long as `visit` says so. Where there can only be one, looks where it was found the last
    /// time, and else asks the index.
    pub(super) fn visit(
        &mut self,
        purpose: Purpose,
        keys: &[Key],
        mut visit: impl FnMut(pg_sys::HeapTuple, &[Value]) -> bool,
    ) {
        let index = self.table.index_id(self.index);
        // What a serializable transaction has read is noted where the index is asked.
        let is_whole = self.index.is_unique && self.index.columns.len() == keys.len() && !is_serializable();
        let name = if is_whole { Key::hash(index, keys) } else { None };
        let place = name.and_then(|name| PLACES.with_borrow(|places| places.get(name)));
        // SAFETY: keys of this table, and an index of it with columns for all of them.
        unsafe {
            if let Some((name, place)) = name.zip(place)
                && let Some(seen) = self.visit_at(purpose, place, keys, &mut visit)
            {
                let found = TidHint { seen, buffer: self.buffer, ..place };
                if found != place {
                    note(name, found);
                }
                return;
            }
            self.table.scan(index, keys, &self.seen, |tuple, row, place| {
                if let Some(name) = name {
                    note(name, place);
                }
                visit(tuple, row)
            });
        }
    }

    /// Shows the row at a place, if it has these keys, and gives the number of its version.
    ///
    /// # Safety
    /// Keys of this table.
    unsafe fn visit_at(
        &mut self,
        purpose: Purpose,
        place: TidHint,
        keys: &[Key],
        visit: &mut impl FnMut(pg_sys::HeapTuple, &[Value]) -> bool,
    ) -> Option<u16> {
        // SAFETY: an open relation; the buffer is released, on errors by the end of the transaction.
        unsafe {
            let relation = self.table.relation;
            if !self.pin(purpose, place) {
                return None;
            }
            let (buffer, snapshot) = (self.buffer, self.seen.0);
            if purpose == Purpose::Write && self.pruned != buffer {
                // As a scan does: it makes room for the next versions.
                pg_sys::heap_page_prune_opt(relation, buffer);
                self.pruned = buffer;
            }
            let (columns, descriptor) = match &self.first {
                Some(first) => (first.columns, first.descriptor),
                None => (self.table.columns(), self.table.descriptor()),
            };
            assert!(columns <= MOST_COLUMNS, "a table of ours");
            let at = PageReader { relation, buffer, snapshot, descriptor };
            // Another row may have come to where that version was; then the chain begins where the index knows it.
            [(place.seen, false), (place.number, true)].into_iter().find_map(|(number, is_first)| {
                let mut sight = at.version(place.block, number, is_first)?;
                let row = Row::of(&sight.values, &sight.nulls, columns);
                let is_it = keys.iter().all(|key| key.is_of(&row));
                is_it.then(|| {
                    visit(&raw mut sight.tuple, &row);
                    pgrx::itemptr::item_pointer_get_both(sight.tuple.t_self).1
                })
            })
        }
    }

    /// Pins the block of a place; false where there is no such block any more.
    fn pin(&mut self, purpose: Purpose, place: TidHint) -> bool {
        let relation = self.table.relation;
        let none = pg_sys::InvalidBuffer.cast_signed();
        // SAFETY: an open relation, and a block that it has.
        unsafe {
            if self.buffer != none && pg_sys::BufferGetBlockNumber(self.buffer) == place.block {
                return true;
            }
            let before = std::mem::replace(&mut self.buffer, none);
            // A buffer that is pinned like this does not count as used, and would go to another block before others: so it is only
            // for rows that are looked at besides, which somebody else changes.
            let is_beside = before != none && purpose == Purpose::Read;
            if is_beside && place.buffer != none {
                if sight::swap(relation, before, place) {
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

/// The first columns of a table.
struct First {
    columns: usize,
    descriptor: pg_sys::TupleDesc,
}

impl First {
    fn of(table: &Table, columns: usize) -> Self {
        let columns = columns.min(table.columns());
        let count = i32::try_from(columns).unwrap_or_default();
        // SAFETY: an open relation; of the copy only the first columns count.
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

impl Drop for First {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: a copy of ours.
            unsafe { pg_sys::FreeTupleDesc(self.descriptor) };
        }
    }
}

impl Drop for Finder<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.buffer != pg_sys::InvalidBuffer.cast_signed() {
            // SAFETY: pinned before.
            unsafe { pg_sys::ReleaseBuffer(self.buffer) };
        }
    }
}
