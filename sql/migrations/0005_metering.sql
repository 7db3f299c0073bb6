-- Tables of the app whose inserts are charged or recorded. The triggers do the work; these rows are for install(), which puts
-- back the triggers that went with DROP EXTENSION … CASCADE. By name, because an oid means nothing in a restored dump.

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
    primary key (table_schema, table_name, metric)
);
comment on table billing.metered_tables is 'Tables of the app with a metric on their inserts, as meter_table() was told. By name: after a rename, call meter_table() again.';
comment on column billing.metered_tables.table_schema is 'Schema of the table.';
comment on column billing.metered_tables.table_name is 'Its name.';
comment on column billing.metered_tables.metric is 'What a row uses.';
comment on column billing.metered_tables.org_column is 'Column with the billed customer.';
comment on column billing.metered_tables.quantity_column is 'Column with how much a row uses; null: 1.';
comment on column billing.metered_tables.member_column is 'Column with who in the org it was; null: nobody in particular.';
comment on column billing.metered_tables.key_column is 'Column that tells rows apart: a value counts once; null: every row counts.';
comment on column billing.metered_tables.mode is 'charge: in the same transaction, or the insert is refused; record: for settlement.';
comment on column billing.metered_tables.created_at is 'When it was metered first.';
