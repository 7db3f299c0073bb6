-- What an app does once in its own database. Run by bin/demo in a fresh database.
create extension pg_billing;
select billing.install();

-- The app's own side: whom it serves, and one row per request, written in the transaction that charges it.
create schema app;
create table app.orgs (
    org_id uuid primary key,
    name   text not null unique
);
create table app.members (
    member_id uuid primary key,
    org_id    uuid not null references app.orgs,
    name      text not null
);
create table app.requests (
    request_id       int primary key,
    org_id           uuid not null references app.orgs,
    member_id        uuid not null references app.members,
    arrived_at       timestamp not null,
    context_tokens   bigint not null,
    generated_tokens bigint not null,
    hold_id          bigint not null
);
create table app.replay_report (
    line  int generated always as identity primary key,
    what  text not null,
    value text not null
);

-- The role that the app connects with: it may call the billing functions, and nothing else moves credit.
do $$
begin
    if not exists (select from pg_roles where rolname = 'demo_app') then
        create role demo_app login;
    end if;
end
$$;
grant usage on schema app to demo_app;
grant select, insert, update, delete on all tables in schema app to demo_app;
select billing.grant_access('demo_app', 'service');

-- pg_cron books what has expired. Credit is unspendable from the second it expires, booked or not;
-- the job only writes the ledger's entry for it.
create extension pg_cron;
do $$
declare
    -- Intervals in seconds came with pg_cron 1.5; before that a minute is the shortest.
    installed int[] := (select regexp_match(extversion, '^(\d+)\.(\d+)')::int[] from pg_extension where extname = 'pg_cron');
    every text := case when installed >= array[1, 5] then '2 seconds' else '* * * * *' end;
begin
    perform cron.schedule('book expiries', every, 'select billing.book_expiries()');
end
$$;
