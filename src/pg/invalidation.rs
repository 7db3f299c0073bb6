//! Invalidations: the server's messages that something about a relation or in a catalog has
//! changed.

use pgrx::{pg_guard, pg_sys};
use std::ffi::c_int;

/// The callbacks of a cache that has to forget what changes.
pub struct Watcher {
    /// The callback for a relation that has changed; the invalid id stands for any relation.
    pub relation: fn(pg_sys::Oid),
    /// The callback for a watched catalog in which something has changed.
    pub catalog: fn(c_int),
    /// The catalogs that are watched, by the ids of their caches.
    pub catalogs: &'static [pg_sys::SysCacheIdentifier::Type],
}

/// Registers a watcher. It is called once per backend.
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

/// The watcher that a callback was registered with.
///
/// # Safety
/// `of` is the datum that `watch` registered.
unsafe fn watcher<'a>(of: pg_sys::Datum) -> &'a Watcher {
    // SAFETY: the caller keeps its promise.
    unsafe { &*of.cast_mut_ptr::<Watcher>() }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(of: pg_sys::Datum, relation: pg_sys::Oid) {
    // SAFETY: the datum is the one that `watch` registered.
    (unsafe { watcher(of) }.relation)(relation);
}

#[pg_guard]
unsafe extern "C-unwind" fn catalog_changed(of: pg_sys::Datum, cache: c_int, _hash: u32) {
    // SAFETY: the datum is the one that `watch` registered.
    (unsafe { watcher(of) }.catalog)(cache);
}
