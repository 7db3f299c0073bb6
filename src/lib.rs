//! `pg_billing`: a product's whole billing inside its own `PostgreSQL` database.
//!
//! Read `docs/ARCHITECTURE.md` first. A module imports only from the layers below its own
//! (`layers.rs`). Rules are plain Rust, `pg` alone talks to the server, tables are declared in
//! `schema`, statements are constants with names, and functions that SQL calls are thin.

pgrx::pg_module_magic!();

mod access;
mod alerts;
mod base;
mod call;
mod catalog;
mod contention;
mod entry_point;
mod gift_cards;
mod install;
#[cfg(test)]
mod layers;
mod ledger;
mod limits;
mod outbox;
mod payments;
mod pg;
mod plans;
mod posting;
mod providers;
mod purchases;
mod recharge;
mod reports;
mod schema;
mod secrets;
mod settlement;
mod spending;
mod subscriptions;
mod usage;
mod wallets;
mod webhooks;

// These are the extension's own SQL files; the functions that the modules declare come between the
// first and the last, or a file would name what is not there yet.
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

/// Initializes the library; the server calls it once in each backend that loads the library.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::clock::define_setting();
    access::watch_invalidations();
    catalog::cache::watch_invalidations();
    pg::heap::watch_invalidations();
    pg::heap::define_setting();
}
