-- Wallets are opened by a first grant or by create_wallet; grants bring the credits in.
-- Every refused statement is rolled back on its own and followed by its SQLSTATE.
\i preamble.psql

-- An org nobody knows has nothing, and nothing can be taken from it.
select billing.get_total_credits(:'acme');
select * from billing.get_wallet(:'acme');
\echo :LAST_ERROR_SQLSTATE
select * from billing.adjust_credits(:'acme', 10, 'who is this');
\echo :LAST_ERROR_SQLSTATE

-- The first grant opens the wallet. One of each source: paid are purchase, transfer and refund, the others promotional.
select * from billing.grant_credits(:'acme', 100);
select * from billing.grant_credits(:'acme', 200, 'purchase', cost_minor => 1999, currency => 'USD', metadata => '{"order": "A-1"}');
select * from billing.grant_credits(:'acme', 1, 'plan');
select * from billing.grant_credits(:'acme', 2, 'gift_card');
select * from billing.grant_credits(:'acme', 3, 'voucher');
select * from billing.grant_credits(:'acme', 4, 'refund');
select * from billing.grant_credits(:'acme', 5, 'adjustment');
select * from billing.grant_credits(:'acme', 6, 'transfer');
-- The category may be said.
select * from billing.grant_credits(:'acme', 7, 'purchase', 'promotional');
select grant_id, source, category, amount, remaining, cost_minor, currency, priority, metrics, effective_at, expires_at, voided_at, created_at, metadata
    from billing.grants where org_id = :'acme' order by grant_id;
select billing.get_total_credits(:'acme');

-- Credit that is not yet effective, and credit for some metrics only, is not spendable in general.
select * from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "page": {"price": 5}}}');
select * from billing.grant_credits(:'acme', 1000, 'plan', effective_at => '2026-04-01 00:00+00', expires_at => '2026-05-01 00:00+00');
select * from billing.grant_credits(:'acme', 50, 'bonus', metrics => '{page}');
select billing.get_total_credits(:'acme') as general,
       billing.get_total_credits(:'acme', 'credit', 'page') as on_pages,
       billing.get_total_credits(:'acme', metric => 'call') as on_calls;
set local billing.test_clock = '2026-03-31 23:59:59.999999+00';
select billing.get_total_credits(:'acme') as a_microsecond_before;
set local billing.test_clock = '2026-04-01 00:00:00+00';
select billing.get_total_credits(:'acme') as at_the_moment;
set local billing.test_clock = '2026-03-01 00:00:00+00';

-- Twice the same request with a key: the first result again. Another request with that key: refused.
select * from billing.grant_credits(:'acme', 10, idempotency_key => 'welcome');
select * from billing.grant_credits(:'acme', 10, idempotency_key => 'welcome');
select * from billing.grant_credits(:'acme', 11, idempotency_key => 'welcome');
\echo :LAST_ERROR_SQLSTATE
-- A key belongs to its org: another org may use the same.
select * from billing.grant_credits(:'bolt', 11, idempotency_key => 'welcome');

-- The wallet, as a call and as a view; create_wallet also changes it.
select * from billing.get_wallet(:'acme');
select org_id, unit, owner_type, low_balance_threshold from billing.create_wallet(:'acme', low_balance_threshold => 25);
select org_id, unit, owner_type, low_balance_threshold from billing.create_wallet(:'bolt', owner_type => 'community');
-- What is not named stays.
select owner_type, low_balance_threshold from billing.create_wallet(:'bolt', low_balance_threshold => 5);
select owner_type, low_balance_threshold from billing.create_wallet(:'bolt');
select owner_type, low_balance_threshold from billing.create_wallet(:'bolt', owner_type => 'user');
select owner_type, low_balance_threshold from billing.create_wallet(:'bolt', low_balance_threshold => 0);
select owner_type, low_balance_threshold from billing.create_wallet(:'bolt', owner_type => 'community');
select * from billing.create_wallet(:'bolt', owner_type => 'robot');
\echo :LAST_ERROR_SQLSTATE
select org_id, unit, owner_type, available, reserved, locked, pending, lifetime_purchased, lifetime_consumed, low_balance_threshold
    from billing.wallets order by org_id, unit;

-- What the ledger recorded.
select entry_id, operation_id, kind, amount, balance_before, balance_after, grant_id, source, idempotency_key, metadata, created_at
    from billing.entries where org_id = :'acme' order by entry_id;
select * from billing.verify_ledger();
rollback;
