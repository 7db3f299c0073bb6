//! Transactions of their own beside the caller's: what they write stays when the caller's is rolled back.
//!
//! Each is a background worker, a process that the server starts for it and the caller waits for: `max_worker_processes` says
//! how many there may be. It runs as the owner of a table of ours and may do no more than a maintenance command, so that what
//! that owner hangs on his tables does not get the rights of the worker.

use crate::pg::spi::{self, Db};
use crate::{args, statements};
use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, SignalWakeFlags};
use pgrx::pg_sys;
use std::ffi::CStr;
use std::panic::{RefUnwindSafe, UnwindSafe};

const LIBRARY: &str = "pg_billing";

/// How often and how long (microseconds) a process is waited for where the server has none to spare: five seconds in all.
const TRIES: usize = 200;
const NAP: i64 = 25_000;

/// What a database or role may have set otherwise. The caller, who may hold a lock that the work needs, waits for it, and the
/// server does not find out that they wait in a circle: so the work does not wait for long. What is lost with a crash of the
/// server was of use to nobody but whoever caused it.
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

/// Starts a function of this library as a process of its own, tells it something (at most 127 bytes), and waits until it is
/// done; false where there is no process to be had.
pub fn run(function: &str, told: &str) -> bool {
    assert!(told.len() < 128, "what is told to a process");
    for attempt in 0..TRIES {
        if attempt > 0 {
            // SAFETY: sleeps, and stops where the caller was told to.
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

/// What the caller told this process.
pub fn told() -> &'static str {
    BackgroundWorker::get_extra()
}

/// Connects this process to a database.
pub fn begin(database: pg_sys::Oid) {
    // None but those that it has: whoever shuts the server down ends it.
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

/// Does the work in a transaction of this process, as the owner of that table; not where there is no such table, because it is
/// gone, or nobody has committed it.
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
    // SAFETY: put back below; with an error, the process ends.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut before, &raw mut context);
        let restricted = context | pg_sys::SECURITY_RESTRICTED_OPERATION.cast_signed();
        pg_sys::SetUserIdAndSecContext(user, restricted);
    }
    work();
    // SAFETY: as it was.
    unsafe { pg_sys::SetUserIdAndSecContext(before, context) };
}

/// A table and its owner.
fn find(db: &Db, table: &str) -> Option<(pg_sys::Oid, pg_sys::Oid)> {
    let oid = |number: i64| pg_sys::Oid::from(u32::try_from(number).unwrap_or(0));
    db.write(&TABLE, args![table]).first().map(|row| (oid(row.get(0)), oid(row.get(1))))
}

/// Whether the caller's own transaction made the table, which nobody else sees until it is committed.
pub fn is_made_here(db: &Db, table: &str) -> bool {
    find(db, table).is_some_and(|(table, _)| {
        // SAFETY: there is such a table; its entry is looked at while it is held.
        unsafe {
            let relation = pg_sys::RelationIdGetRelation(table);
            if relation.is_null() {
                return false;
            }
            // InvalidSubTransactionId
            let is_new = (*relation).rd_createSubid != 0;
            pg_sys::RelationClose(relation);
            is_new
        }
    })
}
