//! `billing.install()` creates the tables, or migrates them, by the scripts that are compiled in.

use crate::base::error::Error;
use crate::catalog::cache;
use crate::pg::raise::or_raise;
use crate::pg::{heap, spi, turn};
use crate::schema::version::{self, LATEST};
use crate::{access, args, receipt, statements};
use pgrx::prelude::*;

/// A migration: it brings the tables from one version to the next.
struct Migration {
    version: i64,
    name: &'static str,
    scripts: &'static [&'static str],
}

/// The migrations, each applied once, in order. One that was released is never changed: what comes
/// later is a migration of its own, `sql/migrations/0002_….sql` and so on.
const MIGRATIONS: [Migration; 1] = [Migration {
    version: 1,
    name: "tables",
    scripts: &[
        include_str!("../sql/schema/guards.sql"),
        include_str!("../sql/schema/installation.sql"),
        include_str!("../sql/schema/catalog.sql"),
        include_str!("../sql/schema/wallets.sql"),
        include_str!("../sql/schema/ledger.sql"),
        include_str!("../sql/schema/usage.sql"),
        include_str!("../sql/schema/reports.sql"),
        include_str!("../sql/schema/subscriptions.sql"),
        include_str!("../sql/schema/settlement.sql"),
        include_str!("../sql/schema/alerts.sql"),
        include_str!("../sql/schema/payments.sql"),
        include_str!("../sql/schema/outbox.sql"),
        include_str!("../sql/schema/gift_cards.sql"),
    ],
}];

/// The scripts for what refers to functions of the extension, and so may have gone with DROP
/// EXTENSION … CASCADE: put back on every install(). The scripts change nothing where all is in
/// place.
const STANDING: [&str; 4] = [
    include_str!("../sql/standing/views.sql"),
    include_str!("../sql/standing/policies.sql"),
    include_str!("../sql/standing/rights.sql"),
    include_str!("../sql/standing/metering.sql"),
];

const _: () =
    assert!(MIGRATIONS[MIGRATIONS.len() - 1].version == LATEST, "the last migration makes the latest version");

statements! {
    RECORD(int8, text) = "insert into billing.migrations (version, name) values ($1, $2)";
    DROP_FOREIGN_THINGS() = "select billing_internal.drop_foreign_things()";
    FIND_ROLES() = "select billing_internal.find_roles()";
    MISSING_TABLES() =
        "select string_agg(format('%s.%s', r.schema, r.name), ', ' order by r.schema, r.name)
           from billing_internal.relations() r
          where (r.rows is not null or r.schema = 'billing_internal')
            and to_regclass(format('%I.%I', r.schema, r.name)) is null";
    TAKE_FOREIGN_RIGHTS() = "select billing_internal.take_foreign_rights()";
}

receipt! {
    /// The versions of library and tables.
    VersionStatus as "version_status" { library: String, tables_needed: i64, tables_installed: i64 }
}

/// Creates the tables of pg_billing, or migrates them after ALTER EXTENSION … UPDATE; says what it
/// did.
///
/// Running it again changes nothing, but that rights in the schemas of pg_billing which
/// `grant_access` did not give are taken, and said whose they were. Needs the rights of the
/// schema's owner. Errors: 55000 `not_installed` when the tables are newer than the library, and
/// `tables_missing` when some of them are gone; 0A000 `unsupported_encoding` in a database that is
/// not UTF8.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn install() -> String {
    or_raise(spi::connect(|db| {
        // SAFETY: reads a global.
        if unsafe { pg_sys::GetDatabaseEncoding() } != pg_sys::pg_enc::PG_UTF8.cast_signed() {
            return Err(Error::encoding());
        }
        // Two installs at once take turns.
        turn::take("install");
        // What others hung on our tables would run with our rights from here on.
        let dropped = db.write(&DROP_FOREIGN_THINGS, &[]).first().and_then(|row| row.opt::<String>(0));
        access::require_sound()?;
        // On a snapshot of its own: another install may have committed while this one waited for
        // its turn.
        let before = version::installed(|statement| db.write(statement, &[]));
        if before > LATEST {
            return Err(Error::not_installed(before, LATEST));
        }
        if before == LATEST
            && let Some(missing) = db.write(&MISSING_TABLES, &[]).first().and_then(|row| row.opt::<String>(0))
        {
            return Err(Error::tables_missing(&missing));
        }
        let due: Vec<_> = MIGRATIONS.iter().filter(|migration| migration.version > before).collect();
        // What is copied must be what is there now.
        if before > 0 && !due.is_empty() && heap::has_one_snapshot() {
            return Err(Error::one_snapshot());
        }
        for migration in &due {
            for script in migration.scripts {
                db.script(script);
            }
            db.write(&RECORD, args![migration.version, migration.name]);
        }
        let said = |statement| db.write(statement, &[]).first().and_then(|row| row.opt::<String>(0));
        let roles = said(&FIND_ROLES);
        // Before the levels give rights anew, which takes what exceeds them.
        let foreign = said(&TAKE_FOREIGN_RIGHTS);
        for script in STANDING {
            db.script(script);
        }
        // What the scripts have made, default privileges may have given away.
        let foreign_again = said(&TAKE_FOREIGN_RIGHTS);
        access::anchor_membership(db);
        cache::invalidate(db);
        let taken: Vec<String> = foreign.into_iter().chain(foreign_again).filter(|whose| !whose.is_empty()).collect();
        let besides = [
            ("dropped", dropped),
            ("roles", roles),
            ("took rights that grant_access had not given", Some(taken.join(", "))),
        ]
        .map(|(what, said)| (what, said.unwrap_or_default()));
        let is_calm = besides.iter().all(|(_, said)| said.is_empty());
        let done = match (due.is_empty(), before) {
            (true, _) if is_calm => format!("up to date: tables of version {LATEST}, nothing changed"),
            (true, _) => format!("up to date: tables of version {LATEST}"),
            (false, 0) => format!("installed the tables of version {LATEST}"),
            (false, _) => format!("migrated the tables from version {before} to {LATEST}"),
        };
        let besides = besides.into_iter().filter(|(_, said)| !said.is_empty());
        Ok(besides.fold(done, |done, (what, said)| format!("{done}; {what}: {said}")))
    }))
}

/// Tells the version of the library, and the versions of the tables that it needs and finds (0:
/// none).
#[pg_extern(stable, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn version() -> VersionStatus {
    VersionStatus {
        library: env!("CARGO_PKG_VERSION").to_owned(),
        tables_needed: LATEST,
        tables_installed: spi::connect(|db| version::installed(|statement| db.read(statement, &[]))),
    }
}
