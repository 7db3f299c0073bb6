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

create table billing.prices (
    metric text collate "C" not null references billing.metrics,
    effective_at timestamptz not null,
    price jsonb not null,
    primary key (metric, effective_at)
);
comment on table billing.prices is 'Versions of the list price of a metric; the newest whose effective_at has come holds. The first holds since ever.';
comment on column billing.prices.price is '{"unit": "credit", "steps": [{"up_to": n, "credits": n, "per": n}, …]}, or JSON null: free.';

create table billing.org_prices (
    org_id uuid not null,
    metric text collate "C" not null,
    effective_at timestamptz not null,
    price jsonb,
    primary key (org_id, metric, effective_at)
);
comment on table billing.org_prices is 'Prices of single orgs, in versions like the list price; a null price returns to the list price.';

create table billing.settings (
    name text primary key,
    value jsonb not null
);
comment on table billing.settings is 'Settings of the installation, such as the membership relation.';

create table billing.access (
    role_name name primary key,
    level text not null check (level in ('member', 'service', 'auditor'))
);
comment on table billing.access is 'Which role was given which level by grant_access(); install() gives it to them again.';
