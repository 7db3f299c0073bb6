-- Two-phase spending: reserve, then capture less, exactly or more, or release; a hold that is not captured in time
-- gives its credits back by itself, at its very moment.
\i preamble.psql
select * from billing.apply_catalog('{"metrics": {"token": {"price": 2}}}');
select * from billing.grant_credits(:'acme', 100, 'purchase');

-- A hold counts against the balance at once.
select * from billing.reserve_credits(:'acme', 'token', 10, idempotency_key => 'h1') \gset h1_
select * from billing.reserve_credits(:'acme', 'token', 10, idempotency_key => 'h1');
select * from billing.reserve_credits(:'acme', 'token', 11, idempotency_key => 'h1');
\echo :LAST_ERROR_SQLSTATE
select available, reserved, locked, lifetime_consumed from billing.get_wallet(:'acme');
select * from billing.reserve_credits(:'acme', 'token', 41);
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'token', 41);
\echo :LAST_ERROR_SQLSTATE

-- Captured for less: the rest comes back.
select * from billing.capture_credits(:'acme', :h1_hold_id, 4, idempotency_key => 'c1');
select * from billing.capture_credits(:'acme', :h1_hold_id, 4, idempotency_key => 'c1');
-- A closed hold cannot be captured or released.
select * from billing.capture_credits(:'acme', :h1_hold_id, 4);
\echo :LAST_ERROR_SQLSTATE
select * from billing.release_credits(:'acme', :h1_hold_id);
\echo :LAST_ERROR_SQLSTATE
select available, reserved, lifetime_consumed from billing.get_wallet(:'acme');

-- Captured exactly as reserved.
select * from billing.reserve_credits(:'acme', 'token', 10) \gset h2_
select * from billing.capture_credits(:'acme', :h2_hold_id);
select available, reserved, lifetime_consumed from billing.get_wallet(:'acme');

-- Captured beyond what was reserved: by default the difference is charged, if there is credit for it ...
select * from billing.reserve_credits(:'acme', 'token', 10) \gset h3_
select * from billing.capture_credits(:'acme', :h3_hold_id, 12);
select available, reserved, lifetime_consumed from billing.get_wallet(:'acme');
select * from billing.reserve_credits(:'acme', 'token', 10) \gset h4_
select * from billing.capture_credits(:'acme', :h4_hold_id, 1000);
\echo :LAST_ERROR_SQLSTATE
-- ... and by the other policy it is refused; the hold stays open either way.
select * from billing.capture_credits(:'acme', :h4_hold_id, 11, beyond => 'refuse');
\echo :LAST_ERROR_SQLSTATE
select * from billing.capture_credits(:'acme', :h4_hold_id, 11, beyond => 'maybe');
\echo :LAST_ERROR_SQLSTATE
select available, reserved, lifetime_consumed from billing.get_wallet(:'acme');

-- Released: everything comes back.
select * from billing.release_credits(:'acme', :h4_hold_id);
select available, reserved, lifetime_consumed from billing.get_wallet(:'acme');

-- Released twice.
select * from billing.release_credits(:'acme', :h4_hold_id);
\echo :LAST_ERROR_SQLSTATE

-- A hold frees itself at its moment, without anything having been booked.
select hold_id, credits, expires_at, balance_after from billing.reserve_credits(:'acme', 'token', 20, ttl => '10 minutes') \gset h5_
set local billing.test_clock = '2026-03-01 00:09:59.999999+00';
select billing.get_total_credits(:'acme') as just_before;
select available, reserved from billing.get_wallet(:'acme');
set local billing.test_clock = '2026-03-01 00:10:00+00';
select billing.get_total_credits(:'acme') as at_the_moment;
select available, reserved from billing.get_wallet(:'acme');
select available, reserved from billing.wallets where org_id = :'acme';
-- Too late to capture it.
select * from billing.capture_credits(:'acme', :h5_hold_id, 1);
\echo :LAST_ERROR_SQLSTATE
-- The freed credits can be spent; the call that meets them books the release first.
select * from billing.consume_credits(:'acme', 'token', 20);
select available, reserved, lifetime_consumed from billing.get_wallet(:'acme');

-- Unknown hold.
select * from billing.release_credits(:'acme', 424242);
\echo :LAST_ERROR_SQLSTATE
select * from billing.capture_credits(:'acme', 424242);
\echo :LAST_ERROR_SQLSTATE

select hold_id, kind, metric, quantity, credits, status, expires_at, created_at, closed_at from billing.holds where org_id = :'acme' order by hold_id;
select entry_id, operation_id, kind, amount, balance_before, balance_after, grant_id, metric, quantity, source, source_id, idempotency_key
    from billing.entries where org_id = :'acme' order by entry_id;

-- Credits that were held before their expiry are honoured at the capture; what is not captured has expired meanwhile.
\set bolt 00000000-0000-4000-8000-000000000002
select grant_id from billing.grant_credits(:'bolt', 10, 'plan', expires_at => '2026-03-01 01:00+00');
select grant_id from billing.grant_credits(:'bolt', 10, 'purchase');
select * from billing.reserve_credits(:'bolt', 'token', 6, ttl => '2 hours') \gset h6_
set local billing.test_clock = '2026-03-01 01:30:00+00';
select billing.get_total_credits(:'bolt');
select * from billing.capture_credits(:'bolt', :h6_hold_id, 4);
select billing.get_total_credits(:'bolt');
select entry_id, kind, amount, balance_before, balance_after, grant_id from billing.entries where org_id = :'bolt' order by entry_id;

-- Behind more holds that were closed before their time than are looked at in one go, a hold still frees itself at its moment.
\set cove 00000000-0000-4000-8000-000000000003
select grant_id from billing.grant_credits(:'cove', 1000, 'purchase');
select count(distinct l.hold_id) from generate_series(1, 1100) n, lateral billing.reserve_credits(:'cove', 'token', n / n, ttl => '20 minutes') r,
    lateral billing.release_credits(:'cove', r.hold_id) l;
select credits, expires_at from billing.reserve_credits(:'cove', 'token', 7, ttl => '10 minutes');
select credits, expires_at from billing.reserve_credits(:'cove', 'token', 9, ttl => '30 minutes');
set local billing.test_clock = '2026-03-01 01:40:00+00';
select balance_after from billing.consume_credits(:'cove', 'token', 1);
select holds_due, reserved from billing_internal.lanes where org_id = :'cove';
set local billing.test_clock = '2026-03-01 01:59:59.999999+00';
select balance_after from billing.consume_credits(:'cove', 'token', 1);
select holds_due, reserved from billing_internal.lanes where org_id = :'cove';
set local billing.test_clock = '2026-03-01 02:00:00+00';
select billing.get_total_credits(:'cove');
select balance_after from billing.consume_credits(:'cove', 'token', 1);
select holds_due, reserved from billing_internal.lanes where org_id = :'cove';
select * from billing.verify_ledger();
rollback;
