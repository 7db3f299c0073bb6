//! Locks of our own, for those who have to take turns.
//!
//! Not advisory locks: those may be taken by any role of the database, who could so stop whatever waits for them.

use pgrx::pg_sys;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Waits until nobody else has the turn of that name, and keeps it to the end of the transaction. Two names that share a number by
/// chance only wait for each other.
pub fn take(name: impl Hash) {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let number = u32::try_from(hasher.finish() >> 32).unwrap_or_default();
    // SAFETY: a tag of an object that is none, of a class that is none: the schema's number is not that of a catalog.
    unsafe {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: pg_sys::MyDatabaseId.to_u32(),
            locktag_field2: pg_sys::get_namespace_oid(c"billing".as_ptr(), false).to_u32(),
            locktag_field3: number,
            locktag_field4: 1,
            locktag_type: u8::try_from(pg_sys::LockTagType::LOCKTAG_OBJECT).unwrap_or_default(),
            locktag_lockmethodid: u8::try_from(pg_sys::DEFAULT_LOCKMETHOD).unwrap_or_default(),
        };
        pg_sys::LockAcquire(&raw const tag, pg_sys::ExclusiveLock.cast_signed(), false, false);
    }
}
