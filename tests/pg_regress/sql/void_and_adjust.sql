-- A void takes what is left of a grant and says what was spent; an adjustment gives or takes with a reason and is signed by its actor.
\i preamble.psql
select * from billing.apply_catalog('{"metrics": {"call": {"price": 1}}}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase');
select grant_id from billing.grant_credits(:'acme', 10, 'bonus');
select credits from billing.consume_credits(:'acme', 'call', 13);

-- 7 of the purchase are left; the 3 that were spent are reported, not taken.
select * from billing.void_grant(:'acme', 1, 'chargeback', idempotency_key => 'v1');
select * from billing.void_grant(:'acme', 1, 'chargeback', idempotency_key => 'v1');
select billing.get_total_credits(:'acme');
-- The bonus is spent: there is nothing to take.
select * from billing.void_grant(:'acme', 2, 'withdrawn');
-- Voided again without a key.
select * from billing.void_grant(:'acme', 1, 'chargeback');
\echo :LAST_ERROR_SQLSTATE
select * from billing.void_grant(:'acme', 99, 'no such grant');
\echo :LAST_ERROR_SQLSTATE
select * from billing.void_grant(:'acme', 1, null);
\echo :LAST_ERROR_SQLSTATE

-- What is held at the time of the void is not taken; when it comes back, it is void too.
select grant_id from billing.grant_credits(:'acme', 10, 'purchase') \gset g_
select hold_id from billing.reserve_credits(:'acme', 'call', 4) \gset h_
select * from billing.void_grant(:'acme', :g_grant_id, 'chargeback');
select * from billing.release_credits(:'acme', :h_hold_id);
select billing.get_total_credits(:'acme');

-- A grant that is not effective yet can be voided.
select grant_id from billing.grant_credits(:'acme', 10, 'plan', effective_at => '2026-04-01 00:00+00') \gset f_
select * from billing.void_grant(:'acme', :f_grant_id, 'cancelled before it began');
set local billing.test_clock = '2026-04-01 00:00:00+00';
select billing.get_total_credits(:'acme');
set local billing.test_clock = '2026-03-01 00:00:00+00';

-- Adjustments.
select * from billing.adjust_credits(:'acme', 20, 'goodwill after outage', idempotency_key => 'a1');
select * from billing.adjust_credits(:'acme', 20, 'goodwill after outage', idempotency_key => 'a1');
select * from billing.adjust_credits(:'acme', -5, 'correction');
select * from billing.adjust_credits(:'acme', -16, 'more than there is');
\echo :LAST_ERROR_SQLSTATE
select * from billing.adjust_credits(:'acme', 0, 'nothing');
\echo :LAST_ERROR_SQLSTATE
select * from billing.adjust_credits(:'acme', 1, null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.adjust_credits(:'acme', 1, '');
\echo :LAST_ERROR_SQLSTATE
select available, lifetime_purchased, lifetime_consumed from billing.get_wallet(:'acme');

-- Voided again without a key, the report is the same: what was taken back is not spent.
select voided, already_spent from billing.void_grant(:'acme', 1, 'chargeback, second letter');
select voided, already_spent from billing.void_grant(:'acme', :g_grant_id, 'chargeback, second letter');
-- What was refunded to a voided grant, and voided at once, was not spent either.
select grant_id from billing.grant_credits(:'acme', 10, 'bonus', priority => 1) \gset r_
select operation_id from billing.consume_credits(:'acme', 'call', 6) \gset ru_
select voided, already_spent from billing.void_grant(:'acme', :r_grant_id, 'withdrawn');
select credits from billing.refund_credits(:'acme', :ru_operation_id, 4);
select voided, already_spent from billing.void_grant(:'acme', :r_grant_id, 'withdrawn');
-- Nor is what had expired, whether the void finds that booked or not.
select grant_id from billing.grant_credits(:'acme', 10, 'plan', priority => 1, expires_at => '2026-03-02 00:00+00') \gset e_
select credits from billing.consume_credits(:'acme', 'call', 3);
set local billing.test_clock = '2026-03-02 00:00:00+00';
select voided, already_spent from billing.void_grant(:'acme', :e_grant_id, 'withdrawn');
select voided, already_spent from billing.void_grant(:'acme', :e_grant_id, 'withdrawn');
set local billing.test_clock = '2026-03-01 00:00:00+00';

select grant_id, source, amount, remaining, voided_at from billing.grants where org_id = :'acme' order by grant_id;
select entry_id, kind, amount, balance_before, balance_after, grant_id, reason, actor is not null as signed
    from billing.entries where org_id = :'acme' order by entry_id;
select * from billing.verify_ledger();
rollback;
