-- Credits end at the exact moment, whether or not anything has been booked; the booking comes with the burn that
-- meets the expired rest, or with book_expiries, which pg_cron calls.
\i preamble.psql
select * from billing.apply_catalog('{"metrics": {"call": {"price": 1}}}');
select grant_id from billing.grant_credits(:'acme', 10, 'plan', expires_at => '2026-04-01 00:00+00');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase');
select grant_id from billing.grant_credits(:'bolt', 10, 'plan', expires_at => '2026-04-01 00:00+00');
select credits from billing.consume_credits(:'acme', 'call', 4);

set local billing.test_clock = '2026-03-31 23:59:59.999999+00';
select billing.get_total_credits(:'acme') as acme, billing.get_total_credits(:'bolt') as bolt;
set local billing.test_clock = '2026-04-01 00:00:00+00';
select billing.get_total_credits(:'acme') as acme, billing.get_total_credits(:'bolt') as bolt;
select available from billing.get_wallet(:'acme');
select org_id, available from billing.wallets order by org_id;
select * from billing.explain_consumption(:'acme', 'call', 3);
select * from billing.consume_credits(:'acme', 'call', 11);
\echo :LAST_ERROR_SQLSTATE
-- Nothing has been booked so far.
select count(*) from billing.entries where kind = 'expiry';

-- The burn books the breakage before it takes its own.
select * from billing.consume_credits(:'acme', 'call', 3);
select entry_id, operation_id, kind, amount, balance_before, balance_after, grant_id, created_at from billing.entries where org_id = :'acme' order by entry_id;

-- book_expiries does it for wallets that nobody burns from; the second time there is nothing to do.
select billing.book_expiries();
select billing.book_expiries();
select entry_id, kind, amount, balance_before, balance_after, grant_id, created_at from billing.entries where org_id = :'bolt' order by entry_id;
select org_id, grant_id, remaining from billing.grants order by org_id, grant_id;

-- A few wallets at a time, if one likes.
select count(*) from generate_series(1, 5) i, billing.grant_credits(('00000000-0000-4000-8000-0000000001' || lpad(i::text, 2, '0'))::uuid, 7, 'bonus', expires_at => '2026-04-02 00:00+00');
set local billing.test_clock = '2026-04-02 00:00:00+00';
select billing.book_expiries(2), billing.book_expiries(2), billing.book_expiries(2), billing.book_expiries(2);
select sum(amount) from billing.entries where kind = 'expiry' and grant_id is not null and org_id not in (:'acme', :'bolt');

-- Reservations of what costs nothing end like others.
\set coil 00000000-0000-4000-8000-000000000003
select name, action from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "free": {}}}') order by name;
select grant_id from billing.grant_credits(:'coil', 10);
select hold_id, credits from billing.reserve_credits(:'coil', 'free', 5, '1 hour', member_id => :'acme') \gset z_
select hold_id, credits, price from billing.holds where org_id = :'coil';
select billing.book_expiries();
set local billing.test_clock = '2026-04-02 01:00:00+00';
select credits from billing.capture_credits(:'coil', :z_hold_id);
\echo :LAST_ERROR_SQLSTATE
select billing.book_expiries();
select billing.book_expiries();
select status, closed_at, closed_by from billing.holds where org_id = :'coil';
select entry_id, operation_id, kind, amount, grant_id, source, source_id from billing.entries where org_id = :'coil' order by entry_id;
set local billing.test_clock = '2026-04-02 00:00:00+00';

-- A grant whose end lies before its beginning, or in the past.
select * from billing.grant_credits(:'acme', 10, effective_at => '2026-06-01 00:00+00', expires_at => '2026-06-01 00:00+00');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 10, expires_at => '2026-04-01 23:59+00');
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
