-- The outbox: work for the world outside, claimed under a lease and delivered at least once.

create function billing.emit_event(org_id uuid, topic text, payload jsonb) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, billing, pg_temp as $$
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

create function billing.claim_events(topics text[] default null, "limit" integer default 10, lease interval default '1 minute')
    returns table (event_id uuid, org_id uuid, topic text, payload jsonb, attempt integer, created_at timestamptz)
    language plpgsql volatile security definer
    set search_path = pg_catalog, billing, pg_temp as $$
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
    language plpgsql volatile security definer
    set search_path = pg_catalog, billing, pg_temp as $$
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
    language plpgsql volatile security definer
    set search_path = pg_catalog, billing, pg_temp as $$
#variable_conflict use_column
declare
    now timestamptz := billing.clock();
    most_attempts constant integer := 10;
    known record;
begin
    select o.org_id, o.attempts, o.topic into known from billing.outbox o
     where o.event_id = fail_event.event_id and o.delivered_at is null and o.dead_at is null for update;
    if not found then
        raise exception using errcode = 'PT404', message = 'unknown event',
            detail = jsonb_build_object('code', 'unknown_event', 'event_id', fail_event.event_id)::text;
    end if;
    if known.attempts >= most_attempts then
        update billing.outbox o set dead_at = now, last_error = left(error, 1000)
         where o.org_id = known.org_id and o.event_id = fail_event.event_id;
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
    language plpgsql volatile security definer
    set search_path = pg_catalog, billing, pg_temp as $$
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
