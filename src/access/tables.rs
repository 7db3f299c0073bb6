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
use crate::pg::invalidation::{self, Watcher};
use crate::pg::spi;
use crate::{args, statements};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};

statements! {
    OURS() =
        "select oid::int8 from pg_class
          where relnamespace in (to_regnamespace('billing'), to_regnamespace('billing_internal')) and relkind in ('r', 'p')";
    FOREIGN() =
        "select name, relation::text, routine::text, owner
           from billing_internal.foreign_things() where kind in ('trigger', 'function') limit 1";
}

thread_local! {
    /// Whether triggers and functions were checked since the last change of one.
    static IS_CHECKED: Cell<bool> = const { Cell::new(false) };
    /// The number of changes so far: one that arrives during the check must not be lost.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    /// The extension's tables at the time of the last check.
    static TABLES: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
}

/// Lets a backend look again when a table of ours, or anything in those catalogs, changes; once per
/// backend.
pub fn watch_invalidations() {
    static WATCHER: Watcher = Watcher {
        relation: table_changed,
        catalog: |_| note_change(),
        catalogs: &[
            pg_sys::SysCacheIdentifier::NAMESPACEOID,
            pg_sys::SysCacheIdentifier::AUTHOID,
            pg_sys::SysCacheIdentifier::PROCOID,
        ],
    };
    invalidation::watch(&WATCHER);
}

fn table_changed(relation: pg_sys::Oid) {
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
        Err(match row.opt::<String>(1) {
            Some(table) => Error::foreign_trigger(&row.get::<String>(0), &table, &function, &owner),
            None => Error::foreign_function(&function, &owner),
        })
    })
}
