-- A wallet of money: any ISO 4217 code is a unit, amounts are whole minor units, units do not mix.
\set ON_ERROR_ROLLBACK on
\set SHOW_CONTEXT never
\pset null '(null)'
begin;
set local timezone = 'UTC';
set local datestyle = 'ISO';
set local billing.test_clock = '2026-03-01 00:00:00+00';
\set acme 00000000-0000-4000-8000-000000000001
select * from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "sms": {"price": {"steps": [{"credits": 7, "per": 1}], "unit": "EUR"}}}}');
select * from billing.grant_credits(:'acme', 5000, 'purchase', unit => 'EUR', cost_minor => 5000, currency => 'EUR');
select * from billing.grant_credits(:'acme', 100);
select * from billing.create_wallet(:'acme', 'JPY');

-- The price says which wallet pays.
select * from billing.consume_credits(:'acme', 'sms', 10);
select * from billing.consume_credits(:'acme', 'call', 10);
select billing.get_total_credits(:'acme') as credits, billing.get_total_credits(:'acme', 'EUR') as cents, billing.get_total_credits(:'acme', 'JPY') as yen, billing.get_total_credits(:'acme', 'USD') as none;
select org_id, unit, available, lifetime_purchased, lifetime_consumed from billing.wallets order by unit;
-- Credits do not pay for what is priced in euro.
select * from billing.consume_credits(:'acme', 'sms', 705);
\echo :LAST_ERROR_SQLSTATE
select hold_id, credits, balance_after from billing.reserve_credits(:'acme', 'sms', 3) \gset h_
select * from billing.capture_credits(:'acme', :h_hold_id, 2);
select unit, available, reserved from billing.wallets order by unit;
select * from billing.explain_consumption(:'acme', 'sms', 2);
select billing.calculate_cost('sms', 2);

-- No such currency, or not its code.
select * from billing.grant_credits(:'acme', 1, unit => 'XXY');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, unit => 'eur');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, unit => 'Credit');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'acme', 1, cost_minor => 10, currency => 'euro');
\echo :LAST_ERROR_SQLSTATE
select * from billing.get_wallet(:'acme', 'USD');
\echo :LAST_ERROR_SQLSTATE

select unit, entry_id, operation_id, kind, amount, balance_before, balance_after, grant_id from billing.entries where org_id = :'acme' order by unit, entry_id;
select * from billing.verify_ledger();
rollback;
