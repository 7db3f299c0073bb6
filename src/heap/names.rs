//! What a backend knows of tables and indexes, until the server says that something about them changes.

use super::{Write, finder};
use pgrx::{pg_guard, pg_sys};
use std::cell::RefCell;
use std::ffi::CString;

thread_local! {
    // Few enough to be looked through.
    /// Which tables need no statement, as far as this backend looked, until something about them changes.
    static SIMPLE: RefCell<Vec<(pg_sys::Oid, Write, bool)>> = RefCell::default();
    /// Tables and indexes by name, until something about them changes.
    static NAMES: RefCell<Vec<(String, pg_sys::Oid)>> = RefCell::default();
}

/// Registers the callback; once per backend.
pub fn watch_invalidations() {
    // SAFETY: the callback lives as long as the library.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(forget), pg_sys::Datum::from(0)) };
}

#[pg_guard]
unsafe extern "C-unwind" fn forget(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    let is_other = |id: pg_sys::Oid| relation != pg_sys::InvalidOid && id != relation;
    // Borrows are short and take no invalidation inside.
    SIMPLE.with(|simple| simple.try_borrow_mut().map(|mut s| s.retain(|(id, _, _)| is_other(*id))).ok());
    NAMES.with(|names| names.try_borrow_mut().map(|mut n| n.retain(|(_, id)| is_other(*id))).ok());
    finder::forget(is_other);
}

/// What is known of a table, or what a look at it finds.
pub(super) fn known(about: (pg_sys::Oid, Write), look: impl FnOnce() -> bool) -> bool {
    let is_it = |(id, write, _): &&(pg_sys::Oid, Write, bool)| (*id, *write) == about;
    SIMPLE.with_borrow(|simple| simple.iter().find(is_it).map(|(_, _, known)| *known)).unwrap_or_else(|| {
        let found = look();
        SIMPLE.with_borrow_mut(|simple| simple.push((about.0, about.1, found)));
        found
    })
}

pub(super) fn relation_id(name: &str) -> pg_sys::Oid {
    if let Some(id) = NAMES.with_borrow(|names| names.iter().find(|(known, _)| known == name).map(|(_, id)| *id)) {
        return id;
    }
    let text = CString::new(name).expect("a name without NUL");
    // SAFETY: looks names up.
    let id = unsafe {
        let schema = pg_sys::get_namespace_oid(c"billing".as_ptr(), true);
        pg_sys::get_relname_relid(text.as_ptr(), schema)
    };
    if id != pg_sys::InvalidOid {
        NAMES.with_borrow_mut(|names| names.push((name.to_owned(), id)));
    }
    id
}

/// Whether there is an index of that name: somebody may have renamed it.
pub fn has_index(name: &str) -> bool {
    relation_id(name) != pg_sys::InvalidOid
}
