-- Who the caller is, and who may do what. plpgsql, because SQL bodies would be checked against tables that
-- install() makes later.

create function billing.my_orgs() returns uuid[]
    language plpgsql stable security definer
    set search_path = pg_catalog, billing, pg_temp as $$
declare
    text_of_claims text := nullif(current_setting('request.jwt.claims', true), '');
    claims jsonb;
    candidates text[];
    membership jsonb;
    relation regclass;
    joined uuid[];
begin
    if text_of_claims is null then
        return '{}';
    end if;
    begin
        claims := text_of_claims::jsonb;
    exception when data_exception then
        return '{}'; -- who has no readable claims has no orgs
    end;
    candidates := array[claims ->> 'org_id', claims -> 'app_metadata' ->> 'org_id'];
    if jsonb_typeof(claims -> 'app_metadata' -> 'org_ids') = 'array' then
        candidates := candidates || array(select jsonb_array_elements_text(claims -> 'app_metadata' -> 'org_ids'));
    end if;
    select value into membership from billing.settings where name = 'membership';
    relation := to_regclass(membership ->> 'relation');
    if relation is not null and claims ->> 'sub' is not null then
        begin
            execute format('select array_agg(%I::uuid) from %s where %I = $1::%s',
                           membership ->> 'org_column', relation, membership ->> 'user_column', membership ->> 'user_type')
               into joined using claims ->> 'sub';
        exception when data_exception then
            joined := null; -- a subject that cannot be a user of that relation
        end;
    end if;
    return array(
        select distinct org from (
            select c::uuid as org from unnest(candidates) c
             where c ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
            union all
            select unnest(joined)) as found
         where org is not null);
end $$;

create function billing.configure_membership(relation regclass, org_column name, user_column name) returns void
    language plpgsql volatile security definer
    set search_path = pg_catalog, billing, pg_temp as $$
declare
    org_type text;
    user_type text;
begin
    if relation is null or org_column is null or user_column is null then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "fault": "relation, org_column and user_column must not be null"}';
    end if;
    select format_type(atttypid, atttypmod) into org_type from pg_attribute
     where attrelid = relation and attname = org_column and attnum > 0 and not attisdropped;
    select format_type(atttypid, atttypmod) into user_type from pg_attribute
     where attrelid = relation and attname = user_column and attnum > 0 and not attisdropped;
    if org_type is distinct from 'uuid' or user_type is null then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = jsonb_build_object('code', 'invalid_argument', 'fault',
                'the relation must have an org_column of type uuid and a user_column')::text;
    end if;
    insert into billing.settings (name, value)
    values ('membership', jsonb_build_object(
        -- Qualified, because only pg_catalog and billing are on the path here.
        'relation', relation::text, 'org_column', org_column, 'user_column', user_column, 'user_type', user_type))
    on conflict (name) do update set value = excluded.value;
end $$;

-- One list of what each level may execute; services may call all but the administration and the insides.
create function billing.routines_of(level text) returns setof regprocedure
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select p.oid::regprocedure
      from pg_extension e
      join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
                      and d.classid = 'pg_proc'::regclass
      join pg_proc p on p.oid = d.objid
     where e.extname = 'pg_billing'
       and case level
           when 'service' then
               p.proname <> all ('{install,grant_access,revoke_access,configure_membership,routines_of,
                                   make_partitions,metered_insert,meter_trigger,meter_fault,attach_meter,
                                   emit_event,look_for_signals}')
           when 'auditor' then
               p.proname = any ('{my_orgs,get_total_credits,get_wallet,explain_consumption,calculate_cost,clock,version,
                                  verify_ledger,export_catalog,check_limit,allows,credit_history,settlement_is_running,
                                  quote_pack}')
           when 'member' then
               p.proname = any ('{my_orgs,get_total_credits,get_wallet,explain_consumption,calculate_cost,clock,version,
                                  check_limit,allows,credit_history,quote_pack,start_purchase,configure_auto_recharge,
                                  redeem_gift_card}')
           when 'webhook' then
               p.proname = any ('{stripe_webhook,razorpay_webhook}')
           end
$$;

create function billing.grant_access(role name, level text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, billing, pg_temp as $$
declare
    routine regprocedure;
    readable text;
begin
    if role is null or level is null or level not in ('member', 'service', 'auditor', 'webhook') then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "level", "fault": "must be member, service, auditor or webhook"}';
    end if;
    if not exists (select from pg_roles where rolname = role) then
        raise exception using errcode = '42704', message = 'no such role',
            detail = jsonb_build_object('code', 'unknown_role', 'role', role)::text;
    end if;
    perform billing.revoke_access(role);
    execute format('grant usage on schema billing to %I', role);
    for routine in select r from billing.routines_of(level) r loop
        execute format('grant execute on routine %s to %I', routine, role);
    end loop;
    insert into billing.access (role_name, level) values (role, grant_access.level)
    on conflict (role_name) do update set level = excluded.level;
    if level = 'webhook' then
        return;
    end if;
    foreach readable in array array['wallets', 'grants', 'operations', 'entries', 'ledger', 'holds', 'lanes', 'lots',
        'wallet_settings', 'refunds', 'member_usage', 'period_usage', 'metrics', 'prices', 'org_prices', 'plans', 'caps',
        'subscriptions', 'org_allowances', 'usage_events', 'unsettled_usage', 'unpaid_overage', 'cap_usage', 'usage_days', 'credit_months', 'folded',
        'alerts', 'usage_by_day', 'usage_by_month', 'packs', 'surcharges', 'payments', 'payment_refs', 'provider_customers',
        'provider_subscriptions', 'auto_recharges'] loop
        execute format('grant select on billing.%I to %I', readable, role);
    end loop;
    if level <> 'member' then
        foreach readable in array array['settlement_runs', 'settlement_faults', 'settlement_progress', 'webhook_events', 'outbox',
            'flags', 'freezes', 'gift_card_batches', 'gift_card_redemptions'] loop
            execute format('grant select on billing.%I to %I', readable, role);
        end loop;
        -- All but the codes.
        execute format('grant select (name, source, unit, credits, metrics, max_redemptions, redeemed, validity, expires_at, voided_at, created_at, metadata)
                        on billing.gift_cards to %I', role);
    end if;
end $$;

create function billing.revoke_access(role name) returns void
    language plpgsql volatile
    set search_path = pg_catalog, billing, pg_temp as $$
begin
    if role is null then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "role", "fault": "must not be null"}';
    end if;
    if exists (select from pg_roles where rolname = role) then
        execute format('revoke all on all tables in schema billing from %I', role);
        execute format('revoke all on all routines in schema billing from %I', role);
        execute format('revoke all on schema billing from %I', role);
    end if;
    delete from billing.access where role_name = role;
end $$;
