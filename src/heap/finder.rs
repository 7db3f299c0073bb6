//! Looking at single rows: where they were found the last time, and else by the index.

use super::places::{Name, Place, Places};
use super::{Key, Snapshot, Table, Value, was_held};
use pgrx::pg_sys;
use std::cell::RefCell;

thread_local! {
    /// Where rows were found.
    static PLACES: RefCell<Places> = RefCell::default();
    /// Unique indexes that were asked with all of their columns, and how many those are.
    static WHOLE: RefCell<Vec<(pg_sys::Oid, usize)>> = RefCell::default();
}

/// Notes that an index may be another one.
pub(super) fn forget(is_other: impl Fn(pg_sys::Oid) -> bool) {
    WHOLE.with(|whole| whole.try_borrow_mut().map(|mut w| w.retain(|(id, _)| is_other(*id))).ok());
}

/// Notes where a row is.
pub(super) fn note(name: Name, place: Place) {
    PLACES.with_borrow_mut(|places| places.note(name, place));
}

/// A snapshot that is kept as long as this is.
pub(super) struct Seen(pub(super) pg_sys::Snapshot);

impl Seen {
    pub(super) fn new(at: Snapshot) -> Self {
        // SAFETY: registered, and so forgotten by the end of the transaction on errors.
        unsafe {
            Self(pg_sys::RegisterSnapshot(match at {
                Snapshot::Latest => pg_sys::GetLatestSnapshot(),
                Snapshot::Callers => pg_sys::GetActiveSnapshot(),
            }))
        }
    }
}

impl Drop for Seen {
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
    pub(super) index: pg_sys::Oid,
    pub(super) seen: Seen,
    /// Where the last row was: rows that are looked at together often stand together.
    pub(super) buffer: pg_sys::Buffer,
}

impl Finder<'_> {
    /// Shows the columns of the first row with these keys, where there is one; and whether another transaction held it at the
    /// moment of this look.
    pub fn read(&mut self, keys: &[Key], mut show: impl FnMut(&[Value], bool)) {
        self.visit(Purpose::Read, keys, |tuple, row| {
            // SAFETY: a tuple in a pinned buffer that the snapshot sees.
            show(row, unsafe { was_held(tuple) });
            false
        });
    }

    /// Goes over the rows with these keys as long as `visit` says so. Where there can only be one, looks where it was found the last
    /// time, and else asks the index.
    pub(super) fn visit(
        &mut self,
        purpose: Purpose,
        keys: &[Key],
        mut visit: impl FnMut(pg_sys::HeapTuple, &[Value]) -> bool,
    ) {
        // What a serializable transaction has read is noted where the index is asked.
        // SAFETY: reads a global.
        let is_noted = unsafe { pg_sys::XactIsoLevel } < pg_sys::XACT_SERIALIZABLE.cast_signed();
        let name = Key::name(self.index, keys).filter(|_| is_noted);
        let is_whole = WHOLE.with_borrow(|whole| whole.contains(&(self.index, keys.len())));
        let place = name.filter(|_| is_whole).and_then(|name| PLACES.with_borrow(|places| places.get(name)));
        // SAFETY: an index of this table.
        unsafe {
            if place.is_some_and(|place| self.visit_at(purpose, place, keys, &mut visit)) {
                return;
            }
            self.table.scan(self.index, keys, &self.seen, |tuple, place| {
                if let Some((name, place)) = name.zip(place) {
                    note(name, place);
                    if !is_whole {
                        WHOLE.with_borrow_mut(|whole| whole.push((self.index, keys.len())));
                    }
                }
                visit(tuple, &self.table.deform(tuple))
            });
        }
    }

    /// Shows the row at a place, if it has these keys; else false.
    ///
    /// # Safety
    /// Keys of this table.
    unsafe fn visit_at(
        &mut self,
        purpose: Purpose,
        place: Place,
        keys: &[Key],
        visit: &mut impl FnMut(pg_sys::HeapTuple, &[Value]) -> bool,
    ) -> bool {
        let relation = self.table.relation;
        // SAFETY: an open relation, and a block of it; the buffer is released, on errors by the end of the transaction.
        unsafe {
            let main = pg_sys::ForkNumber::MAIN_FORKNUM;
            let blocks = self.table.blocks.get_or_init(|| pg_sys::RelationGetNumberOfBlocksInFork(relation, main));
            if place.block >= *blocks {
                return false;
            }
            let before = std::mem::replace(&mut self.buffer, pg_sys::InvalidBuffer.cast_signed());
            self.buffer = pg_sys::ReleaseAndReadBuffer(before, relation, place.block);
            if self.buffer != before && purpose == Purpose::Write {
                // As a scan does: it makes room for the next versions.
                pg_sys::heap_page_prune_opt(relation, self.buffer);
            }
            let mut tuple: pg_sys::HeapTupleData = std::mem::zeroed();
            let mut row: pg_sys::ItemPointerData = std::mem::zeroed();
            pgrx::itemptr::item_pointer_set_all(&mut row, place.block, place.number);
            pg_sys::LockBuffer(self.buffer, pg_sys::BUFFER_LOCK_SHARE.cast_signed());
            let is_there = pg_sys::heap_hot_search_buffer(
                &raw mut row,
                relation,
                self.buffer,
                self.seen.0,
                &raw mut tuple,
                std::ptr::null_mut(),
                true,
            );
            pg_sys::LockBuffer(self.buffer, pg_sys::BUFFER_LOCK_UNLOCK.cast_signed());
            if !is_there {
                return false;
            }
            let row = self.table.deform(&raw mut tuple);
            let is_it = keys.iter().all(|key| key.is_of(&row));
            if is_it {
                visit(&raw mut tuple, &row);
            }
            is_it
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
