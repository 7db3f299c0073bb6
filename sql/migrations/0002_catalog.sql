-- What things cost. Small tables without tenants, but for the prices that single orgs negotiated.

create table billing.metrics (
    metric text collate "C" primary key check (octet_length(metric) between 1 and 63),
    unit text,
    aggregation text not null default 'sum' check (aggregation in ('sum', 'max', 'last', 'unique')),
    category text,
    tier text not null default 'core' check (tier in ('core', 'premium')),
    created_at timestamptz not null,
    retired_at timestamptz
);
comment on table billing.metrics is 'What is counted: one row per metric of the catalog.';
comment on column billing.metrics.unit is 'What one of the quantity is, for people: byte, token, request.';
comment on column billing.metrics.retired_at is 'When the catalog dropped the metric; its history stays.';
comment on column billing.metrics.metric is 'Its name.';
comment on column billing.metrics.aggregation is 'How quantities of a period combine: sum, max, last or unique.';
comment on column billing.metrics.category is 'AI, Storage, …: free text.';
comment on column billing.metrics.tier is 'core stays open when credits run out, premium does not.';
comment on column billing.metrics.created_at is 'When the catalog first had it.';

create table billing.prices (
    metric text collate "C" not null references billing.metrics,
    effective_at timestamptz not null,
    price jsonb not null,
    primary key (metric, effective_at)
);
comment on table billing.prices is 'Versions of the list price of a metric; the newest whose effective_at has come holds. The first holds since ever.';
comment on column billing.prices.price is '{"unit": "credit", "steps": [{"up_to": n, "credits": n, "per": n}, …]}, or JSON null: free.';
comment on column billing.prices.metric is 'What is priced.';
comment on column billing.prices.effective_at is 'From when this version holds.';

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

create table billing.settings (
    name text primary key,
    value jsonb not null
);
comment on table billing.settings is 'Settings of the installation, such as the membership relation.';
comment on column billing.settings.name is 'Its name.';
comment on column billing.settings.value is 'Its value.';

create table billing.access (
    role_name name primary key,
    level text not null check (level in ('member', 'service', 'auditor'))
);
comment on table billing.access is 'Which role was given which level by grant_access(); install() gives it to them again.';
comment on column billing.access.role_name is 'A role of the database cluster.';
comment on column billing.access.level is 'member, service or auditor.';
