//! `pg_billing`: a product's whole billing inside its own `PostgreSQL` database.
//!
//! Read `docs/DESIGN.md` first. Rules are plain Rust, statements are in the `store` modules, `sql` alone talks to the
//! server, and functions that SQL calls are thin.

pgrx::pg_module_magic!();

mod access;
mod alerts;
mod arguments;
mod autonomous;
mod catalog;
mod clock;
mod error;
mod gift_cards;
mod heap;
mod install;
mod invalidation;
mod json;
mod ledger;
mod limits;
mod payments;
mod plans;
mod raise;
mod receipt;
mod schema;
mod search_path;
mod secrets;
mod settlement;
mod sql;
mod time;
mod turn;
mod units;
mod usage;
mod validity;

// The extension's own SQL, in this order around the functions that the modules declare.
pgrx::extension_sql_file!("../sql/extension/types.sql", name = "types", bootstrap);
pgrx::extension_sql_file!("../sql/extension/access.sql", name = "access", requires = ["types"]);
pgrx::extension_sql_file!("../sql/extension/settlement.sql", name = "settlement", requires = ["access"]);
pgrx::extension_sql_file!("../sql/extension/metering.sql", name = "metering", requires = ["settlement"]);
pgrx::extension_sql_file!("../sql/extension/schedule.sql", name = "schedule", requires = ["metering"]);
pgrx::extension_sql_file!("../sql/extension/outbox.sql", name = "outbox", requires = ["schedule"]);
pgrx::extension_sql_file!("../sql/extension/signals.sql", name = "signals", requires = ["outbox"]);
pgrx::extension_sql_file!("../sql/extension/webhooks.sql", name = "webhooks", requires = ["signals"]);
pgrx::extension_sql_file!("../sql/extension/status.sql", name = "status", requires = ["webhooks"]);
pgrx::extension_sql_file!("../sql/extension/comments.sql", name = "comments", finalize);

/// Called by the server when it loads the library.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    clock::define_setting();
    access::watch_invalidations();
    catalog::cache::watch_invalidations();
    heap::watch_invalidations();
    heap::define_setting();
}
