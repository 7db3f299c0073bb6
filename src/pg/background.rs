//! Transactions beside the caller's, whose writes stay when the caller's is rolled back.
//!
//! Each one is a background worker, a process that the server starts and the caller waits for:
//! `max_worker_processes` says how many there may be. It runs as the owner of one of the
//! extension's tables and may do no more than a maintenance command, so that code which that owner
//! attaches to the tables does not get the rights of the worker.

use crate::pg::spi::{self, Db};
use crate::{args, statements};
use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, SignalWakeFlags};
use pgrx::pg_sys;
use std::ffi::CStr;
use std::panic::{RefUnwindSafe, UnwindSafe};

/// The argument with which the server starts a process, of which none of ours makes use.
pub type Argument = pg_sys::Datum;

const LIBRARY: &str = "pg_billing";

/// The number of attempts to get a process, and the microseconds between them, when the server has
/// none to spare: five seconds in all.
const TRIES: usize = 200;
const NAP: i64 = 25_000;

/// Settings that must not come from the database or the role.
///
/// The caller waits for the work and may hold a lock that it needs; the server does not notice that
/// they wait for each other, so the work gives up soon. A commit that is lost in a crash of the
/// server (asynchronous) would have served only whoever caused the crash.
const SETTINGS: [(&CStr, &CStr); 5] = [
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"synchronous_commit", c"off"),
    (c"lock_timeout", c"2s"),
];

statements! {
    TABLE(text) = "select c.oid::int8, c.relowner::int8 from pg_class c where c.oid = to_regclass($1)";
}

/// Runs a function of this library in a process of its own, passes it a text of at most 127 bytes,
/// and waits until it is done; false if no process is to be had.
pub fn run(function: &str, told: &str) -> bool {
    assert!(told.len() < 128, "what is told to a process");
    for attempt in 0..TRIES {
        if attempt > 0 {
            // SAFETY: sleeps; the check after it stops a caller that was cancelled.
            unsafe { pg_sys::pg_usleep(NAP) };
            pgrx::check_for_interrupts!();
        }
        let worker = BackgroundWorkerBuilder::new("pg_billing")
            .set_library(LIBRARY)
            .set_function(function)
            .set_extra(told)
            // SAFETY: reads a global.
            .set_notify_pid(unsafe { pg_sys::MyProcPid })
            .enable_spi_access();
        if let Ok(worker) = worker.load_dynamic() {
            return worker.wait_for_shutdown().is_ok();
        }
    }
    false
}

/// The text that the caller passed to this process.
pub fn told() -> &'static str {
    BackgroundWorker::get_extra()
}

/// Connects this process to a database.
pub fn begin(database: pg_sys::Oid) {
    // No handlers but the server's own: a shutdown ends the process at once.
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::empty());
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(database), None);
    for (name, value) in SETTINGS {
        // SAFETY: settings of the server; the texts are copied.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// Does work in a transaction of this process, as the owner of a table. Nothing is done if there is
/// no such table: it is gone, or nobody has committed it yet.
pub fn transaction(table: &str, work: impl FnOnce(&Db) + UnwindSafe + RefUnwindSafe) {
    BackgroundWorker::transaction(|| {
        spi::connect(|db| {
            if let Some((_, owner)) = find(db, table) {
                as_user(owner, || work(db));
            }
        });
    });
}

fn as_user(user: pg_sys::Oid, work: impl FnOnce()) {
    let (mut before, mut context) = (pg_sys::Oid::INVALID, 0);
    // SAFETY: restored below; after an error, the process ends.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut before, &raw mut context);
        let restricted = context | pg_sys::SECURITY_RESTRICTED_OPERATION.cast_signed();
        pg_sys::SetUserIdAndSecContext(user, restricted);
    }
    work();
    // SAFETY: sets what was read above.
    unsafe { pg_sys::SetUserIdAndSecContext(before, context) };
}

/// The oid of a table and that of its owner.
fn find(db: &Db, table: &str) -> Option<(pg_sys::Oid, pg_sys::Oid)> {
    let oid = |number: i64| pg_sys::Oid::from(u32::try_from(number).unwrap_or(0));
    db.write(&TABLE, args![table]).first().map(|row| (oid(row.get(0)), oid(row.get(1))))
}

/// Whether the caller's own transaction made the table, so that nobody else sees it until the
/// commit.
pub fn is_made_here(db: &Db, table: &str) -> bool {
    find(db, table).is_some_and(|(table, _)| {
        // SAFETY: the table exists; its cache entry is only read while it is held.
        unsafe {
            let relation = pg_sys::RelationIdGetRelation(table);
            if relation.is_null() {
                return false;
            }
            // InvalidSubTransactionId, which pgrx does not have.
            let is_new = (*relation).rd_createSubid != 0;
            pg_sys::RelationClose(relation);
            is_new
        }
    })
}
