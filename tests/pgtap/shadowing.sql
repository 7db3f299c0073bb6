-- Shadowing: a service role puts a schema first in its search_path in which everything has our names or those of
-- pg_catalog, and makes temporary tables with the names of our tables. The calls still use the real ones, and nothing
-- of the hostile things runs: each of them raises, or is empty and stays so.
\ir preamble.psql
\set corp 00000000-0000-4000-8000-000000000003

create role tap_service;
create role tap_member;
select count(billing.grant_access('tap_service', 'service')), count(billing.grant_access('tap_member', 'member')) from generate_series(1, 1) \gset
create schema tap_app authorization tap_service;

-- What the hostile functions do.
create schema evil;
create table evil.trap (what text);
create function evil.sprung(what text) returns boolean language plpgsql as $$ begin raise exception 'sprung: %', what using errcode = 'EVIL0'; end $$;

-- Every function of ours, and look-alikes of those in pg_catalog that such an engine uses.
create temp table hostile_function as
    select p.oid, p.proname, pg_get_function_identity_arguments(p.oid) as arguments, format_type(p.prorettype, null) as result
    from pg_proc p
    where p.prokind = 'f' and (p.pronamespace = any ('{billing,billing_internal}'::regnamespace[])
       or p.pronamespace = 'pg_catalog'::regnamespace and p.proname in ('now', 'clock_timestamp', 'transaction_timestamp', 'statement_timestamp', 'current_setting', 'set_config', 'sha256',
              'digest', 'gen_random_uuid', 'lower', 'upper', 'length', 'octet_length', 'concat_ws', 'format', 'date_trunc', 'timezone', 'extract', 'date_part', 'greatest',
              'jsonb_typeof', 'jsonb_build_object', 'jsonb_build_array', 'jsonb_array_elements', 'jsonb_each', 'jsonb_object_keys', 'to_jsonb', 'to_json', 'unnest', 'generate_series',
              'array_append', 'array_length', 'cardinality', 'array_position', 'string_agg', 'pg_has_role', 'has_table_privilege', 'pg_notify', 'txid_current', 'encode', 'decode', 'convert_to', 'int8send', 'uuid_send', 'textsend', 'mod', 'abs', 'ceil', 'div', 'least',
              'to_char', 'make_interval', 'to_regclass', 'to_regprocedure', 'pg_backend_pid', 'uuid_hash_extended', 'left', 'right', 'has_function_privilege'))
      and not exists (select from unnest(p.proargtypes) t (type) join pg_type y on y.oid = t.type where y.typtype = 'p')
      and p.prorettype <> all (array['trigger', 'event_trigger', 'internal']::regtype[]);
do $$
declare f record;
begin
    for f in select * from hostile_function loop
        begin
            execute format('create function evil.%I(%s) returns %s language plpgsql as %L', f.proname,
                           (select coalesce(string_agg(format_type(t, null), ', ' order by n), '') from pg_proc p, unnest(p.proargtypes) with ordinality a (t, n) where p.oid = f.oid), f.result,
                           format('begin raise exception %L using errcode = %L; end', 'sprung: ' || f.proname, 'EVIL0'));
        exception when duplicate_function then null;
        end;
    end loop;
end $$;
-- Operators, for the types of our keys and amounts.
do $$
declare type text; operator text;
begin
    foreach type in array array['uuid', 'text', 'bigint', 'integer', 'timestamp with time zone', 'jsonb', 'bytea', 'boolean', 'name'] loop
        execute format('create function evil.compare(%1$s, %1$s) returns boolean language sql as $f$ select evil.sprung(%2$L) $f$', type, 'operator on ' || type);
        foreach operator in array array['=', '<>', '<', '<=', '>', '>='] loop
            execute format('create operator evil.%s (leftarg = %s, rightarg = %2$s, function = evil.compare)', operator, type);
        end loop;
    end loop;
    foreach type in array array['bigint', 'integer', 'timestamp with time zone', 'bytea', 'text', 'jsonb'] loop
        execute format('create function evil.combine(%1$s, %1$s) returns %1$s language plpgsql as $f$ begin perform evil.sprung(%2$L); return $1; end $f$', type, 'operator on ' || type);
        foreach operator in array array['+', '-', '*', '/', '||'] loop
            execute format('create operator evil.%s (leftarg = %s, rightarg = %2$s, function = evil.combine)', operator, type);
        end loop;
    end loop;
end $$;
-- Tables: every one of ours, empty, in the hostile schema and as a temporary table. Writable for all, so that a write would succeed.
do $$
declare relation text; original regclass;
begin
    -- grants is a view in one schema and a table in the other.
    for relation, original in select distinct on (relname) relname, oid::regclass from pg_class
                               where relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and relkind in ('r', 'p', 'v') order by relname, relkind loop
        execute format('create table evil.%I as select * from %s with no data', relation, original);
        execute format('create temp table %I as select * from %s with no data', relation, original);
        execute format('grant all on evil.%I, pg_temp.%1$I to public', relation);
    end loop;
    -- Of the catalog, too.
    foreach relation in array array['pg_class', 'pg_proc', 'pg_roles', 'pg_extension', 'pg_namespace', 'pg_settings', 'pg_authid', 'pg_auth_members', 'pg_depend', 'pg_locks'] loop
        execute format('create table evil.%I as select * from pg_catalog.%1$I with no data', relation);
        execute format('create temp table %I as select * from pg_catalog.%1$I with no data', relation);
        execute format('grant all on evil.%I, pg_temp.%1$I to public', relation);
    end loop;
end $$;
-- Types: domains with the names of built-in types, which accept nothing.
create domain evil.uuid as pg_catalog.uuid check (evil.sprung('domain uuid'));
create domain evil.text as pg_catalog.text check (evil.sprung('domain text'));
create domain evil.jsonb as pg_catalog.jsonb check (evil.sprung('domain jsonb'));
create domain evil.timestamptz as pg_catalog.timestamptz check (evil.sprung('domain timestamptz'));
create domain evil.int8 as pg_catalog.int8 check (evil.sprung('domain int8'));
create domain evil.bytea as pg_catalog.bytea check (evil.sprung('domain bytea'));
grant usage on schema evil to public;
grant execute on all functions in schema evil to public;

-- The trap is set: with this path, plain SQL does spring it, in the session of the service.
set local role tap_service;
set local search_path = evil, pg_temp, pg_catalog, billing, public;
savepoint sprung;
\set ON_ERROR_STOP off
\set VERBOSITY sqlstate
select 1::pg_catalog.int8 = 1::pg_catalog.int8;
\set comparison :LAST_ERROR_SQLSTATE
rollback to sprung;
select now();
\set function :LAST_ERROR_SQLSTATE
rollback to sprung;
select count(*) as shadowed from lanes \gset
\set VERBOSITY default
\set ON_ERROR_STOP on

-- Each call of the interface, the way an application would make it.
reset role;
select count(*) from billing.apply_catalog('{"metrics": {"call": {"price": 2}, "third": {"price": {"steps": [{"credits": 1, "per": 3}]}}, "pack": {"price": 2}, "user": {"aggregation": "unique"}, "level": {"aggregation": "max"}},
    "plans": {"solo": {"credits": {"amount": 50}, "allowances": {"pack": 5}}, "team": {"credits": {"amount": 80}}}, "caps": [{"metric": "pack", "per": "day", "limit": 1000}]}') \gset catalog_
set local role tap_service;
select owner_type from billing.create_wallet(:'bolt') \gset wallet_
select grant_id, balance_after from billing.grant_credits(:'acme', 100, metadata => '{"a": 1}') \gset grant_
select balance_after from billing.grant_credits(:'acme', 10, 'plan', expires_at => '2099-01-01', metrics => '{call}') \gset scoped_
select operation_id, credits from billing.consume_credits(:'acme', 'call', 7, 'key', '00000000-0000-4000-8000-0000000000a1') \gset use_
select replayed from billing.consume_credits(:'acme', 'call', 7, 'key', '00000000-0000-4000-8000-0000000000a1') \gset again_
select credits from billing.consume_credits(:'acme', 'third', 4) \gset third_
select hold_id from billing.reserve_credits(:'acme', 'call', 3) \gset hold_
select credits from billing.capture_credits(:'acme', :hold_hold_id, 2) \gset capture_
select hold_id from billing.reserve_credits(:'acme', 'call', 3) \gset hold2_
select credits from billing.release_credits(:'acme', :hold2_hold_id) \gset release_
select hold_id from billing.lock_credits(:'acme', 3, 'payout') \gset lock_
select credits from billing.pay_out(:'acme', :lock_hold_id) \gset paid_
select credits from billing.refund_credits(:'acme', :use_operation_id, 4) \gset refund_
select amount from billing.adjust_credits(:'acme', 5, 'gift') \gset adjust_
select amount from billing.transfer_credits(:'acme', :'bolt', 6) \gset transfer_
select voided from billing.void_grant(:'acme', :grant_grant_id, 'withdrawn') \gset void_
select status from billing.consume_credits_batch('[{"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call"}]') \gset batch_
select billing.get_total_credits(:'acme') as total, billing.get_total_credits(:'bolt') as bolt_total \gset
select owner_type as owner from billing.get_wallet(:'acme') \gset
select count(*) as parts from billing.explain_consumption(:'bolt', 'call') \gset
select billing.calculate_cost('call', 2) as cost, billing.calculate_cost('{"call": 2}'::pg_catalog.jsonb, :'acme') as request_cost \gset
select billing.set_member_budget(:'acme', '00000000-0000-4000-8000-0000000000a1', 100), billing.set_org_price(:'acme', 'call', '1'), billing.book_expiries() as booked \gset
select count(*) as violations from billing.verify_ledger() \gset
select billing.export_catalog() is not null as exported \gset
-- Plans, recorded usage, limits and settlement.
select plan from billing.subscribe(:'corp', 'solo', idempotency_key => 'key') \gset subscribed_
select pending_plan from billing.change_plan(:'corp', 'team', at_period_end => true) \gset change_
select billing.set_org_allowance(:'corp', 'pack', 4), billing.configure_alerts() \gset
select included from billing.consume_credits(:'corp', 'pack', 3) \gset pack_
select billing.record_usage(:'corp', 'pack', 4, 'event') as recorded, billing.record_usage(:'corp', 'pack', 4, 'event') as recorded_again,
       billing.record_usage(:'corp', 'user', member_id => '00000000-0000-4000-8000-0000000000a1') as user_recorded, billing.record_usage(:'corp', 'level', 7) as level_recorded \gset
select accepted, duplicates from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000003", "metric": "pack", "quantity": 2, "event_id": "event-2"},
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "pack", "quantity": 9, "event_id": "event"}]') \gset batch_
select used, credits_required, credits_available from billing.check_limit(:'corp', 'pack') \gset limit_
select billing.allows(:'corp', 'pack') as allowed \gset
select billing_internal.begin_settlement(billing.clock(), 0, 1) as run \gset
select billing_internal.settlement_due(billing.clock(), 0, 1) as due \gset
select billing_internal.settle_orgs(:run, '{00000000-0000-4000-8000-000000000001,00000000-0000-4000-8000-000000000003}', billing.clock()), billing_internal.settlement_phase(:run, 'done', 2) \gset
select charged from billing.settle_org(:'bolt') \gset settled_
select charged as run_charged, orgs_done, orgs_failed, status as run_status from billing.settlement_runs \gset
create table tap_app.events (org_id pg_catalog.uuid);
select billing.meter_table('tap_app.events', 'pack', 'org_id'), billing.meter_table('tap_app.events', 'third', 'org_id', mode => 'record') \gset
insert into tap_app.events values (:'corp');
select billing.unmeter_table('tap_app.events', 'third') as unmetered \gset
select used as third_used from billing.check_limit(:'corp', 'third') \gset
select cancel_at_period_end as canceled from billing.cancel_subscription(:'corp') \gset
select used as history_used, closing_balance from billing.credit_history(:'corp', 1) \gset
select quantity as day_quantity, credits as day_credits from billing.usage_by_day where org_id operator(pg_catalog.=) :'corp' and metric operator(pg_catalog.=) 'pack' \gset
-- Policies and views, too.
select count(*) as entries_seen from billing.entries \gset
select count(*) as wallets_seen from billing.wallets \gset
select count(*) as grants_seen from billing.grants \gset
reset role;
set local role tap_member;
select pg_catalog.set_config('request.jwt.claims', '{"org_id": "00000000-0000-4000-8000-000000000002"}', true) as claims \gset
select billing.my_orgs() as mine, billing.get_total_credits(:'bolt') as my_total \gset
select metric as my_metric, billing.allows(:'bolt', 'call') is not null as my_allowed from billing.check_limit(:'bolt', 'call') \gset
select count(*) as my_entries from billing.entries \gset
reset role;
-- The caller's path is what it was, also after an error in the middle of a statement of ours.
select pg_catalog.current_setting('search_path') as path_after \gset
create function tap_app.refuse() returns trigger language plpgsql as $$ begin raise exception 'refused with %', pg_catalog.current_setting('search_path'); end $$;
create trigger refuse before insert on billing.ledger for each row execute function tap_app.refuse();
create table tap_app.refused (message pg_catalog.text, path pg_catalog.text);
do $$
declare said pg_catalog.text;
begin
    perform billing.consume_credits('00000000-0000-4000-8000-000000000002', 'call');
exception when others then
    get stacked diagnostics said = message_text;
    insert into tap_app.refused values (said, pg_catalog.current_setting('search_path'));
end $$;
drop trigger refuse on billing.ledger;
-- What a session has that takes everything but the server's own out of its path.
set local role tap_service;
set local search_path = pg_catalog, pg_temp;
select credits from billing.consume_credits(:'corp', 'third', 3, 'key in a bare path') \gset bare_
select billing.record_usage(:'corp', 'pack', 1, 'event in a bare path') as bare_recorded, billing.get_total_credits(:'corp') as bare_total \gset
select hold_id from billing.reserve_credits(:'corp', 'third', 3) \gset bare_
select credits from billing.capture_credits(:'corp', :bare_hold_id) \gset bare_captured_
select metric, billing.allows(:'corp', 'third') as allowed from billing.check_limit(:'corp', 'third') \gset bare_
reset role;
reset search_path;
set local search_path = public, pg_catalog;

select is(:'comparison'::text, 'EVIL0'::text, 'a comparison in the session springs the trap');
select is(:'function'::text, 'EVIL0'::text, 'so does now()');
select is(:shadowed, 0, 'and a table without its schema is the hostile one');
select is(array[:'bare_credits', :'bare_recorded', :'bare_captured_credits', :'bare_metric', :'bare_allowed'], array['1', 't', '1', 'third', 't'], 'the calls work in a session with a bare path');
select is(array[:'my_metric', :'my_allowed'], array['call', 't'], 'and for a member');
select is(:'path_after'::text, 'evil, pg_temp, pg_catalog, billing, public', 'the path of the session is left as it was');
select results_eq('select * from tap_app.refused', $$values ('refused with pg_catalog, pg_temp', 'evil, pg_temp, pg_catalog, billing, public')$$,
                  'a statement of a call has the pinned path, and its error takes that back');
select is(array[:'use_credits', :'third_credits', :'capture_credits', :'release_credits', :'paid_credits', :'refund_credits', :'adjust_amount', :'transfer_amount'],
          array['14', '2', '4', '6', '3', '4', '5', '6'], 'the calls did what they do');
select is(:'again_replayed'::text, 't'::text, 'the replay found its operation');
select is(:'batch_status'::text, 'ok'::text, 'so did the batch');
-- 100 - 4 (of the first use; 10 came from scoped credit) - 2 - 4 - 3 - 6 are 81, which the void took: the adjustment is left.
select is(array[:total, :void_voided], array[5, 81], 'total and void');
-- 3 consumed and 6 recorded are 5 beyond the 4; the row in the table of the app is one more.
select is(array[:'subscribed_plan', :'change_pending_plan', :'pack_included', :'limit_used', :'limit_credits_required', :'limit_credits_available'], array['solo', 'team', '3', '9', '2', '40'], 'plan and limit');
select is(array[:'recorded', :'recorded_again', :'user_recorded', :'level_recorded', :'batch_accepted', :'batch_duplicates', :'allowed'], array['t', 'f', 't', 't', '1', '1', 't'], 'events');
select is(:'due'::text, '{00000000-0000-4000-8000-000000000001,00000000-0000-4000-8000-000000000002,00000000-0000-4000-8000-000000000003}'::text, 'everybody is due');
select is(array[:'run_charged', :'orgs_done', :'orgs_failed', :'run_status', :'settled_charged'], array['10', '2', '0', 'done', '0'], 'the run of the settlement');
select is(array[:'unmetered', :'third_used', :'canceled', :'history_used', :'closing_balance', :'day_quantity', :'day_credits'], array['t', '1', 't', '12', '38', '10', '12'], 'the metered table and the reports');
select is(:violations, 0, 'the ledger is sound');
select cmp_ok(:entries_seen, '>', 10, 'the service reads the real entries');
select cmp_ok(:wallets_seen, '>=', 2, 'and the real wallets');
select cmp_ok(:grants_seen, '>=', 4, 'and the real grants');
select is(:'mine'::text, '{00000000-0000-4000-8000-000000000002}'::text, 'the member has its org');
select is(:my_total::bigint, :bolt_total::bigint, 'and its total');
select is(:my_entries::bigint, (select count(*) from billing.entries where org_id = :'bolt'), 'and its entries');

-- Nothing was written into the hostile tables.
create function pg_temp.rows_in(relation text) returns bigint language plpgsql as $$
declare n bigint;
begin execute 'select count(*) from ' || relation into n; return n; end $$;
select is(pg_temp.rows_in(format('evil.%I', c.relname)) + pg_temp.rows_in(format('pg_temp.%I', c.relname)), 0::bigint, format('nothing was written into the shadow of %s', c.relname))
    from (select distinct relname from pg_catalog.pg_class where relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and relkind in ('r', 'p', 'v')) c order by c.relname;
select * from finish();
rollback;
