-- The ledger without what follows from the rest of a row, or is nearly always the same: three quarters of the bytes for the common
-- consumption. `entries` becomes a view over it that shows every column as before.

-- Whoever charges waits, and finds the new table; in the order in which a charge takes them.
lock table billing.lanes, billing.entries in access exclusive mode;

-- What others attached to the table would go with it, or guard nothing any more.
do $$
declare
    attached text[] := array(
        select 'policy ' || polname from pg_catalog.pg_policy where polrelid = 'billing.entries'::regclass and polname <> 'own_orgs'
        union all
        select 'trigger ' || tgname from pg_catalog.pg_trigger
         where tgrelid = 'billing.entries'::regclass and not tgisinternal and tgname <> 'entries_append_only'
        union all
        select 'publication ' || p.pubname from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
         where r.prrelid = 'billing.entries'::regclass
        union all
        select 'column ' || attname from pg_catalog.pg_attribute
         where attrelid = 'billing.entries'::regclass and attnum > 23 and not attisdropped
        union all
        select 'index ' || indexrelid::regclass from pg_catalog.pg_index
         where indrelid = 'billing.entries'::regclass and indexrelid::regclass::text !~ '(^|[.])entries_(pkey|request)$'
        order by 1);
begin
    if attached <> '{}' then
        raise exception using errcode = '2BP01', message = 'the ledger moves to billing.ledger: what was attached to billing.entries must go first',
            detail = pg_catalog.jsonb_build_object('code', 'attached_to_entries', 'attached', attached)::text,
            hint = 'Note what each of them does, drop them, run billing.install() again, and create them on billing.ledger.';
    end if;
end $$;

create table billing.ledger (
    org_id uuid not null,
    entry_id bigint not null,
    amount bigint not null,
    balance_after bigint not null,
    created_at timestamptz not null,
    grant_id bigint,
    quantity bigint,
    request_id bigint,
    key_uuid uuid,
    member_id uuid,
    operation_id bigint,
    request_hash bigint,
    unit text collate "C",
    kind text collate "C",
    metric text collate "C",
    source text collate "C",
    source_id text collate "C",
    key_text text collate "C",
    reason text,
    actor text,
    metadata jsonb,
    result text,
    entry_hash bytea not null,
    primary key (org_id, entry_id) with (fillfactor = 100)
);
comment on table billing.ledger is 'The ledger as stored: one immutable row per movement of credit, chained by hash within its lane. Read it through the view entries. What is usual is left out: null says so.';
comment on column billing.ledger.org_id is 'The billed customer.';
comment on column billing.ledger.entry_id is 'Number in the chain of its lane.';
comment on column billing.ledger.amount is 'Signed, as the balance sees it.';
comment on column billing.ledger.balance_after is 'Balance of the lane after the entry.';
comment on column billing.ledger.created_at is 'Billing time of the call.';
comment on column billing.ledger.grant_id is 'The grant that was credited or burned; null for usage that cost nothing.';
comment on column billing.ledger.quantity is 'Quantity of the metric; of usage, null for 1 and 0 for none.';
comment on column billing.ledger.request_id is 'First 64 bits of the SHA-256 of the idempotency key: what makes it unique, in a narrow index whatever keys an application uses. Two keys of an org that share them by chance count as a conflict: the later call is refused, and may be made with another key.';
comment on column billing.ledger.key_uuid is 'Key of the call, on its first entry, where the key is a UUID as the server writes it.';
comment on column billing.ledger.key_text is 'Key of the call, on its first entry, where it is anything else.';
comment on column billing.ledger.member_id is 'Who in the org it was for.';
comment on column billing.ledger.operation_id is 'The call that wrote the entry: the entry_id of its first entry; null on the first entry.';
comment on column billing.ledger.request_hash is 'Fingerprint of the request, where it came with an idempotency key and the columns do not tell all of it.';
comment on column billing.ledger.unit is 'Unit of the wallet; null for credit.';
comment on column billing.ledger.kind is 'As in entries; null for usage.';
comment on column billing.ledger.metric is 'What was used.';
comment on column billing.ledger.source is 'What the movement stems from: the source of a grant; hold, operation, transfer or lane with its id in source_id.';
comment on column billing.ledger.source_id is 'Id of the source.';
comment on column billing.ledger.reason is 'Why, on corrections.';
comment on column billing.ledger.actor is 'Who asked for it, on corrections: the JWT subject, else the database role.';
comment on column billing.ledger.metadata is 'What the caller noted; null for nothing.';
comment on column billing.ledger.result is 'What the call answered, where its entries alone do not tell; given again to a repeated call.';
comment on column billing.ledger.entry_hash is 'SHA-256 over the previous hash of the lane and every column of the view entries (docs/DESIGN.md, The chain).';

insert into billing.ledger (org_id, entry_id, amount, balance_after, created_at, grant_id, quantity, request_id, key_uuid, member_id,
                            operation_id, request_hash, unit, kind, metric, source, source_id, key_text, reason, actor, metadata,
                            result, entry_hash)
select org_id, entry_id, amount, balance_after, created_at, grant_id,
       case when kind = 'usage' then nullif(coalesce(quantity, 0), 1) else quantity end, request_id, case when is_uuid then idempotency_key::uuid end,
       member_id, nullif(operation_id, entry_id), request_hash, nullif(unit, 'credit'), nullif(kind, 'usage'), metric, source, source_id,
       case when not is_uuid then idempotency_key end, reason, actor, nullif(metadata, '{}'), result, entry_hash
  from billing.entries,
       lateral (select idempotency_key ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' as is_uuid) key
 order by org_id, entry_id;
create unique index ledger_request on billing.ledger (org_id, request_id);

-- Views of the extension come back with install(); those of others stop this here, before anything has changed.
do $$
begin
    if pg_catalog.to_regclass('billing.operations') is not null then
        drop view billing.usage_by_month, billing.usage_by_day, billing.operations;
    end if;
end $$;
drop table billing.entries;

create trigger ledger_append_only before update or delete or truncate on billing.ledger
    for each statement execute function billing.refuse_change();
