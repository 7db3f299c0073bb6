-- settle(): a procedure that commits per batch of orgs, so that a crash loses nothing and one org's fault stops nobody. A
-- procedure that commits can be neither SECURITY DEFINER nor have a search_path of its own: it only calls gates, whose bodies have one.

create function billing_internal.make_partitions(as_of timestamptz) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    -- Where things go by default is not the caller's to say.
    set default_tablespace = ''
    set default_table_access_method = heap as $$
declare
    first date := date_trunc('month', as_of at time zone 'UTC');
    start date;
    name text;
    bounds text;
    given record;
    patience constant text := current_setting('lock_timeout');
begin
    for months in 0..2 loop
        start := first + make_interval(months => months);
        name := 'usage_events_' || to_char(start, 'YYYY_MM');
        continue when to_regclass('billing.' || name) is not null;
        -- What came before its partition was made stays where it is: moving it would make writers wait.
        continue when exists (select from billing.usage_events_default
                               where recorded_at >= start::timestamp at time zone 'UTC'
                                 and recorded_at < (start + interval '1 month') at time zone 'UTC');
        bounds := format('from (%L) to (%L)', start || ' 00:00:00+00',
                         (start + interval '1 month')::date || ' 00:00:00+00');
        begin
            -- Whoever writes events is not to wait behind somebody who reads them for long: then the next run does it.
            perform set_config('lock_timeout', '100ms', true);
            execute format('create table billing.%I (like billing.usage_events including defaults including constraints)', name);
            -- Default privileges are no rights in our schema.
            for given in select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end as role
                           from pg_class c cross join lateral aclexplode(c.relacl) a
                          where c.oid = format('billing.%I', name)::regclass and a.grantee <> c.relowner loop
                execute format('revoke all on billing.%I from %s cascade', name, given.role);
            end loop;
            execute format('comment on table billing.%I is %L', name, 'Events that were recorded in ' || to_char(start, 'YYYY-MM') || ' (UTC).');
            execute format('alter table billing.%I enable row level security', name);
            execute format('create trigger usage_events_append_only before update or delete or truncate on billing.%I
                            for each statement execute function billing_internal.refuse_event_change()', name);
            execute format('alter table billing.usage_events attach partition billing.%I for values %s', name, bounds);
        exception when lock_not_available or deadlock_detected or duplicate_table or check_violation then
            null;
        end;
        perform set_config('lock_timeout', patience, true);
    end loop;
end $$;
comment on function billing_internal.make_partitions is
'Makes the partitions of usage_events for this month and the next two.';

create function billing_internal.settlement_due(as_of timestamptz, shard int, shards int) returns uuid[]
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing_internal.settlement_due is
'Gives the orgs with something to settle, for settle().';
create function billing_internal.settlement_due_body(as_of timestamptz, shard int, shards int) returns uuid[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    soon timestamptz;
    enrolls boolean;
begin
    select as_of + make_interval(days => coalesce((value ->> 'expiring_days')::int, 7)) into soon
      from (select) one left join billing_internal.settings on name = 'alerts';
    enrolls := exists (select from billing.plans
                        where retired_at is null and terms ->> 'default' = 'true' and terms -> 'credits' is not null);
    return array(
        select org_id from (
            select org_id from billing_internal.unsettled_usage
            union select org_id from billing.subscriptions where next_period_at <= as_of
            union select org_id from billing.unpaid_overage
            union select org_id from billing_internal.period_usage where level is not null and not carried and period_end <= as_of + interval '1 microsecond'
            union select org_id from billing_internal.lanes where holds_due <= as_of
            union select org_id from billing_internal.lanes where fresh_until <= soon and (lane = 0 or balance > 0)
            union select org_id from billing.auto_recharges where enabled and stopped_at is null
            union select org_id from billing.alerts where resolved_at is null
            union select l.org_id from billing_internal.lanes l
                    left join billing_internal.fold_positions f on f.org_id = l.org_id and f.slot = l.slot
                   where l.last_entry_id > coalesce(f.entry_id, l.slot::bigint << 40)
            union select l.org_id from billing_internal.lanes l
                   where enrolls and not exists (select from billing.subscriptions s
                                                  where s.org_id = l.org_id and (s.ends_at is null or s.ends_at > as_of))
        ) due
         where shards = 1 or mod(mod(uuid_hash_extended(org_id, 0), shards) + shards, shards) = mod(shard, shards)
         order by org_id);
end $$;

-- Whether the process of a run is still at it: in the statement that began before the run did.
create function billing_internal.settlement_is_running(run bigint) returns boolean
    language c stable as 'MODULE_PATHNAME', 'auditor_gate';
comment on function billing_internal.settlement_is_running is
'Tells whether the process of a run is still at it, for settlement_progress.';
create function billing_internal.settlement_is_running_body(run bigint) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp as $$
begin
    return exists (select from billing.settlement_runs r join pg_stat_activity a using (pid)
                    where r.run_id = run and r.status = 'running' and a.backend_start <= r.started_at
                      and case a.state when 'disabled' then true when 'active' then a.query_start <= r.started_at
                                       else false end);
end $$;

create function billing_internal.begin_settlement(as_of timestamptz, shard int, shards int) returns bigint
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing_internal.begin_settlement is
'Notes the beginning of a run, marks an earlier one that was killed, and makes partitions ahead, for settle(). Gives the number of the run; null: another one is running.';
create function billing_internal.begin_settlement_body(as_of timestamptz, shard int, shards int) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    share int;
    run bigint;
begin
    if shards is null or shard is null or shards < 1 or shards > 1000 or shard < 0 or shard > shards then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "shard", "fault": "of must be 1 to 1000 and shard 0 to of"}';
    end if;
    if as_of is null or as_of > billing.clock() or not isfinite(as_of) then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "as_of", "fault": "must be finite and not in the future"}';
    end if;
    share := mod(shard, shards);
    -- What was killed is not running any more, whatever its row says.
    update billing.settlement_runs r set status = 'interrupted', finished_at = clock_timestamp()
     where r.status = 'running' and r.shard = share and r.shards = begin_settlement_body.shards and not billing_internal.settlement_is_running(r.run_id);
    -- Two that begin at the same instant take turns. Numbers come from the table: a sequence is everybody's who was given a right on it.
    perform billing_internal.take_turn('settlement');
    for attempt in 0..20 loop
        begin
            insert into billing.settlement_runs as r (run_id, started_at, as_of, pid, shard, shards, phase)
            select (select coalesce(max(n.run_id), 0) + 1 + attempt from billing.settlement_runs n), clock_timestamp(), begin_settlement_body.as_of, pg_backend_pid(), share,
                   begin_settlement_body.shards, 'preparing'
            on conflict (shards, shard) where status = 'running' do nothing returning r.run_id into run;
            exit;
        exception when unique_violation then
            null; -- under one snapshot, another share's number is not seen
        end;
    end loop;
    if run is null then
        return null;
    end if;
    perform billing_internal.make_partitions(as_of);
    return run;
end $$;

-- Settles each of the orgs for itself: the fault of one stops neither the others nor the run. Gives those that somebody held locked for
-- longer than the patience, or that met others in a circle: to be tried again, unless it is the last time.
create function billing_internal.settle_orgs(run bigint, orgs uuid[], as_of timestamptz, patience interval default '5 seconds', is_last boolean default true) returns uuid[]
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing_internal.settle_orgs is
'Settles orgs, each for itself, and notes faults, for settle(). Gives those that were locked, to be tried again.';
create function billing_internal.settle_orgs_body(run bigint, orgs uuid[], as_of timestamptz, patience interval, is_last boolean) returns uuid[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    before constant text := current_setting('lock_timeout');
    org uuid;
    busy uuid[] := '{}';
    receipt billing.settlement_receipt;
    charged_sum bigint := 0;
    unpaid_sum bigint := 0;
    renewed_sum bigint := 0;
    failed bigint := 0;
    state text;
    said text;
    said_detail text;
begin
    perform from billing.settlement_runs where run_id = run and status = 'running' for update;
    if not found then
        raise exception using errcode = '55000', message = 'this settlement was taken for dead, and another one began',
            detail = jsonb_build_object('code', 'settlement_superseded', 'run_id', run)::text;
    end if;
    perform set_config('lock_timeout', greatest(1, floor(extract(epoch from patience) * 1000)::bigint)::text, true);
    foreach org in array orgs loop
        begin
            receipt := billing.settle_org(org, as_of);
            charged_sum := charged_sum + receipt.charged;
            unpaid_sum := unpaid_sum + receipt.unpaid;
            renewed_sum := renewed_sum + receipt.renewed;
        exception when others then
            get stacked diagnostics state = returned_sqlstate, said = message_text, said_detail = pg_exception_detail;
            said_detail := nullif(said_detail, '');
            if state in ('55P03', '40P01', '40001') and not is_last then
                busy := busy || org;
                continue;
            end if;
            if state = '55P03' then
                said_detail := jsonb_build_object('code', 'org_locked', 'waited', patience)::text;
            end if;
            failed := failed + 1;
            insert into billing.settlement_faults (org_id, run_id, sqlstate, message, detail)
            values (org, run, state, said, said_detail);
        end;
    end loop;
    perform set_config('lock_timeout', before, true);
    update billing.settlement_runs
       set orgs_done = orgs_done + cardinality(orgs) - cardinality(busy) - failed, orgs_failed = orgs_failed + failed,
           charged = charged + charged_sum, unpaid = unpaid + unpaid_sum, renewed = renewed + renewed_sum,
           updated_at = clock_timestamp()
     where run_id = run;
    return busy;
end $$;

create function billing_internal.settlement_phase(run bigint, phase text, orgs_total bigint) returns void
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing_internal.settlement_phase is
'Notes how far a run is, for settle().';
create function billing_internal.settlement_phase_body(run bigint, phase text, orgs_total bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
begin
    update billing.settlement_runs r
       set phase = settlement_phase_body.phase, orgs_total = settlement_phase_body.orgs_total, updated_at = clock_timestamp(),
           status = case settlement_phase_body.phase when 'done' then 'done' else r.status end,
           finished_at = case settlement_phase_body.phase when 'done' then clock_timestamp() end
     where r.run_id = run;
end $$;

-- All arguments are given, of their very types, so that no function beside ours fits better. Types are named with their schema: those of the declarations are looked for on the caller's path, before there is any other.
create procedure billing.settle(as_of timestamptz default null, shard int default 0, "of" int default 1)
    language plpgsql as $$
declare
    moment pg_catalog.timestamptz;
    batch constant pg_catalog.int4 := 50;
    run pg_catalog.int8;
    orgs pg_catalog.uuid[];
    busy pg_catalog.uuid[];
    done pg_catalog.int4 := 0;
    patient_until pg_catalog.timestamptz;
begin
    -- Fails in a transaction block before anything is done.
    commit;
    -- The search_path holds to the next commit: nothing of what the caller's path has is to be taken for the server's own.
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    moment := coalesce(as_of, billing.clock());
    run := billing_internal.begin_settlement(moment, shard, "of");
    if run is null then
        raise notice 'another settlement of this share of the orgs is running; nothing done'
            using hint = 'See billing.settlement_progress.';
        return;
    end if;
    commit;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    orgs := billing_internal.settlement_due(moment, shard, "of");
    perform billing_internal.settlement_phase(run, 'settling'::pg_catalog.text, cardinality(orgs)::pg_catalog.int8);
    -- Nobody waits long for an org while others of its batch are locked.
    while done < cardinality(orgs) loop
        commit;
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        busy := busy || billing_internal.settle_orgs(run, orgs[done + 1 : done + batch], moment, '200 milliseconds'::pg_catalog.interval, false);
        done := done + batch;
    end loop;
    -- Those that were locked, each for itself; with patience, for so long as there is any.
    commit;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    patient_until := clock_timestamp() + interval '1 minute';
    done := 0;
    while done < coalesce(cardinality(busy), 0) loop
        perform billing_internal.settle_orgs(run, busy[done + 1 : done + 1], moment,
                                    case when clock_timestamp() < patient_until then interval '5 seconds' else interval '200 milliseconds' end, true);
        done := done + 1;
        commit;
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    end loop;
    perform billing_internal.settlement_phase(run, 'done'::pg_catalog.text, cardinality(orgs)::pg_catalog.int8);
end $$;
comment on procedure billing.settle is
'Settles all orgs that have something to settle, in batches with a COMMIT each: call it outside of a transaction. shard and of: only that share of the orgs, for several workers. Another run of the same share at the same time does nothing. What failed stands in settlement_faults and is tried again by the next run. Errors: 22023.';
