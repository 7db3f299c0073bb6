-- Bad input is refused by name, changes nothing, and never yields a silent NULL.
\i preamble.psql
select * from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "dear": {"price": 9223372036854775807}}}');
select * from billing.grant_credits(:'acme', 100);
select * from billing.create_wallet(:'bolt');
-- NULLs
select * from billing.grant_credits(null, 1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, unit => null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, priority => null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, cost_minor => null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(null, 'call');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'call', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.reserve_credits(:'acme', 'call', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.reserve_credits(:'acme', 'call', 1, null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.capture_credits(:'acme', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.release_credits(null, 1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.lock_credits(:'acme', null, 'why');
\echo :LAST_ERROR_SQLSTATE
select * from billing.pay_out(:'acme', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.refund_credits(:'acme', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.adjust_credits(:'acme', null, 'why');
\echo :LAST_ERROR_SQLSTATE
select * from billing.void_grant(:'acme', null, 'why');
\echo :LAST_ERROR_SQLSTATE
select * from billing.transfer_credits(:'acme', null, 1);
\echo :LAST_ERROR_SQLSTATE
select billing.get_total_credits(null);
\echo :LAST_ERROR_SQLSTATE
select billing.get_total_credits(:'acme', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.get_wallet(null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.explain_consumption(:'acme', null);
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost(null::text);
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost(null::jsonb);
\echo :LAST_ERROR_SQLSTATE
select * from billing.apply_catalog('{}', null);
\echo :LAST_ERROR_SQLSTATE
select billing.set_org_price(:'acme', null, '1');
\echo :LAST_ERROR_SQLSTATE
select billing.set_member_budget(:'acme', null, 1);
\echo :LAST_ERROR_SQLSTATE
select billing.book_expiries(null);
\echo :LAST_ERROR_SQLSTATE
-- Zero and negative
select * from billing.grant_credits(:'acme', 0);
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', -1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, cost_minor => -1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'call', 0);
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'call', -1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.reserve_credits(:'acme', 'call', 0);
\echo :LAST_ERROR_SQLSTATE
select * from billing.lock_credits(:'acme', 0, 'why');
\echo :LAST_ERROR_SQLSTATE
select * from billing.transfer_credits(:'acme', :'bolt', -1);
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost('call', 0);
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost('call', -1);
\echo :LAST_ERROR_SQLSTATE
select billing.book_expiries(0);
\echo :LAST_ERROR_SQLSTATE
select * from billing.create_wallet(:'acme', low_balance_threshold => -1);
\echo :LAST_ERROR_SQLSTATE
-- Fractions: no function takes one (JSON input: see batch and prices)
select * from billing.consume_credits(:'acme', 'call', 1.5);
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'call', 1.5::numeric);
\echo :LAST_ERROR_SQLSTATE
-- Too much: a price that does not fit, a balance that would not
select * from billing.consume_credits(:'acme', 'dear', 2);
\echo :LAST_ERROR_SQLSTATE
select * from billing.reserve_credits(:'acme', 'dear', 9223372036854775807);
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost('dear', 2);
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'call', 9223372036854775807);
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 9223372036854775807);
\echo :LAST_ERROR_SQLSTATE
select amount, balance_after from billing.grant_credits(:'bolt', 9223372036854775807);
select billing.get_total_credits(:'bolt');
select * from billing.grant_credits(:'bolt', 1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.adjust_credits(:'bolt', 1, 'one more');
\echo :LAST_ERROR_SQLSTATE
select * from billing.transfer_credits(:'acme', :'bolt', 1);
\echo :LAST_ERROR_SQLSTATE
select credits, balance_after from billing.consume_credits(:'bolt', 'dear');
select * from billing.adjust_credits(:'acme', -9223372036854775808, 'least');
\echo :LAST_ERROR_SQLSTATE
-- Keys: 1 to 255 bytes
select * from billing.consume_credits(:'acme', 'call', 1, '');
\echo :LAST_ERROR_SQLSTATE
select credits from billing.consume_credits(:'acme', 'call', 1, repeat('k', 255));
select * from billing.consume_credits(:'acme', 'call', 1, repeat('k', 256));
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'call', 1, repeat(U&'\00e9', 128));
\echo :LAST_ERROR_SQLSTATE
select replayed from billing.consume_credits(:'acme', 'call', 1, repeat('k', 255));
-- Metadata is an object
select * from billing.consume_credits(:'acme', 'call', 1, metadata => '[]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'call', 1, metadata => '"text"');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'call', 1, metadata => 'null');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'call', 1, metadata => null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, metadata => '7');
\echo :LAST_ERROR_SQLSTATE
-- Names
select * from billing.consume_credits(:'acme', '');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', repeat('m', 64));
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'Call');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits('00000000-0000-4000-8000-00000000dead', 'call');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, 'lottery');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, 'bonus', 'free');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, unit => '');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, unit => 'credits');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, metrics => '{}');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, metrics => '{call,null}');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, metrics => '{teleport}');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, expires_at => '-infinity');
\echo :LAST_ERROR_SQLSTATE
select * from billing.adjust_credits(:'acme', 1, repeat('r', 1001));
\echo :LAST_ERROR_SQLSTATE
-- Time limits: more than nothing, at most a year
select * from billing.reserve_credits(:'acme', 'call', 1, '0');
\echo :LAST_ERROR_SQLSTATE
select * from billing.reserve_credits(:'acme', 'call', 1, '-1 minute');
\echo :LAST_ERROR_SQLSTATE
select * from billing.reserve_credits(:'acme', 'call', 1, '1 year 1 second');
\echo :LAST_ERROR_SQLSTATE
select credits, expires_at from billing.reserve_credits(:'acme', 'call', 1, '1 year');
-- Of all this only what succeeded is there.
select org_id, entry_id, kind, amount, balance_after from billing.entries order by org_id, entry_id;
select * from billing.verify_ledger();
rollback;
