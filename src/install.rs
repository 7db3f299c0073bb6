//! `billing.install()`: creates or migrates the tables from the migrations that are compiled in.

use crate::access;
use crate::base::error::Error;
use crate::catalog::cache;
use crate::pg::heap;
use crate::pg::raise::or_raise;
use crate::pg::spi;
use crate::pg::turn;
use crate::schema::version::{self, LATEST};
use crate::{args, receipt, statements};
use pgrx::prelude::*;

/// Numbered migrations, each applied once, in order.
const MIGRATIONS: [(i64, &str, &str); 16] = [
    (1, "ledger", include_str!("../sql/migrations/0001_ledger.sql")),
    (2, "catalog", include_str!("../sql/migrations/0002_catalog.sql")),
    (3, "guards", include_str!("../sql/migrations/0003_guards.sql")),
    (4, "plans", include_str!("../sql/migrations/0004_plans.sql")),
    (5, "metering", include_str!("../sql/migrations/0005_metering.sql")),
    (6, "usage", include_str!("../sql/migrations/0006_usage.sql")),
    (7, "settlement", include_str!("../sql/migrations/0007_settlement.sql")),
    (8, "lanes", include_str!("../sql/migrations/0008_lanes.sql")),
    (9, "hot_wallets", include_str!("../sql/migrations/0009_hot_wallets.sql")),
    (10, "fewer_checks", include_str!("../sql/migrations/0010_fewer_checks.sql")),
    (11, "gift_cards", include_str!("../sql/migrations/0011_gift_cards.sql")),
    (12, "payments", include_str!("../sql/migrations/0012_payments.sql")),
    (13, "slim_ledger", include_str!("../sql/migrations/0013_slim_ledger.sql")),
    (14, "recent", include_str!("../sql/migrations/0014_recent.sql")),
    (15, "holds", include_str!("../sql/migrations/0015_holds.sql")),
    (16, "security", include_str!("../sql/migrations/0016_security.sql")),
];

/// What refers to functions of the extension, and so may have gone with DROP EXTENSION … CASCADE: put back on every
/// install(). The scripts change nothing where all is in place.
const STANDING: [&str; 4] = [
    include_str!("../sql/standing/views.sql"),
    include_str!("../sql/standing/policies.sql"),
    include_str!("../sql/standing/rights.sql"),
    include_str!("../sql/standing/metering.sql"),
];

const _: () = assert!(MIGRATIONS[MIGRATIONS.len() - 1].0 == LATEST, "the last migration makes the latest version");

const BOOKKEEPING: &str = "
create table if not exists billing.migrations (
    version bigint primary key,
    name text not null,
    applied_at timestamptz not null default clock_timestamp()
);
comment on table billing.migrations is 'The migrations that install() has applied.';
comment on column billing.migrations.version is 'Its number.';
comment on column billing.migrations.name is 'What it brought.';
comment on column billing.migrations.applied_at is 'When install() applied it.';
comment on schema billing is 'Billing by the extension pg_billing: wallets, grants, ledger, catalog.';";

statements! {
    RECORD(int8, text) = "insert into billing.migrations (version, name) values ($1, $2)";
    DROP_FOREIGN_THINGS() = "select billing_internal.drop_foreign_things()";
    FIND_ROLES() = "select billing_internal.find_roles()";
    TAKE_FOREIGN_RIGHTS() = "select billing_internal.take_foreign_rights()";
}

receipt! {
    /// What is installed.
    VersionStatus as "version_status" { library: String, tables_needed: i64, tables_installed: i64 }
}

/// Creates the tables of pg_billing, or migrates them after ALTER EXTENSION … UPDATE; says what it did.
///
/// Running it again changes nothing, but that rights in the schemas of pg_billing which `grant_access` did not give are taken, and
/// said whose they were. Needs the rights of the schema's owner. Errors: 55000 `not_installed` when the
/// tables are newer than the library; 0A000 `unsupported_encoding` in a database that is not UTF8.
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
        // On a snapshot of its own: another install may have committed while this one waited for its turn.
        let before = version::installed(|statement| db.write(statement, &[]));
        if before > LATEST {
            return Err(Error::not_installed(before, LATEST));
        }
        if before == 0 {
            db.script(BOOKKEEPING);
        }
        let due: Vec<_> = MIGRATIONS.iter().filter(|(version, _, _)| *version > before).collect();
        // What is copied must be what is there now.
        if before > 0 && !due.is_empty() && heap::has_one_snapshot() {
            return Err(Error::one_snapshot());
        }
        for (version, name, script) in &due {
            db.script(script);
            db.write(&RECORD, args![*version, *name]);
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

/// The version of the library, and the versions of the tables that it needs and finds (0: none).
#[pg_extern(stable, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn version() -> VersionStatus {
    VersionStatus {
        library: env!("CARGO_PKG_VERSION").to_owned(),
        tables_needed: LATEST,
        tables_installed: spi::connect(|db| version::installed(|statement| db.read(statement, &[]))),
    }
}
