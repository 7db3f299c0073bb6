-- A reservation fixes the price: whatever becomes of catalog and contracts meanwhile, the capture charges by it, in its unit.
\i preamble.psql
select name from billing.apply_catalog('{"metrics": {"call": {"price": 2}, "gift": {}, "step": {"price": {"steps": [{"up_to": 10, "credits": 3, "per": 1}, {"credits": 1, "per": 1}]}}}}') order by name;
select grant_id from billing.grant_credits(:'acme', 1000);
select grant_id from billing.grant_credits(:'acme', 1000, unit => 'EUR');
select hold_id, credits from billing.reserve_credits(:'acme', 'call', 10, '1 day') \gset dated_
select hold_id, credits from billing.reserve_credits(:'acme', 'call', 10, '1 day') \gset changed_
select hold_id, credits from billing.reserve_credits(:'acme', 'call', 10, '1 day') \gset unit_
select hold_id, credits from billing.reserve_credits(:'acme', 'call', 10, '1 day') \gset retired_
select hold_id, credits from billing.reserve_credits(:'acme', 'step', 20, '1 day') \gset step_
select hold_id, credits from billing.reserve_credits(:'acme', 'gift', 5, '1 day') \gset gift_
select hold_id, metric, credits, price from billing.holds where org_id = :'acme' order by hold_id;

-- A price of its own that is dated back to before the reservation.
select billing.set_org_price(:'acme', 'call', '100', '2020-01-01 00:00+00');
select credits, balance_after from billing.capture_credits(:'acme', :dated_hold_id, 9, beyond => 'refuse');
select credits from billing.consume_credits(:'acme', 'call') as now_dear;
-- Another list price, and one for what was free.
select billing.set_org_price(:'acme', 'call', null, '2020-01-01 00:00+00');
set local billing.test_clock = '2026-03-01 00:00:01+00';
select action, name from billing.apply_catalog('{"metrics": {"call": {"price": 7}, "gift": {"price": 50}, "step": {"price": 40}}}') order by name;
select credits, balance_after from billing.capture_credits(:'acme', :changed_hold_id, 10, beyond => 'refuse');
select credits, balance_after from billing.capture_credits(:'acme', :gift_hold_id, 6, beyond => 'refuse');
-- 10 at 3 and 8 at 1, as in the steps of the reservation; the month counts on.
select credits, balance_after from billing.capture_credits(:'acme', :step_hold_id, 18, beyond => 'refuse');
select metric, quantity, credits from billing_internal.period_usage where org_id = :'acme';
-- Another unit: the credits that were reserved are those that are charged, also beyond the reservation.
select billing.set_org_price(:'acme', 'call', '{"credits": 1, "unit": "EUR"}', '2020-01-01 00:00+00');
select credits, balance_after from billing.capture_credits(:'acme', :unit_hold_id, 11);
-- A metric that the catalog has dropped.
select action, name from billing.apply_catalog('{"metrics": {"gift": {}}}') order by name;
select credits from billing.consume_credits(:'acme', 'call');
\echo :LAST_ERROR_SQLSTATE
select credits, balance_after from billing.capture_credits(:'acme', :retired_hold_id, 8);
select unit, available, reserved, lifetime_consumed from billing.wallets where org_id = :'acme' order by unit;
select unit, operation_id, sum(amount), count(*) from billing.entries where org_id = :'acme' and kind = 'usage' group by 1, 2 order by 1, 2;
select * from billing.verify_ledger();
rollback;
