//! A row on its page.
//!
//! Several functions of the server one after the other, under one guard: that which pgrx puts around each of them costs as much as
//! the call. A wallet of many lanes is looked at like this for each consumption.

use crate::pg::heap::MOST_COLUMNS;
use crate::pg::heap::places::TidHint;
use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use std::ffi::c_int;

#[cfg(feature = "pg15")]
type File = pg_sys::RelFileNode;
#[cfg(not(feature = "pg15"))]
type File = pg_sys::RelFileLocator;

// As the server declares them; an error goes to the guard, so nothing that must be dropped may be between.
unsafe extern "C-unwind" {
    fn ReadRecentBuffer(file: File, fork: pg_sys::ForkNumber::Type, block: u32, buffer: pg_sys::Buffer) -> bool;
    fn ReleaseBuffer(buffer: pg_sys::Buffer);
    fn LockBuffer(buffer: pg_sys::Buffer, mode: c_int);
    fn HeapTupleSatisfiesVisibility(
        tuple: pg_sys::HeapTuple,
        snapshot: pg_sys::Snapshot,
        buffer: pg_sys::Buffer,
    ) -> bool;
    fn heap_hot_search_buffer(
        place: pg_sys::ItemPointer,
        relation: pg_sys::Relation,
        buffer: pg_sys::Buffer,
        snapshot: pg_sys::Snapshot,
        tuple: pg_sys::HeapTuple,
        all_dead: *mut bool,
        is_first: bool,
    ) -> bool;
    fn heap_deform_tuple(
        tuple: pg_sys::HeapTuple,
        descriptor: pg_sys::TupleDesc,
        values: *mut pg_sys::Datum,
        nulls: *mut bool,
    );
}

/// Releases one buffer and pins that of a place, if it still holds its block.
///
/// # Safety
/// An open relation, a pinned buffer, and a place with a buffer.
pub(super) unsafe fn swap(relation: pg_sys::Relation, before: pg_sys::Buffer, place: TidHint) -> bool {
    // SAFETY: the caller's promise; one that holds another block by now is left alone.
    unsafe {
        #[cfg(feature = "pg15")]
        let file = (*relation).rd_node;
        #[cfg(not(feature = "pg15"))]
        let file = (*relation).rd_locator;
        pg_guard_ffi_boundary(|| {
            ReleaseBuffer(before);
            ReadRecentBuffer(file, pg_sys::ForkNumber::MAIN_FORKNUM, place.block, place.buffer)
        })
    }
}

/// A version of a row, and its columns.
pub(super) struct VisibleTuple {
    pub(super) tuple: pg_sys::HeapTupleData,
    pub(super) values: [pg_sys::Datum; MOST_COLUMNS],
    pub(super) nulls: [bool; MOST_COLUMNS],
}

/// Where versions are looked for.
#[derive(Clone, Copy)]
pub(super) struct PageReader {
    pub(super) relation: pg_sys::Relation,
    pub(super) buffer: pg_sys::Buffer,
    pub(super) snapshot: pg_sys::Snapshot,
    /// Of the columns that are wanted, from the first on.
    pub(super) descriptor: pg_sys::TupleDesc,
}

impl PageReader {
    /// The version that the snapshot sees, of those from this number on. `is_first`: that is where the index begins.
    ///
    /// # Safety
    /// The block is in the buffer, which is pinned; the descriptor is of the relation, with at most as many columns as there is
    /// room for.
    pub(super) unsafe fn version(self, block: u32, number: u16, is_first: bool) -> Option<VisibleTuple> {
        if number == 0 {
            return None;
        }
        let Self { relation, buffer, snapshot, descriptor } = self;
        // SAFETY: the caller's promise; nothing here must be dropped.
        unsafe {
            let values = [pg_sys::Datum::from(0); MOST_COLUMNS];
            let mut sight = VisibleTuple { tuple: std::mem::zeroed(), values, nulls: [true; MOST_COLUMNS] };
            sight.tuple.t_tableOid = (*relation).rd_id;
            let mut place: pg_sys::ItemPointerData = std::mem::zeroed();
            pgrx::itemptr::item_pointer_set_all(&mut place, block, number);
            let is_there = pg_guard_ffi_boundary(|| {
                let tuple = &raw mut sight.tuple;
                LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE.cast_signed());
                // From a version that is not the first, the server goes to the next at once.
                let is_there = (!is_first && point_at(buffer, number, tuple) && {
                    (*tuple).t_self = place;
                    HeapTupleSatisfiesVisibility(tuple, snapshot, buffer)
                }) || heap_hot_search_buffer(
                    &raw mut place,
                    relation,
                    buffer,
                    snapshot,
                    tuple,
                    std::ptr::null_mut(),
                    is_first,
                );
                LockBuffer(buffer, pg_sys::BUFFER_LOCK_UNLOCK.cast_signed());
                if is_there {
                    heap_deform_tuple(tuple, descriptor, sight.values.as_mut_ptr(), sight.nulls.as_mut_ptr());
                }
                is_there
            });
            is_there.then_some(sight)
        }
    }
}

const _: () = assert!(size_of::<pg_sys::ItemIdData>() == 4, "an item of a page is told by 32 bits");
const _: () = assert!(std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp) == 24, "items follow a page's header");

/// Points at what stands on a page by that number; false where there is nothing.
///
/// # Safety
/// A page of tuples, which is locked.
unsafe fn point_at(buffer: pg_sys::Buffer, number: u16, tuple: pg_sys::HeapTuple) -> bool {
    // SAFETY: the caller's promise; only numbers that the page has are looked at.
    unsafe {
        let page = pg_sys::BufferGetBlock(buffer).cast::<pg_sys::PageHeaderData>();
        let items = std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp);
        let end = items + usize::from(number) * size_of::<pg_sys::ItemIdData>();
        if end > usize::from((*page).pd_lower) {
            return false;
        }
        let item = (*page).pd_linp.as_ptr().add(usize::from(number) - 1);
        if (*item).lp_flags() != pg_sys::LP_NORMAL {
            return false;
        }
        (*tuple).t_data = page.cast::<u8>().add((*item).lp_off() as usize).cast();
        (*tuple).t_len = (*item).lp_len();
        true
    }
}
