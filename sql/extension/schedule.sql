-- settle() by pg_cron. A schema named cron may be anybody's where pg_cron is absent, and these functions run with the owner's
-- rights: so only what is a member of the extension is called.

create function billing.schedule_settlement(schedule text default '0 */6 * * *') returns bigint
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
create function billing_internal.schedule_settlement(schedule text) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    job bigint;
begin
    if schedule is null then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "schedule", "fault": "must not be null"}';
    end if;
    if not exists (select from pg_extension e
                     join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
                    where e.extname = 'pg_cron' and d.classid = 'pg_proc'::regclass
                      and d.objid = to_regprocedure('cron.schedule(text,text,text)')) then
        raise exception using errcode = '0A000', message = 'pg_cron is not installed in this database',
            detail = jsonb_build_object('code', 'pg_cron_missing', 'database', current_database())::text,
            hint = format('Set shared_preload_libraries = ''pg_cron'' and cron.database_name = %L, restart, and run: create extension pg_cron; '
                          'or run in the database that has it (1.4 or newer): select cron.schedule_in_database(''pg_billing settlement'', %L, ''call billing.settle()'', %L);',
                          current_database(), schedule, current_database());
    end if;
    begin
        execute 'select cron.schedule($1, $2, $3)' into job using 'pg_billing settlement'::text, schedule, 'call billing.settle()'::text;
    exception when invalid_parameter_value then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = jsonb_build_object('code', 'invalid_argument', 'argument', 'schedule', 'fault', sqlerrm)::text,
            hint = 'A schedule as in crontab: minute, hour, day of the month, month, day of the week.';
    end;
    return job;
end $$;

create function billing.unschedule_settlement() returns boolean
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
create function billing_internal.unschedule_settlement() returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    job bigint;
begin
    if not exists (select from pg_extension e
                     join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
                    where e.extname = 'pg_cron' and d.classid = 'pg_proc'::regclass
                      and d.objid = to_regprocedure('cron.unschedule(bigint)')) then
        raise exception using errcode = '0A000', message = 'pg_cron is not installed in this database',
            detail = jsonb_build_object('code', 'pg_cron_missing', 'database', current_database())::text,
            hint = 'If another database schedules the settlement of this one, run there: select cron.unschedule(''pg_billing settlement'');';
    end if;
    -- Names are unique per user, and the user is the one that schedule_settlement() ran as.
    execute 'select jobid from cron.job where jobname = $1 and username = current_user' into job using 'pg_billing settlement'::text;
    if job is null then
        return false;
    end if;
    execute 'select cron.unschedule($1)' using job;
    return true;
end $$;

comment on function billing.schedule_settlement is
'Lets pg_cron call settle() at the times of a crontab schedule (four times a day by default; in UTC unless cron.timezone says otherwise), and gives the number of the job. Calling it again replaces the schedule. Errors: 0A000 pg_cron_missing with what to do about it, 22023.';
comment on function billing.unschedule_settlement is
'Ends what schedule_settlement() began; false: there was no such job. Errors: 0A000 pg_cron_missing.';
