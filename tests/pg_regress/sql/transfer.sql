-- Transfers between wallets of the same unit: the credits keep category, expiry, priority and cost basis.
\set ON_ERROR_ROLLBACK on
\set SHOW_CONTEXT never
\pset null '(null)'
begin;
set local timezone = 'UTC';
set local datestyle = 'ISO';
set local billing.test_clock = '2026-03-01 00:00:00+00';
\set acme 00000000-0000-4000-8000-000000000001
\set bolt 00000000-0000-4000-8000-000000000002
select grant_id from billing.grant_credits(:'acme', 10, 'plan', expires_at => '2026-04-01 00:00+00', priority => 20);
select grant_id from billing.grant_credits(:'acme', 30, 'purchase', cost_minor => 300, currency => 'USD');
select * from billing.create_wallet(:'bolt');

-- 10 of the plan and 5 of the purchase: two parts, two receiving grants.
select * from billing.transfer_credits(:'acme', :'bolt', 15, idempotency_key => 't1');
select * from billing.transfer_credits(:'acme', :'bolt', 15, idempotency_key => 't1');
select grant_id, source, category, amount, remaining, cost_minor, currency, priority, expires_at from billing.grants where org_id = :'acme' order by grant_id;
select grant_id, source, category, amount, remaining, cost_minor, currency, priority, expires_at from billing.grants where org_id = :'bolt' order by grant_id;
-- They expire there, too.
set local billing.test_clock = '2026-04-01 00:00:00+00';
select billing.get_total_credits(:'acme') as acme, billing.get_total_credits(:'bolt') as bolt;
set local billing.test_clock = '2026-03-01 00:00:00+00';

-- Forth and back loses nothing.
select * from billing.transfer_credits(:'bolt', :'acme', 15);
select billing.get_total_credits(:'acme') as acme, billing.get_total_credits(:'bolt') as bolt;

select * from billing.transfer_credits(:'acme', :'bolt', 41);
\echo :LAST_ERROR_SQLSTATE
select * from billing.transfer_credits(:'acme', :'acme', 1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.transfer_credits(:'acme', '00000000-0000-4000-8000-00000000dead', 1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.transfer_credits(:'acme', :'bolt', 1, 'EUR');
\echo :LAST_ERROR_SQLSTATE
select * from billing.transfer_credits(:'acme', :'bolt', 0);
\echo :LAST_ERROR_SQLSTATE

-- Credit for some metrics only is not transferred as general credit.
select * from billing.apply_catalog('{"metrics": {"call": {"price": 1}}}');
select grant_id from billing.grant_credits(:'acme', 100, 'bonus', metrics => '{call}');
select * from billing.transfer_credits(:'acme', :'bolt', 41);
\echo :LAST_ERROR_SQLSTATE

select org_id, entry_id, operation_id, kind, amount, balance_before, balance_after, grant_id, source, source_id from billing.entries order by org_id, entry_id;
select * from billing.verify_ledger();
rollback;
