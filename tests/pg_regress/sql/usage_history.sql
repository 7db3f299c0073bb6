-- Reports: usage per day and month, credit per month; exact at any moment, before and after settlement has folded the ledger.
\i preamble.psql
set local billing.test_clock = '2027-05-30 22:00:00+00';
\set bob 00000000-0000-4000-8000-0000000000b2
select action, kind, name from billing.apply_catalog('{"metrics": {"call": {"price": 2}, "peak": {"aggregation": "max", "price": 1}, "disk": {"aggregation": "last", "price": 1}, "user": {"aggregation": "unique", "price": 5}, "free": {}, "sms": {"price": {"credits": 3, "unit": "EUR"}}},
    "plans": {"solo": {"allowances": {"call": 10}}}}');
select grant_id from billing.grant_credits(:'acme', 1000, 'purchase');
select plan from billing.subscribe(:'acme', 'solo', '2027-05-01');

-- Consumed and recorded, over midnight and the end of the month; a late one.
select included, credits from billing.consume_credits(:'acme', 'call', 15);
select billing.record_usage(:'acme', 'call', 4), billing.record_usage(:'acme', 'peak', 7), billing.record_usage(:'acme', 'peak', 3), billing.record_usage(:'acme', 'disk', 9), billing.record_usage(:'acme', 'disk', 6),
       billing.record_usage(:'acme', 'user', member_id => :'ann'), billing.record_usage(:'acme', 'user', member_id => :'bob'), billing.record_usage(:'acme', 'free', 100);
set local billing.test_clock = '2027-05-31 22:00:00+00';
select credits from billing.consume_credits(:'acme', 'call', 2);
select billing.record_usage(:'acme', 'user', member_id => :'ann'), billing.record_usage(:'acme', 'peak', 5), billing.record_usage(:'acme', 'disk', 8), billing.record_usage(:'acme', 'call', 6, occurred_at => '2027-05-30 23:59:59.999999+00');
set local billing.test_clock = '2027-06-01 01:00:00+00';
select billing.record_usage(:'acme', 'call', 1, occurred_at => '2027-05-31 23:59:59.999999+00'), billing.record_usage(:'acme', 'call', 1, occurred_at => '2027-06-01 00:00:00+00'), billing.record_usage(:'acme', 'user', member_id => :'ann');
select day, metric, quantity, credits from billing.usage_by_day where org_id = :'acme' order by day, metric;
select month, metric, quantity, credits from billing.usage_by_month where org_id = :'acme' order by month, metric;
-- Settled: the same quantities, and the level with which June begins. May has 28 calls, 18 beyond the 10; what is recorded is charged to its day.
create temp table before on commit drop as select * from billing.usage_by_day;
select charged, events from billing.settle_org(:'acme');
select day, metric, quantity, credits from billing.usage_by_day where org_id = :'acme' order by day, metric;
select month, metric, quantity, credits from billing.usage_by_month where org_id = :'acme' order by month, metric;
select day, metric, b.quantity as before, a.quantity as after from before b full join billing.usage_by_day a using (org_id, day, metric) where b.quantity is distinct from a.quantity;
select -sum(amount) as charged from billing.entries where org_id = :'acme' and kind = 'usage';
select sum(credits) as charged from billing.usage_by_month where org_id = :'acme';
-- More of a day that is settled.
select billing.record_usage(:'acme', 'call', 3, occurred_at => '2027-05-30 12:00+00'), billing.record_usage(:'acme', 'peak', 10, occurred_at => '2027-05-31 12:00+00');
select credits from billing.consume_credits(:'acme', 'call', 20);
select day, metric, quantity, credits from billing.usage_by_day where org_id = :'acme' and metric in ('call', 'peak') order by day, metric;
select charged from billing.settle_org(:'acme');
select day, metric, quantity, credits from billing.usage_by_day where org_id = :'acme' and metric in ('call', 'peak') order by day, metric;
-- A consumption that burns several grants counts once; so does a capture.
select grant_id from billing.grant_credits(:'bolt', 10);
select grant_id from billing.grant_credits(:'bolt', 100);
select credits from billing.consume_credits(:'bolt', 'call', 20);
select hold_id from billing.reserve_credits(:'bolt', 'call', 30) \gset hold_
select credits from billing.capture_credits(:'bolt', :hold_hold_id, 25);
select day, metric, quantity, credits from billing.usage_by_day where org_id = :'bolt';
select unpaid from billing.settle_org(:'bolt');
select day, metric, quantity, credits from billing.usage_by_day where org_id = :'bolt';
-- A refund does not take the usage back.
select operation_id from billing.consume_credits(:'bolt', 'call', 5) \gset use_
select credits from billing.refund_credits(:'bolt', :use_operation_id, 4);
select metric, quantity, credits from billing.usage_by_month where org_id = :'bolt';

-- Credit: came in, used (by metric), expired, refunded, other (holds, adjustments, voids, transfers, payouts), and what was left.
set local billing.test_clock = '2027-04-10 00:00:00+00';
select grant_id from billing.grant_credits(:'corp', 1000, 'purchase', cost_minor => 1000, currency => 'EUR');
select grant_id from billing.grant_credits(:'corp', 50, expires_at => '2027-05-01');
select operation_id from billing.consume_credits(:'corp', 'call', 10) \gset april_
select operation_id from billing.consume_credits(:'corp', 'free', 10);
set local billing.test_clock = '2027-05-10 00:00:00+00';
select credits from billing.refund_credits(:'corp', :april_operation_id);
select hold_id, credits from billing.reserve_credits(:'corp', 'call', 50, '40 days') \gset hold_
select credits from billing.consume_credits(:'corp', 'peak', 7);
select amount from billing.adjust_credits(:'corp', -3, 'correction');
select amount from billing.transfer_credits(:'corp', :'bolt', 100);
select hold_id from billing.lock_credits(:'corp', 200, 'payout') \gset pay_
set local billing.test_clock = '2027-06-05 00:00:00+00';
select credits from billing.capture_credits(:'corp', :hold_hold_id, 40);
select credits from billing.pay_out(:'corp', :pay_hold_id);
select grant_id from billing.grant_credits(:'corp', 5, 'gift_card') \gset gift_
select voided from billing.void_grant(:'corp', :gift_grant_id, 'lost');
select grant_id from billing.grant_credits(:'corp', 30, 'refund');
select billing.record_usage(:'corp', 'call', 9);
select grant_id from billing.grant_credits(:'corp', 400, unit => 'EUR');
select credits from billing.consume_credits(:'corp', 'sms', 10);
select * from billing.credit_history(:'corp', 4);
select available from billing.get_wallet(:'corp');
-- Settled: the overage of the recorded calls is used, and nothing else has changed.
create temp table history on commit drop as select * from billing.credit_history(:'corp', 4);
select charged, events from billing.settle_org(:'corp');
select * from billing.credit_history(:'corp', 4) except select * from history;
select unit, sum(came_in - used - expired + refunded + other) as all_of_it from billing.credit_history(:'corp', 4) group by unit order by unit;
select unit, available from billing.wallets where org_id = :'corp' order by unit;
select credits from billing.consume_credits(:'corp', 'call');
select month, unit, used, used_by_metric, closing_balance from billing.credit_history(:'corp', 1);
-- Months without a movement, and before there was a wallet.
set local billing.test_clock = '2027-08-31 23:59:59+00';
select month, unit, came_in, used, closing_balance from billing.credit_history(:'corp', 2);
select count(*), min(month), max(month), sum(came_in) filter (where unit = 'credit') as came_in from billing.credit_history(:'corp', 1200);
select count(*) from billing.credit_history(:'corp');
select * from billing.credit_history('00000000-0000-4000-8000-00000000dead');
select * from billing.credit_history(:'corp', 0);
\echo :LAST_ERROR_SQLSTATE
select * from billing.credit_history(:'corp', 1201);
\echo :LAST_ERROR_SQLSTATE
select * from billing.credit_history(:'corp', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.credit_history(null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
