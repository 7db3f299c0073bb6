-- The demo's report. Run by bin/demo after the replay.
\pset footer off
\pset linestyle unicode
\pset border 2
\pset null '–'

\echo
\echo Balances (billing.wallets)
select o.name as organization,
       to_char(w.lifetime_purchased, '999,999,999') as purchased,
       to_char(w.lifetime_consumed, '999,999,999') as consumed,
       to_char(w.available, '999,999,999') as available,
       to_char(w.reserved, '999,999') as reserved,
       to_char(w.locked, '999,999') as locked
  from billing.wallets w
  join app.orgs o using (org_id)
 where w.unit = 'credit'
 order by w.lifetime_consumed desc, o.name;

\echo Top consumers (app.requests and billing.entries)
with asked as (
    select member_id, count(*) as requests, sum(context_tokens + generated_tokens) as tokens
      from app.requests
     group by member_id
), paid as (
    select member_id, -sum(amount) as credits
      from billing.entries
     where kind = 'usage'
     group by member_id
)
select m.name as member,
       o.name as organization,
       to_char(a.requests, '999,999') as requests,
       to_char(a.tokens, '999,999,999') as tokens,
       to_char(p.credits, '999,999,999') as credits
  from asked a
  join paid p using (member_id)
  join app.members m using (member_id)
  join app.orgs o using (org_id)
 order by p.credits desc, m.name
 limit 8;

\echo The ledger around the top-up (billing.entries; every hash covers the one before it)
with top_up as (
    select org_id, entry_id
      from billing.entries
     where idempotency_key = 'top-up-1'
)
select e.entry_id as entry,
       to_char(e.created_at at time zone 'UTC', 'HH24:MI:SS.MS') as "time (UTC)",
       e.kind,
       to_char(e.amount, 'S999,999') as amount,
       to_char(e.balance_before, '999,999') as before,
       to_char(e.balance_after, '999,999') as after,
       to_char(e.quantity, '999,999') as tokens,
       e.idempotency_key,
       left(e.entry_hash::text, 14) || '…' as entry_hash
  from billing.entries e
  join top_up t on e.org_id = t.org_id and e.entry_id between t.entry_id - 5 and t.entry_id + 6
 order by e.entry_id;

\echo pg_cron (cron.job_run_details)
select d.command, d.status, d.return_message as returned,
       to_char(d.start_time at time zone 'UTC', 'HH24:MI:SS') as "time (UTC)"
  from cron.job_run_details d
 where d.status = 'succeeded'
 order by d.start_time desc
 limit 3;

select what as "the replay", value as " " from app.replay_report order by line;
