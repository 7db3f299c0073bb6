-- Reports: totals per day and month, and how far the entries of the ledger are counted in them.

create table billing_internal.usage_days (
    org_id uuid not null,
    metric text collate "C" not null,
    day date not null,
    consumed bigint not null default 0,
    recorded bigint not null default 0,
    credits bigint not null default 0,
    level_at timestamptz,
    primary key (org_id, metric, day)
) with (fillfactor = 80);
comment on table billing_internal.usage_days is 'Usage per day (UTC), as far as it is folded: read it through usage_by_day, which adds the rest.';
comment on column billing_internal.usage_days.org_id is 'The billed customer.';
comment on column billing_internal.usage_days.metric is 'What was used.';
comment on column billing_internal.usage_days.day is 'When.';
comment on column billing_internal.usage_days.consumed is 'Quantity that consumptions charged at once.';
comment on column billing_internal.usage_days.recorded is 'Quantity of settled events, by the metric''s aggregation.';
comment on column billing_internal.usage_days.credits is 'Charged for the usage of the day; for recorded usage, once it is settled.';
comment on column billing_internal.usage_days.level_at is 'last: when the level of the day was reported.';

create table billing_internal.credit_months (
    org_id uuid not null,
    unit text collate "C" not null,
    month date not null,
    kind text collate "C" not null,
    metric text collate "C" not null,
    credits bigint not null,
    primary key (org_id, unit, month, kind, metric)
) with (fillfactor = 80);
comment on table billing_internal.credit_months is 'Movements of credit per calendar month (UTC), as far as they are folded: read them through credit_history.';
comment on column billing_internal.credit_months.org_id is 'The billed customer.';
comment on column billing_internal.credit_months.unit is 'Unit of the wallet.';
comment on column billing_internal.credit_months.month is 'First day of the month.';
comment on column billing_internal.credit_months.kind is 'As in entries.';
comment on column billing_internal.credit_months.metric is 'As in entries; empty for none.';
comment on column billing_internal.credit_months.credits is 'Sum of the amounts, signed.';

create table billing_internal.fold_positions (
    org_id uuid not null,
    slot smallint not null,
    entry_id bigint not null,
    primary key (org_id, slot)
) with (fillfactor = 50);
comment on table billing_internal.fold_positions is 'How far the entries of each lane are folded into usage_days and credit_months.';
comment on column billing_internal.fold_positions.org_id is 'The billed customer.';
comment on column billing_internal.fold_positions.slot is 'The lane, see lanes.slot.';
comment on column billing_internal.fold_positions.entry_id is 'The last entry that is folded.';
