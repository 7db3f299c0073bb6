-- Prices: flat, by steps, per org; exact over the month, however the usage is split; known beforehand by calculate_cost.
\i preamble.psql
select * from billing.apply_catalog('{"metrics": {
    "call": {"price": 3},
    "third": {"price": {"steps": [{"credits": 1, "per": 3}]}},
    "step": {"price": {"steps": [{"up_to": 10, "credits": 5, "per": 1}, {"up_to": 100, "credits": 3, "per": 2}, {"credits": 1, "per": 7}]}},
    "gift": {"price": {"steps": [{"up_to": 5, "credits": 0, "per": 1}, {"credits": 2, "per": 1}]}}}}');
select * from billing.grant_credits(:'acme', 10000);
select * from billing.grant_credits(:'bolt', 10000);

-- What a quantity costs from the beginning of a month.
select q, billing.calculate_cost('call', q) as call, billing.calculate_cost('third', q) as third,
       billing.calculate_cost('step', q) as step, billing.calculate_cost('gift', q) as gift
    from unnest(array[1, 2, 3, 4, 9, 10, 11, 12, 99, 100, 101, 107, 108]::bigint[]) q;
select billing.calculate_cost('call') as one_call, billing.calculate_cost('{"call": 2, "third": 4, "step": 11}') as a_request, billing.calculate_cost('{}'::jsonb) as nothing;

-- Thirds: three calls cost one credit, the first of them pays it.
select quantity, credits, balance_before, balance_after from generate_series(1, 7) i, billing.consume_credits(:'acme', 'third', metadata => jsonb_build_object('i', i));
-- Across the steps, in uneven parts, the sum is the price of the sum.
select p.quantity, c.credits from unnest(array[3, 6, 2, 1, 50, 37, 1, 1, 6, 1]::bigint[]) p (quantity), billing.consume_credits(:'acme', 'step', p.quantity) c;
select -sum(amount) as charged, billing.calculate_cost('step', 108) as price_of_all from billing.entries where org_id = :'acme' and metric = 'step';
select metric, period_start, quantity, credits from billing_internal.period_usage where org_id = :'acme' order by metric;
-- Asked for the org, the cost goes on from where its month stands.
select billing.calculate_cost('step', 7) as from_zero, billing.calculate_cost('step', 7, :'acme') as acme, billing.calculate_cost('step', 7, :'bolt') as bolt,
       billing.calculate_cost('{"step": 7, "call": 1}'::jsonb, :'acme') as acme_request;

-- A replay does not count again.
select credits, replayed from billing.consume_credits(:'acme', 'step', 7, 'k');
select credits, replayed from billing.consume_credits(:'acme', 'step', 7, 'k');
select quantity from billing_internal.period_usage where org_id = :'acme' and metric = 'step';

-- A new month (UTC) begins at zero.
set local billing.test_clock = '2026-03-31 23:59:59.999999+00';
select credits from billing.consume_credits(:'acme', 'step', 7);
set local billing.test_clock = '2026-04-01 00:00:00+00';
select credits from billing.consume_credits(:'acme', 'step', 7);
set local billing.test_clock = '2026-03-01 00:00:00+00';

-- Reserved and captured usage is counted once, at the capture.
select hold_id, credits from billing.reserve_credits(:'bolt', 'step', 20) \gset h_
select quantity from billing_internal.period_usage where org_id = :'bolt' and metric = 'step';
select credits from billing.capture_credits(:'bolt', :h_hold_id, 12);
select quantity from billing_internal.period_usage where org_id = :'bolt' and metric = 'step';

-- A price of its own, and back to the list.
select billing.set_org_price(:'acme', 'call', '2');
select billing.calculate_cost('call', 10) as list, billing.calculate_cost('call', 10, :'acme') as acme, billing.calculate_cost('call', 10, :'bolt') as bolt;
select credits from billing.consume_credits(:'acme', 'call', 10);
select billing.set_org_price(:'acme', 'call', '{"steps": [{"up_to": 15, "credits": 2, "per": 1}, {"credits": 1, "per": 1}]}');
select credits from billing.consume_credits(:'acme', 'call', 10);
select billing.set_org_price(:'acme', 'call', null);
select billing.calculate_cost('call', 10, :'acme') as acme;
select billing.set_org_price(:'acme', 'call', '1', '2026-03-15 00:00+00');
select billing.calculate_cost('call', 10, :'acme') as before_its_day;
set local billing.test_clock = '2026-03-15 00:00:00+00';
select billing.calculate_cost('call', 10, :'acme') as on_its_day, billing.calculate_cost('call', 10) as list;
select billing.set_org_price(:'acme', 'call', '-1');
\echo :LAST_ERROR_SQLSTATE
select billing.set_org_price(:'acme', 'teleport', '1');
\echo :LAST_ERROR_SQLSTATE

-- Exact at the extremes, refused when it does not fit.
select billing.calculate_cost('third', 9223372036854775807);
select billing.calculate_cost('call', 3074457345618258602);
select billing.calculate_cost('call', 3074457345618258603);
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost('{"third": 9223372036854775807, "call": 3074457345618258602}');
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost('{"teleport": 1}');
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost('{"call": 1.5}');
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost('{"call": 0}');
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost('[1]'::jsonb);
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
