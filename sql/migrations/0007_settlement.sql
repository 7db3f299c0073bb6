-- Runs of the settlement, what failed in them, and alerts.

alter table billing.lanes add column alert_below bigint not null default 0;
comment on column billing.lanes.alert_below is 'The consumption that brings the balance below this looks at the alerts of the balance.';

create table billing.settlement_runs (
    run_id bigint generated always as identity primary key,
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
comment on column billing.settlement_runs.orgs_failed is 'Orgs left as they were, see settlement_faults.';
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

create table billing.alerts (
    org_id uuid not null,
    kind text collate "C" not null check (kind in ('allowance', 'cap', 'balance', 'low_balance', 'expiring')),
    subject text collate "C" not null,
    share integer not null,
    raised_at timestamptz not null,
    resolved_at timestamptz,
    value bigint not null,
    threshold bigint not null,
    number bigint not null,
    primary key (org_id, kind, subject, share, number)
);
create unique index alerts_open on billing.alerts (org_id, kind, subject, share) where resolved_at is null;
comment on table billing.alerts is 'One row per crossing of a threshold; resolved when it no longer holds, raised anew at the next crossing.';
comment on column billing.alerts.org_id is 'The billed customer.';
comment on column billing.alerts.kind is 'allowance, cap, balance, low_balance or expiring.';
comment on column billing.alerts.subject is 'The metric, the cap, the unit of the wallet, or the grant.';
comment on column billing.alerts.share is 'Percent of the allowance or cap that is used, or of the balance after the last grant; 0 where there is no share.';
comment on column billing.alerts.raised_at is 'When it was found crossed.';
comment on column billing.alerts.resolved_at is 'When it was found to hold no longer; null: it holds.';
comment on column billing.alerts.value is 'What was used, or the balance; for expiring, the credit.';
comment on column billing.alerts.threshold is 'What it crossed.';
comment on column billing.alerts.number is 'Counts the crossings.';
