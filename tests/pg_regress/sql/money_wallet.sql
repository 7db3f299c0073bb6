-- A wallet of money: any ISO 4217 code is a unit, amounts are whole minor units, units do not mix.
\i preamble.psql
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

-- An org that has money alone uses what costs nothing: free metrics, a price of 0, a free first step.
\set bolt 00000000-0000-4000-8000-000000000002
select name from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "free": {}, "zero": {"price": 0}, "gift": {"price": {"steps": [{"up_to": 5, "credits": 0, "per": 1}, {"credits": 2, "per": 1}]}},
    "sms": {"price": {"steps": [{"credits": 7, "per": 1}], "unit": "EUR"}}}}') order by name;
select grant_id from billing.grant_credits(:'bolt', 50, unit => 'EUR');
select metric, quantity, credits, replayed from billing.consume_credits(:'bolt', 'free', 3, 'f1');
select metric, quantity, credits, replayed from billing.consume_credits(:'bolt', 'free', 3, 'f1');
select count(*) from billing.explain_consumption(:'bolt', 'free', 3);
select credits from billing.consume_credits(:'bolt', 'call');
\echo :LAST_ERROR_SQLSTATE
select credits from billing.consume_credits(:'bolt', 'sms', 7);
select unit, available from billing.wallets where org_id = :'bolt' order by unit;
-- Each way for an org of its own, which has no wallet of credits before.
select o.org_id, g.amount from unnest(array['00000000-0000-4000-8000-0000000000f1', '00000000-0000-4000-8000-0000000000f2', '00000000-0000-4000-8000-0000000000f3', '00000000-0000-4000-8000-0000000000f4', '00000000-0000-4000-8000-0000000000f5']::uuid[]) o (org_id),
    lateral billing.grant_credits(o.org_id, 50, unit => 'EUR') g order by o.org_id;
select metric, credits from billing.consume_credits('00000000-0000-4000-8000-0000000000f1', 'zero', 3);
select metric, credits from billing.consume_credits('00000000-0000-4000-8000-0000000000f2', 'gift', 5);
select metric, credits from billing.consume_credits('00000000-0000-4000-8000-0000000000f2', 'gift', 1);
\echo :LAST_ERROR_SQLSTATE
select credits from billing.reserve_credits('00000000-0000-4000-8000-0000000000f3', 'free', 3);
select credits from billing.reserve_credits('00000000-0000-4000-8000-0000000000f4', 'zero', 3);
select item, status, credits from billing.consume_credits_batch('[
    {"org_id": "00000000-0000-4000-8000-0000000000f5", "metric": "zero"},
    {"org_id": "00000000-0000-4000-8000-0000000000f5", "metric": "call"},
    {"org_id": "00000000-0000-4000-8000-0000000000f5", "metric": "free"},
    {"org_id": "00000000-0000-4000-8000-00000000dead", "metric": "free"}
]') order by item;

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
