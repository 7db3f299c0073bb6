-- Prints docs/REFERENCE.md, from the comments in a database in which the extension is created and installed:
--
--   psql -X -At -d DATABASE -f docs/reference.sql > docs/REFERENCE.md
--
-- By topic: a function, type, view or table of the schema billing that no topic names stops it. Two runs on the same version give the same text.
\set ON_ERROR_STOP on
\set QUIET on
\pset pager off
set search_path = pg_catalog;

create temp table topic (number int generated always as identity, title text, about text, names text[]);
insert into topic (title, about, names) values
    ('Wallets and grants', 'Credit comes into wallets as grants and is burned in burn order.',
     '{create_wallet,grant_credits,adjust_credits,void_grant,transfer_credits,get_wallet,get_total_credits,set_wallet_lanes,book_expiries,
       wallets,grants,wallet_status,grant_receipt,void_receipt,transfer_receipt}'),
    ('Charging', 'Usage that is charged at once, in the transaction of the app.',
     '{consume_credits,consume_credits_batch,refund_credits,explain_consumption,consumption,refund_receipt}'),
    ('Reservations and payouts', 'Credit set aside: reserved for usage that is charged later, or locked for a payout.',
     '{reserve_credits,capture_credits,release_credits,lock_credits,pay_out,holds,hold_receipt}'),
    ('Limits and budgets', 'What an org, or a member of one, may still use.',
     '{check_limit,allows,set_member_budget,member_usage,limit_status}'),
    ('The ledger', 'One immutable row per movement of credit, chained by hash.',
     '{verify_ledger,entries,operations,ledger}'),
    ('Recorded usage', 'Usage that is recorded now and charged by settlement.',
     '{record_usage,record_usage_batch,usage_events,unpaid_overage,usage_receipt}'),
    ('Metered tables', 'Tables of the app whose inserts are charged or recorded.',
     '{meter_table,unmeter_table,metered_tables}'),
    ('Reports', 'Usage and credit by day and month.',
     '{credit_history,usage_by_day,usage_by_month}'),
    ('Catalog and prices', 'Metrics, prices, plans, caps and packs.',
     '{apply_catalog,export_catalog,calculate_cost,set_org_price,set_org_allowance,metrics,prices,plans,caps,packs,surcharges,org_prices,org_allowances}'),
    ('Plans of orgs', 'Which org is on which plan.',
     '{subscribe,change_plan,cancel_subscription,begin_periods,subscriptions,subscription}'),
    ('Settlement', 'Charges recorded usage, begins periods and books what expired.',
     '{settle,settle_org,schedule_settlement,unschedule_settlement,settlement_progress,settlement_runs,settlement_faults,settlement_receipt}'),
    ('Alerts, flags and freezing', 'What is to be told of an org, and what looks like misuse.',
     '{configure_alerts,alerts,note_signal,configure_signals,resolve_flag,flags,freeze_org,unfreeze_org,freezes}'),
    ('Purchases and payments', 'Money for credit.',
     '{quote_pack,start_purchase,set_payment_status,link_payment,link_customer,configure_auto_recharge,payments,payment_refs,provider_customers,
       provider_subscriptions,auto_recharges,pack_quote,payment,auto_recharge}'),
    ('Reports of payment providers', 'Webhooks, signed by the provider.',
     '{handle_webhook,replay_webhook,set_webhook_secret,stripe_webhook,razorpay_webhook,webhook_events,webhook_receipt}'),
    ('Outbox and delivery', 'Work for the world outside, delivered at least once.',
     '{claim_events,ack_events,fail_event,requeue_event,configure_delivery,deliver_events,outbox}'),
    ('Gift cards and vouchers', 'Codes that are worth credit.',
     '{create_gift_cards,redeem_gift_card,void_gift_cards,gift_card_batches,gift_card_redemptions,gift_cards,gift_card_receipt}'),
    ('Roles and members', 'Who may call and see what.',
     '{grant_access,revoke_access,configure_membership,my_orgs,access}'),
    ('Installation and health', 'The tables of the extension, its version, and whether all is well.',
     '{install,version,status,clock,migrations,version_status}');

create temp table reference_column as
select a.attrelid as relation, a.attnum,
       format('| `%s` | %s | %s | %s |', a.attname, format_type(a.atttypid, a.atttypmod),
              trim(case when a.attnotnull then 'not null ' else '' end
                   || coalesce('default `' || pg_get_expr(x.adbin, x.adrelid) || '`', '')),
              replace(coalesce(col_description(a.attrelid, a.attnum), ''), '|', '\|')) as long,
       format('| `%s` | %s |', a.attname, format_type(a.atttypid, a.atttypmod)) as short
  from pg_attribute a
  join pg_class c on c.oid = a.attrelid and c.relnamespace = 'billing'::regnamespace
  left join pg_attrdef x on x.adrelid = a.attrelid and x.adnum = a.attnum
 where a.attnum > 0 and not a.attisdropped;

-- What there is: kind, name, number of the overload, text.
create temp table item (kind text, name name, overload int, text text);

insert into item
with callers as (
    select routine, string_agg(level, ', ' order by ord) as levels
      from (values ('member', 1), ('auditor', 2), ('service', 3), ('webhook', 4)) l (level, ord),
           lateral billing_internal.routines_of(l.level) routine
     group by routine)
select 'function', p.proname, p.pronargs,
       p.proname || case
           when count(*) over (partition by p.proname) > 1
           then ' (' || (select string_agg(format_type(t, null), ', ' order by n) from unnest(p.proargtypes) with ordinality a (t, n)) || ')'
           else '' end
       || E'\n\n```sql\nbilling.' || p.proname || '('
       || case when p.pronargs > 0 then E'\n    ' else '' end
       || replace(regexp_replace(regexp_replace(pg_get_function_arguments(p.oid), ', (?=(IN )?"?[a-z_]+"? [a-z])', E',\n    ', 'g'),
                                 '::[a-z ]+(\[\])?', '', 'g'), 'DEFAULT', 'default')
       || case when p.pronargs > 0 then E'\n' else '' end
       || ')' || coalesce(' → ' || replace(regexp_replace(pg_get_function_result(p.oid), '^TABLE', 'setof '), 'SETOF', 'setof'), '')
       || E'\n```\n\n'
       || coalesce(obj_description(p.oid, 'pg_proc'), 'No comment.')
       || E'\n\nCallable by: ' || coalesce(c.levels || ', owner', 'owner')
       || '. ' || case when p.provolatile = 'v' and p.proname <> 'clock' then 'Writes.' else 'Reads only.' end
  from pg_proc p
  left join callers c on c.routine = p.oid::regprocedure
 where p.pronamespace = 'billing'::regnamespace;

insert into item
select 'type', t.typname, 0,
       t.typname || E'\n\n' || coalesce(obj_description(t.oid, 'pg_type'), 'No comment.') || E'\n\n| column | type |\n|---|---|\n'
       || (select string_agg(r.short, E'\n' order by r.attnum) from reference_column r where r.relation = t.typrelid)
  from pg_type t
  join pg_class c on c.oid = t.typrelid and c.relkind = 'c'
 where t.typnamespace = 'billing'::regnamespace;

insert into item
select 'view', c.relname, 0,
       c.relname || E'\n\n' || coalesce(obj_description(c.oid, 'pg_class'), 'No comment.') || E'\n\nReadable by: '
       || case l.readers when 'members' then 'member (own orgs), auditor, service.' else 'auditor, service.' end || E'\n\n| column | type |\n|---|---|\n'
       || (select string_agg(r.short, E'\n' order by r.attnum) from reference_column r where r.relation = c.oid)
  from pg_class c
  left join billing_internal.relations() l on l.schema = 'billing' and l.name = c.relname
 where c.relnamespace = 'billing'::regnamespace and c.relkind = 'v';

insert into item
select 'table', c.relname, 0,
       c.relname || E'\n\n' || coalesce(obj_description(c.oid, 'pg_class'), 'No comment.') || E'\n\nReadable by: '
       || case when l.readers = 'members' and l.rows = 'org' then 'member (own orgs), auditor, service.'
               when l.readers = 'members' then 'member, auditor, service.'
               when l.readers = 'staff' then 'auditor, service.'
               when l.rows = 'staff' then 'auditor, service, in part.'
               else 'owner.' end
       || E'\n\nPrimary key: '
       || coalesce((select string_agg('`' || a.attname || '`', ', ' order by k.n)
                      from pg_index i, unnest(i.indkey) with ordinality k (attnum, n)
                      join pg_attribute a on a.attnum = k.attnum
                     where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid), 'none')
       || E'\n\n| column | type | | |\n|---|---|---|---|\n'
       || (select string_agg(r.long, E'\n' order by r.attnum) from reference_column r where r.relation = c.oid)
  from pg_class c
  left join billing_internal.relations() l on l.schema = 'billing' and l.name = c.relname
 where c.relnamespace = 'billing'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition;

do $$
declare
    strange text := (select string_agg(coalesce(i.name, n.name), ', ')
                       from (select distinct name::text from item) i full join (select unnest(names) as name from pg_temp.topic) n using (name)
                      where i.name is null or n.name is null);
begin
    if strange is not null then
        raise exception 'docs/reference.sql: without a topic, or not there: %', strange;
    end if;
end $$;

select format($md$# Reference

The functions, types, views and tables of pg_billing %s, by topic. Generated by `docs/reference.sql` from the comments in the
database: do not edit. Who may call what: [OPERATIONS.md](OPERATIONS.md#roles). Errors:
[OPERATIONS.md](OPERATIONS.md#errors).

Everything here is in the schema `billing`; the machinery in `billing_internal` is called by nobody. Amounts and credits are whole
units of the wallet (credits, or minor units of a currency); quantities are whole units of the metric. Functions that return one
composite value are best read with `select * from billing.f(…)`; columns may be added to what they return at the end. Tables are
ordinary tables of the database, made by `install()`: no role may write to them, the functions do. Row security applies to who
reads tables and views.
$md$, extversion)
  from pg_extension where extname = 'pg_billing';

select format('- [%s](#%s): %s', t.title, regexp_replace(regexp_replace(lower(t.title), '[^a-z ]', '', 'g'), ' ', '-', 'g'),
              (select string_agg(format('[%s](#%s)', n.name, coalesce(o.anchor, n.name)), ', ' order by n.ord)
                 from unnest(t.names) with ordinality n (name, ord)
                 -- Of several, the first.
                 left join lateral (select lower(regexp_replace(replace(split_part(i.text, E'\n', 1), ' ', '-'), '[^a-zA-Z_-]', '', 'g')) as anchor
                                      from item i where i.name = n.name order by i.overload limit 1) o on true))
  from topic t order by t.number;

select case when ord = 1 then format(E'\n## %s\n\n%s\n', title, about) else '' end || E'\n### ' || text
  from (select t.number, t.title, t.about, i.text, row_number() over (partition by t.number order by n.ord, i.overload, i.text) as ord
          from topic t cross join unnest(t.names) with ordinality n (name, ord) join item i on i.name = n.name) everything
 order by number, ord;
