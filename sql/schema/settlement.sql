-- Runs of the settlement, and what failed in them.

create table billing.settlement_runs (
    run_id bigint primary key,
    started_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    as_of timestamptz not null,
    pid integer not null,
    shard integer not null,
    shards integer not null,
    status text not null default 'running' check (status in ('running', 'done', 'interrupted')),
    phase text not null,
    orgs_total bigint not null default 0,
    orgs_done bigint not null default 0,
    orgs_failed bigint not null default 0,
    charged bigint not null default 0,
    unpaid bigint not null default 0,
    renewed bigint not null default 0
);
-- One settlement of a share of the orgs at a time.
create unique index settlement_runs_running on billing.settlement_runs (shards, shard) where status = 'running';
comment on table billing.settlement_runs is 'Runs of settle(). A run that was killed is marked interrupted by the next one.';
comment on column billing.settlement_runs.run_id is 'Number of the run.';
comment on column billing.settlement_runs.started_at is 'Wall clock.';
comment on column billing.settlement_runs.updated_at is 'Wall clock of the last batch.';
comment on column billing.settlement_runs.finished_at is 'Wall clock; null while it runs.';
comment on column billing.settlement_runs.as_of is 'Billing time for which it settles.';
comment on column billing.settlement_runs.pid is 'Server process.';
comment on column billing.settlement_runs.shard is 'Which share of the orgs,';
comment on column billing.settlement_runs.shards is 'of how many.';
comment on column billing.settlement_runs.status is 'running, done or interrupted.';
comment on column billing.settlement_runs.phase is 'preparing, settling or done.';
comment on column billing.settlement_runs.orgs_total is 'Orgs with something to do.';
comment on column billing.settlement_runs.orgs_done is 'Orgs settled.';
comment on column billing.settlement_runs.orgs_failed is 'Orgs left as they were, see settlement_faults; those that somebody held locked for too long among them.';
comment on column billing.settlement_runs.charged is 'Credits burned for overage, over all units.';
comment on column billing.settlement_runs.unpaid is 'Overage that wallets still owed when they were settled.';
comment on column billing.settlement_runs.renewed is 'Periods begun.';

create table billing.settlement_faults (
    org_id uuid not null,
    run_id bigint not null,
    failed_at timestamptz not null default clock_timestamp(),
    sqlstate text not null,
    message text not null,
    detail text,
    primary key (org_id, run_id)
);
comment on table billing.settlement_faults is 'Orgs that a run could not settle, and why. Nothing of them was changed; the next run tries again.';
comment on column billing.settlement_faults.org_id is 'The org.';
comment on column billing.settlement_faults.run_id is 'The run.';
comment on column billing.settlement_faults.failed_at is 'Wall clock.';
comment on column billing.settlement_faults.sqlstate is 'SQLSTATE of the error.';
comment on column billing.settlement_faults.message is 'Its message.';
comment on column billing.settlement_faults.detail is 'Its detail.';
