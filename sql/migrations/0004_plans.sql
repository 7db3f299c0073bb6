-- What a plan includes, who is on which plan, and caps. org_id leads the keys of whatever belongs to an org.

-- Whether a metric stays open without credit is the catalog's to say; one that says nothing does not.
alter table billing.metrics alter column tier drop not null, alter column tier drop default;
alter table billing.metrics add column unique_by text;
comment on column billing.metrics.tier is 'core: stays open when credits run out; premium or null: does not.';
comment on column billing.metrics.unique_by is 'For the aggregation unique: the property of an event whose distinct values are counted; null: the member.';

create table billing.plans (
    plan text collate "C" primary key check (octet_length(plan) between 1 and 63),
    terms jsonb not null,
    created_at timestamptz not null,
    retired_at timestamptz
);
comment on table billing.plans is 'Plans of the catalog: what a subscription includes per period.';
comment on column billing.plans.plan is 'Its name.';
comment on column billing.plans.terms is 'As in the catalog document: period, price, credits, allowances, limits, default.';
comment on column billing.plans.created_at is 'When the catalog first had it.';
comment on column billing.plans.retired_at is 'When the catalog dropped it: nobody can subscribe any more, who is on it stays.';

create table billing.caps (
    cap text collate "C" primary key,
    metric text collate "C",
    category text collate "C",
    per text not null check (per in ('day', 'month')),
    subject text not null check (subject in ('org', 'member')),
    quantity bigint not null check (quantity >= 0),
    created_at timestamptz not null,
    check ((metric is null) <> (category is null))
);
comment on table billing.caps is 'Most that an org, or a member of one, may use of a metric or category per calendar day or month (UTC).';
comment on column billing.caps.cap is 'Name made of the other columns.';
comment on column billing.caps.metric is 'What is capped, or';
comment on column billing.caps.category is 'the category whose metrics are capped together.';
comment on column billing.caps.per is 'day or month.';
comment on column billing.caps.subject is 'org or member: whose usage counts.';
comment on column billing.caps.quantity is 'Most of it.';
comment on column billing.caps.created_at is 'Since when it counts.';

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

create table billing.org_allowances (
    org_id uuid not null,
    metric text collate "C" not null,
    allowance bigint check (allowance >= 0),
    limit_kind text check (limit_kind in ('hard', 'soft', 'unlimited')),
    primary key (org_id, metric)
);
create index org_allowances_metric on billing.org_allowances (metric);
comment on table billing.org_allowances is 'What single orgs have per period instead of what their plan says.';
comment on column billing.org_allowances.org_id is 'The billed customer.';
comment on column billing.org_allowances.metric is 'Of what.';
comment on column billing.org_allowances.allowance is 'Included per period; null: as the plan says.';
comment on column billing.org_allowances.limit_kind is 'hard, soft or unlimited; null: as the plan says.';

create table billing.subscription_requests (
    org_id uuid not null,
    idempotency_key text collate "C" not null,
    request_hash bigint not null,
    result text not null,
    primary key (org_id, idempotency_key)
);
comment on table billing.subscription_requests is 'What subscribe() and cancel_subscription() answered to calls with an idempotency key.';
comment on column billing.subscription_requests.org_id is 'The billed customer.';
comment on column billing.subscription_requests.idempotency_key is 'Key of the call.';
comment on column billing.subscription_requests.request_hash is 'Fingerprint of its arguments.';
comment on column billing.subscription_requests.result is 'The answer.';
