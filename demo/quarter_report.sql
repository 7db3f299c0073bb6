-- The report of the demo's second part. Run by bin/demo after quarter.py; billing.test_clock stands at 1 April 2027.
\pset footer off
\pset linestyle unicode
\pset border 2
\pset null '–'

-- Bytes in GiB, seconds in minutes; numbers of a width.
create function pg_temp.shown(metric text, quantity numeric) returns text language sql as $$
    select case metric
           when 'mau' then to_char(quantity, 'FM999,999,990') || ' users'
           when 'build_time' then to_char(quantity / 60, 'FM999,999,990') || ' min'
           else to_char(quantity / 2 ^ 30, case when quantity < 100 * 2 ^ 30 then 'FM990.00' else 'FM999,990' end) || ' GiB' end
$$;
create function pg_temp.number(quantity numeric, width int) returns text language sql as $$
    select lpad(to_char(quantity, 'FM999,999,999,990'), width)
$$;

\echo
\echo What was used in the quarter, what the plans included, what was charged (10,000 credits = 1 USD);
\echo for storage the peaks of the months added up, for users those of each month (billing_internal.period_usage)
with held as (
    select u.*, (select s.plan from billing.subscriptions s
                  where s.org_id = u.org_id and s.starts_at < least(u.period_end, billing.clock())
                  order by s.starts_at desc limit 1) as plan
      from billing_internal.period_usage u
     where u.quantity > 0
)
select h.plan, h.metric,
       lpad(pg_temp.shown(h.metric, sum(h.quantity)), 13) as used,
       lpad(pg_temp.shown(h.metric, sum(h.quantity - h.overage)), 13) as included,
       lpad(pg_temp.shown(h.metric, sum(h.overage)), 11) as "over plan",
       pg_temp.number(count(distinct h.org_id) filter (where h.overage > 0), 7) as "by orgs",
       pg_temp.number(sum(h.credits), 9) as credits
  from held h
  join billing.plans p using (plan)
 group by h.plan, h.metric, p.terms
 order by (p.terms #>> '{price,USD}')::int, h.metric;
\echo Storage is full, downloads go on: Pixel Pantry, on Solo, without credits (billing.check_limit)
select a.metric as "may it use", a.more,
       case when c.allowed then 'yes' else 'NO' end as allowed, c.reason,
       lpad(pg_temp.shown(a.metric, c.used), 11) as used,
       lpad(pg_temp.shown(a.metric, c.included), 11) as included,
       lpad(pg_temp.shown(a.metric, c.remaining), 11) as remaining,
       to_char(c.resets_at at time zone 'UTC', 'DD Mon') as resets
  from (values (1, 'storage', '40 MiB', 41943040), (2, 'bandwidth', '250 MiB', 262144000), (3, 'mau', '1 user', 1),
               (4, 'build_time', '10 min', 600)) a (line, metric, more, quantity)
  join app.orgs o on o.name = 'Pixel Pantry',
       lateral billing.check_limit(o.org_id, a.metric, a.quantity) c
 order by a.line;

\echo Bandwidth over the plan: from bought credits, unpaid until a top-up, after a change of plan
select o.name as organization, to_char(c.period_start at time zone 'UTC', 'DD Mon') as month,
       lpad(pg_temp.shown(c.metric, c.used), 9) as used,
       lpad(pg_temp.shown(c.metric, e.allowance), 9) as included,
       lpad(pg_temp.shown(c.metric, c.overage), 9) as "over plan",
       pg_temp.number(c.credits, 7) as credits,
       pg_temp.number(c.unpaid, 7) as unpaid,
       p.paid
  from app.charged c
  join app.expected e using (org_id, period_start, metric)
  join app.orgs o using (org_id),
       lateral (select case count(distinct created_at) when 0 then null when 1 then to_char(min(created_at) at time zone 'UTC', '"on" DD Mon')
                       else format('%s settlements', count(distinct created_at)) end as paid
                  from billing.entries n
                 where n.org_id = c.org_id and n.metric = c.metric and n.source = 'settlement' and n.source_id::timestamptz = c.period_start) p
 where c.metric = 'bandwidth' and o.name in ('Kite Courier', 'Late Bloom', 'Pine Post')
 order by o.name, c.period_start;

\echo Credits of Kite Courier (billing.credit_history)
select to_char(h.month, 'YYYY-MM') as month,
       pg_temp.number(h.came_in, 8) as "came in",
       pg_temp.number(h.used, 8) as used,
       pg_temp.number((h.used_by_metric ->> 'bandwidth')::int, 12) as "on bandwidth",
       pg_temp.number((h.used_by_metric ->> 'build_time')::int, 13) as "on build_time",
       pg_temp.number(h.expired, 8) as expired,
       pg_temp.number(h.closing_balance, 15) as "closing balance"
  from app.orgs o, lateral billing.credit_history(o.org_id, 4) h
 where o.name = 'Kite Courier' and h.unit = 'credit' and h.month < '2027-04-01'
 order by h.month;

\echo Settlement, four times a day in two shards (billing.settlement_runs)
select to_char((as_of - interval '1 hour') at time zone 'UTC', 'FMMonth') as month,
       count(*) as runs,
       pg_temp.number(sum(orgs_done), 12) as "orgs settled",
       sum(orgs_failed) as failed,
       pg_temp.number(sum(renewed), 13) as "periods begun",
       pg_temp.number(sum(charged), 15) as "credits charged",
       to_char(extract(epoch from sum(finished_at - started_at)) * 1000 / sum(orgs_done), '9999990.00') as "ms per org"
  from billing.settlement_runs
 where status = 'done'
 group by date_trunc('month', as_of - interval '1 hour'), 1
 order by date_trunc('month', as_of - interval '1 hour');

\echo Alerts, one for each crossing of 80 % and of 100 % (billing.alerts)
select kind, subject as of,
       count(*) filter (where share = 80) as "80 %",
       count(*) filter (where share = 100) as "100 %",
       count(resolved_at) as resolved,
       count(*) - count(resolved_at) as open
  from billing.alerts
 group by 1, 2
 order by 1, 2;

\echo Charged, against a calculation from the events that knows nothing of the database (app.expected)
select metric, pg_temp.number(count(*), 13) as "orgs × months",
       pg_temp.number(count(*) filter (where e.overage > 0), 9) as "over plan",
       pg_temp.number(sum(e.credits), 10) as "calculated",
       pg_temp.number(sum(c.burned), 13) as "in the ledger",
       pg_temp.number(sum(c.unpaid), 9) as unpaid,
       count(*) filter (where (e.used, e.overage, e.credits) is distinct from (c.used, c.overage, c.credits)) as different
  from app.expected e full join app.charged c using (org_id, period_start, metric)
 group by metric
 order by metric;

select case when count(*) = 0 then 'sound' else count(*) || ' VIOLATIONS' end as "billing.verify_ledger()",
       (select pg_temp.number(count(*), 7) from billing.entries) as entries,
       (select pg_temp.number(count(*), 12) from billing.usage_events) as "usage events"
  from billing.verify_ledger();
