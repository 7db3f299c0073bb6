-- Rights: who may read which table, who may execute which function, what row-level security shows to whom, and that
-- nobody, not even a superuser, changes an entry. The lists below are complete: a table, view or function that is not
-- in them fails the test until somebody has said who may use it.
\ir preamble.psql

-- Roles: one of each level, one that was granted nothing, and the first three again with their rights taken back.
create role tap_member;
create role tap_service;
create role tap_auditor;
create role tap_stranger;
create role tap_former;
select billing.grant_access('tap_member', 'member');
select billing.grant_access('tap_service', 'service');
select billing.grant_access('tap_auditor', 'auditor');
select billing.grant_access('tap_former', 'service');
select billing.revoke_access('tap_former');

-- ---------------------------------------------------------------- tables and views
-- Readable by members (and services and auditors) under row-level security, by services and auditors only, or by nobody.
create temp table expected_relation (relation text primary key, readable text not null check (readable in ('members', 'auditors', 'nobody')));
insert into expected_relation
    select unnest(array['holds', 'entries', 'ledger', 'member_usage', 'metrics', 'prices', 'org_prices', 'wallets', 'grants', 'operations', 'plans', 'caps', 'subscriptions', 'org_allowances',
                        'usage_events', 'unpaid_overage', 'alerts', 'usage_by_day', 'usage_by_month', 'packs', 'surcharges', 'payments', 'payment_refs', 'provider_customers', 'provider_subscriptions',
                        'auto_recharges']), 'members'
    union all select unnest(array['settlement_runs', 'settlement_faults', 'settlement_progress', 'gift_cards', 'gift_card_batches', 'gift_card_redemptions',
                                  'webhook_events', 'outbox', 'flags', 'freezes']), 'auditors'
    union all select unnest(array['access', 'migrations', 'metered_tables']), 'nobody'
    -- What views and functions stand in front of: read through them, with the rights of who reads.
    union all select 'billing_internal.' || unnest(array['lanes', 'grants', 'period_usage', 'refunds', 'wallet_settings', 'unsettled_usage', 'cap_usage', 'usage_days', 'credit_months', 'fold_positions']), 'members'
    union all select 'billing_internal.' || unnest(array['settings', 'usage_uniques', 'usage_event_keys', 'subscription_requests', 'secrets', 'gift_card_attempts', 'webhook_secrets']), 'nobody';
create function pg_temp.qualified(relation text) returns text language sql as $$ select case when relation like '%.%' then relation else 'billing.' || relation end $$;

-- Without partitions, whose names tell the month.
create temp view ours as
    select c.relkind, c.relrowsecurity, c.reloptions, c.relispartition, c.oid as relation_oid,
           case n.nspname when 'billing' then c.relname::text else n.nspname || '.' || c.relname end as relation
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname in ('billing', 'billing_internal');
create temp view relation as
    select relation_oid as oid, relation, relkind, relrowsecurity, reloptions from ours where relkind in ('r', 'p', 'v', 'm', 'f', 'S') and not relispartition;
create temp view partition as
    select relation_oid as oid, relation, relrowsecurity from ours where relkind in ('r', 'p') and relispartition;

select bag_eq('select relation from relation', 'select relation from expected_relation',
              'every table, view and sequence of the schema has a stated expectation');

select is(case when p.privilege in ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') then has_any_column_privilege(r.role, c.oid, p.privilege)
               else has_table_privilege(r.role, c.oid, p.privilege) end,
          p.privilege = 'SELECT' and case e.readable when 'members' then r.level is not null when 'auditors' then coalesce(r.level in ('service', 'auditor'), false) else false end,
          format('%s: %s on %s', r.role, p.privilege, c.relation))
    from relation c
    join expected_relation e using (relation)
    cross join (values ('tap_member', 'member'), ('tap_service', 'service'), ('tap_auditor', 'auditor'), ('tap_stranger', null), ('tap_former', null), ('public', null)) r (role, level)
    cross join (values ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE'), ('TRUNCATE'), ('REFERENCES'), ('TRIGGER')) p (privilege)
    where c.relkind <> 'S'
    order by c.relation, r.role, p.privilege;
select is(has_sequence_privilege(r.role, c.oid, p.privilege), false, format('%s: %s on %s', r.role, p.privilege, c.relation))
    from relation c, unnest(array['tap_member', 'tap_service', 'tap_auditor', 'tap_stranger', 'tap_former', 'public']) r (role), unnest(array['USAGE', 'SELECT', 'UPDATE']) p (privilege)
    where c.relkind = 'S' order by c.relation, r.role, p.privilege;
-- A partition is read through its table only.
select isnt_empty('select 1 from partition', 'there are partitions');
select is(has_any_column_privilege(r.role, c.oid, p.privilege) or has_table_privilege(r.role, c.oid, 'DELETE') or has_table_privilege(r.role, c.oid, 'TRUNCATE'), false,
          format('%s: %s on %s', r.role, p.privilege, c.relation))
    from partition c, unnest(array['tap_member', 'tap_service', 'tap_auditor', 'tap_stranger', 'tap_former', 'public']) r (role), unnest(array['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) p (privilege)
    order by c.relation, r.role, p.privilege;

select is(has_schema_privilege(r.role, 'billing', 'USAGE'), r.granted, format('%s: USAGE on the schema', r.role))
    from (values ('tap_member', true), ('tap_service', true), ('tap_auditor', true), ('tap_stranger', false), ('tap_former', false), ('public', false)) r (role, granted);
select is(has_schema_privilege(role, 'billing', 'CREATE'), false, format('%s: CREATE in the schema', role))
    from unnest(array['tap_member', 'tap_service', 'tap_auditor', 'tap_stranger', 'tap_former', 'public']) role;

select ok(relrowsecurity, format('row-level security is on: %s', relation))
    from (select relation, relrowsecurity from relation where relkind in ('r', 'p') union all select relation, relrowsecurity from partition) c order by relation;
select ok('security_invoker=true' = any (reloptions) or 'security_invoker=on' = any (reloptions), format('the view reads with the rights of its reader: %s', relation))
    from relation where relkind = 'v' order by relation;
select is_empty($$select tablename from pg_policies p join expected_relation e on pg_temp.qualified(e.relation) = p.schemaname || '.' || p.tablename where e.readable = 'nobody'$$,
                'what nobody reads has no policy at all');
select is_empty($$select tablename, policyname, cmd from pg_policies where schemaname in ('billing', 'billing_internal') and cmd <> 'SELECT'$$, 'policies are for reading only');
select is_empty($$select relation from relation where relkind = 'S'$$, 'no numbers come from a sequence');

-- ---------------------------------------------------------------- functions
create temp table expected_function (name text primary key, level text);
insert into expected_function
    select unnest(array['my_orgs', 'get_total_credits', 'get_wallet', 'explain_consumption', 'calculate_cost', 'clock', 'version', 'check_limit', 'allows', 'credit_history', 'quote_pack']), 'member'
    -- What members may do and auditors, who only look, may not.
    union all select unnest(array['redeem_gift_card', 'start_purchase', 'configure_auto_recharge']), 'customer'
    union all select unnest(array['verify_ledger', 'export_catalog', 'status']), 'auditor'
    union all select unnest(array['create_wallet', 'grant_credits', 'consume_credits', 'consume_credits_batch', 'reserve_credits', 'capture_credits', 'release_credits',
                                  'lock_credits', 'pay_out', 'refund_credits', 'adjust_credits', 'void_grant', 'transfer_credits', 'set_wallet_lanes',
                                  'set_member_budget', 'set_org_price', 'book_expiries', 'apply_catalog',
                                  'subscribe', 'change_plan', 'cancel_subscription', 'set_org_allowance', 'record_usage', 'record_usage_batch', 'configure_alerts',
                                  'settle', 'settle_org', 'begin_periods',
                                  'meter_table', 'unmeter_table', 'schedule_settlement', 'unschedule_settlement', 'create_gift_cards', 'void_gift_cards',
                                  'set_payment_status', 'link_payment', 'link_customer', 'set_webhook_secret', 'handle_webhook', 'replay_webhook', 'stripe_webhook', 'razorpay_webhook',
                                  'claim_events', 'ack_events', 'fail_event', 'requeue_event', 'configure_delivery', 'deliver_events',
                                  'note_signal', 'configure_signals', 'freeze_org', 'unfreeze_org', 'resolve_flag']), 'service'
    union all select unnest(array['install', 'grant_access', 'revoke_access', 'configure_membership']), 'owner';
create temp view function as
    select p.oid, p.proname::text as name, p.oid::regprocedure as signature, p.prosecdef, p.proconfig, p.prokind, p.provolatile
    from pg_proc p where p.pronamespace = 'billing'::regnamespace;

select bag_eq('select distinct name from function', 'select name from expected_function', 'every function of the schema has a stated expectation');
select is(has_function_privilege('public', oid, 'EXECUTE'), false, format('PUBLIC may not execute %s', signature)) from function order by signature::text;
select is(has_function_privilege(role, oid, 'EXECUTE'), false, format('%s may not execute %s', role, signature))
    from function, unnest(array['tap_stranger', 'tap_former']) role order by role, signature::text;
select bag_eq(format('select distinct name from function where has_function_privilege(%L, oid, ''EXECUTE'')', role),
              format('select name from expected_function where level = any (%L)', levels),
              format('exactly what a %s may execute', role))
    from (values ('tap_member', '{member,customer}'::text[]), ('tap_auditor', '{member,auditor}'), ('tap_service', '{member,customer,auditor,service}')) x (role, levels);
-- Overloads stand or fall together.
select is_empty(format('select name from function group by name having count(distinct has_function_privilege(%L, oid, ''EXECUTE'')) > 1', role),
                format('all forms of a function have the same right for %s', role)) from unnest(array['tap_member', 'tap_auditor', 'tap_service']) role;
-- A function asks who calls it, and is no definer function, which would not see that. Those whose usual call runs no statement set the path themselves around each that they do run; shadowing.sql sees that.
create temp view own_path as select unnest(array['consume_credits', 'reserve_credits', 'capture_credits', 'release_credits', 'get_total_credits', 'record_usage', 'check_limit', 'allows', 'my_orgs']) as name;
select bag_eq('select distinct name from function where prosecdef',
              $$select 'version'$$, 'the definer function is one that need not know who calls');
select is(proconfig, case when name not in (select name from own_path) then '{"search_path=pg_catalog, pg_temp"}'::text[] end, format('definer function with a pinned search_path: %s', signature))
    from function where prosecdef order by signature::text;
-- Of the others, those in Rust and SQL pin it, too; a gate runs nothing itself.
select ok(coalesce(array_to_string(function.proconfig, ' '), '') like '%search_path=pg_catalog, pg_temp%' or name in (select name from own_path) or prosrc like '%\_gate' or name in ('settle', 'clock'), format('pinned search_path: %s', signature))
    from function join pg_proc using (oid) where not function.prosecdef order by signature::text;
-- The machinery is nobody's.
select isnt_empty($$select from pg_proc where pronamespace = 'billing_internal'::regnamespace$$, 'there is machinery');
select results_eq($$select oid::regprocedure::text from pg_proc where pronamespace = 'billing_internal'::regnamespace and prosecdef$$, $$select 'billing_internal.metered_insert()'$$, 'none of it but the trigger runs with more rights than its caller has');
select is(proconfig, '{"search_path=pg_catalog, pg_temp"}'::text[], 'and that with a pinned search_path') from pg_proc where oid = 'billing_internal.metered_insert()'::regprocedure;
select bag_eq(format($$select proname::text from pg_proc where pronamespace = 'billing_internal'::regnamespace and has_function_privilege(%L, oid, 'EXECUTE')$$, role), format('select unnest(%L::text[])', names),
              format('of it, %s may execute what views, policies and settle() call in its name', role))
    from (values ('tap_member', '{unfolded_usage}'::text[]), ('tap_auditor', '{unfolded_usage,settlement_is_running,every_org}'),
                 ('tap_service', '{unfolded_usage,settlement_is_running,every_org,begin_settlement,settlement_due,settle_orgs,settlement_phase}'),
                 ('tap_stranger', '{}'), ('tap_former', '{}'), ('public', '{}')) x (role, names);
select is(has_schema_privilege(role, 'billing_internal', privilege), role = 'tap_service' and privilege = 'USAGE', format('its schema: %s, %s', role, privilege))
    from unnest(array['tap_member', 'tap_service', 'tap_auditor', 'tap_stranger', 'tap_former', 'public']) role, unnest(array['USAGE', 'CREATE']) privilege;
select is_empty($$select a.rolname, d.defaclacl from pg_default_acl d join pg_roles a on a.oid = d.defaclrole
                  where d.defaclacl::text like '%tap\_%'$$, 'default privileges were left alone');

-- ---------------------------------------------------------------- rows
\set acme 00000000-0000-4000-8000-000000000001
\set bolt 00000000-0000-4000-8000-000000000002
\set corp 00000000-0000-4000-8000-000000000003
\set ann 00000000-0000-4000-8000-0000000000a1
select count(*) from billing.apply_catalog('{"metrics": {"call": {"price": {"steps": [{"credits": 1, "per": 2}]}}, "user": {"aggregation": "unique"}},
    "plans": {"solo": {"credits": {"amount": 10}, "allowances": {"call": 10}}}, "caps": [{"metric": "call", "per": "day", "limit": 1000}]}') \gset
-- Three orgs with a row in every tenant table.
select count(*) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org,
    lateral billing.create_wallet(org, low_balance_threshold => 5) \gset
select count(*) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org, lateral billing.grant_credits(org, 100) \gset
select count(*) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org, lateral billing.consume_credits(org, 'call', 4, member_id => :'ann') used, lateral billing.refund_credits(org, used.operation_id, 1) \gset
select count(*) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org, lateral billing.reserve_credits(org, 'call', 4) \gset
select count(billing.set_org_price(org, 'call', '1')) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org \gset
select count(*) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org, lateral billing.subscribe(org, 'solo', idempotency_key => 'key') \gset
select count(billing.set_org_allowance(org, 'call', 4)) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org \gset
select count(billing.record_usage(org, 'call', 5, 'event')), count(billing.record_usage(org, 'user', member_id => :'ann')) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org \gset
select count(*) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org, lateral billing.settle_org(org) \gset
select count(billing.record_usage(org, 'call', 5)) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org \gset
insert into billing.unpaid_overage select org, 'EUR', 'call', billing.clock(), 1 from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org;
select billing_internal.begin_settlement(billing.clock(), 0, 1) as run \gset
select billing_internal.settlement_phase(:run, 'settling', 3) is null as noted \gset
insert into billing.settlement_faults (org_id, run_id, sqlstate, message) select org, :run, 'XX000', 'a fault' from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org;
select billing.configure_alerts() is null as configured \gset
create table public.tap_metered (org_id uuid);
select billing.meter_table('public.tap_metered', 'call', 'org_id') is null as metered \gset

select code from billing.create_gift_cards('party', 5, max_redemptions => 9) code \gset
select count(*) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org, lateral billing.redeem_gift_card(org, :'code') \gset
select count(*) from billing.apply_catalog('{"packs": {"small": {"credits": 10, "price": {"USD": 100}}}}') \gset
select count(*) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org, lateral billing.configure_auto_recharge(org, 1000, 'small', 'USD', customer => 'cus_' || org) \gset
select count(billing.link_customer(org, 'stripe', 'cus_' || org)), count(billing.note_signal(org, 'odd', 1, 'odd')), count(billing.freeze_org(org, 'odd')) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org \gset
select billing.set_webhook_secret('stripe', 'whsec_of_the_test') is null as set \gset
select count(billing.link_payment(p.org_id, p.payment_id, 'pi_' || p.org_id)) from billing.payments p \gset
insert into billing.provider_subscriptions (org_id, provider, subscription, state) select org, 'stripe', 'sub_' || org, 'incomplete' from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org;
insert into billing.webhook_events (provider, event_id, type, status, received_at, org_id, payload) select 'stripe', 'evt_' || org, 'x', 'ignored', billing.clock(), org, '{}' from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org;
insert into billing_internal.gift_card_attempts select org, billing.clock(), org from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org;

-- The orgs whose rows a role with some claims sees; or the SQLSTATE.
create function pg_temp.orgs_seen(role text, claims text, relation text) returns text language plpgsql as $$
declare seen text;
begin
    perform pg_catalog.set_config('request.jwt.claims', claims, true), pg_catalog.set_config('role', role, true);
    begin
        execute format('select coalesce(string_agg(distinct right(org_id::text, 1), '','' order by right(org_id::text, 1)), ''none'') from %s', pg_temp.qualified(relation)) into seen;
    exception when others then
        seen := sqlstate;
    end;
    perform pg_catalog.set_config('role', 'none', true), pg_catalog.set_config('request.jwt.claims', '', true);
    return seen;
end $$;
create function pg_temp.state_of(role text, claims text, call text) returns text language plpgsql as $$
declare state text := '00000'; message text; detail text;
begin
    perform pg_catalog.set_config('request.jwt.claims', claims, true), pg_catalog.set_config('role', role, true);
    begin
        execute call;
    exception when others then
        get stacked diagnostics state = returned_sqlstate, detail = pg_exception_detail;
        if detail like '{%' then state := state || ' ' || coalesce(detail::jsonb ->> 'code', '?'); end if;
    end;
    perform pg_catalog.set_config('role', 'none', true), pg_catalog.set_config('request.jwt.claims', '', true);
    return state;
end $$;

create temp view tenant_relation as
    select c.relation from relation c join expected_relation e using (relation)
    where e.readable = 'members' and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'org_id' and not a.attisdropped);
select is((select string_agg(relation, ' ' order by relation collate "C") from tenant_relation),
          'alerts auto_recharges billing_internal.cap_usage billing_internal.credit_months billing_internal.fold_positions billing_internal.grants billing_internal.lanes billing_internal.period_usage '
          'billing_internal.refunds billing_internal.unsettled_usage billing_internal.usage_days billing_internal.wallet_settings entries grants holds ledger member_usage operations org_allowances org_prices '
          'payment_refs payments provider_customers provider_subscriptions subscriptions unpaid_overage usage_by_day usage_by_month usage_events wallets', 'the tables and views with rows of orgs');
-- What stands in billing_internal is out of reach by name. Row security holds there as well: with the right to name it, a role sees what it sees through the views.
select is(pg_temp.orgs_seen(r.role, '{"org_id": "00000000-0000-4000-8000-000000000001"}', t.relation), '42501', format('%s cannot name %s', r.role, t.relation))
    from tenant_relation t, (values ('tap_member'), ('tap_auditor')) r (role) where t.relation like 'billing\_internal.%' order by t.relation, r.role;
grant usage on schema billing_internal to tap_member, tap_auditor;
-- Of the others there are rows, too, so that nobody is shown nothing for lack of any.
select isnt_empty(format('select from %s', pg_temp.qualified(e.relation)), format('there is something to be seen: %s', e.relation))
    from expected_relation e join relation c using (relation) where e.readable <> 'members' and c.relkind <> 'S' and e.relation <> 'settlement_progress' order by e.relation;
create temp table claim (what text, claims text, seen text);
insert into claim values
    ('one org in app_metadata.org_ids', '{"sub": "00000000-0000-4000-8000-0000000000a1", "app_metadata": {"org_ids": ["00000000-0000-4000-8000-000000000001"]}}', '1'),
    ('two orgs in app_metadata.org_ids', '{"app_metadata": {"org_ids": ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000003"]}}', '1,3'),
    ('org_id', '{"org_id": "00000000-0000-4000-8000-000000000002"}', '2'),
    ('an org that does not exist', '{"org_id": "00000000-0000-4000-8000-00000000dead"}', 'none'),
    ('empty org_ids', '{"app_metadata": {"org_ids": []}}', 'none'),
    ('a user of no org', '{"sub": "00000000-0000-4000-8000-0000000000a1"}', 'none'),
    ('what a user may write about itself', '{"user_metadata": {"org_ids": ["00000000-0000-4000-8000-000000000001"]}}', 'none'),
    ('an empty object', '{}', 'none'),
    ('no claims', '', 'none');
select is(pg_temp.orgs_seen('tap_member', c.claims, t.relation), c.seen, format('a member with %s: %s', c.what, t.relation))
    from claim c, tenant_relation t order by c.what, t.relation;
-- Claims that are not what they should be show nothing, by an error or by an empty result.
select ok(pg_temp.orgs_seen('tap_member', c.claims, 'entries') in ('none', '22P02', '22023', '42501'), format('broken claims: %s', c.claims))
    from (values ('not json'), ('[]'), ('7'), ('"x"'), ('null'), ('{"org_id": "x"}'), ('{"org_id": 7}'), ('{"app_metadata": []}'), ('{"app_metadata": {"org_ids": "x"}}'), ('{"app_metadata": {"org_ids": [7, null]}}')) c (claims);

select is(pg_temp.orgs_seen('tap_auditor', '', t.relation), '1,2,3', format('an auditor sees every org: %s', t.relation)) from tenant_relation t order by t.relation;
select is(pg_temp.orgs_seen('tap_service', '', t.relation), '1,2,3', format('a service sees every org: %s', t.relation)) from tenant_relation t order by t.relation;
select is(pg_temp.orgs_seen('tap_stranger', c.claims, t.relation), '42501', format('a stranger with a claim sees nothing: %s', t.relation))
    from tenant_relation t, claim c where c.what = 'org_id' order by t.relation;
select is(pg_temp.orgs_seen('tap_former', '', t.relation), '42501', format('access taken back: %s', t.relation)) from tenant_relation t order by t.relation;
select is(pg_temp.state_of(r.role, '', format('select * from %s', pg_temp.qualified(e.relation))), '42501', format('%s cannot read %s', r.role, e.relation))
    from expected_relation e, (values ('tap_member', 'member'), ('tap_service', 'service'), ('tap_auditor', 'auditor')) r (role, level)
    where e.readable = 'nobody' or (e.readable = 'auditors' and r.level = 'member') order by e.relation, r.role;
-- Runs are no org's: who sees every org sees them all; whoever may read the table, but not every org, sees none.
select is(pg_temp.orgs_seen(r.role, '', 'settlement_faults'), '1,2,3', format('%s sees the faults of every org', r.role)) from (values ('tap_auditor'), ('tap_service')) r (role);
select is(pg_temp.state_of(r.role, '', format('do $d$ begin if not exists (select from billing.%I where run_id = %s) then raise sqlstate ''EMPTY''; end if; end $d$', t, :run)), '00000',
          format('%s sees the runs: %s', r.role, t))
    from unnest(array['settlement_runs']) t, (values ('tap_auditor'), ('tap_service')) r (role);
grant select on billing.settlement_runs, billing.settlement_faults, billing_internal.usage_event_keys, billing_internal.usage_uniques, billing_internal.subscription_requests, billing.metered_tables, billing.gift_cards, billing_internal.gift_card_attempts, billing_internal.secrets to tap_member;
select is(pg_temp.state_of('tap_member', '{"org_id": "00000000-0000-4000-8000-000000000001"}', format('do $d$ begin if exists (select from %s) then raise sqlstate ''SEEN0''; end if; end $d$', pg_temp.qualified(t))), '00000',
          format('a member would see nothing of it: %s', t))
    from unnest(array['settlement_runs', 'settlement_faults', 'billing_internal.usage_event_keys', 'billing_internal.usage_uniques', 'billing_internal.subscription_requests', 'metered_tables', 'gift_cards', 'billing_internal.gift_card_attempts', 'billing_internal.secrets']) t;
revoke select on billing.settlement_runs, billing.settlement_faults, billing_internal.usage_event_keys, billing_internal.usage_uniques, billing_internal.subscription_requests, billing.metered_tables, billing.gift_cards, billing_internal.gift_card_attempts, billing_internal.secrets from tap_member;
-- Who redeemed what, and batches without their codes.
select is(pg_temp.orgs_seen(r.role, '', 'gift_card_redemptions'), '1,2,3', format('%s sees the redemptions of every org', r.role)) from (values ('tap_auditor'), ('tap_service')) r (role);
select is(pg_temp.state_of(r.role, '', 'do $d$ begin if (select sum(redemptions) from billing.gift_card_batches) is distinct from 3 then raise sqlstate ''WRONG''; end if; end $d$'), '00000',
          format('%s sees the batches', r.role)) from (values ('tap_auditor'), ('tap_service')) r (role);
select is(pg_temp.state_of(r.role, '', 'select code_hash from billing.gift_cards'), '42501', format('%s sees no code', r.role)) from (values ('tap_member'), ('tap_auditor'), ('tap_service')) r (role);
-- Catalog tables have no orgs: each level sees them.
select is(pg_temp.state_of(r.role, '{"org_id": "00000000-0000-4000-8000-000000000001"}', format('do $d$ begin if not exists (select from billing.%I) then raise sqlstate ''EMPTY''; end if; end $d$', t)), '00000',
          format('%s sees the catalog: %s', r.role, t))
    from unnest(array['metrics', 'prices', 'plans', 'caps']) t, (values ('tap_member'), ('tap_auditor'), ('tap_service')) r (role);

-- The members of an org may stand in the app's own table.
create schema tap_app;
create table tap_app.membership (team uuid, person uuid);
insert into tap_app.membership values (:'bolt', :'ann'), (:'corp', '00000000-0000-4000-8000-0000000000ff');
select count(billing.configure_membership('tap_app.membership', 'team', 'person')) from generate_series(1, 1) \gset
select is(pg_temp.orgs_seen('tap_member', '{"sub": "00000000-0000-4000-8000-0000000000a1"}', t.relation), '2', format('a member by the configured relation: %s', t.relation))
    from tenant_relation t order by t.relation;
select is(pg_temp.orgs_seen('tap_member', '{"sub": "00000000-0000-4000-8000-0000000000bb"}', 'entries'), 'none', 'somebody who is not in the relation');
select is(pg_temp.orgs_seen('tap_member', '{}', 'entries'), 'none', 'nobody in particular');
delete from tap_app.membership;
select is(pg_temp.orgs_seen('tap_member', '{"sub": "00000000-0000-4000-8000-0000000000a1"}', 'entries'), 'none', 'a membership that ended');

-- Functions look at the claims as the policies do.
create temp table own_org_call (call text);
insert into own_org_call values
    ('select billing.get_total_credits(%L)'), ('select * from billing.get_wallet(%L)'), ('select * from billing.explain_consumption(%L, ''call'')'),
    ('select billing.calculate_cost(''call'', 1, %L)'), ('select billing.calculate_cost(''{"call": 1}''::jsonb, %L)'),
    ('select * from billing.check_limit(%L, ''call'')'), ('select * from billing.credit_history(%L)');
select is(pg_temp.state_of('tap_member', '{"org_id": "00000000-0000-4000-8000-000000000001"}', format(call, :'acme')), '00000', 'a member may: ' || call) from own_org_call;
select is(pg_temp.state_of('tap_member', '{"org_id": "00000000-0000-4000-8000-000000000001"}', format(call, :'bolt')), '42501 not_authorized', 'not of another org: ' || call) from own_org_call;
select is(pg_temp.state_of('tap_member', '', format(call, :'bolt')), '42501 not_authorized', 'not without claims: ' || call) from own_org_call;
select is(pg_temp.state_of('tap_member', '{"org_id": "00000000-0000-4000-8000-000000000001"}', format(call, '00000000-0000-4000-8000-00000000dead')), '42501 not_authorized', 'an unknown org is not told from another: ' || call) from own_org_call;
select is(pg_temp.state_of(r.role, '', format(call, :'bolt')), '00000', r.role || ' may, of every org: ' || call) from own_org_call, (values ('tap_auditor'), ('tap_service')) r (role);
select is(pg_temp.state_of('tap_stranger', '{"org_id": "00000000-0000-4000-8000-000000000001"}', format(call, :'acme')), '42501', 'a stranger may not: ' || call) from own_org_call;
-- Redeeming is for members, too, but not for those who only look.
select is(pg_temp.state_of(r.role, r.claims, format('select * from billing.redeem_gift_card(%L, ''nonsense'')', r.org)), r.state, format('%s with %s redeems for %s', r.role, r.claims, right(r.org, 1)))
    from (values ('tap_member', '{"org_id": "00000000-0000-4000-8000-000000000001"}', :'acme', 'PT404 unknown_code'), ('tap_member', '{"org_id": "00000000-0000-4000-8000-000000000001"}', :'bolt', '42501 not_authorized'),
                 ('tap_member', '', :'acme', '42501 not_authorized'), ('tap_auditor', '', :'acme', '42501'), ('tap_service', '', :'acme', 'PT404 unknown_code')) r (role, claims, org, state);
select count(billing.unfreeze_org(org)) from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org \gset
-- allows() is for policies of the app: it does not fail, it says no.
select is(pg_temp.state_of(r.role, r.claims, format('do $d$ begin if billing.allows(%L, ''call'') is distinct from %L then raise sqlstate ''WRONG''; end if; end $d$', r.org, r.allowed)), '00000',
          format('%s is told %s of %s', r.role, r.allowed, coalesce(right(r.org, 1), 'nobody')))
    from (values ('tap_member', '{"org_id": "00000000-0000-4000-8000-000000000001"}', :'acme', true), ('tap_member', '{"org_id": "00000000-0000-4000-8000-000000000001"}', :'bolt', false),
                 ('tap_member', '', :'acme', false), ('tap_member', '{"org_id": "00000000-0000-4000-8000-000000000001"}', null, false), ('tap_auditor', '', :'bolt', true), ('tap_service', '', :'bolt', true)) r (role, claims, org, allowed);
-- Claims do not make a service: neither one in the token nor the role in it.
select is(pg_temp.state_of('tap_member', '{"role": "tap_service", "org_id": "00000000-0000-4000-8000-000000000001"}', format('select * from billing.grant_credits(%L, 5)', :'acme')), '42501', 'a member cannot grant itself credits');
-- Whoever has the service role may, whatever claims the request carries.
select is(pg_temp.state_of('tap_service', '{"org_id": "00000000-0000-4000-8000-000000000001"}', format('select * from billing.grant_credits(%L, 5)', :'bolt')), '00000', 'a service may for every org');
select is(pg_temp.state_of('tap_service', '', format('select billing.grant_access(%L, ''service'')', 'tap_stranger')), '42501', 'a service cannot pass its rights on');
select is(pg_temp.state_of('tap_service', '', 'select billing.install()'), '42501', 'a service cannot install');
select is(pg_temp.state_of('tap_auditor', '', 'select * from billing.verify_ledger()'), '00000', 'an auditor may verify');
-- The test clock is the superuser's.
select is(pg_temp.state_of(r.role, '', $$set local billing.test_clock = '2020-01-01'$$), '42501', r.role || ' cannot move the clock') from (values ('tap_member'), ('tap_service'), ('tap_auditor'), ('tap_stranger')) r (role);

-- A level can be changed; an unknown level or role is refused.
select count(billing.grant_access('tap_stranger', 'auditor')) from generate_series(1, 1) \gset
select is(pg_temp.orgs_seen('tap_stranger', '', 'entries'), '1,2,3', 'a stranger was made an auditor');
select count(billing.grant_access('tap_stranger', 'member')) from generate_series(1, 1) \gset
select is(pg_temp.orgs_seen('tap_stranger', '', 'entries'), 'none', 'and then a member only');
select is(has_function_privilege('tap_stranger', 'billing.verify_ledger(uuid)', 'EXECUTE'), false, 'who may not verify');
select throws_ok($$select billing.grant_access('tap_stranger', 'king')$$, '22023', null, 'no such level');
select throws_ok($$select billing.grant_access('tap_nobody', 'member')$$, null, null, 'no such role');

-- ---------------------------------------------------------------- the ledger cannot be changed
select isnt_empty('select 1 from billing.entries', 'there are entries');
select throws_ok(statement, null, null, 'a superuser cannot: ' || statement)
    from unnest(array['update billing.entries set amount = amount + 1', 'update billing.entries set metadata = ''{}'' where false', 'delete from billing.entries', 'delete from billing.entries where false',
                      'truncate billing.entries', 'truncate billing.entries, billing_internal.grants cascade',
                      'insert into billing.entries select * from billing.entries where false on conflict do nothing; update billing.entries set entry_id = 0']) statement;
select throws_ok(statement, '42501', 'the ledger is append-only', 'a superuser cannot: ' || statement)
    from unnest(array['update billing.ledger set amount = amount + 1', 'update billing.ledger set metadata = null where false', 'delete from billing.ledger', 'delete from billing.ledger where false',
                      'truncate billing.ledger', 'truncate billing.ledger, billing_internal.grants cascade', 'update billing.entries set amount = 0', 'delete from billing.entries']) statement;
select isnt_empty('select 1 from billing.usage_events', 'there are events');
select throws_ok(statement, '42501', null, 'a superuser cannot: ' || statement)
    from unnest(array['update billing.usage_events set quantity = quantity + 1', 'update billing.usage_events set properties = ''{}'' where false', 'delete from billing.usage_events', 'truncate billing.usage_events',
                      'delete from billing_internal.usage_event_keys', 'update billing_internal.usage_event_keys set org_id = org_id', 'truncate billing_internal.usage_event_keys']) statement;
select is((select count(*) from pg_trigger where tgrelid = any (array['billing.ledger', 'billing.usage_events', 'billing_internal.usage_event_keys']::regclass[]) and not tgisinternal and tgenabled = 'D'), 0::bigint, 'no guard is switched off');

-- ---------------------------------------------------------------- comments
select ok(obj_description('billing'::regnamespace, 'pg_namespace') is not null, 'the schema has a comment');
select ok(obj_description(oid, 'pg_class') is not null, format('has a comment: %s', relation))
    from (select oid, relation from relation where relkind <> 'S' union all select oid, relation from partition) c order by relation;
select ok(obj_description(oid, 'pg_proc') is not null, format('has a comment: %s', signature)) from function order by signature::text;
select ok(obj_description(t.oid, 'pg_type') is not null, format('has a comment: type %s', t.typname))
    from pg_type t left join pg_class c on c.oid = t.typrelid
    where t.typnamespace = 'billing'::regnamespace and (c.relkind = 'c' or t.typtype in ('e', 'd', 'r')) order by t.typname;
select is_empty($$select c.relation, a.attname from relation c join pg_attribute a on a.attrelid = c.oid
                  where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p') and col_description(a.attrelid, a.attnum) is null$$, 'every column of a table has a comment');

select * from finish();
rollback;
