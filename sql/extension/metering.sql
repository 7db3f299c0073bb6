-- Charging without code: a trigger on a table of the app that consumes, or records, what its rows use. One per table and
-- metric; billing.metered_tables remembers them for install().

-- The trigger's name: within 63 bytes, and another one for each metric.
create function billing_internal.meter_trigger(metric text) returns name
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select (case when octet_length(metric) <= 52 then 'pg_billing_' || metric
                 else 'pg_billing_' || left(encode(sha256(convert_to(metric, 'UTF8')), 'hex'), 16) || '_' || metric end)::name
$$;

-- The first of the columns that is not as it must be; null: all are. Asked at every insert, too: who owns the table may give a
-- column another type at any time, and the casts of that type would run with the rights of the trigger's function.
create function billing_internal.meter_fault(relation regclass, org_column name, quantity_column name, member_column name, key_column name) returns jsonb
    language plpgsql stable
    set search_path = pg_catalog, pg_temp as $$
begin
    return (
        select jsonb_build_object('argument', w.argument, 'column', w.named, 'fault', 'must name a column of type ' || w.wanted)
          from (values ('org_column', org_column, '{uuid}'::regtype[], 'uuid'),
                       ('quantity_column', quantity_column, '{int2,int4,int8,numeric}', 'smallint, integer, bigint or numeric'),
                       ('member_column', member_column, '{uuid}', 'uuid'),
                       ('key_column', key_column, '{text,varchar,uuid,int2,int4,int8}', 'text, varchar, uuid, smallint, integer or bigint'))
                   as w (argument, named, types, wanted)
         where w.named is not null
           and not exists (
               -- A virtual column stands in no transition table. A domain is as good as what it is over: casts from a domain run no function of its owner's.
               with recursive type_of (type) as (
                   select a.atttypid from pg_attribute a
                    where a.attrelid = relation and a.attname = w.named and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v'
                   union all
                   select t.typbasetype from type_of o join pg_type t on t.oid = o.type where t.typtype = 'd')
               select from type_of o where o.type = any (w.types))
         limit 1);
end $$;

-- Puts the trigger on the table, or another in its place.
create function billing_internal.attach_meter(relation regclass, metric text, org_column name, quantity_column name, member_column name,
                                     key_column name, mode text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
begin
    -- A trigger's arguments cannot be null.
    execute format('create or replace trigger %I after insert on %s referencing new table as inserted for each statement
                        execute function billing_internal.metered_insert(%L, %L, %L, %L, %L, %L)',
                   billing_internal.meter_trigger(metric), relation, metric, mode, org_column,
                   coalesce(quantity_column, ''), coalesce(member_column, ''), coalesce(key_column, ''));
    -- By name: who renames tables at this very moment does not get the trigger onto another one.
    if not exists (select from pg_trigger t where t.tgrelid = relation and t.tgname = billing_internal.meter_trigger(metric)) then
        raise exception using errcode = '40001', message = 'could not serialize access, try again', detail = '{"code": "contended"}';
    end if;
end $$;

-- Brings the names of metered tables up to date with the tables themselves: a name may be another's by now.
create function billing_internal.follow_metered_tables() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    here constant text := billing_internal.place();
    renamed billing.metered_tables[];
begin
    select array_agg(m) into renamed from billing.metered_tables m
      join pg_class c on c.oid = m.relation join pg_namespace n on n.oid = c.relnamespace
     where m.place = here and (n.nspname, c.relname) is distinct from (m.table_schema, m.table_name);
    if renamed is null then
        return;
    end if;
    delete from billing.metered_tables m using unnest(renamed) r
     where m.table_schema = r.table_schema and m.table_name = r.table_name and m.metric = r.metric;
    insert into billing.metered_tables
    select n.nspname, c.relname, r.metric, r.org_column, r.quantity_column, r.member_column, r.key_column, r.mode, r.created_at, r.owner, r.relation, r.place
      from unnest(renamed) r join pg_class c on c.oid = r.relation join pg_namespace n on n.oid = c.relnamespace
    on conflict (table_schema, table_name, metric) do update
       set org_column = excluded.org_column, quantity_column = excluded.quantity_column, member_column = excluded.member_column, key_column = excluded.key_column,
           mode = excluded.mode, owner = excluded.owner, relation = excluded.relation, place = excluded.place;
end $$;

create function billing.meter_table(relation regclass, metric text, org_column name, quantity_column name default null,
                                    member_column name default null, key_column name default null, mode text default 'charge') returns void
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
create function billing_internal.meter_table(relation regclass, metric text, org_column name, quantity_column name,
                                    member_column name, key_column name, mode text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    caller constant name := billing_internal.caller();
    missing constant text := case when relation is null then 'relation' when metric is null then 'metric'
                                  when org_column is null then 'org_column' when mode is null then 'mode' end;
    metered record;
    fault jsonb;
begin
    if missing is not null then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = jsonb_build_object('code', 'invalid_argument', 'argument', missing, 'fault', 'must not be null')::text;
    end if;
    if to_regclass('billing.metered_tables') is null then
        raise exception using errcode = '55000', message = 'the tables of pg_billing do not fit its library',
            detail = '{"code": "not_installed"}', hint = 'Run: select billing.install();';
    end if;
    select n.nspname, c.relname, c.relowner into metered
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.oid = relation and c.relkind in ('r', 'p') and c.relpersistence <> 't'
       and n.nspname <> all ('{billing,billing_internal,pg_catalog,information_schema}');
    if not found then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = jsonb_build_object('code', 'invalid_argument', 'argument', 'relation', 'fault',
                'must be an ordinary or partitioned table of the application')::text;
    end if;
    if not pg_has_role(caller, metered.relowner, 'MEMBER') then
        raise exception using errcode = '42501', message = 'must be owner of the table',
            detail = jsonb_build_object('code', 'not_owner', 'table', format('%I.%I', metered.nspname, metered.relname), 'role', caller)::text,
            hint = 'Call it as a member of the role that owns the table.';
    end if;
    if mode not in ('charge', 'record') then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "mode", "fault": "must be charge or record"}';
    end if;
    if not exists (select from billing.metrics m where m.metric = meter_table.metric and m.retired_at is null) then
        raise exception using errcode = 'PT404', message = 'unknown metric',
            detail = jsonb_build_object('code', 'unknown_metric', 'metric', left(meter_table.metric, 64))::text;
    end if;
    fault := billing_internal.meter_fault(relation, org_column, quantity_column, member_column, key_column);
    if fault is not null then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = ('{"code": "invalid_argument"}'::jsonb || fault)::text;
    end if;
    perform billing_internal.follow_metered_tables();
    perform billing_internal.attach_meter(relation, metric, org_column, quantity_column, member_column, key_column, mode);
    insert into billing.metered_tables
    values (metered.nspname, metered.relname, meter_table.metric, meter_table.org_column, meter_table.quantity_column,
            meter_table.member_column, meter_table.key_column, meter_table.mode, billing.clock(), metered.relowner::regrole::text, relation,
            billing_internal.place())
    on conflict (table_schema, table_name, metric) do update
       set owner = excluded.owner, relation = excluded.relation, place = excluded.place, org_column = excluded.org_column, quantity_column = excluded.quantity_column, member_column = excluded.member_column,
           key_column = excluded.key_column, mode = excluded.mode;
end $$;

create function billing.unmeter_table(relation regclass, metric text) returns boolean
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
create function billing_internal.unmeter_table(relation regclass, metric text) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    caller constant name := billing_internal.caller();
    missing constant text := case when relation is null then 'relation' when metric is null then 'metric' end;
    metered record;
    known boolean;
begin
    if missing is not null then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = jsonb_build_object('code', 'invalid_argument', 'argument', missing, 'fault', 'must not be null')::text;
    end if;
    if to_regclass('billing.metered_tables') is null then
        raise exception using errcode = '55000', message = 'the tables of pg_billing do not fit its library',
            detail = '{"code": "not_installed"}', hint = 'Run: select billing.install();';
    end if;
    select n.nspname, c.relname, c.relowner into metered
      from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation;
    if not found then
        return false;
    end if;
    if not pg_has_role(caller, metered.relowner, 'MEMBER') then
        raise exception using errcode = '42501', message = 'must be owner of the table',
            detail = jsonb_build_object('code', 'not_owner', 'table', format('%I.%I', metered.nspname, metered.relname), 'role', caller)::text,
            hint = 'Call it as a member of the role that owns the table.';
    end if;
    perform billing_internal.follow_metered_tables();
    delete from billing.metered_tables m
     where (m.table_schema = metered.nspname and m.table_name = metered.relname or m.relation = unmeter_table.relation and m.place = billing_internal.place())
       and m.metric = unmeter_table.metric;
    known := found;
    if exists (select from pg_trigger t where t.tgrelid = relation and t.tgname = billing_internal.meter_trigger(unmeter_table.metric)
                                          and t.tgfoid = 'billing_internal.metered_insert()'::regprocedure) then
        known := true;
        execute format('drop trigger %I on %s', billing_internal.meter_trigger(unmeter_table.metric), relation);
        -- As in attach_meter.
        if exists (select from pg_trigger t where t.tgrelid = relation and t.tgname = billing_internal.meter_trigger(unmeter_table.metric)) then
            raise exception using errcode = '40001', message = 'could not serialize access, try again', detail = '{"code": "contended"}';
        end if;
    end if;
    return known;
end $$;

-- The trigger. Arguments: metric, mode, and the columns for org, quantity, member and key, empty where there is none.
create function billing_internal.metered_insert() returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp as $$
declare
    metric constant text := tg_argv[0];
    mode constant text := tg_argv[1];
    org_column constant name := tg_argv[2];
    quantity_column constant name := nullif(tg_argv[3], '');
    member_column constant name := nullif(tg_argv[4], '');
    key_column constant name := nullif(tg_argv[5], '');
    -- What is called here is called with all of its arguments, of their very types: so nothing fits better that stands beside it.
    fault jsonb;
    -- Names are quoted where they need it, so that no metric and key read as another metric with another key.
    key_prefix constant text := format('meter:%I.%I:%I:', tg_table_schema, tg_table_name, metric);
    given text;
    few bigint;
    org uuid;
    quantity numeric;
    member uuid;
    key text;
    -- Counts of a statement add up; the levels of a gauge and the values to be told apart do not, and a level may be 0.
    aggregation text := 'sum';
    argument text;
    items jsonb;
    refused record;
    code text;
begin
    perform billing_internal.require_sound();
    fault := billing_internal.meter_fault(tg_relid::regclass, org_column, quantity_column, member_column, key_column);
    -- What is attached otherwise than attach_meter does it would read another "inserted" than the rows of the statement.
    if not exists (select from pg_trigger t
                    where t.tgrelid = tg_relid and t.tgname = tg_name and t.tgfoid = 'billing_internal.metered_insert()'::regprocedure
                      and t.tgtype = 4 and t.tgnewtable = 'inserted' and t.tgoldtable is null and t.tgqual is null and t.tgnargs = 6
                      and t.tgname = billing_internal.meter_trigger(tg_argv[0])) then
        raise exception using errcode = '55000', message = 'the table is not metered',
            detail = jsonb_build_object('code', 'not_metered', 'table', format('%I.%I', tg_table_schema, tg_table_name), 'metric', metric, 'trigger', tg_name)::text,
            hint = 'Drop the trigger, and call billing.meter_table.';
    end if;
    -- Who may attach a trigger to a table of its own has not been told by that to charge whom it likes.
    if not exists (select from billing.metered_tables m
                    where m.metric = tg_argv[0]
                      and (m.relation = tg_relid and m.place = billing_internal.place()
                           or m.table_schema = tg_table_schema and m.table_name = tg_table_name
                              and m.owner = (select c.relowner::regrole::text from pg_class c where c.oid = tg_relid))) then
        raise exception using errcode = '55000', message = 'the table is not metered',
            detail = jsonb_build_object('code', 'not_metered', 'table', format('%I.%I', tg_table_schema, tg_table_name), 'metric', metric)::text,
            hint = 'Call billing.meter_table, or drop the trigger.';
    end if;
    if fault is not null then
        raise exception using errcode = '55000', message = 'the metered table has changed',
            detail = (jsonb_build_object('code', 'meter_outdated', 'table', format('%I.%I', tg_table_schema, tg_table_name), 'metric', metric) || fault)::text,
            hint = 'Call billing.meter_table with the columns as they are now, or billing.unmeter_table.';
    end if;
    given := format('select %s as org_id, %s as quantity, %s as member_id, %s as key from inserted',
        format('%I::uuid', org_column),
        case when quantity_column is null then '1::numeric' else format('%I::numeric', quantity_column) end,
        case when member_column is null then 'null::uuid' else format('%I::uuid', member_column) end,
        case when key_column is null then 'null::text'
             else format($key$case when octet_length(%1$L || %2$I::text) <= 255 then %1$L || %2$I::text
                                   else 'meter:' || encode(sha256(convert_to(%1$L || %2$I::text, 'UTF8')), 'hex') end$key$, key_prefix, key_column) end);

    -- Mostly it is one row: that goes without a batch, unless there is something about it.
    execute format('select g.*, (select count(*) from (select from inserted limit 2) as few) from (%s) as g limit 1', given)
       into org, quantity, member, key, few;
    if few is null then
        return null;
    end if;
    if few = 1 and org is not null and quantity between 1 and 9223372036854775807 and quantity = trunc(quantity)
       and (key_column is null or key is not null) then
        if mode = 'record' then
            perform billing.record_usage(org, metric, quantity::bigint, key, null::timestamptz, member, '{}'::jsonb);
        else
            perform billing.consume_credits(org, metric, quantity::bigint, key, member, '{}'::jsonb);
        end if;
        return null;
    end if;

    if mode = 'record' then
        select m.aggregation into aggregation from billing.metrics m where m.metric = tg_argv[0];
    end if;
    -- One statement checks the rows, makes items of them and puts up to 10,000 of them into each array, by org as locks want it.
    for argument, items in execute format($query$
            select min(i.argument), jsonb_agg(i.item order by i.place) filter (where i.quantity > 0 or $4)
              from (select case when g.org_id is null then 'org_column'
                                when $3 and g.key is null then 'key_column'
                                when not bool_and(coalesce(g.quantity between 0 and $5 and g.quantity = trunc(g.quantity), false))
                                     or sum(g.quantity) > $5 then 'quantity_column' end as argument,
                           sum(g.quantity) as quantity,
                           row_number() over (order by g.org_id, g.n, g.member_id) - 1 as place,
                           jsonb_strip_nulls(jsonb_build_object('org_id', g.org_id, 'metric', $1, 'quantity', trunc(sum(g.quantity)),
                                                                'member_id', g.member_id, $2, g.key)) as item
                      from (select *, %s as n from (%s) as r) as g
                     group by g.org_id, g.member_id, g.key, g.n) as i
             group by i.place / 10000
             order by i.place / 10000$query$,
            case when key_column is null and aggregation = 'sum' then '0' else 'row_number() over ()' end, given)
        using metric, case mode when 'charge' then 'idempotency_key' else 'event_id' end, key_column is not null,
              aggregation in ('max', 'last'), 9223372036854775807
    loop
        if argument is not null then
            raise exception using errcode = '22023', message = 'invalid argument',
                detail = jsonb_build_object('code', 'invalid_argument', 'argument', argument,
                    'column', case argument when 'org_column' then org_column when 'key_column' then key_column else quantity_column end,
                    'fault', case argument when 'quantity_column' then 'must be whole numbers from 0 on' else 'must not be null' end,
                    'table', format('%I.%I', tg_table_schema, tg_table_name), 'metric', metric)::text;
        end if;
        continue when items is null;
        if mode = 'record' then
            perform billing.record_usage_batch(items);
            continue;
        end if;
        select b.item, b.status, b.detail into refused
          from billing.consume_credits_batch(items) b
         where b.status not in ('ok', 'replayed') order by b.item limit 1;
        if found then
            code := coalesce(refused.detail ->> 'code', refused.status);
            raise exception using
                errcode = case when refused.status = 'insufficient_credits' then 'PT402'
                               when refused.status = 'cap_exceeded' then 'PT429'
                               when code like 'unknown\_%' then 'PT404'
                               when code = 'idempotency_conflict' then 'PT409'
                               else '22023' end,
                message = case code when 'idempotency_conflict' then 'idempotency key was used for another request'
                                    when 'invalid_argument' then 'invalid argument'
                                    else replace(code, '_', ' ') end,
                detail = (jsonb_build_object('code', code, 'org_id', items -> (refused.item - 1) -> 'org_id', 'metric', metric)
                          || coalesce(refused.detail, '{}'))::text;
        end if;
    end loop;
    return null;
end $$;

comment on function billing.meter_table is
'Lets every insert into a table of the app use a metric: each row uses quantity_column of it (1 without one; 0: nothing) for the org in org_column (uuid) and the member in member_column (uuid). mode charge: consumed in the transaction of the insert, or the insert is refused with the error of consume_credits; record: as record_usage does. Without key_column the rows of a statement add up to one consumption or event per org and member; with it (text, uuid or integer) each row is one of its own, and a value counts once per org. Calling it again replaces the columns and the mode. Who inserts needs no right on billing. INSERT, COPY, MERGE and inserts through a partitioned table count; rows put straight into a partition are the partition''s, which can be metered itself. Only for members of the role that owns the table. Errors: 22023, 42501 not_owner, PT404 unknown_metric.';
comment on function billing.unmeter_table is
'Takes the metric off the inserts of a table; false: it was not on. Only for members of the role that owns the table. Errors: 22023, 42501 not_owner.';
comment on function billing_internal.metered_insert is
'The trigger that meter_table() attaches. Errors, at the insert: PT402 insufficient_credits, PT404 unknown_org or unknown_metric, PT409 idempotency_conflict, PT429 cap_exceeded, 22023 (null org or key; a quantity that is null, negative or no whole number), 55000 meter_outdated (the columns were renamed, dropped or given another type).';
comment on function billing_internal.attach_meter is
'Puts the trigger on a table, for meter_table() and install().';
comment on function billing_internal.meter_fault is
'What is wrong with the columns of a metered table; null: nothing.';
comment on function billing_internal.meter_trigger is
'Name of the trigger of a metric.';
