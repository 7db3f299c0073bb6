-- Applications, PostgREST and DBAs use the schema billing; billing_internal has the machinery: functions that nobody calls by hand, and
-- tables that have a view or a function in front of them. The tables in both stay when the extension is dropped: so neither schema is
-- a member of it (docs/decisions/two-schemas.md).
do $$
begin
    if pg_catalog.to_regnamespace('billing_internal') is null then
        create schema billing_internal;
        alter extension pg_billing drop schema billing_internal;
    end if;
end $$;

-- The one list of tables and views, as install() makes them: who may read them (members: with auditors and services; staff: auditors and
-- services; nobody: the owner alone), and whose rows there are to see (org: members see those of their own orgs; staff: all of them, but
-- for members; everybody: the price list). A view has no rows of its own.
create function billing_internal.relations() returns table (schema name, name name, readers text, rows text)
    language sql immutable
    set search_path = pg_catalog, pg_temp as $$
    values
        -- What people use.
        ('billing'::name, 'wallets'::name, 'members', null),
        ('billing', 'grants', 'members', null),
        ('billing', 'entries', 'members', null),
        ('billing', 'operations', 'members', null),
        ('billing', 'usage_by_day', 'members', null),
        ('billing', 'usage_by_month', 'members', null),
        ('billing', 'settlement_progress', 'staff', null),
        ('billing', 'gift_card_batches', 'staff', null),
        ('billing', 'ledger', 'members', 'org'),
        ('billing', 'holds', 'members', 'org'),
        ('billing', 'member_usage', 'members', 'org'),
        ('billing', 'unpaid_overage', 'members', 'org'),
        ('billing', 'usage_events', 'members', 'org'),
        ('billing', 'subscriptions', 'members', 'org'),
        ('billing', 'org_prices', 'members', 'org'),
        ('billing', 'org_allowances', 'members', 'org'),
        ('billing', 'alerts', 'members', 'org'),
        ('billing', 'payments', 'members', 'org'),
        ('billing', 'payment_refs', 'members', 'org'),
        ('billing', 'provider_customers', 'members', 'org'),
        ('billing', 'provider_subscriptions', 'members', 'org'),
        ('billing', 'auto_recharges', 'members', 'org'),
        ('billing', 'gift_card_redemptions', 'staff', 'org'),
        ('billing', 'metrics', 'members', 'everybody'),
        ('billing', 'prices', 'members', 'everybody'),
        ('billing', 'plans', 'members', 'everybody'),
        ('billing', 'caps', 'members', 'everybody'),
        ('billing', 'packs', 'members', 'everybody'),
        ('billing', 'surcharges', 'members', 'everybody'),
        ('billing', 'settlement_runs', 'staff', 'staff'),
        ('billing', 'settlement_faults', 'staff', 'staff'),
        ('billing', 'webhook_events', 'staff', 'staff'),
        ('billing', 'outbox', 'staff', 'staff'),
        ('billing', 'flags', 'staff', 'staff'),
        ('billing', 'freezes', 'staff', 'staff'),
        -- All but the codes: rights_of names the columns.
        ('billing', 'gift_cards', 'nobody', 'staff'),
        ('billing', 'access', 'nobody', null),
        ('billing', 'metered_tables', 'nobody', null),
        ('billing', 'migrations', 'nobody', null),
        -- What the views and functions in front of them read with the rights of their reader.
        ('billing_internal', 'wallet_settings', 'members', 'org'),
        ('billing_internal', 'lanes', 'members', 'org'),
        ('billing_internal', 'grants', 'members', 'org'),
        ('billing_internal', 'refunds', 'members', 'org'),
        ('billing_internal', 'period_usage', 'members', 'org'),
        ('billing_internal', 'unsettled_usage', 'members', 'org'),
        ('billing_internal', 'cap_usage', 'members', 'org'),
        ('billing_internal', 'usage_days', 'members', 'org'),
        ('billing_internal', 'credit_months', 'members', 'org'),
        ('billing_internal', 'fold_positions', 'members', 'org'),
        -- What nobody reads.
        ('billing_internal', 'settings', 'nobody', null),
        ('billing_internal', 'secrets', 'nobody', null),
        ('billing_internal', 'webhook_secrets', 'nobody', null),
        ('billing_internal', 'gift_card_attempts', 'nobody', null),
        ('billing_internal', 'subscription_requests', 'nobody', null),
        ('billing_internal', 'usage_event_keys', 'nobody', null),
        ('billing_internal', 'usage_uniques', 'nobody', null)
$$;
comment on function billing_internal.relations is
'Lists the tables and views of pg_billing, who may read them and whose rows there are to see.';

-- A schema that somebody else made could hold traps for the functions that run with the owner's rights: so nobody else may own one of
-- ours or create in it, and it holds nothing but what install() makes, which stays when the extension is dropped, and that list.
do $$
declare
    ours constant pg_catalog.oid[] := array(select oid from pg_catalog.pg_namespace where nspname in ('billing', 'billing_internal'));
    list constant pg_catalog.regprocedure := 'billing_internal.relations()';
    open_to text;
    foreign_things text;
begin
    select pg_catalog.string_agg(distinct role, ', ') into open_to from (
        select o.rolname::text as role from pg_catalog.pg_namespace n join pg_catalog.pg_roles o on o.oid = n.nspowner
         where n.oid = any (ours) and n.nspowner <> current_user::pg_catalog.regrole and not o.rolsuper
        union all
        select coalesce(g.rolname::text, 'PUBLIC') from pg_catalog.pg_namespace n cross join lateral pg_catalog.aclexplode(n.nspacl) a
          left join pg_catalog.pg_roles g on g.oid = a.grantee
         where n.oid = any (ours) and a.privilege_type = 'CREATE' and a.grantee <> n.nspowner and g.rolsuper is not true) roles;
    if open_to is not null then
        raise exception using errcode = '42501', message = 'a schema of pg_billing is open to another role',
            detail = pg_catalog.jsonb_build_object('code', 'schema_open', 'roles', open_to)::text,
            hint = 'What is in it may be a trap. Look at it, then drop it: drop schema billing, billing_internal cascade; the extension makes its own.';
    end if;
    select pg_catalog.string_agg(thing, ', ') into foreign_things from (
        select pg_catalog.pg_describe_object(d.classid, d.objid, 0) as thing
          from pg_catalog.pg_depend d
          left join pg_catalog.pg_class c on d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and c.oid = d.objid
          left join pg_catalog.pg_proc p on d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and p.oid = d.objid
          left join pg_catalog.pg_roles o on o.oid = coalesce(c.relowner, p.proowner)
         where d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass and d.refobjid = any (ours)
           and not (d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = list)
           -- But for the extension that is being created, and default privileges, which install() takes.
           and d.classid not in ('pg_catalog.pg_extension'::pg_catalog.regclass, 'pg_catalog.pg_default_acl'::pg_catalog.regclass)
           and not coalesce(
               o.rolsuper
               -- Before the first install() there is nothing of ours.
               and exists (select from pg_catalog.pg_class m where m.relnamespace = 'billing'::pg_catalog.regnamespace and m.relname = 'migrations' and m.relkind = 'r')
               and (p.pronamespace = 'billing_internal'::pg_catalog.regnamespace and p.proname in ('refuse_change', 'refuse_event_change', 'refuse_truncate') and p.pronargs = 0
                    or c.relnamespace = 'billing'::pg_catalog.regnamespace and c.relkind in ('r', 'p') and c.relname operator(pg_catalog.~) '^usage_events_([0-9]{4}_[0-9]{2}|default)$'
                    or c.relkind in ('r', 'p', 'v')
                       and exists (select from billing_internal.relations() l where l.name = c.relname and l.schema::pg_catalog.regnamespace = c.relnamespace)), false)
        union all
        -- What hangs on a table of ours and would run with our rights: by a function, type or operator that is not the server's, or as a rule.
        select pg_catalog.format('%s, by %s', pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid), pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0))
          from pg_catalog.pg_depend d
          left join pg_catalog.pg_attrdef a on d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and a.oid = d.objid
          left join pg_catalog.pg_constraint k on d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass and k.oid = d.objid
          left join pg_catalog.pg_rewrite w on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and w.oid = d.objid
          left join pg_catalog.pg_trigger t on d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass and t.oid = d.objid
          left join pg_catalog.pg_policy y on d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass and y.oid = d.objid
          left join pg_catalog.pg_index i on d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and i.indexrelid = d.objid
          join pg_catalog.pg_class c on c.oid = coalesce(a.adrelid, k.conrelid, w.ev_class, t.tgrelid, y.polrelid, i.indrelid,
                                                         case when d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass then d.objid end)
          left join pg_catalog.pg_proc p on d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass and p.oid = d.refobjid
          left join pg_catalog.pg_type r on d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass and r.oid = d.refobjid
          left join pg_catalog.pg_class o on o.oid = r.typrelid
         where c.relnamespace = any (ours) and d.refobjid >= 16384
           and d.refclassid in ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_type'::pg_catalog.regclass, 'pg_catalog.pg_operator'::pg_catalog.regclass,
                                'pg_catalog.pg_opclass'::pg_catalog.regclass, 'pg_catalog.pg_collation'::pg_catalog.regclass)
           and not coalesce(p.pronamespace = any (ours) or o.relnamespace = any (ours), false)
        union all
        select pg_catalog.format('rule %I on %s', w.rulename, c.oid::pg_catalog.regclass)
          from pg_catalog.pg_rewrite w join pg_catalog.pg_class c on c.oid = w.ev_class where c.relnamespace = any (ours) and c.relkind in ('r', 'p')
        union all
        -- Of the server's own functions, ours use these in defaults, checks and indexes; with others, much can be done.
        select pg_catalog.format('%s in %s', used.name[1], pg_catalog."left"(x.expression, 100))
          from (select pg_catalog.pg_get_expr(a.adbin, a.adrelid) from pg_catalog.pg_attrdef a join pg_catalog.pg_class c on c.oid = a.adrelid where c.relnamespace = any (ours)
                union all
                select pg_catalog.pg_get_constraintdef(k.oid) from pg_catalog.pg_constraint k where k.connamespace = any (ours) and k.contype = 'c'
                union all
                select coalesce(pg_catalog.pg_get_expr(i.indexprs, i.indrelid), '') operator(pg_catalog.||) ' ' operator(pg_catalog.||) coalesce(pg_catalog.pg_get_expr(i.indpred, i.indrelid), '')
                  from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indrelid where c.relnamespace = any (ours)) x (expression)
         cross join lateral pg_catalog.regexp_matches(x.expression, '([[:alnum:]_."]+)[[:space:]]*[(]', 'g') used (name)
         where used.name[1] not in ('AND', 'ANY', 'CHECK', 'cardinality', 'clock_timestamp', 'gen_random_uuid', 'octet_length', 'date_trunc')) things;
    if foreign_things is not null then
        raise exception using errcode = '42501', message = 'a schema of pg_billing holds what the extension did not make',
            detail = pg_catalog.jsonb_build_object('code', 'schema_not_empty', 'objects', pg_catalog.left(foreign_things, 2000))::text,
            hint = 'It would run with the rights of the extension. Look at it, then drop it: each of these objects, or both schemas, billing and billing_internal, if they are nobody''s.';
    end if;
end $$;

comment on schema billing_internal is 'Insides of the extension pg_billing: nothing here is called by hand.';

-- What the functions answer. Columns may be added at the end, never changed.

create type billing.grant_receipt as (grant_id bigint, amount bigint, balance_after bigint, replayed boolean);
comment on type billing.grant_receipt is 'Credit that came in or was corrected; grant_id is null where none was made.';

create type billing.void_receipt as (voided bigint, already_spent bigint, balance_after bigint, replayed boolean);
comment on type billing.void_receipt is 'What a void took back, and what of the grant was spent or reserved before.';

create type billing.consumption as (
    operation_id bigint, metric text, quantity bigint, included bigint, credits bigint,
    balance_before bigint, balance_after bigint, replayed boolean);
comment on type billing.consumption is 'Usage counted and credit burned; the balances are what the org can spend on the metric.';

create type billing.hold_receipt as (
    hold_id bigint, credits bigint, expires_at timestamptz, balance_after bigint, replayed boolean);
comment on type billing.hold_receipt is 'Credit set aside or given back; a payout hold has no expires_at.';

create type billing.refund_receipt as (operation_id bigint, credits bigint, balance_after bigint, replayed boolean);
comment on type billing.refund_receipt is 'Credit given back; operation_id is that of the refund.';

create type billing.transfer_receipt as (
    operation_id bigint, amount bigint, from_balance bigint, to_balance bigint, replayed boolean);
comment on type billing.transfer_receipt is 'Credit moved between two orgs; operation_id is that of the giving org.';

create type billing.wallet_status as (
    org_id uuid, unit text, owner_type text, available bigint, reserved bigint, locked bigint, pending bigint,
    lifetime_purchased bigint, lifetime_consumed bigint, low_balance_threshold bigint,
    scoped bigint, future bigint, created_at timestamptz);
comment on type billing.wallet_status is 'A wallet: available is general credit that can be spent now; scoped is for some metrics only; future is not effective yet.';

create type billing.version_status as (library text, tables_needed bigint, tables_installed bigint);
comment on type billing.version_status is 'Version of the library, and of the tables that it needs and finds.';

create type billing.usage_receipt as (accepted bigint, duplicates bigint);
comment on type billing.usage_receipt is 'Events recorded, and events that had been recorded before.';

create type billing.limit_status as (
    allowed boolean, reason text, metric text, used bigint, included bigint, remaining bigint,
    credits_required bigint, credits_available bigint, resets_at timestamptz);
comment on type billing.limit_status is 'Whether an org may go on with a metric, and why; included and remaining are null where there is no limit.';

create type billing.subscription as (
    org_id uuid, plan text, status text, starts_at timestamptz, period_start timestamptz, period_end timestamptz,
    cancel_at_period_end boolean, pending_plan text, ends_at timestamptz, replayed boolean);
comment on type billing.subscription is 'A subscription as it is now; status is active, scheduled or canceled.';

create type billing.settlement_receipt as (org_id uuid, charged bigint, unpaid bigint, renewed bigint, events bigint);
comment on type billing.settlement_receipt is 'What the settlement of an org burned, what it still owes, periods begun, events settled.';

create type billing.pack_quote as (
    pack text, currency text, price bigint, tax bigint, fee bigint, total bigint, credits bigint, bonus bigint, unit text,
    valid_until timestamptz);
comment on type billing.pack_quote is 'What a purchase comes to: money in minor units; bonus comes on top of credits; valid_until is null for ever.';

create type billing.payment as (
    payment_id uuid, org_id uuid, status text, pack text, currency text, price bigint, tax bigint, fee bigint, total bigint,
    credits bigint, bonus bigint, unit text, refunded bigint, replayed boolean);
comment on type billing.payment is 'A payment as it is now; status is idle, processing, pending, succeeded, failed or refunded.';

create type billing.webhook_receipt as (event_id text, event_type text, status text, reason text, org_id uuid);
comment on type billing.webhook_receipt is 'What became of a provider''s report: processed, duplicate, ignored, or review with the reason.';

create type billing.auto_recharge as (
    org_id uuid, unit text, enabled boolean, threshold bigint, pack text, currency text, monthly_ceiling bigint,
    failures integer, stopped_at timestamptz);
comment on type billing.auto_recharge is 'Automatic recharging of a wallet as it is set.';
create type billing.gift_card_receipt as (
    grant_id bigint, credits bigint, unit text, expires_at timestamptz, balance_after bigint, replayed boolean);
comment on type billing.gift_card_receipt is 'Credit that a redeemed code brought; expires_at is null where it never expires.';
