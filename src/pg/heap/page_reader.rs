//! Readers of rows on a pinned page.
//!
//! Several functions of the server are called under one guard, since the guard that pgrx puts
//! around each of them costs as much as the call. Each consumption from a wallet of many lanes
//! reads all of them like this.

use crate::pg::heap::MOST_COLUMNS;
use crate::pg::heap::tid_cache::TidHint;
use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use std::ffi::c_int;

#[cfg(feature = "pg15")]
type File = pg_sys::RelFileNode;
#[cfg(not(feature = "pg15"))]
type File = pg_sys::RelFileLocator;

// These are declared as the server has them. An error jumps to the guard, so nothing that must be
// dropped may be alive between the two.
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

/// Releases one buffer and pins that of a remembered place; false if the buffer has another block
/// by now.
///
/// # Safety
/// `relation` is open, `before` is pinned, and `place` has a buffer.
pub(super) unsafe fn swap(relation: pg_sys::Relation, before: pg_sys::Buffer, place: TidHint) -> bool {
    // SAFETY: the caller keeps its promise, and a buffer with another block is not pinned.
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

/// A version of a row that the snapshot sees, with its columns.
pub(super) struct VisibleTuple {
    /// The tuple, which points into the pinned buffer.
    pub(super) tuple: pg_sys::HeapTupleData,
    /// The values of the columns.
    pub(super) values: [pg_sys::Datum; MOST_COLUMNS],
    /// The null flags of the columns.
    pub(super) nulls: [bool; MOST_COLUMNS],
}

/// A pinned page of a table and the snapshot on which it is read.
#[derive(Clone, Copy)]
pub(super) struct PageReader {
    /// The table that the page is of.
    pub(super) relation: pg_sys::Relation,
    /// The pinned buffer with the page.
    pub(super) buffer: pg_sys::Buffer,
    /// The snapshot that decides which version is seen.
    pub(super) snapshot: pg_sys::Snapshot,
    /// The descriptor of the columns to be read, which are a prefix of those of the table.
    pub(super) descriptor: pg_sys::TupleDesc,
}

impl PageReader {
    /// The version that the snapshot sees, in the chain from that item number on. `is_first` says
    /// that the number is the root of the chain, as an index knows it.
    ///
    /// # Safety
    /// The buffer is pinned and has the block; the descriptor is of the relation, with at most
    /// [`MOST_COLUMNS`] columns.
    pub(super) unsafe fn version(self, block: u32, number: u16, is_first: bool) -> Option<VisibleTuple> {
        if number == 0 {
            return None;
        }
        let Self { relation, buffer, snapshot, descriptor } = self;
        // SAFETY: the caller keeps its promise, and nothing under the guard must be dropped.
        unsafe {
            let values = [pg_sys::Datum::from(0); MOST_COLUMNS];
            let mut version = VisibleTuple { tuple: std::mem::zeroed(), values, nulls: [true; MOST_COLUMNS] };
            version.tuple.t_tableOid = (*relation).rd_id;
            let mut place: pg_sys::ItemPointerData = std::mem::zeroed();
            pgrx::itemptr::item_pointer_set_all(&mut place, block, number);
            let is_there = pg_guard_ffi_boundary(|| {
                let tuple = &raw mut version.tuple;
                LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE.cast_signed());
                // The search of a chain that does not begin at its root skips the first version, so
                // that one is looked at here.
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
                    heap_deform_tuple(tuple, descriptor, version.values.as_mut_ptr(), version.nulls.as_mut_ptr());
                }
                is_there
            });
            is_there.then_some(version)
        }
    }
}

const _: () = assert!(size_of::<pg_sys::ItemIdData>() == 4, "an item of a page is told by 32 bits");
const _: () = assert!(std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp) == 24, "items follow a page's header");

/// Points `tuple` at the item of that number on a page; false where the item is none or no tuple.
///
/// # Safety
/// The buffer is pinned and locked, and has a page of a heap.
unsafe fn point_at(buffer: pg_sys::Buffer, number: u16, tuple: pg_sys::HeapTuple) -> bool {
    // SAFETY: the caller keeps its promise, and only items below the end of the array are read.
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
