-- What install() itself needs: the versions of the tables, settings, keys, and which roles have which level.

comment on schema billing is 'Billing by the extension pg_billing: wallets, grants, ledger, catalog.';

create table billing.migrations (
    version bigint primary key,
    name text not null,
    applied_at timestamptz not null default clock_timestamp()
);
comment on table billing.migrations is 'The migrations that install() has applied.';
comment on column billing.migrations.version is 'Its number.';
comment on column billing.migrations.name is 'What it brought.';
comment on column billing.migrations.applied_at is 'When install() applied it.';

create table billing_internal.settings (
    name text primary key,
    value jsonb not null
);
comment on table billing_internal.settings is 'Settings of the installation, such as the membership relation.';
comment on column billing_internal.settings.name is 'Its name.';
comment on column billing_internal.settings.value is 'Its value.';

create table billing_internal.secrets (
    name text collate "C" primary key,
    secret bytea not null,
    created_at timestamptz not null
);
comment on table billing_internal.secrets is 'Keys that the engine makes for itself. No role may read them; they travel in a dump, since what was made with them is worth nothing without.';
comment on column billing_internal.secrets.name is 'What it is for.';
comment on column billing_internal.secrets.secret is 'Random bytes.';
comment on column billing_internal.secrets.created_at is 'When it was made.';

create table billing.access (
    role_name name not null,
    level text not null check (level in ('member', 'service', 'auditor', 'webhook')),
    role_oid oid,
    cluster text collate "C",
    primary key (role_name, level)
);
comment on table billing.access is 'Which role was given which levels by grant_access(): what functions ask, and what grants and policies follow from. Change it by grant_access() and revoke_access() only.';
comment on column billing.access.role_name is 'A role of the database cluster.';
comment on column billing.access.level is 'member, service, auditor or webhook.';
comment on column billing.access.role_oid is 'The role itself, whatever it is called by now; null until install() has found it.';
comment on column billing.access.cluster is 'The database cluster in which role_oid means something (pg_control_system).';
