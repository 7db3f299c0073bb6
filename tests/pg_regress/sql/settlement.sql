-- Settlement of an org: what was recorded is charged beyond what is included, once, at the price of its time; what the wallet cannot
-- pay is owed, and the next credit pays it. (settle(), which commits, is tested in tests/live.)
\i preamble.psql
set local billing.test_clock = '2027-06-01 00:00:00+00';
select action, kind, name from billing.apply_catalog('{"metrics": {"call": {"price": 2}, "mail": {"price": 1}, "free": {}, "sms": {"price": {"credits": 3, "unit": "EUR"}}},
    "plans": {"solo": {"credits": {"amount": 100}, "allowances": {"call": 10}}}}');

-- 30 calls are 20 beyond the 10: 40 credits. Settled again there is nothing.
select plan from billing.subscribe(:'acme', 'solo');
select count(billing.record_usage(:'acme', 'call', 10)) from generate_series(1, 3);
select billing.record_usage(:'acme', 'free', 1000);
select * from billing.settle_org(:'acme');
select * from billing.settle_org(:'acme');
select u.metric, u.period_start, u.period_end, u.quantity, u.overage, u.credits, (select coalesce(sum(o.credits), 0) from billing.unpaid_overage o where o.org_id = u.org_id and o.metric = u.metric and o.period_start = u.period_start) as unpaid from billing_internal.period_usage u where org_id = :'acme' order by metric;
select kind, amount, balance_before, balance_after, metric, quantity, source, source_id, idempotency_key, created_at from billing.entries where org_id = :'acme' and kind = 'usage';

-- The end of a period: its own credits pay for its usage, in its last moment; then the rest expires, and the next ones come.
set local billing.test_clock = '2027-06-30 18:00:00+00';
select billing.record_usage(:'acme', 'call', 25);
set local billing.test_clock = '2027-07-05 00:00:00+00';
select billing.record_usage(:'acme', 'call', 11);
select * from billing.settle_org(:'acme');
select kind, amount, balance_after, source_id, created_at from billing.entries where org_id = :'acme' and entry_id > 2 order by entry_id;
-- More than the old credits could pay: the new ones do, at once.
set local billing.test_clock = '2027-07-31 00:00:00+00';
select billing.record_usage(:'acme', 'call', 70);
set local billing.test_clock = '2027-08-01 00:00:00+00';
select * from billing.settle_org(:'acme');
select kind, amount, balance_after, source_id, created_at from billing.entries where org_id = :'acme' and entry_id > 6 order by entry_id;
select u.period_start, u.quantity, u.overage, u.credits, (select coalesce(sum(o.credits), 0) from billing.unpaid_overage o where o.org_id = u.org_id and o.metric = u.metric and o.period_start = u.period_start) as unpaid from billing_internal.period_usage u where org_id = :'acme' and metric = 'call' order by period_start;

-- Owed: 100 for 50 calls, 30 are there. The next credit pays, whatever brings it, and only once.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select grant_id from billing.grant_credits(:'bolt', 30);
select billing.record_usage(:'bolt', 'call', 50);
select * from billing.settle_org(:'bolt');
select * from billing.settle_org(:'bolt');
select available, lifetime_consumed from billing.get_wallet(:'bolt');
select * from billing.consume_credits(:'bolt', 'mail');
\echo :LAST_ERROR_SQLSTATE
select * from billing.grant_credits(:'bolt', 20, 'purchase', idempotency_key => 'top-up');
select * from billing.grant_credits(:'bolt', 20, 'purchase', idempotency_key => 'top-up');
select * from billing.adjust_credits(:'bolt', 5, 'goodwill');
select grant_id from billing.grant_credits(:'foxy', 6);
select * from billing.transfer_credits(:'foxy', :'bolt', 6);
-- Credit for something else does not pay for calls.
select * from billing.grant_credits(:'bolt', 10, metrics => '{mail}');
select u.metric, (select coalesce(sum(o.credits), 0) from billing.unpaid_overage o where o.org_id = u.org_id and o.metric = u.metric and o.period_start = u.period_start) as unpaid from billing_internal.period_usage u where org_id = :'bolt';
select credits from billing.consume_credits(:'bolt', 'mail', 10);
-- 70 - 20 - 5 - 6 are 39.
select * from billing.grant_credits(:'bolt', 50);
select * from billing.settle_org(:'bolt');
select entry_id, kind, amount, balance_after, grant_id, metric, source, source_id from billing.entries where org_id = :'bolt' order by entry_id;
select u.quantity, u.overage, u.credits, (select coalesce(sum(o.credits), 0) from billing.unpaid_overage o where o.org_id = u.org_id and o.metric = u.metric and o.period_start = u.period_start) as unpaid from billing_internal.period_usage u where org_id = :'bolt' and metric = 'call';
-- The oldest period first, then by metric; a plan's credits pay, too.
select billing.record_usage(:'corp', 'call', 5, occurred_at => '2027-05-10'), billing.record_usage(:'corp', 'mail', 5, occurred_at => '2027-04-10'), billing.record_usage(:'corp', 'call', 5, occurred_at => '2027-04-10');
select * from billing.settle_org(:'corp');
select balance_after from billing.grant_credits(:'corp', 12);
select u.metric, u.period_start, u.credits, (select coalesce(sum(o.credits), 0) from billing.unpaid_overage o where o.org_id = u.org_id and o.metric = u.metric and o.period_start = u.period_start) as unpaid from billing_internal.period_usage u where org_id = :'corp' order by period_start, metric;
select plan from billing.subscribe(:'corp', 'solo');
select kind, amount, metric, source_id from billing.entries where org_id = :'corp' order by entry_id;
select available from billing.get_wallet(:'corp');

-- Prices of their time: from 15 June on a call costs 5. What is recorded before and after, and settled later, costs what it cost.
set local billing.test_clock = '2027-06-10 00:00:00+00';
select grant_id from billing.grant_credits(:'dyne', 1000);
select billing.record_usage(:'dyne', 'call', 10);
set local billing.test_clock = '2027-06-15 12:00:00+00';
select billing.record_usage(:'dyne', 'call', 1), billing.record_usage(:'dyne', 'call', 1, occurred_at => '2027-06-15 11:59:59.999999+00');
select action, detail from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{metrics,call,price}', '5'));
select billing.record_usage(:'dyne', 'call', 10);
select credits_available from billing.check_limit(:'dyne', 'call');
select charged, events from billing.settle_org(:'dyne');
select period_start, quantity, overage, credits from billing_internal.period_usage where org_id = :'dyne' order by period_start;
-- A correction in a period that is settled, at the prices of that period: 3 at 2, and 3 at 5.
set local billing.test_clock = '2027-09-01 00:00:00+00';
select action, detail from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{metrics,call,price}', '9'));
select billing.record_usage(:'dyne', 'call', 3, occurred_at => '2027-06-14'), billing.record_usage(:'dyne', 'call', 3, occurred_at => '2027-06-16');
select charged, events from billing.settle_org(:'dyne');
select amount, source_id, created_at from billing.entries where org_id = :'dyne' and kind = 'usage' order by entry_id;
select period_start, quantity, overage, credits from billing_internal.period_usage where org_id = :'dyne' order by period_start;
-- A price of its own, from its day on.
select billing.set_org_price(:'dyne', 'call', '1', '2027-08-20');
select billing.record_usage(:'dyne', 'call', 4, occurred_at => '2027-08-19 23:00+00'), billing.record_usage(:'dyne', 'call', 4, occurred_at => '2027-08-20');
select charged, events from billing.settle_org(:'dyne');

-- Money: charged in minor units to the wallet in that currency. Credits do not pay for it.
set local billing.test_clock = '2027-06-10 00:00:00+00';
select grant_id from billing.grant_credits(:'eden', 100);
select grant_id from billing.grant_credits(:'eden', 50, unit => 'EUR');
select billing.record_usage(:'eden', 'sms', 10), billing.record_usage(:'eden', 'mail', 10);
select credits_available from billing.check_limit(:'eden', 'sms');
select credits_available from billing.check_limit(:'eden', 'mail');
select * from billing.settle_org(:'eden');
select unit, available from billing.wallets where org_id = :'eden' order by unit;
select billing.record_usage(:'eden', 'sms', 10);
select * from billing.settle_org(:'eden');
select balance_after from billing.grant_credits(:'eden', 100);
select u.metric, u.credits, (select coalesce(sum(o.credits), 0) from billing.unpaid_overage o where o.org_id = u.org_id and o.metric = u.metric and o.period_start = u.period_start) as unpaid from billing_internal.period_usage u where org_id = :'eden' order by metric;
select balance_after from billing.grant_credits(:'eden', 25, unit => 'EUR');
select u.metric, u.credits, (select coalesce(sum(o.credits), 0) from billing.unpaid_overage o where o.org_id = u.org_id and o.metric = u.metric and o.period_start = u.period_start) as unpaid from billing_internal.period_usage u where org_id = :'eden' order by metric;
select unit, kind, amount, balance_after, metric, source from billing.entries where org_id = :'eden' order by unit, entry_id;

-- As of an earlier moment: the periods until then, and not what comes later. (A call is at 5 in August.)
select plan from billing.subscribe(:'foxy', 'solo');
select billing.record_usage(:'foxy', 'call', 15);
set local billing.test_clock = '2027-08-20 00:00:00+00';
select billing.record_usage(:'foxy', 'call', 16);
select * from billing.settle_org(:'foxy', '2027-07-15');
select * from billing.settle_org(:'foxy');
select kind, amount, balance_after, created_at from billing.entries where org_id = :'foxy' and entry_id > 2 order by entry_id;
select * from billing.settle_org(:'foxy', '2027-08-20 00:00:00.000001+00');
\echo :LAST_ERROR_SQLSTATE
select * from billing.settle_org(:'foxy', '-infinity');
\echo :LAST_ERROR_SQLSTATE
select * from billing.settle_org(null);
\echo :LAST_ERROR_SQLSTATE
-- An org of which nobody knows anything.
select * from billing.settle_org('00000000-0000-4000-8000-00000000dead');
select * from billing.verify_ledger();
rollback;
