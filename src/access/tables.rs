//! The check that no trigger on the extension's tables, and no function in its schemas, belongs to
//! somebody else.
//!
//! A trigger runs with the rights of whoever writes the table, which is the owner of the extension:
//! a trigger that another role put there, by a right that came with a grant on all tables, would
//! take over the database. So would a function in the extension's schemas that fits a call better
//! than its own. The event trigger `pg_billing_guard` prevents both; but it may be off, or be
//! created later. So they are looked for before anything is written, once after each change of one
//! of these tables, or of a function, that the server announces.

use crate::base::error::{Error, Result};
use crate::pg::spi;
use crate::{args, statements};
use pgrx::{pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::ffi::c_int;

statements! {
    OURS() = "select oid::int8 from pg_class where relnamespace = to_regnamespace('billing') and relkind in ('r', 'p')";
    FOREIGN() =
        "select null::text, null::text, p.oid::regprocedure::text, o.rolname::text
           from pg_proc p join pg_roles o on o.oid = p.proowner
          where p.pronamespace in (to_regnamespace('billing'), to_regnamespace('billing_internal')) and not o.rolsuper
            and p.proowner <> (select extowner from pg_extension where extname = 'pg_billing')
         union all
         select t.tgname::text, c.oid::regclass::text, p.oid::regprocedure::text, o.rolname::text
           from pg_class c
           join pg_trigger t on t.tgrelid = c.oid and not t.tgisinternal
           join pg_proc p on p.oid = t.tgfoid
           join pg_roles o on o.oid = p.proowner
          where c.relnamespace = to_regnamespace('billing') and not o.rolsuper and p.proowner <> c.relowner
          order by 2, 1 limit 1";
}

thread_local! {
    /// Whether triggers and functions were checked since the last change of one.
    static IS_CHECKED: Cell<bool> = const { Cell::new(false) };
    /// The number of changes so far: one that arrives during the check must not be lost.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    /// The extension's tables at the time of the last check.
    static TABLES: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
}

/// Registers the callbacks; once per backend.
pub fn watch_invalidations() {
    let none = pg_sys::Datum::from(0);
    // SAFETY: the callbacks live as long as the library.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(table_changed), none);
        for cache in [
            pg_sys::SysCacheIdentifier::NAMESPACEOID,
            pg_sys::SysCacheIdentifier::AUTHOID,
            pg_sys::SysCacheIdentifier::PROCOID,
        ] {
            pg_sys::CacheRegisterSyscacheCallback(cache.cast_signed(), Some(catalog_changed), none);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn table_changed(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    // Every borrow ends before anything that could process an invalidation. During a check, any
    // change counts.
    let is_ours = TABLES.with(|tables| tables.try_borrow().is_ok_and(|ours| ours.contains(&relation)));
    if is_ours || relation == pg_sys::InvalidOid || !IS_CHECKED.get() {
        note_change();
    }
}

fn note_change() {
    IS_CHECKED.set(false);
    CHANGES.set(CHANGES.get().wrapping_add(1));
}

#[pg_guard]
unsafe extern "C-unwind" fn catalog_changed(_arg: pg_sys::Datum, _cache: c_int, _hash: u32) {
    note_change();
}

/// Refuses to go on where a trigger on one of the tables, or a function in the schemas, is somebody
/// else's. Must run as the owner.
pub fn require_sound() -> Result<()> {
    if IS_CHECKED.get() {
        return Ok(());
    }
    spi::connect(|db| {
        let oid = |number: i64| pg_sys::Oid::from(u32::try_from(number).unwrap_or(0));
        let before = CHANGES.get();
        // The newest snapshot is read: the change that was announced may be newer than the caller's
        // snapshot.
        let (tables, foreign) = spi::on_newest_snapshot(|| (db.scan(&OURS, args![]), db.scan(&FOREIGN, args![])));
        let Some(row) = foreign.first() else {
            TABLES.set(tables.iter().map(|row| oid(row.get(0))).collect());
            // A change that arrived during the check is looked at by the next call.
            IS_CHECKED.set(CHANGES.get() == before);
            return Ok(());
        };
        let (function, owner): (String, String) = (row.get(2), row.get(3));
        Err(match row.opt::<String>(0).zip(row.opt::<String>(1)) {
            Some((trigger, table)) => Error::foreign_trigger(&trigger, &table, &function, &owner),
            None => Error::foreign_function(&function, &owner),
        })
    })
}
