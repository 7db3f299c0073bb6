-- The interface that applications call: names, arguments with their types and order, what is optional, what comes back.
\ir preamble.psql

create temp table expected (name text, arguments text, required int, result text);
insert into expected values
    ('grant_credits', 'org_id uuid, amount bigint, source text, category text, unit text, metrics text[], priority integer, effective_at timestamp with time zone, expires_at timestamp with time zone, cost_minor bigint, currency text, idempotency_key text, metadata jsonb', 2,
     'grant_id bigint, amount bigint, balance_after bigint, replayed boolean'),
    ('consume_credits', 'org_id uuid, metric text, quantity bigint, idempotency_key text, member_id uuid, metadata jsonb', 2,
     'operation_id bigint, metric text, quantity bigint, included bigint, credits bigint, balance_before bigint, balance_after bigint, replayed boolean'),
    ('consume_credits_batch', 'items jsonb', 1, 'item integer, status text, operation_id bigint, credits bigint, balance_after bigint, detail jsonb'),
    ('reserve_credits', 'org_id uuid, metric text, quantity bigint, ttl interval, idempotency_key text, member_id uuid, metadata jsonb', 3,
     'hold_id bigint, credits bigint, expires_at timestamp with time zone, balance_after bigint, replayed boolean'),
    ('capture_credits', 'org_id uuid, hold_id bigint, quantity bigint, idempotency_key text, metadata jsonb, beyond text', 2,
     'operation_id bigint, metric text, quantity bigint, included bigint, credits bigint, balance_before bigint, balance_after bigint, replayed boolean'),
    ('release_credits', 'org_id uuid, hold_id bigint', 2, 'hold_id bigint, credits bigint, expires_at timestamp with time zone, balance_after bigint, replayed boolean'),
    ('lock_credits', 'org_id uuid, amount bigint, reason text, unit text, idempotency_key text, metadata jsonb', 3,
     'hold_id bigint, credits bigint, expires_at timestamp with time zone, balance_after bigint, replayed boolean'),
    ('pay_out', 'org_id uuid, hold_id bigint, idempotency_key text, metadata jsonb', 2,
     'hold_id bigint, credits bigint, expires_at timestamp with time zone, balance_after bigint, replayed boolean'),
    ('refund_credits', 'org_id uuid, operation_id bigint, credits bigint, reason text, idempotency_key text, metadata jsonb', 2,
     'operation_id bigint, credits bigint, balance_after bigint, replayed boolean'),
    ('adjust_credits', 'org_id uuid, amount bigint, reason text, unit text, idempotency_key text, metadata jsonb', 3, 'grant_id bigint, amount bigint, balance_after bigint, replayed boolean'),
    ('set_wallet_lanes', 'org_id uuid, lanes integer, unit text', 2, 'void'),
    ('void_grant', 'org_id uuid, grant_id bigint, reason text, idempotency_key text, metadata jsonb', 3, 'voided bigint, already_spent bigint, balance_after bigint, replayed boolean'),
    ('transfer_credits', 'from_org uuid, to_org uuid, amount bigint, unit text, idempotency_key text, metadata jsonb', 3,
     'operation_id bigint, amount bigint, from_balance bigint, to_balance bigint, replayed boolean'),
    ('get_total_credits', 'org_id uuid, unit text, metric text', 1, 'bigint'),
    ('get_wallet', 'org_id uuid, unit text', 1, 'org_id uuid, unit text, owner_type text, available bigint, reserved bigint, locked bigint, pending bigint, lifetime_purchased bigint, lifetime_consumed bigint, low_balance_threshold bigint'),
    ('create_wallet', 'org_id uuid, unit text, owner_type text, low_balance_threshold bigint', 1, 'org_id uuid, unit text, owner_type text, available bigint, reserved bigint, locked bigint, pending bigint, lifetime_purchased bigint, lifetime_consumed bigint, low_balance_threshold bigint'),
    ('explain_consumption', 'org_id uuid, metric text, quantity bigint', 2, 'grant_id bigint, source text, category text, expires_at timestamp with time zone, credits bigint, remaining_after bigint'),
    ('verify_ledger', 'org_id uuid', 0, 'org_id uuid, unit text, violation text, detail jsonb'),
    ('apply_catalog', 'catalog jsonb, dry_run boolean', 1, 'action text, kind text, name text, detail jsonb'),
    ('export_catalog', '', 0, 'jsonb'),
    ('calculate_cost', 'metric text, quantity bigint, org_id uuid', 1, 'bigint'),
    ('calculate_cost', 'items jsonb, org_id uuid', 1, 'bigint'),
    ('set_member_budget', 'org_id uuid, member_id uuid, credits bigint, per text, unit text', 3, 'void'),
    ('set_org_price', 'org_id uuid, metric text, price jsonb, effective_at timestamp with time zone', 3, 'void'),
    ('book_expiries', 'max_wallets integer', 0, 'bigint'),
    ('record_usage', 'org_id uuid, metric text, quantity bigint, event_id text, occurred_at timestamp with time zone, member_id uuid, properties jsonb', 2, 'boolean'),
    ('record_usage_batch', 'events jsonb', 1, 'accepted bigint, duplicates bigint'),
    ('check_limit', 'org_id uuid, metric text, quantity bigint', 2,
     'allowed boolean, reason text, metric text, used bigint, included bigint, remaining bigint, credits_required bigint, credits_available bigint, resets_at timestamp with time zone'),
    ('allows', 'org_id uuid, metric text, quantity bigint', 2, 'boolean'),
    ('credit_history', 'org_id uuid, months integer', 1,
     'month date, unit text, came_in bigint, used bigint, used_by_metric jsonb, expired bigint, refunded bigint, other bigint, closing_balance bigint'),
    ('subscribe', 'org_id uuid, plan text, starts_at timestamp with time zone, idempotency_key text, metadata jsonb', 2,
     'org_id uuid, plan text, status text, starts_at timestamp with time zone, period_start timestamp with time zone, period_end timestamp with time zone, cancel_at_period_end boolean, pending_plan text, ends_at timestamp with time zone, replayed boolean'),
    ('change_plan', 'org_id uuid, plan text, at_period_end boolean, idempotency_key text, metadata jsonb', 2,
     'org_id uuid, plan text, status text, starts_at timestamp with time zone, period_start timestamp with time zone, period_end timestamp with time zone, cancel_at_period_end boolean, pending_plan text, ends_at timestamp with time zone, replayed boolean'),
    ('cancel_subscription', 'org_id uuid, at_period_end boolean', 1,
     'org_id uuid, plan text, status text, starts_at timestamp with time zone, period_start timestamp with time zone, period_end timestamp with time zone, cancel_at_period_end boolean, pending_plan text, ends_at timestamp with time zone, replayed boolean'),
    ('set_org_allowance', 'org_id uuid, metric text, allowance bigint, limit_kind text', 2, 'void'),
    ('configure_alerts', 'shares integer[], expiring_days integer, deliver boolean', 0, 'void'),
    ('settle_org', 'org_id uuid, as_of timestamp with time zone', 1, 'org_id uuid, charged bigint, unpaid bigint, renewed bigint, events bigint'),
    ('settle', 'as_of timestamp with time zone, shard integer, of integer', 0, 'void'),
    ('meter_table', 'relation regclass, metric text, org_column name, quantity_column name, member_column name, key_column name, mode text', 3, 'void'),
    ('unmeter_table', 'relation regclass, metric text', 2, 'boolean'),
    ('create_gift_cards', 'name text, credits bigint, count integer, unit text, metrics text[], max_redemptions integer, expires_at timestamp with time zone, validity text, source text, metadata jsonb', 2, 'text'),
    ('redeem_gift_card', 'org_id uuid, code text, idempotency_key text, metadata jsonb', 2,
     'grant_id bigint, credits bigint, unit text, expires_at timestamp with time zone, balance_after bigint, replayed boolean'),
    ('void_gift_cards', 'name text', 1, 'bigint'),
    ('quote_pack', 'pack text, currency text, org_id uuid, amount bigint', 2,
     'pack text, currency text, price bigint, tax bigint, fee bigint, total bigint, credits bigint, bonus bigint, unit text, valid_until timestamp with time zone'),
    ('start_purchase', 'org_id uuid, pack text, currency text, provider text, amount bigint, customer text, payment_method text, idempotency_key text, metadata jsonb', 2,
     'payment_id uuid, org_id uuid, status text, pack text, currency text, price bigint, tax bigint, fee bigint, total bigint, credits bigint, bonus bigint, unit text, refunded bigint, replayed boolean'),
    ('set_payment_status', 'org_id uuid, payment_id uuid, status text, reason text', 3,
     'payment_id uuid, org_id uuid, status text, pack text, currency text, price bigint, tax bigint, fee bigint, total bigint, credits bigint, bonus bigint, unit text, refunded bigint, replayed boolean'),
    ('link_payment', 'org_id uuid, payment_id uuid, provider_ref text', 3, 'void'),
    ('link_customer', 'org_id uuid, provider text, customer text', 3, 'void'),
    ('set_webhook_secret', 'provider text, secret text, keep_old interval', 2, 'void'),
    ('handle_webhook', 'provider text, payload text, signature text, event_id text', 3, 'event_id text, event_type text, status text, reason text, org_id uuid'),
    ('replay_webhook', 'provider text, event_id text', 2, 'event_id text, event_type text, status text, reason text, org_id uuid'),
    ('stripe_webhook', ' json', 1, 'json'),
    ('razorpay_webhook', ' json', 1, 'json'),
    ('configure_auto_recharge', 'org_id uuid, threshold bigint, pack text, currency text, monthly_ceiling bigint, provider text, customer text, payment_method text, enabled boolean', 4,
     'org_id uuid, unit text, enabled boolean, threshold bigint, pack text, currency text, monthly_ceiling bigint, failures integer, stopped_at timestamp with time zone'),
    ('claim_events', 'topics text[], limit integer, lease interval', 0, 'event_id uuid, org_id uuid, topic text, payload jsonb, attempt integer, created_at timestamp with time zone'),
    ('ack_events', 'event_ids uuid[]', 1, 'bigint'),
    ('fail_event', 'event_id uuid, error text, retry_in interval', 2, 'text'),
    ('requeue_event', 'event_id uuid', 1, 'void'),
    ('configure_delivery', 'url text, topics text[], headers jsonb', 1, 'void'),
    ('deliver_events', 'limit integer', 0, 'bigint'),
    ('note_signal', 'org_id uuid, kind text, score integer, reason text, detail jsonb', 4, 'void'),
    ('configure_signals', 'payments_per_hour integer, orgs_per_card integer, failures_per_day integer, freeze_at integer', 0, 'void'),
    ('freeze_org', 'org_id uuid, reason text', 2, 'void'),
    ('unfreeze_org', 'org_id uuid', 1, 'boolean'),
    ('resolve_flag', 'org_id uuid, kind text', 2, 'boolean'),
    ('schedule_settlement', 'schedule text', 0, 'bigint'),
    ('unschedule_settlement', '', 0, 'boolean'),
    ('grant_access', 'role name, level text', 2, 'void'),
    ('revoke_access', 'role name', 1, 'void'),
    ('configure_membership', 'relation regclass, org_column name, user_column name', 3, 'void'),
    ('my_orgs', '', 0, 'uuid[]'),
    ('install', '', 0, 'text'),
    ('clock', '', 0, 'timestamp with time zone');

-- The columns of a result: of a composite type, of a table-returning function, or the plain type. Columns may be added at the end.
create function pg_temp.result_of(function oid) returns text language sql stable as $$
    select coalesce(
        (select string_agg(a.attname || ' ' || format_type(a.atttypid, null), ', ' order by a.attnum)
            from pg_type t join pg_attribute a on a.attrelid = t.typrelid where t.oid = p.prorettype and t.typtype = 'c' and a.attnum > 0 and not a.attisdropped),
        (select string_agg(o.name || ' ' || format_type(o.type, null), ', ' order by o.n)
            from unnest(p.proargnames, p.proallargtypes, p.proargmodes) with ordinality o (name, type, mode, n) where o.mode in ('o', 't')),
        format_type(p.prorettype, null))
    from pg_proc p where p.oid = function
$$;
create function pg_temp.arguments_of(function oid) returns text language sql stable as $$
    select coalesce(string_agg(coalesce(p.proargnames[a.n], '') || ' ' || format_type(a.type, null), ', ' order by a.n), '')
    from pg_proc p, unnest(p.proargtypes) with ordinality a (type, n) where p.oid = function
$$;

select is((select count(*) from pg_proc p where p.pronamespace = 'billing'::regnamespace and p.proname = e.name and pg_temp.arguments_of(p.oid) = e.arguments), 1::bigint,
          format('billing.%s(%s)', e.name, e.arguments)) from expected e order by e.name, e.arguments;
select unnest(array[
        is((p.pronargs - p.pronargdefaults)::int, e.required, format('required arguments of %s', p.oid::regprocedure)),
        ok(pg_temp.result_of(p.oid) || ', ' like e.result || ', %', format('result of %s: %s', p.oid::regprocedure, pg_temp.result_of(p.oid)))])
    from expected e join pg_proc p on p.pronamespace = 'billing'::regnamespace and p.proname = e.name and pg_temp.arguments_of(p.oid) = e.arguments order by e.name, e.arguments;

-- NULL for a required argument must reach the function, which refuses it: none is STRICT.
select is(p.proisstrict, false, format('not strict: %s', p.oid::regprocedure))
    from expected e join pg_proc p on p.pronamespace = 'billing'::regnamespace and p.proname = e.name where p.pronargs > 0 order by p.oid::regprocedure::text;

-- Columns that applications read.
select has_column('billing', t.relation, c, format('billing.%s.%s', t.relation, c)) from (values
    ('entries', 'org_id unit operation_id entry_id kind amount balance_before balance_after grant_id metric quantity member_id source source_id idempotency_key metadata created_at entry_hash'),
    ('wallets', 'org_id unit owner_type available reserved locked pending lifetime_purchased lifetime_consumed low_balance_threshold'),
    ('grants', 'org_id grant_id unit source category amount remaining cost_minor currency priority metrics effective_at expires_at voided_at created_at metadata'),
    ('holds', 'org_id hold_id unit kind metric quantity credits member_id status reason expires_at created_at closed_at'),
    ('member_usage', 'org_id unit member_id consumed last_activity_at budget budget_per'),
    ('unpaid_overage', 'org_id unit metric period_start credits'),
    ('usage_by_day', 'org_id day metric quantity credits'),
    ('usage_by_month', 'org_id month metric quantity credits'),
    ('alerts', 'org_id kind subject share raised_at resolved_at value threshold number'),
    ('usage_events', 'org_id metric quantity event_id occurred_at recorded_at member_id properties'),
    ('subscriptions', 'org_id plan starts_at ends_at pending_plan cancel_at_period_end metadata'),
    ('plans', 'plan terms created_at retired_at'),
    ('caps', 'cap metric category per subject quantity'),
    ('gift_card_batches', 'name source unit credits metrics max_redemptions validity expires_at metadata cards redemptions credits_granted used_up voided created_at'),
    ('gift_card_redemptions', 'org_id code_hash grant_id redeemed_at name'),
    ('payments', 'org_id payment_id status source provider pack plan unit currency price tax fee total credits bonus refunded paid_at created_at updated_at dispute failure metadata'),
    ('webhook_events', 'provider event_id type status reason received_at processed_at deliveries org_id payload'),
    ('outbox', 'org_id event_id topic payload created_at available_at attempts delivered_at dead_at last_error'),
    ('flags', 'org_id kind score reason detail times raised_at seen_at resolved_at'),
    ('freezes', 'org_id frozen_at reason'),
    ('auto_recharges', 'org_id unit threshold pack currency monthly_ceiling enabled failures next_attempt_at stopped_at'),
    ('packs', 'pack terms created_at retired_at'),
    ('settlement_progress', 'run_id pid phase orgs_done orgs_failed orgs_total charged as_of shard shards started_at running_for'),
    ('settlement_runs', 'run_id started_at finished_at as_of status orgs_total orgs_done orgs_failed charged unpaid renewed'),
    ('settlement_faults', 'org_id run_id failed_at sqlstate message detail')) t (relation, columns), lateral regexp_split_to_table(t.columns, ' ') c;
-- Every table of orgs is keyed by the org first, and uses built-in types only. Events are evidence, found by org and time; what
-- makes them unique stands in usage_event_keys. Webhooks are of providers, who do not always say whom they are about.
select is_empty($$select c.relname from pg_class c where c.relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and c.relkind in ('r', 'p')
    and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'org_id' and not a.attisdropped)
    and c.relname not in ('usage_events', 'webhook_events') and not c.relispartition and not exists (select from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0] where i.indrelid = c.oid and i.indisprimary and a.attname = 'org_id')$$,
    'org_id is first in every primary key');
select is((select count(*) from pg_inherits h where h.inhparent = 'billing.usage_events'::regclass and not exists (select from pg_index i join pg_attribute a on a.attrelid = h.inhrelid and a.attnum = i.indkey[0]
    where i.indrelid = h.inhrelid and a.attname = 'org_id')), 0::bigint, 'and in the index of every partition of events');
select is_empty($$select i.indexrelid::regclass from pg_class c join pg_index i on i.indrelid = c.oid join pg_attribute o on o.attrelid = c.oid and o.attname = 'org_id'
    where c.relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and c.relkind in ('r', 'p') and c.relname <> 'webhook_events' and i.indisunique and i.indkey[0] <> o.attnum$$, 'and in every unique index');
select is_empty($$select c.relname, a.attname, t.typname from pg_class c join pg_attribute a on a.attrelid = c.oid join pg_type t on t.oid = a.atttypid
    where c.relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped and t.typnamespace <> 'pg_catalog'::regnamespace$$, 'columns have built-in types');
select is_empty($$select c.relname from pg_class c join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
    join pg_extension e on e.oid = d.refobjid and d.refclassid = 'pg_extension'::regclass where e.extname = 'pg_billing' and c.relkind in ('r', 'p', 'v')$$, 'tables and views are no members of the extension');
select is_empty($$select d.objid::regnamespace from pg_depend d where d.classid = 'pg_namespace'::regclass and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'$$, 'nor are the schemas in which they are');
-- The one list of tables and views is of what there is, and of nothing else.
select set_eq($$select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where n.nspname in ('billing', 'billing_internal') and c.relkind in ('r', 'p', 'v') and not c.relispartition$$, 'select schema, name from billing_internal.relations()', 'relations() lists every table and view');

select * from finish();
rollback;
