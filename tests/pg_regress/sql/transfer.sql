-- Transfers between wallets of the same unit: the credits keep category, expiry, priority and cost basis.
\i preamble.psql
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

-- A grant that leaves in parts takes its whole cost along, to the last cent, whatever the parts.
\set coil 00000000-0000-4000-8000-000000000003
\set dyne 00000000-0000-4000-8000-000000000004
select grant_id from billing.grant_credits(:'coil', 7, 'purchase', cost_minor => 100, currency => 'USD');
select count(*) from generate_series(1, 3) n, billing.transfer_credits(:'coil', :'dyne', 1, metadata => jsonb_build_object('n', n));
select credits from billing.consume_credits(:'coil', 'call', 2);
select amount from billing.transfer_credits(:'coil', :'dyne', 2);
select amount, cost_minor, currency from billing.grants where org_id = :'dyne' order by grant_id;
select grant_id from billing.grant_credits(:'coil', 9, 'purchase', cost_minor => 10, currency => 'EUR');
select count(*) from generate_series(1, 9) n, billing.transfer_credits(:'coil', :'dyne', 1, metadata => jsonb_build_object('n', n));
select count(*), sum(amount) as credits, sum(cost_minor) as cost from billing.grants where org_id = :'dyne' and currency = 'EUR';
-- A cost near 63 bits is cut without overflow.
select grant_id from billing.grant_credits(:'coil', 3000000000, 'purchase', cost_minor => 9223372036854775807, currency => 'INR');
select count(*) from unnest(array[1, 1999999999, 1000000000]) n, billing.transfer_credits(:'coil', :'dyne', n);
select sum(amount) as credits, sum(cost_minor) as cost from billing.grants where org_id = :'dyne' and currency = 'INR';

-- An org that the same statement makes is known to the calls after it.
select g.grant_id, a.amount, t.amount, c.credits, r.credits from billing.grant_credits('00000000-0000-4000-8000-000000000005', 10) g,
    lateral billing.adjust_credits('00000000-0000-4000-8000-000000000005', 5 * g.grant_id, 'gift') a,
    lateral billing.transfer_credits('00000000-0000-4000-8000-000000000005', '00000000-0000-4000-8000-000000000006', a.amount) t,
    lateral billing.consume_credits('00000000-0000-4000-8000-000000000006', 'call', t.amount - 1) c,
    lateral billing.refund_credits('00000000-0000-4000-8000-000000000006', c.operation_id, 1) r;
select billing.get_total_credits('00000000-0000-4000-8000-000000000005') as giver, billing.get_total_credits('00000000-0000-4000-8000-000000000006') as receiver;

select org_id, entry_id, operation_id, kind, amount, balance_before, balance_after, grant_id, source, source_id from billing.entries
    where org_id in (:'acme', :'bolt', '00000000-0000-4000-8000-00000000dead') order by org_id, entry_id;
select * from billing.verify_ledger();
rollback;
