//! Applying a document to the catalog, and exporting the catalog as one.

use crate::base::error::{Error, Result};
use crate::catalog::cache;
use crate::catalog::document::Document;
use crate::catalog::section::Change;
use crate::pg::clock;
use crate::pg::spi::{self, Db};
use crate::statements;
use serde_json::Value;

statements! {
    // One document at a time; readers go on with the old one until the commit.
    LOCK_CATALOG() = "lock table billing.metrics in share row exclusive mode";
}

/// Reads what is stored now, as the cache does: a document is compared with the newest catalog,
/// also in a transaction that looked at the database before another one was applied.
fn load(db: &Db, document: &mut Document) -> Result<()> {
    spi::on_newest_snapshot(|| document.load(db))
}

/// Makes the catalog what the document says, and tells what that changes; with `dry_run`, only
/// tells.
pub fn apply(db: &Db, catalog: &Value, dry_run: bool) -> Result<Vec<Change>> {
    let mut document = Document::parse(catalog).map_err(Error::invalid_catalog)?;
    let now = clock::now();
    cache::require_installed(db)?;
    if !dry_run {
        db.write(&LOCK_CATALOG, &[]);
    }
    load(db, &mut document)?;
    document.check(db, now).map_err(Error::invalid_catalog)?;
    let changes = document.changes(now);
    if !dry_run && !changes.is_empty() {
        document.save(db, now);
        cache::invalidate(db);
    }
    Ok(changes)
}

/// Writes the catalog as a document, with the prices in force now.
pub fn export(db: &Db) -> Result<Value> {
    cache::require_installed(db)?;
    let mut document = Document::default();
    load(db, &mut document)?;
    Ok(document.export(clock::now()))
}
