-- The outbox: work for the world outside, claimed under a lease and delivered at least once.

create function billing_internal.emit_event(org_id uuid, topic text, payload jsonb) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    now timestamptz := billing.clock();
    -- A time-ordered UUID (RFC 9562, version 7).
    id uuid := encode(overlay(uuid_send(gen_random_uuid())
                   placing substring(int8send(floor(extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                   from 1 for 6), 'hex');
begin
    id := (substr(id::text, 1, 14) || '7' || substr(id::text, 16))::uuid;
    insert into billing.outbox (org_id, event_id, topic, payload, created_at, available_at)
    values (emit_event.org_id, id, emit_event.topic, emit_event.payload || jsonb_build_object('org_id', emit_event.org_id), now, now);
    perform pg_notify('billing_events', emit_event.topic);
    return id;
end $$;
comment on function billing_internal.emit_event is
'Puts work into the outbox and tells whoever listens to billing_events.';

create function billing.claim_events(topics text[] default null, "limit" integer default 10, lease interval default '1 minute')
    returns table (event_id uuid, org_id uuid, topic text, payload jsonb, attempt integer, created_at timestamptz)
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.claim_events is
'Takes work from the outbox that is due, for as long as the lease: nobody else gets it before that is over. Errors: 22023.';
create function billing_internal.claim_events(topics text[], "limit" integer, lease interval)
    returns table (event_id uuid, org_id uuid, topic text, payload jsonb, attempt integer, created_at timestamptz)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    now timestamptz := billing.clock();
begin
    if "limit" is null or "limit" not between 1 and 1000 then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "limit", "fault": "must be 1 to 1000"}';
    end if;
    if lease is null or lease < '1 second' or lease > '1 day' then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "lease", "fault": "must be 1 second to 1 day"}';
    end if;
    return query
    with due as (
        select o.org_id, o.event_id from billing.outbox o
         where o.delivered_at is null and o.dead_at is null and o.available_at <= now
           and (topics is null or o.topic = any (topics))
         order by o.available_at, o.event_id
         limit claim_events."limit"
           for update skip locked),
    claimed as (
        update billing.outbox o
           set attempts = o.attempts + 1, available_at = now + lease
          from due where o.org_id = due.org_id and o.event_id = due.event_id
        returning o.event_id, o.org_id, o.topic, o.payload, o.attempts, o.created_at)
    select c.* from claimed c order by c.event_id;
end $$;

create function billing.ack_events(event_ids uuid[]) returns bigint
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.ack_events is
'Notes that work of the outbox is done; gives how many events were not acknowledged before. Errors: 22023.';
create function billing_internal.ack_events(event_ids uuid[]) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    done bigint;
begin
    if event_ids is null then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "event_ids", "fault": "must not be null"}';
    end if;
    -- Whoever comes after its lease has done the work all the same.
    update billing.outbox o set delivered_at = billing.clock(), dead_at = null
     where o.event_id = any (event_ids) and o.delivered_at is null;
    get diagnostics done = row_count;
    return done;
end $$;

create function billing.fail_event(event_id uuid, error text, retry_in interval default null) returns text
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.fail_event is
'Notes that work of the outbox failed: it comes again after retry_in (null: 10 seconds, doubled each time, at most an hour), or is given up after ten attempts. Gives retry or dead. Errors: PT404 unknown_event.';
create function billing_internal.fail_event(event_id uuid, error text, retry_in interval) returns text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    now timestamptz := billing.clock();
    most_attempts constant integer := 10;
    known record;
begin
    select o.org_id, o.attempts, o.topic, o.payload into known from billing.outbox o
     where o.event_id = fail_event.event_id and o.delivered_at is null and o.dead_at is null for update;
    if not found then
        raise exception using errcode = 'PT404', message = 'unknown event',
            detail = jsonb_build_object('code', 'unknown_event', 'event_id', fail_event.event_id)::text;
    end if;
    if known.attempts >= most_attempts then
        update billing.outbox o set dead_at = now, last_error = left(error, 1000)
         where o.org_id = known.org_id and o.event_id = fail_event.event_id;
        -- A payment that nobody could ask for does not stand in the way of the next. Should the money come all the same, it counts.
        if known.topic = 'payment.requested' and exists (
            select from billing.payments p where p.org_id = known.org_id and p.payment_id = (known.payload ->> 'payment_id')::uuid
                                             and p.status = 'processing') then
            perform billing.set_payment_status(known.org_id, (known.payload ->> 'payment_id')::uuid, 'failed', error);
        end if;
        return 'dead';
    end if;
    -- 10 seconds, 20, 40 … an hour.
    update billing.outbox o
       set last_error = left(error, 1000),
           available_at = now + coalesce(retry_in, least(interval '1 hour', interval '5 seconds' * 2 ^ known.attempts))
     where o.org_id = known.org_id and o.event_id = fail_event.event_id;
    return 'retry';
end $$;

create function billing.requeue_event(event_id uuid) returns void
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.requeue_event is
'Brings back work that was given up. Errors: PT404 unknown_event.';
create function billing_internal.requeue_event(event_id uuid) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    known record;
begin
    update billing.outbox o set dead_at = null, attempts = 0, available_at = billing.clock()
     where o.event_id = requeue_event.event_id and o.dead_at is not null
    returning o.topic into known;
    if not found then
        raise exception using errcode = 'PT404', message = 'unknown event',
            detail = jsonb_build_object('code', 'unknown_event', 'event_id', requeue_event.event_id)::text;
    end if;
    perform pg_notify('billing_events', known.topic);
end $$;

create function billing.configure_delivery(url text, topics text[] default null, headers jsonb default '{}') returns void
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.configure_delivery is
'Names the address to which deliver_events() posts, with headers (a token, say) that nobody can read back; topics null: all; url null: none. Errors: 22023.';
create function billing_internal.configure_delivery(url text, topics text[], headers jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
begin
    if url is not null and url !~ '^https?://[^[:space:]]+$' or jsonb_typeof(coalesce(headers, '{}')) <> 'object' then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "url", "fault": "must be http(s)://… or null, and headers an object"}';
    end if;
    -- Headers hold tokens: where nobody may read them.
    delete from billing_internal.secrets where name = 'delivery';
    if url is not null then
        insert into billing_internal.secrets (name, secret, created_at)
        values ('delivery', convert_to(jsonb_build_object('url', url, 'topics', topics, 'headers', coalesce(headers, '{}'))::text, 'UTF8'),
                billing.clock());
    end if;
end $$;

-- Posts what is due to the configured address: with the extension http, which waits for the answer, or with pg_net, which does
-- not: then the answers of the last run are read first.
create function billing.deliver_events("limit" integer default 100) returns bigint
    language c volatile as 'MODULE_PATHNAME', 'service_gate';
comment on function billing.deliver_events is
'Posts what of the outbox is due, as {event_id, org_id, topic, payload, attempt, created_at}, with the extension http or pg_net; gives how many were acknowledged. Call it from pg_cron. Errors: 55000 not_configured, no_http.';
create function billing_internal.deliver_events("limit" integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    target jsonb := (select convert_from(secret, 'UTF8')::jsonb from billing_internal.secrets where name = 'delivery');
    http_schema text := (select quote_ident(n.nspname) from pg_extension e join pg_namespace n on n.oid = e.extnamespace
                          where e.extname = 'http');
    has_pg_net boolean := exists (select from pg_extension where extname = 'pg_net');
    wanted text[];
    strange text;
    work record;
    answer record;
    request bigint;
    body jsonb;
    delivered bigint := 0;
begin
    if target is null then
        raise exception using errcode = '55000', message = 'no address to deliver to',
            detail = '{"code": "not_configured"}', hint = 'Run: select billing.configure_delivery(…);';
    end if;
    if http_schema is null and not has_pg_net then
        raise exception using errcode = '55000', message = 'neither http nor pg_net is installed',
            detail = '{"code": "no_http"}', hint = 'Install one of them, or let a worker call billing.claim_events().';
    end if;
    -- A function that somebody else has put beside the extension's own would run with our rights.
    select string_agg(p.oid::regprocedure::text, ', ') into strange
      from pg_proc p
      left join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
      left join pg_extension e on e.oid = d.refobjid
     where (http_schema is not null and p.pronamespace = (select extnamespace from pg_extension where extname = 'http') and p.proname in ('http', 'http_header')
            and e.extname is distinct from 'http'
         or http_schema is null and p.pronamespace = to_regnamespace('net') and p.proname = 'http_post' and e.extname is distinct from 'pg_net');
    if strange is not null then
        raise exception using errcode = '42501', message = 'a function beside the extension could be called in its place',
            detail = jsonb_build_object('code', 'foreign_function', 'functions', strange)::text, hint = 'Drop it.';
    end if;
    if has_pg_net then
        for work in execute 'select o.event_id, r.status_code, r.error_msg from billing.outbox o
                               join net._http_response r on r.id = o.request_id
                              where o.request_id is not null and o.delivered_at is null and o.dead_at is null' loop
            update billing.outbox o set request_id = null where o.event_id = work.event_id;
            if work.status_code between 200 and 299 then
                delivered := delivered + billing.ack_events(array[work.event_id]);
            else
                perform billing.fail_event(work.event_id, coalesce('status ' || work.status_code, work.error_msg, 'no answer'));
            end if;
        end loop;
    end if;
    if jsonb_typeof(target -> 'topics') = 'array' then
        wanted := array(select jsonb_array_elements_text(target -> 'topics'));
    end if;
    for work in select * from billing.claim_events(wanted, deliver_events."limit", '5 minutes') loop
        body := jsonb_build_object('event_id', work.event_id, 'org_id', work.org_id, 'topic', work.topic, 'payload', work.payload,
                                   'attempt', work.attempt, 'created_at', work.created_at);
        if http_schema is null then
            execute 'select net.http_post(url := $1, body := $2, headers := $3)'
               into request using target ->> 'url', body, target -> 'headers' || '{"Content-Type": "application/json"}';
            update billing.outbox o set request_id = request where o.event_id = work.event_id;
            continue;
        end if;
        begin
            execute format('select status, content from %1$s.http(row(''POST'', $1,
                                array(select %1$s.http_header(key::varchar, value::varchar) from jsonb_each_text($2)), ''application/json'', $3)::%1$s.http_request)',
                           http_schema)
               into answer using target ->> 'url', target -> 'headers', body::text;
            if answer.status between 200 and 299 then
                delivered := delivered + billing.ack_events(array[work.event_id]);
            else
                perform billing.fail_event(work.event_id, 'status ' || answer.status);
            end if;
        exception when others then
            perform billing.fail_event(work.event_id, sqlerrm);
        end;
    end loop;
    return delivered;
end $$;
