-- Subscriptions: which org is on which plan.

create table billing.subscriptions (
    org_id uuid not null,
    starts_at timestamptz not null,
    ends_at timestamptz,
    anchor timestamptz not null,
    next_period_at timestamptz,
    created_at timestamptz not null,
    plan text collate "C" not null,
    pending_plan text collate "C",
    cancel_at_period_end boolean not null default false,
    origin text not null default 'subscribed' check (origin in ('subscribed', 'default')),
    grants bigint[] not null default '{}',
    granted bigint not null default 0,
    taken_back bigint not null default 0,
    metadata jsonb not null default '{}',
    provider text collate "C",
    provider_subscription text collate "C",
    primary key (org_id, starts_at),
    check (ends_at >= starts_at)
);
create index subscriptions_due on billing.subscriptions (next_period_at) where next_period_at is not null;
comment on table billing.subscriptions is 'Which plan an org had from when to when: a change of plan ends one row and begins the next. An org without a row has the default plan, if there is one, by calendar months (UTC).';
comment on column billing.subscriptions.org_id is 'The billed customer.';
comment on column billing.subscriptions.starts_at is 'From when the plan holds.';
comment on column billing.subscriptions.ends_at is 'Until when; null: no end in sight.';
comment on column billing.subscriptions.anchor is 'Start of the first period; all periods count from it.';
comment on column billing.subscriptions.next_period_at is 'Start of the first period that was not begun yet: compared and set by the renewal; null: nothing to renew.';
comment on column billing.subscriptions.created_at is 'When the row was made.';
comment on column billing.subscriptions.plan is 'The plan.';
comment on column billing.subscriptions.pending_plan is 'The plan from the next period on.';
comment on column billing.subscriptions.cancel_at_period_end is 'Ends with the period instead of renewing.';
comment on column billing.subscriptions.origin is 'subscribed; default: the default plan, begun by settlement because it grants credits.';
comment on column billing.subscriptions.grants is 'Grants of the current period that the plan brought.';
comment on column billing.subscriptions.granted is 'Credits that the plan brought in the current period, less what a change of plan took back; without what went on from the period before.';
comment on column billing.subscriptions.taken_back is 'Credits of these grants that a change of plan took back.';
comment on column billing.subscriptions.metadata is 'What the caller noted.';
comment on column billing.subscriptions.provider is 'Who collects for it: its periods begin when they are paid; null: nobody has to pay first.';
comment on column billing.subscriptions.provider_subscription is 'The provider''s id of it.';

create table billing_internal.subscription_requests (
    org_id uuid not null,
    idempotency_key text collate "C" not null,
    request_hash bigint not null,
    result text not null,
    primary key (org_id, idempotency_key)
);
comment on table billing_internal.subscription_requests is 'What subscribe() and cancel_subscription() answered to calls with an idempotency key.';
comment on column billing_internal.subscription_requests.org_id is 'The billed customer.';
comment on column billing_internal.subscription_requests.idempotency_key is 'Key of the call.';
comment on column billing_internal.subscription_requests.request_hash is 'Fingerprint of its arguments.';
comment on column billing_internal.subscription_requests.result is 'The answer.';
