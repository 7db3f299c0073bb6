-- Payouts: credits are locked with a reason and without a time limit, then leave or come back.
\i preamble.psql
select * from billing.grant_credits(:'acme', 100, 'purchase', unit => 'EUR');

select * from billing.lock_credits(:'acme', 30, 'payout to bank', 'EUR', idempotency_key => 'p1') \gset p1_
select * from billing.lock_credits(:'acme', 30, 'payout to bank', 'EUR', idempotency_key => 'p1');
select available, reserved, locked from billing.get_wallet(:'acme', 'EUR');
select * from billing.lock_credits(:'acme', 71, 'too much', 'EUR');
\echo :LAST_ERROR_SQLSTATE

-- Years later it is still locked.
set local billing.test_clock = '2036-03-01 00:00:00+00';
select available, reserved, locked from billing.get_wallet(:'acme', 'EUR');
set local billing.test_clock = '2026-03-01 00:00:00+00';

-- It leaves, once.
select * from billing.pay_out(:'acme', :p1_hold_id, idempotency_key => 'po1');
select * from billing.pay_out(:'acme', :p1_hold_id, idempotency_key => 'po1');
select * from billing.pay_out(:'acme', :p1_hold_id);
\echo :LAST_ERROR_SQLSTATE
select available, reserved, locked, lifetime_purchased, lifetime_consumed from billing.get_wallet(:'acme', 'EUR');

-- Another comes back.
select hold_id from billing.lock_credits(:'acme', 70, 'changed my mind', 'EUR') \gset p2_
select billing.get_total_credits(:'acme', 'EUR');
select * from billing.release_credits(:'acme', :p2_hold_id);
select available, reserved, locked from billing.get_wallet(:'acme', 'EUR');

-- A payout hold cannot be captured, nor a usage hold paid out.
select * from billing.apply_catalog('{"metrics": {"call": {"price": 1}}}');
select * from billing.grant_credits(:'acme', 5);
select hold_id from billing.lock_credits(:'acme', 1, 'payout', 'EUR') \gset p3_
select hold_id from billing.reserve_credits(:'acme', 'call', 5) \gset u1_
select * from billing.capture_credits(:'acme', :p3_hold_id);
\echo :LAST_ERROR_SQLSTATE
select * from billing.pay_out(:'acme', :u1_hold_id);
\echo :LAST_ERROR_SQLSTATE
-- A reason is needed.
select * from billing.lock_credits(:'acme', 1, null, 'EUR');
\echo :LAST_ERROR_SQLSTATE
select * from billing.lock_credits(:'acme', 1, '', 'EUR');
\echo :LAST_ERROR_SQLSTATE

select hold_id, unit, kind, credits, status, reason, expires_at from billing.holds where org_id = :'acme' order by unit, hold_id;
select unit, entry_id, kind, amount, balance_before, balance_after, grant_id, reason from billing.entries where org_id = :'acme' order by unit, entry_id;
select * from billing.verify_ledger();
rollback;
