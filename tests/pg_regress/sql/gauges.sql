-- Metrics that are not sums: max counts the highest level of a period, last the level at its end, unique how many different ones
-- were seen. A level goes on into the next period, also when nothing is reported any more.
\i preamble.psql
set local billing.test_clock = '2027-01-01 00:00:00+00';
\set bob 00000000-0000-4000-8000-0000000000b2
\set cyd 00000000-0000-4000-8000-0000000000c3
select action, kind, name from billing.apply_catalog('{"metrics": {"peak": {"aggregation": "max", "price": 1}, "disk": {"aggregation": "last", "price": 1},
        "user": {"aggregation": "unique", "price": 3}, "visitor": {"aggregation": "unique", "unique_by": "email", "price": {"credits": 1, "per": 2}}},
    "plans": {"solo": {"allowances": {"peak": 10, "disk": 10, "user": 2}}}}');
select plan from unnest(array[:'acme', :'bolt', :'corp']::uuid[]) org, billing.subscribe(org, 'solo');
select count(*) from unnest(array[:'acme', :'bolt', :'corp', :'dyne']::uuid[]) org, billing.grant_credits(org, 1000);

-- max: 15 exceed the 10 by 5, 12 change nothing, 18 are 3 more, and going down gives nothing back.
set local billing.test_clock = '2027-01-05 00:00:00+00';
select billing.record_usage(:'acme', 'peak', 15);
select allowed, reason, used, included, remaining, credits_required, credits_available from billing.check_limit(:'acme', 'peak');
select charged, events from billing.settle_org(:'acme');
select billing.record_usage(:'acme', 'peak', 12);
select charged, events from billing.settle_org(:'acme');
select billing.record_usage(:'acme', 'peak', 18);
select charged, events from billing.settle_org(:'acme');
set local billing.test_clock = '2027-01-20 00:00:00+00';
select billing.record_usage(:'acme', 'peak', 8);
select charged, events from billing.settle_org(:'acme');
select used from billing.check_limit(:'acme', 'peak');
-- February begins with the 8 that January left, and rises to 14.
set local billing.test_clock = '2027-02-01 00:00:00+00';
select used, remaining from billing.check_limit(:'acme', 'peak');
select charged, renewed, events from billing.settle_org(:'acme');
select used, remaining from billing.check_limit(:'acme', 'peak');
set local billing.test_clock = '2027-02-10 00:00:00+00';
select * from billing.record_usage_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "peak", "quantity": 9},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "peak", "quantity": 14},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "peak", "quantity": 13}]');
-- In March and April nobody reports anything: the newest level was 13, 3 more than is included, each month.
set local billing.test_clock = '2027-04-15 00:00:00+00';
select used, remaining from billing.check_limit(:'acme', 'peak');
select charged, renewed, events from billing.settle_org(:'acme');
select charged, renewed, events from billing.settle_org(:'acme');
-- 0 is a level: April had its peak, May has none.
select billing.record_usage(:'acme', 'peak', 0);
set local billing.test_clock = '2027-06-02 00:00:00+00';
select charged, renewed, events from billing.settle_org(:'acme');
select used from billing.check_limit(:'acme', 'peak');
select period_start, quantity, overage, credits, level, level_at, carried from billing_internal.period_usage where org_id = :'acme' order by period_start;
select amount, source_id, created_at from billing.entries where org_id = :'acme' and kind = 'usage' order by entry_id;

-- last: what counts is the level at the end. The newest one by when it occurred, not by when it was reported.
set local billing.test_clock = '2027-01-20 00:00:00+00';
select billing.record_usage(:'bolt', 'disk', 25, occurred_at => '2027-01-19 12:00:00+00'), billing.record_usage(:'bolt', 'disk', 80, occurred_at => '2027-01-19 11:00:00+00'),
       billing.record_usage(:'bolt', 'disk', 30, occurred_at => '2027-01-05 00:00:00+00');
select allowed, used, included, remaining, credits_required, credits_available from billing.check_limit(:'bolt', 'disk');
select charged, events from billing.settle_org(:'bolt');
set local billing.test_clock = '2027-01-31 23:59:59.999999+00';
select charged, events from billing.settle_org(:'bolt');
set local billing.test_clock = '2027-02-01 00:00:00+00';
select charged, renewed, events from billing.settle_org(:'bolt');
select used, remaining from billing.check_limit(:'bolt', 'disk');
-- February without a report: charged as January was, at its end.
set local billing.test_clock = '2027-02-28 00:00:00+00';
select charged, renewed from billing.settle_org(:'bolt');
set local billing.test_clock = '2027-03-02 00:00:00+00';
select charged, renewed from billing.settle_org(:'bolt');
-- A late report of February: 40 at its end, 15 more than were charged; March goes on from there.
select billing.record_usage(:'bolt', 'disk', 40, occurred_at => '2027-02-25 00:00:00+00');
select used from billing.check_limit(:'bolt', 'disk');
select charged, renewed, events from billing.settle_org(:'bolt');
select used from billing.check_limit(:'bolt', 'disk');
-- One that is lower gives nothing back, but is where March goes on.
select billing.record_usage(:'bolt', 'disk', 12, occurred_at => '2027-02-26 00:00:00+00');
select charged, events from billing.settle_org(:'bolt');
set local billing.test_clock = '2027-04-02 00:00:00+00';
select charged, renewed from billing.settle_org(:'bolt');
select period_start, quantity, overage, credits, level, level_at, carried from billing_internal.period_usage where org_id = :'bolt' order by period_start;
select amount, source_id, created_at from billing.entries where org_id = :'bolt' and kind = 'usage' order by entry_id;

-- unique: members, each once in a period, whatever the quantity.
set local billing.test_clock = '2027-01-05 00:00:00+00';
select billing.record_usage(:'corp', 'user', member_id => :'ann'), billing.record_usage(:'corp', 'user', member_id => :'ann'), billing.record_usage(:'corp', 'user', 50, member_id => :'bob');
select used, included, remaining, credits_required from billing.check_limit(:'corp', 'user');
select charged, events from billing.settle_org(:'corp');
select * from billing.record_usage_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "user", "member_id": "00000000-0000-4000-8000-0000000000a1"},
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "user", "member_id": "00000000-0000-4000-8000-0000000000c3"},
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "user", "member_id": "00000000-0000-4000-8000-0000000000c3"}]');
select used from billing.check_limit(:'corp', 'user');
select charged, events from billing.settle_org(:'corp');
-- What is consumed simply adds.
select included, credits from billing.consume_credits(:'corp', 'user');
-- In the next period everybody is new. Nothing goes on by itself.
set local billing.test_clock = '2027-02-05 00:00:00+00';
select used from billing.check_limit(:'corp', 'user');
select billing.record_usage(:'corp', 'user', member_id => :'ann');
-- Late, in the period before: Ann was there, Bob was there.
select billing.record_usage(:'corp', 'user', member_id => :'bob', occurred_at => '2027-01-31 00:00:00+00');
select charged, events from billing.settle_org(:'corp');
select metric, period_start, quantity, overage, credits from billing_internal.period_usage where org_id = :'corp' order by period_start;
-- By a property: a text or a number; it must be there.
select * from billing.record_usage_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "visitor", "properties": {"email": "a@x"}},
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "visitor", "properties": {"email": "b@x", "other": 1}},
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "visitor", "properties": {"email": "a@x", "other": 2}},
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "visitor", "properties": {"email": 7}}]');
select billing.record_usage(:'corp', 'visitor');
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'corp', 'visitor', properties => '{"email": null}');
\echo :LAST_ERROR_SQLSTATE
-- 3 at 1 for 2 are 2.
select charged, events from billing.settle_org(:'corp');

-- Without a plan: calendar months, and all of it is charged. Then a plan begins in the middle of one, and the levels go on.
set local billing.test_clock = '2027-01-10 00:00:00+00';
select billing.record_usage(:'dyne', 'peak', 20), billing.record_usage(:'dyne', 'disk', 30);
select charged, events from billing.settle_org(:'dyne');
set local billing.test_clock = '2027-01-15 00:00:00+00';
select plan, period_end from billing.subscribe(:'dyne', 'solo');
select used, included from billing.check_limit(:'dyne', 'peak');
select used, included from billing.check_limit(:'dyne', 'disk');
set local billing.test_clock = '2027-02-16 00:00:00+00';
select charged, unpaid, renewed, events from billing.settle_org(:'dyne');
select metric, period_start, quantity, overage, credits, level, carried from billing_internal.period_usage where org_id = :'dyne' order by metric, period_start;

-- A plan that ends at once: what it included until then is not charged, and the rest of the month is a period without it.
set local billing.test_clock = '2027-01-01 00:00:00+00';
select plan, period_end from billing.subscribe(:'eden', 'solo');
select billing.record_usage(:'eden', 'peak', 30), billing.record_usage(:'eden', 'disk', 30);
set local billing.test_clock = '2027-01-15 00:00:00+00';
select status from billing.cancel_subscription(:'eden', at_period_end => false);
set local billing.test_clock = '2027-02-15 00:00:00+00';
select charged + unpaid as charged from billing.settle_org(:'eden');
select metric, period_start, quantity, overage, credits, level, carried from billing_internal.period_usage where org_id = :'eden' order by metric, period_start;

-- What is not a level must be at least 1, a level must not be negative.
select billing.record_usage(:'corp', 'user', 0, member_id => :'ann');
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'corp', 'disk', -1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
