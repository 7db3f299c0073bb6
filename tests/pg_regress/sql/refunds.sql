-- Refunds give back to the very grants that were burned, in the recorded order, never more than was burned.
\i preamble.psql
select * from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "free": {"price": 0}}}');
select grant_id from billing.grant_credits(:'acme', 10, 'plan', expires_at => '2026-04-01 00:00+00');
select grant_id from billing.grant_credits(:'acme', 10, 'bonus');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase');
select * from billing.consume_credits(:'acme', 'call', 25) \gset u1_
select grant_id, remaining from billing.grants where org_id = :'acme' order by grant_id;

-- A part, again a part, and the rest.
select * from billing.refund_credits(:'acme', :u1_operation_id, 4, 'slow answer', idempotency_key => 'r1');
select * from billing.refund_credits(:'acme', :u1_operation_id, 4, 'slow answer', idempotency_key => 'r1');
select grant_id, remaining from billing.grants where org_id = :'acme' order by grant_id;
select * from billing.refund_credits(:'acme', :u1_operation_id, 8);
select grant_id, remaining from billing.grants where org_id = :'acme' order by grant_id;
select * from billing.refund_credits(:'acme', :u1_operation_id, 14);
\echo :LAST_ERROR_SQLSTATE
select * from billing.refund_credits(:'acme', :u1_operation_id);
select grant_id, remaining from billing.grants where org_id = :'acme' order by grant_id;
-- Nothing is left to refund.
select * from billing.refund_credits(:'acme', :u1_operation_id);
\echo :LAST_ERROR_SQLSTATE
select * from billing.refund_credits(:'acme', :u1_operation_id, 1);
\echo :LAST_ERROR_SQLSTATE
select available, lifetime_purchased, lifetime_consumed from billing.get_wallet(:'acme');

-- Only what burned credits can be refunded.
select * from billing.refund_credits(:'acme', 1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.refund_credits(:'acme', 99999);
\echo :LAST_ERROR_SQLSTATE
select operation_id from billing.consume_credits(:'acme', 'free') \gset f_
select * from billing.refund_credits(:'acme', :f_operation_id);
\echo :LAST_ERROR_SQLSTATE
select * from billing.refund_credits(:'acme', :u1_operation_id, 0);
\echo :LAST_ERROR_SQLSTATE
select * from billing.refund_credits(:'acme', :u1_operation_id, -1);
\echo :LAST_ERROR_SQLSTATE

-- A captured hold is refunded like any consumption.
select hold_id from billing.reserve_credits(:'acme', 'call', 6) \gset h_
select operation_id from billing.capture_credits(:'acme', :h_hold_id, 5) \gset c_
select * from billing.refund_credits(:'acme', :c_operation_id, 6);
\echo :LAST_ERROR_SQLSTATE
select * from billing.refund_credits(:'acme', :c_operation_id, 5);

-- Credit that is refunded to a grant which has expired meanwhile expires at once; the rest is spendable.
select * from billing.consume_credits(:'acme', 'call', 12) \gset u2_
set local billing.test_clock = '2026-04-01 00:00:00+00';
select billing.get_total_credits(:'acme');
select * from billing.refund_credits(:'acme', :u2_operation_id);
select grant_id, remaining from billing.grants where org_id = :'acme' order by grant_id;
select billing.get_total_credits(:'acme');

-- Likewise for a grant that was voided.
select * from billing.consume_credits(:'acme', 'call', 3) \gset u3_
select * from billing.void_grant(:'acme', 2, 'promotion withdrawn');
select * from billing.refund_credits(:'acme', :u3_operation_id, 2);
select grant_id, remaining from billing.grants where org_id = :'acme' order by grant_id;

select entry_id, operation_id, kind, amount, balance_before, balance_after, grant_id, source, source_id, reason
    from billing.entries where org_id = :'acme' order by entry_id;
select * from billing.verify_ledger();
rollback;
