//! The version of the tables, which a library compares with the one that it was built for.

use crate::base::error::{Error, Result};
use crate::pg::spi::{self, Db, Rows, Statement};
use crate::statements;

/// The version of the tables that this library works with: that of its last migration.
pub const LATEST: i64 = 1;

statements! {
    EXISTS() = "select to_regclass('billing.migrations') is not null";
    APPLIED() = "select coalesce(max(version), 0)::int8 from billing.migrations";
}

/// The version of the tables in the database, or 0 without any. `run` decides on which snapshot it
/// is read.
pub fn installed(run: impl Fn(&'static std::thread::LocalKey<Statement>) -> Rows) -> i64 {
    let exists = run(&EXISTS).first().is_some_and(|row| row.get(0));
    if exists { run(&APPLIED).first().map_or(0, |row| row.get(0)) } else { 0 }
}

/// Refuses to go on where the tables are missing, or of another version than the library.
///
/// The version is read as committed by now, so that also a transaction with an older snapshot sees
/// that `install()` has run.
pub fn require(db: &Db) -> Result<()> {
    match spi::on_newest_snapshot(|| installed(|statement| db.scan(statement, &[]))) {
        LATEST => Ok(()),
        found => Err(Error::not_installed(found, LATEST)),
    }
}
