-- Alerts, flags of misuse, and frozen orgs.

-- No CHECK, as on period_usage.
create table billing.alerts (
    org_id uuid not null,
    kind text collate "C" not null,
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
comment on column billing.alerts.kind is 'allowance, cap, balance, low_balance, expiring, recharge_ceiling or recharge_stopped.';
comment on column billing.alerts.subject is 'The metric, the cap, the unit of the wallet, or the grant.';
comment on column billing.alerts.share is 'Percent of the allowance or cap that is used, or of the balance after the last grant; 0 where there is no share.';
comment on column billing.alerts.raised_at is 'When it was found crossed.';
comment on column billing.alerts.resolved_at is 'When it was found to hold no longer; null: it holds.';
comment on column billing.alerts.value is 'What was used, or the balance; for expiring, the credit.';
comment on column billing.alerts.threshold is 'What it crossed.';
comment on column billing.alerts.number is 'Counts the crossings.';

create table billing.flags (
    org_id uuid not null,
    kind text collate "C" not null,
    raised_at timestamptz not null,
    seen_at timestamptz not null,
    resolved_at timestamptz,
    score integer not null,
    times bigint not null default 1,
    reason text not null,
    detail jsonb not null default '{}',
    primary key (org_id, kind, raised_at)
);
create unique index flags_open on billing.flags (org_id, kind) where resolved_at is null;
comment on table billing.flags is 'Signals of misuse: one open row per org and kind, with a score.';
comment on column billing.flags.org_id is 'The billed customer.';
comment on column billing.flags.kind is 'code_guessing, payment_velocity, shared_card, payment_failures, dispute, refund_spent.';
comment on column billing.flags.raised_at is 'When it was seen first.';
comment on column billing.flags.seen_at is 'When it was seen last.';
comment on column billing.flags.resolved_at is 'When somebody resolved it.';
comment on column billing.flags.score is 'How bad: 1 to 100.';
comment on column billing.flags.times is 'How often it was seen.';
comment on column billing.flags.reason is 'In words.';
comment on column billing.flags.detail is 'What it was seen by.';

create table billing.freezes (
    org_id uuid primary key,
    frozen_at timestamptz not null,
    reason text not null
);
comment on table billing.freezes is 'Orgs of which check_limit() says frozen.';
comment on column billing.freezes.org_id is 'The billed customer.';
comment on column billing.freezes.frozen_at is 'Since when.';
comment on column billing.freezes.reason is 'Why.';
