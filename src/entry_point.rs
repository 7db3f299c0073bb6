//! The way into a function of SQL: the caller's level is checked, the tables are known to fit, and an error is raised.

use crate::access;
use crate::base::error::Result;
use crate::catalog::cache;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db};

fn installed<R>(work: impl FnOnce(&Db) -> Result<R>) -> Result<R> {
    spi::connect(|db| {
        cache::require_installed(db)?;
        work(db)
    })
}

/// Runs a function for services, as the owner of the extension.
pub fn service<R>(work: impl FnOnce(&Db) -> Result<R>) -> R {
    or_raise(access::service(|| installed(work)))
}

/// Runs a function that customers may call for their own orgs, as the owner of the extension; `work` asks whether the org is
/// one of theirs.
pub fn customer<R>(work: impl FnOnce(&Db) -> Result<R>) -> R {
    or_raise(access::customer(|| installed(work)))
}

/// Runs a function that reads what belongs to an org, as the owner of the extension; `work` asks whether the org is one of the
/// caller's.
pub fn reader<R>(work: impl FnOnce(&Db) -> Result<R>) -> R {
    or_raise(access::reader(|| installed(work)))
}
