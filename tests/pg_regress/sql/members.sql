-- A community's wallet: consumption names the member, who has a breakdown and may have a budget.
\i preamble.psql
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


-- Calls around the end of a day do not come in order: one that is late counts in the day that has begun, which stays as it is.
\set cat 00000000-0000-4000-8000-0000000000c1
select billing.set_member_budget(:'acme', :'cat', 10, 'day');
set local billing.test_clock = '2026-04-04 00:00:00+00';
select credits from billing.consume_credits(:'acme', 'call', 3, member_id => :'cat');
set local billing.test_clock = '2026-04-03 23:59:59.9+00';
select credits from billing.consume_credits(:'acme', 'call', 1, member_id => :'cat');
select status, credits from billing.consume_credits_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "member_id": "00000000-0000-4000-8000-0000000000c1", "quantity": 2}]');
select period_start, period_consumed from billing.member_usage where member_id = :'cat';
set local billing.test_clock = '2026-04-04 00:00:01+00';
select credits from billing.consume_credits(:'acme', 'call', 1, member_id => :'cat');
select period_start, period_consumed from billing.member_usage where member_id = :'cat';
-- Around the end of a month as well.
\set dan 00000000-0000-4000-8000-0000000000d1
select billing.set_member_budget(:'acme', :'dan', 10);
set local billing.test_clock = '2026-05-01 00:00:00+00';
select credits from billing.consume_credits(:'acme', 'call', 4, member_id => :'dan');
set local billing.test_clock = '2026-04-30 23:59:59.999999+00';
select credits from billing.consume_credits(:'acme', 'call', 1, member_id => :'dan');
set local billing.test_clock = '2026-05-01 00:00:01+00';
select credits from billing.consume_credits(:'acme', 'call', 1, member_id => :'dan');
\echo :LAST_ERROR_SQLSTATE

-- Set again, a budget counts the period exactly: a refund of what was used in an earlier one is not of this one, a refund
-- of this one is, and so is what is reserved.
\set eve 00000000-0000-4000-8000-0000000000e1
select billing.set_member_budget(:'acme', :'eve', 100);
select operation_id, credits from billing.consume_credits(:'acme', 'call', 20, member_id => :'eve') \gset may_
set local billing.test_clock = '2026-06-10 00:00:00+00';
select operation_id, credits from billing.consume_credits(:'acme', 'call', 30, member_id => :'eve') \gset june_
select hold_id, credits from billing.reserve_credits(:'acme', 'call', 10, '30 days', member_id => :'eve') \gset h1_
select hold_id, credits from billing.reserve_credits(:'acme', 'call', 2, '30 days', member_id => :'eve') \gset h2_
select credits from billing.refund_credits(:'acme', :may_operation_id, 25);
select credits from billing.refund_credits(:'acme', :june_operation_id, 6);
select consumed, period_consumed from billing.member_usage where member_id = :'eve';
select billing.set_member_budget(:'acme', :'eve', 100);
-- 60 - 6 + 20 + 4
select consumed, period_consumed from billing.member_usage where member_id = :'eve';
select credits from billing.consume_credits(:'acme', 'call', 12, member_id => :'eve');
\echo :LAST_ERROR_SQLSTATE
-- In July the holds of June count no more; what is captured of them does, where the budget has room.
set local billing.test_clock = '2026-07-01 00:00:00+00';
select billing.set_member_budget(:'acme', :'eve', 15);
select consumed, period_consumed from billing.member_usage where member_id = :'eve';
select credits from billing.capture_credits(:'acme', :h1_hold_id, 8);
\echo :LAST_ERROR_SQLSTATE
select credits from billing.capture_credits(:'acme', :h1_hold_id, 7);
select credits from billing.release_credits(:'acme', :h2_hold_id);
select consumed, period_start, period_consumed from billing.member_usage where member_id = :'eve';
select billing.set_member_budget(:'acme', :'eve', 15);
select consumed, period_start, period_consumed from billing.member_usage where member_id = :'eve';
select credits from billing.consume_credits(:'acme', 'call', 1, member_id => :'eve');
\echo :LAST_ERROR_SQLSTATE

select billing.set_member_budget(:'acme', :'ann', -1);
\echo :LAST_ERROR_SQLSTATE
select billing.set_member_budget(:'acme', :'ann', 1, 'week');
\echo :LAST_ERROR_SQLSTATE
select billing.set_member_budget('00000000-0000-4000-8000-00000000dead', :'ann', 1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
