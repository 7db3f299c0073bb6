-- One count: what is consumed and what is recorded share the allowance and the steps of the price. In whatever order they come and
-- are settled, the same is included, and the overage of the period costs what it costs in one piece.
\i preamble.psql
set local billing.test_clock = '2027-06-01 00:00:00+00';
select action, kind, name from billing.apply_catalog('{"metrics": {
        "call": {"price": {"steps": [{"up_to": 10, "credits": 5, "per": 1}, {"credits": 2, "per": 1}]}},
        "third": {"price": {"credits": 1, "per": 3}}, "plain": {"price": 7}},
    "plans": {"solo": {"allowances": {"call": 100}}}}');
select count(*) from unnest(array[:'acme', :'bolt', :'corp', :'dyne', :'eden', :'foxy']::uuid[]) org, billing.subscribe(org, 'solo'), billing.grant_credits(org, 1000);

-- 130 calls are 30 beyond the 100: 10 at 5 and 20 at 2 are 90. First recorded, then consumed: the 80 take their part of the 100.
select billing.record_usage(:'acme', 'call', 80);
select billing.calculate_cost('call', 50, :'acme');
select sum(credits) from billing.explain_consumption(:'acme', 'call', 50);
select included, credits, balance_after from billing.consume_credits(:'acme', 'call', 50, 'k-1');
select used, included, remaining, credits_required, credits_available from billing.check_limit(:'acme', 'call');
select charged, events from billing.settle_org(:'acme');
select included, credits, replayed from billing.consume_credits(:'acme', 'call', 50, 'k-1');
select quantity, overage, credits from billing_internal.period_usage where org_id = :'acme';

-- First consumed, then recorded: the 50 take theirs, and 30 of the 80 are charged by settlement.
select included, credits, balance_after from billing.consume_credits(:'bolt', 'call', 50);
select billing.record_usage(:'bolt', 'call', 80);
select used, included, remaining, credits_required, credits_available from billing.check_limit(:'bolt', 'call');
select charged, events from billing.settle_org(:'bolt');
select quantity, overage, credits from billing_internal.period_usage where org_id = :'bolt';

-- To and fro, settled in between: 50 + 40 are included, 10 of the next 20; 30 more are at 2. 40 of overage: 50 + 60.
select included, credits from billing.consume_credits(:'corp', 'call', 50);
select billing.record_usage(:'corp', 'call', 40);
select charged from billing.settle_org(:'corp');
select included, credits from billing.consume_credits(:'corp', 'call', 20);
select billing.record_usage(:'corp', 'call', 30);
select charged from billing.settle_org(:'corp');
select quantity, overage, credits from billing_internal.period_usage where org_id = :'corp';
select kind, amount, metric, quantity, source from billing.entries where org_id = :'corp' and kind = 'usage' order by entry_id;

-- What waits beyond the allowance keeps its place in the steps, too: the 10 recorded ones come first, at 5, and the 20 consumed at 2.
select billing.record_usage(:'dyne', 'call', 110);
select used, remaining, credits_required, credits_available from billing.check_limit(:'dyne', 'call');
select included, credits from billing.consume_credits(:'dyne', 'call', 20);
select charged from billing.settle_org(:'dyne');
select quantity, overage, credits from billing_internal.period_usage where org_id = :'dyne';
-- Reserved and captured: counted at the capture. 5 recorded meanwhile come first.
select hold_id, credits from billing.reserve_credits(:'dyne', 'call', 10) \gset hold_
\echo :hold_credits
select billing.record_usage(:'dyne', 'call', 5);
select used from billing.check_limit(:'dyne', 'call');
select included, credits from billing.capture_credits(:'dyne', :hold_hold_id, 8);
select charged from billing.settle_org(:'dyne');
select quantity, overage, credits from billing_internal.period_usage where org_id = :'dyne';

-- A batch is no exception, and its items follow one another.
select billing.record_usage(:'eden', 'call', 90);
select item, status, credits, balance_after from billing.consume_credits_batch('[{"org_id": "00000000-0000-4000-8000-000000000005", "metric": "call", "quantity": 6},
    {"org_id": "00000000-0000-4000-8000-000000000005", "metric": "call", "quantity": 6}, {"org_id": "00000000-0000-4000-8000-000000000005", "metric": "call", "quantity": 10}]');
select charged from billing.settle_org(:'eden');
select quantity, overage, credits from billing_internal.period_usage where org_id = :'eden';

-- Fractions of credits are rounded up once: 7 at 1 for 3 are 3, in any parts.
select billing.record_usage(:'foxy', 'third');
select credits from billing.consume_credits(:'foxy', 'third');
select credits from billing.consume_credits(:'foxy', 'third', 2);
select charged from billing.settle_org(:'foxy');
select billing.record_usage(:'foxy', 'third', 2);
select credits from billing.consume_credits(:'foxy', 'third');
select charged from billing.settle_org(:'foxy');
select quantity, overage, credits from billing_internal.period_usage where org_id = :'foxy' and metric = 'third';
-- Without allowance, steps or cap a consumption needs no counter; the count has it all the same.
select included, credits from billing.consume_credits(:'foxy', 'plain', 5);
select billing.record_usage(:'foxy', 'plain', 4);
select used, included, credits_required from billing.check_limit(:'foxy', 'plain');
select charged from billing.settle_org(:'foxy');
select used from billing.check_limit(:'foxy', 'plain');
-- What was charged before the catalog gave it an allowance takes nothing of that.
select action, name from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{plans,solo,allowances,plain}', '10'));
select included, remaining from billing.check_limit(:'foxy', 'plain');
select included, credits from billing.consume_credits(:'foxy', 'plain', 11);
select included, remaining from billing.check_limit(:'foxy', 'plain');

-- In the next period all begins anew.
set local billing.test_clock = '2027-07-01 00:00:00+00';
select used, remaining from billing.check_limit(:'acme', 'call');
select included, credits from billing.consume_credits(:'acme', 'call', 101);
-- Late usage of June comes after all that was decided there: 2 each.
select billing.record_usage(:'acme', 'call', 3, occurred_at => '2027-06-30 12:00+00');
select used from billing.check_limit(:'acme', 'call');
select charged from billing.settle_org(:'acme');
select period_start, quantity, overage, credits from billing_internal.period_usage where org_id = :'acme' order by period_start;
select * from billing.verify_ledger();
rollback;
