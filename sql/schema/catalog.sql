-- What things cost, what plans include, and caps. Small tables without tenants, but for the prices and allowances of single orgs.

create table billing.metrics (
    metric text collate "C" primary key check (octet_length(metric) between 1 and 63),
    unit text,
    aggregation text not null default 'sum' check (aggregation in ('sum', 'max', 'last', 'unique')),
    category text,
    tier text check (tier in ('core', 'premium')),
    created_at timestamptz not null,
    retired_at timestamptz,
    unique_by text
);
comment on table billing.metrics is 'What is counted: one row per metric of the catalog.';
comment on column billing.metrics.metric is 'Its name.';
comment on column billing.metrics.unit is 'What one of the quantity is, for people: byte, token, request.';
comment on column billing.metrics.aggregation is 'How quantities of a period combine: sum, max, last or unique.';
comment on column billing.metrics.category is 'AI, Storage, …: free text.';
comment on column billing.metrics.tier is 'core: stays open when credits run out; premium or null: does not.';
comment on column billing.metrics.created_at is 'When the catalog first had it.';
comment on column billing.metrics.retired_at is 'When the catalog dropped the metric; its history stays.';
comment on column billing.metrics.unique_by is 'For the aggregation unique: the property of an event whose distinct values are counted; null: the member.';

create table billing.prices (
    metric text collate "C" not null references billing.metrics,
    effective_at timestamptz not null,
    price jsonb not null,
    primary key (metric, effective_at)
);
comment on table billing.prices is 'Versions of the list price of a metric; the newest whose effective_at has come holds. The first holds since ever.';
comment on column billing.prices.metric is 'What is priced.';
comment on column billing.prices.effective_at is 'From when this version holds.';
comment on column billing.prices.price is '{"unit": "credit", "steps": [{"up_to": n, "credits": n, "per": n}, …]}, or JSON null: free.';

create table billing.org_prices (
    org_id uuid not null,
    metric text collate "C" not null,
    effective_at timestamptz not null,
    price jsonb,
    primary key (org_id, metric, effective_at)
);
create index org_prices_metric on billing.org_prices (metric);
comment on table billing.org_prices is 'Prices of single orgs, in versions like the list price; a null price returns to the list price.';
comment on column billing.org_prices.org_id is 'The billed customer.';
comment on column billing.org_prices.metric is 'What is priced.';
comment on column billing.org_prices.effective_at is 'From when this version holds.';
comment on column billing.org_prices.price is 'As in prices.';

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

create table billing.packs (
    pack text collate "C" primary key,
    terms jsonb not null,
    created_at timestamptz not null,
    retired_at timestamptz
);
comment on table billing.packs is 'Credit for sale, as the catalog document describes it.';
comment on column billing.packs.pack is 'Its name.';
comment on column billing.packs.terms is 'As in the document.';
comment on column billing.packs.created_at is 'When it came into the catalog.';
comment on column billing.packs.retired_at is 'When a document dropped it; null: it can be bought.';

create table billing.surcharges (
    currency text collate "C" primary key,
    terms jsonb not null
);
comment on table billing.surcharges is 'Tax and platform fee on the price of a pack, per currency.';
comment on column billing.surcharges.currency is 'ISO 4217.';
comment on column billing.surcharges.terms is 'As in the catalog document.';
