-- The database of the demo's second part: an app whose customers are on plans. Run by bin/demo in a fresh database.
create extension pg_billing;
select billing.install();

create schema app;
create table app.orgs (
    org_id uuid primary key,
    name   text not null unique
);
-- What quarter.py calculates from the events that it made up, for every billing period.
create table app.expected (
    org_id       uuid not null references app.orgs,
    period_start timestamptz not null,
    metric       text not null,
    used         bigint not null,
    allowance    bigint not null,
    overage      bigint not null,
    credits      bigint not null,
    primary key (org_id, period_start, metric)
);
-- What pg_billing made of them: counted, burned in the ledger, and still owed.
create view app.charged as
select u.org_id, u.period_start, u.metric, u.quantity as used, u.overage,
       coalesce(l.burned, 0) + coalesce(o.credits, 0) as credits, coalesce(l.burned, 0) as burned,
       coalesce(o.credits, 0) as unpaid
  from billing_internal.period_usage u
  left join (select org_id, metric, source_id::timestamptz as period_start, -sum(amount)::bigint as burned
               from billing.entries
              where kind = 'usage' and source = 'settlement'
              group by 1, 2, 3) l using (org_id, metric, period_start)
  left join billing.unpaid_overage o using (org_id, metric, period_start)
 where u.quantity > 0;

do $$
begin
    if not exists (select from pg_roles where rolname = 'demo_app') then
        create role demo_app login;
    end if;
end
$$;
select billing.grant_access('demo_app', 'service');
