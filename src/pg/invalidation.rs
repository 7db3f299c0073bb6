//! What the server says when something about a relation or in a catalog changed.

use pgrx::{pg_guard, pg_sys};
use std::ffi::c_int;

/// Whoever keeps what it knows of relations and catalogs until that changes.
pub struct Watcher {
    /// Called with the relation about which something changed, or with the invalid number: about any.
    pub relation: fn(pg_sys::Oid),
    /// Called with the catalog, of those that are watched, in which something changed.
    pub catalog: fn(c_int),
    /// The catalogs that are watched, by their caches.
    pub catalogs: &'static [pg_sys::SysCacheIdentifier::Type],
}

/// Registers a watcher; once per backend.
pub fn watch(watcher: &'static Watcher) {
    let watcher_of = pg_sys::Datum::from(std::ptr::from_ref(watcher));
    // SAFETY: the callbacks and the watcher live as long as the library.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), watcher_of);
        for cache in watcher.catalogs {
            pg_sys::CacheRegisterSyscacheCallback(cache.cast_signed(), Some(catalog_changed), watcher_of);
        }
    }
}

/// # Safety
/// The datum is a watcher.
unsafe fn watcher<'a>(of: pg_sys::Datum) -> &'a Watcher {
    // SAFETY: the caller's promise.
    unsafe { &*of.cast_mut_ptr::<Watcher>() }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(of: pg_sys::Datum, relation: pg_sys::Oid) {
    // SAFETY: as it was registered.
    (unsafe { watcher(of) }.relation)(relation);
}

#[pg_guard]
unsafe extern "C-unwind" fn catalog_changed(of: pg_sys::Datum, cache: c_int, _hash: u32) {
    // SAFETY: as it was registered.
    (unsafe { watcher(of) }.catalog)(cache);
}
