-- Whether all is well, at one look.

create function billing.status() returns table (check_name text, level text, value text, since timestamptz, advice text)
    language c stable as 'MODULE_PATHNAME', 'auditor_gate';
create function billing_internal.status() returns table (check_name text, level text, value text, since timestamptz, advice text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    installed record := billing.version();
    found text;
    run record;
begin
    check_name := 'tables';
    value := format('version %s, library %s', installed.tables_installed, installed.library);
    if installed.tables_installed <> installed.tables_needed then
        level := 'bad';
        advice := 'Run: select billing.install();';
        return next;
        return;
    end if;
    level := 'ok';
    return next;

    check_name := 'rights';
    select string_agg(format('%s: %s', name, objects), ', ' order by name) into found
      from (select billing_internal.role_name(f.grantee) as name, count(distinct f.object) as objects
              from billing_internal.foreign_rights() f group by f.grantee) whose;
    level := case when found is null then 'ok' else 'bad' end;
    value := coalesce('objects on which roles have rights that no level of theirs allows: ' || found, 'every right follows from a level');
    advice := case when found is not null then 'Run: select billing.install(); it takes these rights. Give roles a level with billing.grant_access.' end;
    return next;

    check_name := 'things of others';
    select string_agg(what, '; ' order by what) into found from (
        select case f.kind when 'trigger' then format('trigger %s on %s, of %s', f.name, f.relation, f.owner)
                           when 'function' then format('function %s, of %s', f.routine, f.owner)
                           else format('foreign key %s of %s, of %s', f.name, f.relation, f.owner) end as what
          from billing_internal.foreign_things() f
        union all
        select 'the event trigger pg_billing_guard is off'
         where not exists (select from pg_event_trigger where evtname = 'pg_billing_guard' and evtenabled in ('O', 'A'))) things;
    level := case when found is null then 'ok' else 'bad' end;
    value := coalesce(found, 'none on our tables and in our schemas');
    advice := case when found is not null then 'They would run with our rights, or hold up our work; with triggers and functions, calls are refused until they are gone. Look at them and drop them; select billing.install(); drops triggers and foreign keys.' end;
    return next;

    check_name := 'roles';
    select string_agg(format('%s (%s)', a.role_name, a.level), ', ' order by 1) into found
      from billing.access a left join pg_roles r on r.oid = a.role_oid
     where a.cluster is distinct from billing_internal.cluster() or r.rolname is distinct from a.role_name;
    level := case when found is null then 'ok' else 'warn' end;
    value := coalesce('renamed, dropped, or of another cluster: ' || found, 'every role with a level is here');
    advice := case when found is not null then 'Run: select billing.install();' end;
    return next;

    check_name := 'membership';
    found := billing_internal.membership_fault();
    level := case when found is null then 'ok' else 'bad' end;
    value := coalesce('the configured relation cannot be read: ' || found,
                      (select format('%s.%s', value ->> 'schema', value ->> 'table') from billing_internal.settings where name = 'membership'), 'orgs stand in the claims');
    advice := case when found is not null then 'Members see only the orgs in their claims. Run: select billing.configure_membership(…) with the columns as they are now, or with null three times.' end;
    return next;

    check_name := 'metered tables';
    select string_agg(format('%I.%I (%s)', m.table_schema, m.table_name, m.metric), ', ' order by 1) into found
      from billing.metered_tables m
      left join pg_trigger t on t.tgrelid = m.relation and m.place = billing_internal.place() and t.tgname = billing_internal.meter_trigger(m.metric)
                            and t.tgfoid = 'billing_internal.metered_insert()'::regprocedure and t.tgenabled in ('O', 'A')
     where t.oid is null;
    level := case when found is null then 'ok' else 'bad' end;
    value := coalesce('without their trigger: ' || found, (select count(*) || ' metered' from billing.metered_tables));
    advice := case when found is not null then 'Nothing is charged for their inserts. Run: select billing.meter_table(…), or billing.unmeter_table where that is meant.' end;
    return next;

    check_name := 'settlement';
    -- Of the newest of each share, the worst.
    select * into run from (
        select distinct on (r.shards, r.shard) r.* from billing.settlement_runs r where r.status <> 'running' order by r.shards, r.shard, r.run_id desc) newest
     where newest.finished_at > (select max(finished_at) from billing.settlement_runs) - interval '1 day'
     order by newest.status = 'interrupted' desc, newest.orgs_failed > 0 desc, newest.run_id desc limit 1;
    since := run.finished_at;
    level := case when run.run_id is null or run.status = 'interrupted' or run.orgs_failed > 0 or run.finished_at < clock_timestamp() - interval '1 day'
                  then 'warn' else 'ok' end;
    value := case when run.run_id is null then 'never ran'
                  else format('last run %s: %s orgs settled, %s failed', run.status, run.orgs_done, run.orgs_failed) end;
    advice := case when run.run_id is null or run.finished_at < clock_timestamp() - interval '1 day'
                        then 'Run: select billing.schedule_settlement(); or call billing.settle();'
                   when level = 'warn' then format('Look at: select * from billing.settlement_faults where run_id = %s;', run.run_id) end;
    return next;
end $$;

comment on function billing.status is
'Whether all is well: one row per check, level ok, warn or bad, and what to do about it. For services and auditors.';
