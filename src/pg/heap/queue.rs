//! The queues of transactions that wait for a row.

use crate::pg::heap::{Key, Table};
use pgrx::pg_sys;

/// The first place in the queue for a row. Whoever has it waits for the row, and all others for
/// that place, so the end of a transaction wakes one of them and not all.
pub(super) struct RowQueueGuard(pg_sys::LOCKTAG);

impl RowQueueGuard {
    const MODE: i32 = pg_sys::ExclusiveLock.cast_signed();

    /// Takes the first place in the queue for the row with these keys, once it is free. Two rows
    /// that share a queue by chance only wait a little longer.
    pub(super) fn take(table: &Table, keys: &[Key]) -> Self {
        let number = Key::queue(keys);
        // SAFETY: the tag names an object whose class is the table, which no catalog has, so only
        // these queues lock it; on errors the end of the transaction releases it.
        unsafe {
            let tag = pg_sys::LOCKTAG {
                locktag_field1: pg_sys::MyDatabaseId.to_u32(),
                locktag_field2: (*table.relation).rd_id.to_u32(),
                locktag_field3: number,
                locktag_field4: 0,
                locktag_type: u8::try_from(pg_sys::LockTagType::LOCKTAG_OBJECT).unwrap_or_default(),
                locktag_lockmethodid: u8::try_from(pg_sys::DEFAULT_LOCKMETHOD).unwrap_or_default(),
            };
            pg_sys::LockAcquire(&raw const tag, Self::MODE, false, false);
            Self(tag)
        }
    }

    /// Keeps the first place until the end of the transaction, for a row that this transaction
    /// holds: so the next in the queue sleeps once, and not once for the place and again for the
    /// row.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for RowQueueGuard {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the lock was taken by `take`.
            unsafe { pg_sys::LockRelease(&raw const self.0, Self::MODE, false) };
        }
    }
}
