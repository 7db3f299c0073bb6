//! Whether what hangs on our tables, and what stands beside our functions, is ours.
//!
//! A trigger runs with the rights of whoever writes the table, which is the owner of the extension: so one that somebody else put
//! there, by a right that came with a grant on all tables, would take over the database; so would a function in our schemas that
//! fits a call better than ours. The event trigger `pg_billing_guard` lets nobody make them; but it may be off, or come later. So they are
//! looked for before anything is written, once for each change of one of our tables, or of a function, that the server tells.

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
    /// Whether triggers and functions were looked at since the last change of one.
    static LOOKED: Cell<bool> = const { Cell::new(false) };
    /// Counts the changes: one that comes while they are being looked at must not be lost.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    /// The tables, as they were then.
    static TABLES: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
}

/// Lets a backend look again when a table of ours, or anything in those catalogs, changes; once per backend.
pub fn watch_invalidations() {
    static WATCHER: Watcher = Watcher {
        relation: table_changed,
        catalog: |_| changed(),
        catalogs: &[
            pg_sys::SysCacheIdentifier::NAMESPACEOID,
            pg_sys::SysCacheIdentifier::AUTHOID,
            pg_sys::SysCacheIdentifier::PROCOID,
        ],
    };
    invalidation::watch(&WATCHER);
}

fn table_changed(relation: pg_sys::Oid) {
    // Borrows are short and take no invalidation inside. While they are being looked at, any change counts.
    let is_ours = TABLES.with(|tables| tables.try_borrow().is_ok_and(|ours| ours.contains(&relation)));
    if is_ours || relation == pg_sys::InvalidOid || !LOOKED.get() {
        changed();
    }
}

fn changed() {
    LOOKED.set(false);
    CHANGES.set(CHANGES.get().wrapping_add(1));
}

/// Refuses to go on where a trigger on one of our tables, or a function in our schemas, is somebody else's. Run as the owner.
pub fn require_sound() -> Result<()> {
    if LOOKED.get() {
        return Ok(());
    }
    spi::connect(|db| {
        let oid = |number: i64| pg_sys::Oid::from(u32::try_from(number).unwrap_or(0));
        let before = CHANGES.get();
        // On the newest snapshot: the change that was told may be newer than the caller's.
        let (tables, foreign) = spi::on_newest_snapshot(|| (db.scan(&OURS, args![]), db.scan(&FOREIGN, args![])));
        let Some(row) = foreign.first() else {
            TABLES.set(tables.iter().map(|row| oid(row.get(0))).collect());
            // What was changed meanwhile is looked at by the next call.
            LOOKED.set(CHANGES.get() == before);
            return Ok(());
        };
        let (function, owner): (String, String) = (row.get(2), row.get(3));
        Err(match row.opt::<String>(1) {
            Some(table) => Error::foreign_trigger(&row.get::<String>(0), &table, &function, &owner),
            None => Error::foreign_function(&function, &owner),
        })
    })
}
