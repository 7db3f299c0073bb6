-- A community's wallet: consumption names the member, who has a breakdown and may have a budget.
\set ON_ERROR_ROLLBACK on
\set SHOW_CONTEXT never
\pset null '(null)'
begin;
set local timezone = 'UTC';
set local datestyle = 'ISO';
set local billing.test_clock = '2026-03-01 00:00:00+00';
\set acme 00000000-0000-4000-8000-000000000001
\set ann 00000000-0000-4000-8000-0000000000a1
\set bob 00000000-0000-4000-8000-0000000000b1
select * from billing.apply_catalog('{"metrics": {"call": {"price": 2}}}');
select org_id, owner_type from billing.create_wallet(:'acme', owner_type => 'community');
select * from billing.grant_credits(:'acme', 1000);

select credits, balance_after from billing.consume_credits(:'acme', 'call', 3, member_id => :'ann');
set local billing.test_clock = '2026-03-02 00:00:00+00';
select credits, balance_after from billing.consume_credits(:'acme', 'call', 1, member_id => :'ann');
select credits, balance_after from billing.consume_credits(:'acme', 'call', 5, member_id => :'bob');
select credits, balance_after from billing.consume_credits(:'acme', 'call', 7);
select member_id, consumed, last_activity_at, budget, budget_per from billing.member_usage where org_id = :'acme' order by member_id;

-- A budget of a month: Ann has spent 8 of 12.
select billing.set_member_budget(:'acme', :'ann', 12);
select credits from billing.consume_credits(:'acme', 'call', 3, member_id => :'ann');
\echo :LAST_ERROR_SQLSTATE
select credits from billing.consume_credits(:'acme', 'call', 2, member_id => :'ann');
select credits from billing.consume_credits(:'acme', 'call', 1, member_id => :'ann');
\echo :LAST_ERROR_SQLSTATE
-- Hers alone.
select credits from billing.consume_credits(:'acme', 'call', 3, member_id => :'bob');
select credits from billing.consume_credits(:'acme', 'call', 3);
-- The next month she may spend again.
set local billing.test_clock = '2026-04-01 00:00:00+00';
select credits from billing.consume_credits(:'acme', 'call', 6, member_id => :'ann');
select credits from billing.consume_credits(:'acme', 'call', 1, member_id => :'ann');
\echo :LAST_ERROR_SQLSTATE

-- By the day, and in total.
select billing.set_member_budget(:'acme', :'bob', 4, 'day');
select credits from billing.consume_credits(:'acme', 'call', 2, member_id => :'bob');
select credits from billing.consume_credits(:'acme', 'call', 1, member_id => :'bob');
\echo :LAST_ERROR_SQLSTATE
set local billing.test_clock = '2026-04-02 00:00:00+00';
select credits from billing.consume_credits(:'acme', 'call', 2, member_id => :'bob');
select billing.set_member_budget(:'acme', :'bob', 25, 'total');
select credits from billing.consume_credits(:'acme', 'call', 1, member_id => :'bob');
\echo :LAST_ERROR_SQLSTATE
select billing.set_member_budget(:'acme', :'bob', null);
select credits from billing.consume_credits(:'acme', 'call', 1, member_id => :'bob');

-- A reservation counts against the budget while it is open, a refund gives it back.
select billing.set_member_budget(:'acme', :'ann', 100, 'day');
set local billing.test_clock = '2026-04-03 00:00:00+00';
select hold_id, credits from billing.reserve_credits(:'acme', 'call', 40, member_id => :'ann') \gset h_
select credits from billing.consume_credits(:'acme', 'call', 11, member_id => :'ann');
\echo :LAST_ERROR_SQLSTATE
select hold_id, credits from billing.release_credits(:'acme', :h_hold_id);
select operation_id, credits from billing.consume_credits(:'acme', 'call', 50, member_id => :'ann') \gset u_
select credits from billing.refund_credits(:'acme', :u_operation_id);
select credits from billing.consume_credits(:'acme', 'call', 50, member_id => :'ann');

select member_id, consumed, last_activity_at, budget, budget_per, period_start, period_consumed from billing.member_usage where org_id = :'acme' order by member_id;
select member_id, -sum(amount) as by_the_ledger from billing.entries where org_id = :'acme' and kind in ('usage', 'refund') group by member_id order by member_id;

select billing.set_member_budget(:'acme', :'ann', -1);
\echo :LAST_ERROR_SQLSTATE
select billing.set_member_budget(:'acme', :'ann', 1, 'week');
\echo :LAST_ERROR_SQLSTATE
select billing.set_member_budget('00000000-0000-4000-8000-00000000dead', :'ann', 1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
