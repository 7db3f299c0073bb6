//! The entry of a SQL function: checks the caller's level and the version of the tables, and raises
//! the error of its result.

use crate::access;
use crate::base::error::Result;
use crate::catalog::cache;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db};

/// Runs work on a connection once the tables are known to be of this version.
fn installed<R>(work: impl FnOnce(&Db) -> Result<R>) -> Result<R> {
    spi::connect(|db| {
        cache::require_installed(db)?;
        work(db)
    })
}

/// Runs a function that only services may call, as the owner of the extension.
pub fn service<R>(work: impl FnOnce(&Db) -> Result<R>) -> R {
    or_raise(access::service(|| installed(work)))
}

/// Runs a function that customers may call for their own orgs, as the owner of the extension;
/// `work` has to check that the org is one of the caller's.
pub fn customer<R>(work: impl FnOnce(&Db) -> Result<R>) -> R {
    or_raise(access::customer(|| installed(work)))
}

/// Runs a function that reads the data of an org, as the owner of the extension; `work` has to
/// check that the org is one of the caller's.
pub fn reader<R>(work: impl FnOnce(&Db) -> Result<R>) -> R {
    or_raise(access::reader(|| installed(work)))
}
