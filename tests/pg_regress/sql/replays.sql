-- A repeated call has its first answer even where the call itself would be refused by now.
\i preamble.psql
select name from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "gone": {"price": 2}, "tiny": {"price": {"credits": 1, "per": 1000000000000}}}}') order by name;
select grant_id from billing.grant_credits(:'acme', 20000000);

-- Half of what a month can count, and more: the second time would not fit.
select * from billing.consume_credits(:'acme', 'tiny', 5000000000000000000, 'k1');
select * from billing.consume_credits(:'acme', 'tiny', 5000000000000000000, 'k1');
select * from billing.consume_credits(:'acme', 'tiny', 5000000000000000000, 'k2');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'tiny', 5000000000000000001, 'k1');
\echo :LAST_ERROR_SQLSTATE
select item, status, operation_id, credits, balance_after, detail from billing.consume_credits_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "tiny", "quantity": 5000000000000000000, "idempotency_key": "k1"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "tiny", "quantity": 5000000000000000000, "idempotency_key": "k3"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "idempotency_key": "k3"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "idempotency_key": "k1"}
]') order by item;
select metric, quantity, credits from billing_internal.period_usage where org_id = :'acme';

-- A price that does not fit any more.
select credits from billing.consume_credits(:'acme', 'call', 3000, 'dear');
select billing.set_org_price(:'acme', 'call', '9223372036854775807', '2020-01-01 00:00+00');
select * from billing.consume_credits(:'acme', 'call', 3000, 'dear');
select * from billing.consume_credits(:'acme', 'call', 3000, 'dearer');
\echo :LAST_ERROR_SQLSTATE
select billing.set_org_price(:'acme', 'call', null, '2020-01-01 00:00+00');

-- A metric that the catalog has dropped since.
select credits from billing.consume_credits(:'acme', 'gone', 3, 'g1', :'ann', '{"n": 1}');
select hold_id, credits from billing.reserve_credits(:'acme', 'gone', 4, '1 day', 'g2') \gset h_
select grant_id from billing.grant_credits(:'acme', 5, metrics => '{gone}', expires_at => '2026-03-02 00:00+00', idempotency_key => 'g3');
select action, name from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "tiny": {"price": {"credits": 1, "per": 1000000000000}}}}') order by name;
select credits, replayed from billing.consume_credits(:'acme', 'gone', 3, 'g1', :'ann', '{"n": 1}');
select hold_id = :h_hold_id as same_hold, credits, replayed from billing.reserve_credits(:'acme', 'gone', 4, '1 day', 'g2');
select grant_id, replayed from billing.grant_credits(:'acme', 5, metrics => '{gone}', expires_at => '2026-03-02 00:00+00', idempotency_key => 'g3');
select item, status, credits, detail from billing.consume_credits_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "gone", "quantity": 3, "idempotency_key": "g1", "member_id": "00000000-0000-4000-8000-0000000000a1", "metadata": {"n": 1}},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "gone", "quantity": 4, "idempotency_key": "g1"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "gone", "quantity": 3},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call"}
]') order by item;
select credits from billing.consume_credits(:'acme', 'gone', 4, 'g1');
\echo :LAST_ERROR_SQLSTATE
select credits from billing.consume_credits(:'acme', 'gone', 1, 'g4');
\echo :LAST_ERROR_SQLSTATE
-- After its grant has expired and the budget is spent, too.
select billing.set_member_budget(:'acme', :'ann', 0);
set local billing.test_clock = '2027-03-01 00:00:00+00';
select credits, replayed from billing.consume_credits(:'acme', 'gone', 3, 'g1', :'ann', '{"n": 1}');
select grant_id, replayed from billing.grant_credits(:'acme', 5, metrics => '{gone}', expires_at => '2026-03-02 00:00+00', idempotency_key => 'g3');
select hold_id = :h_hold_id as same_hold, replayed from billing.reserve_credits(:'acme', 'gone', 4, '1 day', 'g2');
select count(*) from billing.entries where org_id = :'acme' and idempotency_key is not null;
select * from billing.verify_ledger();
rollback;
