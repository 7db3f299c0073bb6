-- Usage: events as evidence, their count until it is settled, what settlement decided, caps, and tables of the app that are metered.

create table billing.usage_events (
    org_id uuid not null,
    recorded_at timestamptz not null,
    occurred_at timestamptz not null,
    quantity bigint not null,
    member_id uuid,
    metric text collate "C" not null,
    event_id text collate "C",
    properties jsonb not null default '{}'
) partition by range (recorded_at);
create index usage_events_of_org on billing.usage_events (org_id, occurred_at);
comment on table billing.usage_events is 'Usage events as they were recorded, in a partition per month of arrival. Old partitions may be dropped: counts, totals and the ids of events stand elsewhere.';
comment on column billing.usage_events.org_id is 'The billed customer.';
comment on column billing.usage_events.recorded_at is 'When it came in, billing time.';
comment on column billing.usage_events.occurred_at is 'When the usage occurred: decides on the period.';
comment on column billing.usage_events.quantity is 'How much of the metric; for max and last, the level.';
comment on column billing.usage_events.member_id is 'Who in the org it was.';
comment on column billing.usage_events.metric is 'What was used.';
comment on column billing.usage_events.event_id is 'The caller''s name for it: an event counts once.';
comment on column billing.usage_events.properties is 'What the caller noted.';
create trigger usage_events_append_only before update or delete or truncate on billing.usage_events
    for each statement execute function billing_internal.refuse_event_change();

create table billing.usage_events_default partition of billing.usage_events default;
comment on table billing.usage_events_default is 'Events of months whose partition was not made in time: settlement makes them two months ahead.';
create trigger usage_events_append_only before update or delete or truncate on billing.usage_events_default
    for each statement execute function billing_internal.refuse_event_change();

-- Outlives the events, so that a repeat is known however late it comes.
create table billing_internal.usage_event_keys (
    org_id uuid not null,
    event_key uuid not null,
    primary key (org_id, event_key)
);
comment on table billing_internal.usage_event_keys is 'The ids of all events ever recorded.';
comment on column billing_internal.usage_event_keys.org_id is 'The billed customer.';
comment on column billing_internal.usage_event_keys.event_key is 'First 128 bits of the SHA-256 of the event_id.';
create trigger usage_event_keys_append_only before update or delete or truncate on billing_internal.usage_event_keys
    for each statement execute function billing_internal.refuse_event_change();

-- Writers take any row that nobody holds, or make one: they never wait. There are few rows, whatever the number of events.
create table billing_internal.unsettled_usage (
    org_id uuid not null,
    metric text collate "C" not null,
    period_start timestamptz not null,
    segment timestamptz not null,
    slot bigint not null,
    period_end timestamptz not null,
    quantity bigint not null,
    level bigint,
    level_at timestamptz,
    events bigint not null,
    primary key (org_id, metric, period_start, segment, slot)
) with (fillfactor = 50);
comment on table billing_internal.unsettled_usage is 'Usage that is recorded and not settled: counts per day, in as many rows as there were writers at once. Settlement moves them to period_usage and usage_days.';
comment on column billing_internal.unsettled_usage.org_id is 'The billed customer.';
comment on column billing_internal.unsettled_usage.metric is 'What was used.';
comment on column billing_internal.unsettled_usage.period_start is 'Start of the billing period in which it occurred.';
comment on column billing_internal.unsettled_usage.segment is 'Start of the stretch with one price: the latest of day, period and price version.';
comment on column billing_internal.unsettled_usage.slot is 'Arbitrary.';
comment on column billing_internal.unsettled_usage.period_end is 'End of the billing period.';
comment on column billing_internal.unsettled_usage.quantity is 'sum: the sum; unique: values not seen before in the period; max, last: the highest level.';
comment on column billing_internal.unsettled_usage.level is 'max, last: the newest level.';
comment on column billing_internal.unsettled_usage.level_at is 'When that was.';
comment on column billing_internal.unsettled_usage.events is 'Number of events.';

create table billing_internal.usage_uniques (
    org_id uuid not null,
    metric text collate "C" not null,
    period_start timestamptz not null,
    value_key uuid not null,
    primary key (org_id, metric, period_start, value_key)
);
comment on table billing_internal.usage_uniques is 'The distinct values that a metric with the aggregation unique has seen in a period.';
comment on column billing_internal.usage_uniques.org_id is 'The billed customer.';
comment on column billing_internal.usage_uniques.metric is 'What is counted.';
comment on column billing_internal.usage_uniques.period_start is 'Start of the billing period.';
comment on column billing_internal.usage_uniques.value_key is 'First 128 bits of the SHA-256 of the value.';

-- No CHECK: rows with one could be written by statements only, which costs ten times as much. The one place that writes them checks.
create table billing_internal.period_usage (
    org_id uuid not null,
    metric text collate "C" not null,
    period_start timestamptz not null,
    quantity bigint not null default 0,
    credits bigint not null default 0,
    overage bigint not null default 0,
    priced bigint not null default 0,
    price_id bigint not null default 0,
    level bigint,
    level_at timestamptz,
    carried boolean not null default false,
    period_end timestamptz not null,
    primary key (org_id, metric, period_start)
) with (fillfactor = 50);
create index period_usage_levels on billing_internal.period_usage (period_end) where level is not null and not carried;
comment on table billing_internal.period_usage is 'What was decided of a metric in a billing period: included or charged. What is recorded and not settled stands in unsettled_usage.';
comment on column billing_internal.period_usage.org_id is 'The billed customer.';
comment on column billing_internal.period_usage.metric is 'What was used.';
comment on column billing_internal.period_usage.period_start is 'Start of the billing period.';
comment on column billing_internal.period_usage.quantity is 'Consumed, and recorded and settled.';
comment on column billing_internal.period_usage.credits is 'Charged for it, also what is unpaid.';
comment on column billing_internal.period_usage.overage is 'Part of the quantity beyond the allowance.';
comment on column billing_internal.period_usage.priced is 'Value of what was charged so far, at the price price_id: the next charge is the value of the new overage less this.';
comment on column billing_internal.period_usage.price_id is 'Fingerprint of the price of the last charge.';
comment on column billing_internal.period_usage.level is 'max, last: the newest level that was settled.';
comment on column billing_internal.period_usage.level_at is 'When that was.';
comment on column billing_internal.period_usage.carried is 'The level went on into the next period.';
comment on column billing_internal.period_usage.period_end is 'End of the billing period.';

create table billing.unpaid_overage (
    org_id uuid not null,
    unit text collate "C" not null,
    metric text collate "C" not null,
    period_start timestamptz not null,
    credits bigint not null check (credits >= 0),
    primary key (org_id, unit, metric, period_start)
);
comment on table billing.unpaid_overage is 'Overage that settlement charged and the wallet could not pay yet; the next credit that comes in does.';
comment on column billing.unpaid_overage.org_id is 'The billed customer.';
comment on column billing.unpaid_overage.unit is 'Unit of the wallet that pays.';
comment on column billing.unpaid_overage.metric is 'What was used.';
comment on column billing.unpaid_overage.period_start is 'Start of the billing period in which it was used.';
comment on column billing.unpaid_overage.credits is 'What is owed.';

create table billing_internal.cap_usage (
    org_id uuid not null,
    cap text collate "C" not null,
    member_id uuid not null,
    period_start timestamptz not null,
    quantity bigint not null,
    primary key (org_id, cap, member_id, period_start)
) with (fillfactor = 50);
comment on table billing_internal.cap_usage is 'What consumptions and reservations used of a cap.';
comment on column billing_internal.cap_usage.org_id is 'The billed customer.';
comment on column billing_internal.cap_usage.cap is 'See caps.';
comment on column billing_internal.cap_usage.member_id is 'Whose usage, for caps per member; zeros: the org''s.';
comment on column billing_internal.cap_usage.period_start is 'Start of the day or month.';
comment on column billing_internal.cap_usage.quantity is 'Used or reserved.';

-- Tables of the app whose inserts are charged or recorded. The triggers do the work; these rows are for install(), which puts back the
-- triggers that went with DROP EXTENSION … CASCADE.
create table billing.metered_tables (
    table_schema text collate "C" not null,
    table_name text collate "C" not null,
    metric text collate "C" not null,
    org_column text collate "C" not null,
    quantity_column text collate "C",
    member_column text collate "C",
    key_column text collate "C",
    mode text collate "C" not null check (mode in ('charge', 'record')),
    created_at timestamptz not null,
    owner text collate "C" not null,
    relation oid,
    place text collate "C",
    primary key (table_schema, table_name, metric)
);
comment on table billing.metered_tables is 'Tables of the app with a metric on their inserts, as meter_table() was told.';
comment on column billing.metered_tables.table_schema is 'Schema of the table.';
comment on column billing.metered_tables.table_name is 'Its name.';
comment on column billing.metered_tables.metric is 'What a row uses.';
comment on column billing.metered_tables.org_column is 'Column with the billed customer.';
comment on column billing.metered_tables.quantity_column is 'Column with how much a row uses; null: 1.';
comment on column billing.metered_tables.member_column is 'Column with who in the org it was; null: nobody in particular.';
comment on column billing.metered_tables.key_column is 'Column that tells rows apart: a value counts once; null: every row counts.';
comment on column billing.metered_tables.mode is 'charge: in the same transaction, or the insert is refused; record: for settlement.';
comment on column billing.metered_tables.created_at is 'When it was metered first.';
comment on column billing.metered_tables.owner is 'The role that owned the table when it was metered.';
comment on column billing.metered_tables.relation is 'The table itself, whatever it is called by now.';
comment on column billing.metered_tables.place is 'The database cluster and database in which relation means something.';
