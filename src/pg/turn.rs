//! Locks by name, for transactions that have to take turns.
//!
//! They are not advisory locks: any role of the database could take those, and so stop whatever
//! waits for them.

use pgrx::pg_sys;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Waits until nobody else has the turn of that name, and keeps it until the end of the
/// transaction. Two names whose hashes collide only wait for each other.
pub fn take(name: impl Hash) {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let number = u32::try_from(hasher.finish() >> 32).unwrap_or_default();
    // SAFETY: the tag names no object that exists: the schema's oid stands where a catalog's would.
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
