-- Signals of misuse: flags with a score, and freezing.

create function billing.note_signal(org_id uuid, kind text, score integer, reason text, detail jsonb default '{}') returns void
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.note_signal is
'Raises a flag of an org, or counts it once more; freezes the org where the scores of its open flags reach freeze_at. score: 1 to 100. Errors: 22023.';
create function billing_internal.note_signal(org_id uuid, kind text, score integer, reason text, detail jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    now timestamptz := billing.clock();
    bound integer;
    total bigint;
begin
    if org_id is null or kind is null or score is null or score not between 1 and 100 or coalesce(reason, '') = '' then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "fault": "org_id, kind, score (1 to 100) and reason must be given"}';
    end if;
    insert into billing.flags as f (org_id, kind, raised_at, seen_at, score, reason, detail)
    values (note_signal.org_id, note_signal.kind, now, now, note_signal.score, left(note_signal.reason, 1000),
            coalesce(note_signal.detail, '{}'))
    on conflict (org_id, kind) where resolved_at is null do update
       set seen_at = now, times = f.times + 1, score = greatest(f.score, excluded.score), reason = excluded.reason,
           detail = excluded.detail;
    select (value ->> 'freeze_at')::integer into bound from billing_internal.settings where name = 'signals';
    if bound is not null then
        select sum(f.score) into total from billing.flags f where f.org_id = note_signal.org_id and f.resolved_at is null;
        if total >= bound then
            insert into billing.freezes (org_id, frozen_at, reason)
            values (note_signal.org_id, now, 'score ' || total || ': ' || note_signal.reason)
            on conflict do nothing;
        end if;
    end if;
end $$;

create function billing.configure_signals(
    payments_per_hour integer default 10, orgs_per_card integer default 3, failures_per_day integer default 5,
    freeze_at integer default null) returns void
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.configure_signals is
'Sets how many payments in an hour, orgs on one card and failures in a day are too many, and at which sum of scores an org is frozen (null: never). Errors: 22023.';
create function billing_internal.configure_signals(
    payments_per_hour integer, orgs_per_card integer, failures_per_day integer,
    freeze_at integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    if least(payments_per_hour, orgs_per_card, failures_per_day, coalesce(freeze_at, 1)) < 1
       or payments_per_hour is null or orgs_per_card is null or failures_per_day is null then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "fault": "each must be at least 1; freeze_at may be null for never"}';
    end if;
    insert into billing_internal.settings (name, value)
    values ('signals', jsonb_build_object('payments_per_hour', payments_per_hour, 'orgs_per_card', orgs_per_card,
                                          'failures_per_day', failures_per_day, 'freeze_at', freeze_at))
    on conflict (name) do update set value = excluded.value;
end $$;

create function billing.freeze_org(org_id uuid, reason text) returns void
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.freeze_org is
'Freezes an org: check_limit() says frozen of it from now on. Errors: 22023.';
create function billing_internal.freeze_org(org_id uuid, reason text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    if org_id is null or coalesce(reason, '') = '' then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "fault": "org_id and reason must be given"}';
    end if;
    insert into billing.freezes (org_id, frozen_at, reason)
    values (freeze_org.org_id, billing.clock(), left(freeze_org.reason, 1000))
    on conflict on constraint freezes_pkey do nothing;
end $$;

create function billing.unfreeze_org(org_id uuid) returns boolean
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.unfreeze_org is
'Unfreezes an org and resolves its flags; tells whether it was frozen.';
create function billing_internal.unfreeze_org(org_id uuid) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    -- What was looked at does not freeze again by itself.
    update billing.flags f set resolved_at = billing.clock() where f.org_id = unfreeze_org.org_id and f.resolved_at is null;
    delete from billing.freezes f where f.org_id = unfreeze_org.org_id;
    return found;
end $$;

create function billing.resolve_flag(org_id uuid, kind text) returns boolean
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.resolve_flag is
'Resolves an open flag of an org; tells whether there was one.';
create function billing_internal.resolve_flag(org_id uuid, kind text) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    update billing.flags f set resolved_at = billing.clock()
     where f.org_id = resolve_flag.org_id and f.kind = resolve_flag.kind and f.resolved_at is null;
    return found;
end $$;

-- What a payment that was started, failed or paid says about its org.
create function billing_internal.look_for_signals(org_id uuid, fingerprint text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    now timestamptz := billing.clock();
    setting jsonb := coalesce((select value from billing_internal.settings where name = 'signals'), '{}');
    seen bigint;
begin
    select count(*) into seen from billing.payments p
     where p.org_id = look_for_signals.org_id and p.created_at > now - interval '1 hour' and p.source <> 'subscription';
    if seen > coalesce((setting ->> 'payments_per_hour')::integer, 10) then
        perform billing.note_signal(look_for_signals.org_id, 'payment_velocity', 30, seen || ' payments in an hour',
                                    jsonb_build_object('payments', seen));
    end if;
    select count(*) into seen from billing.payments p
     where p.org_id = look_for_signals.org_id and p.status = 'failed' and p.updated_at > now - interval '1 day';
    if seen >= coalesce((setting ->> 'failures_per_day')::integer, 5) then
        perform billing.note_signal(look_for_signals.org_id, 'payment_failures', 30, seen || ' failed payments in a day',
                                    jsonb_build_object('failures', seen));
    end if;
    if look_for_signals.fingerprint is not null then
        select count(distinct p.org_id) into seen from billing.payments p where p.fingerprint = look_for_signals.fingerprint;
        if seen > coalesce((setting ->> 'orgs_per_card')::integer, 3) then
            perform billing.note_signal(look_for_signals.org_id, 'shared_card', 50, seen || ' orgs pay with one card',
                                        jsonb_build_object('orgs', seen, 'fingerprint', look_for_signals.fingerprint));
        end if;
    end if;
end $$;
comment on function billing_internal.look_for_signals is
'Raises flags for what a payment that was started, failed or paid says about its org.';
