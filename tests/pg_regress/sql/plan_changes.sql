-- Changes of plan: now, with allowance and credits in proportion to the time, up and down; at the end of the period; to another
-- cycle; to the same plan again. Repeated calls get their first answer. Single orgs have allowances of their own.
\i preamble.psql
set local billing.test_clock = '2027-06-01 00:00:00+00';
\set gaia 00000000-0000-4000-8000-000000000007
select action, kind, name from billing.apply_catalog('{"metrics": {"call": {"price": 2}, "seat": {}},
    "plans": {"mini": {"credits": {"amount": 30}},
              "solo": {"credits": {"amount": 300}, "allowances": {"call": 100, "seat": 3}},
              "team": {"credits": {"amount": 900}, "allowances": {"call": 1000, "seat": "unlimited"}},
              "flat": {"allowances": {"call": 1000}},
              "year": {"period": "year", "credits": {"amount": 10000}, "allowances": {"call": 5000}}}}');

-- Up, when 10 of 30 days are over: 200 of solo's 300 credits against 600 of team's 900, and (10 x 100 + 20 x 1000) / 30 calls.
select plan, period_end from billing.subscribe(:'acme', 'solo');
select included, credits, balance_after from billing.consume_credits(:'acme', 'call', 150);
set local billing.test_clock = '2027-06-11 00:00:00+00';
select * from billing.change_plan(:'acme', 'team');
select starts_at, ends_at, anchor, next_period_at, plan, grants from billing.subscriptions where org_id = :'acme' order by starts_at;
select grant_id, amount, remaining, effective_at, expires_at from billing.grants where org_id = :'acme' order by grant_id;
-- The 50 calls that were charged stay charged, and take nothing of the larger allowance.
select allowed, reason, used, included, remaining, credits_required, resets_at from billing.check_limit(:'acme', 'call', 601);
select included, credits, balance_after from billing.consume_credits(:'acme', 'call', 400);
select used, included, remaining from billing.check_limit(:'acme', 'seat');

-- Down, when 10 days are left: 10 of mini's 30 against 300 of team's 900. 290 are taken back, first of the first grant.
set local billing.test_clock = '2027-06-21 00:00:00+00';
select plan, status, starts_at, period_start, period_end from billing.change_plan(:'acme', 'mini');
select grant_id, amount, remaining from billing.grants where org_id = :'acme' order by grant_id;
select entry_id, kind, amount, balance_after, grant_id, source, source_id, created_at from billing.entries where org_id = :'acme' order by entry_id;
-- (10 x 100 + 10 x 1000 + 10 x 0) / 30 calls are less than were included before: nothing is left, and nothing is charged again.
select used, included, remaining, credits_required from billing.check_limit(:'acme', 'call', 1);
select quantity, overage, credits from billing_internal.period_usage where org_id = :'acme';
-- What has no price, and of which the plan says nothing, is free.
select allowed, reason, used, included, remaining from billing.check_limit(:'acme', 'seat');
-- The next period is mini's own.
set local billing.test_clock = '2027-07-01 00:00:00+00';
select charged, unpaid, renewed from billing.settle_org(:'acme');
select billing.get_total_credits(:'acme');
select used, included, remaining, resets_at from billing.check_limit(:'acme', 'call', 1);

-- What was spent is not taken back, nor what was bought: 20 are left of the 300, and 295 - 29 would be due.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select plan from billing.subscribe(:'bolt', 'solo');
select credits, balance_after from billing.consume_credits(:'bolt', 'call', 240);
select grant_id from billing.grant_credits(:'bolt', 500, 'purchase');
set local billing.test_clock = '2027-06-01 12:00:00+00';
select plan from billing.change_plan(:'bolt', 'mini');
select grant_id, source, amount, remaining from billing.grants where org_id = :'bolt' order by grant_id;
-- From a plan without credits: 300 x 25 / 30 are given for the rest of the month.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select plan from billing.subscribe(:'gaia', 'flat');
set local billing.test_clock = '2027-06-06 00:00:00+00';
select plan from billing.change_plan(:'gaia', 'solo');
select grant_id, amount, remaining, expires_at from billing.grants where org_id = :'gaia' order by grant_id;
-- Back, and up again: 300 x 18.625 / 30 are 186.25, rounded down.
set local billing.test_clock = '2027-06-12 09:00:00+00';
select plan from billing.change_plan(:'gaia', 'flat');
select billing.get_total_credits(:'gaia');
select plan from billing.change_plan(:'gaia', 'solo');
select grant_id, amount, remaining, expires_at from billing.grants where org_id = :'gaia' order by grant_id;
select plan, starts_at, ends_at from billing.subscriptions where org_id = :'gaia' order by starts_at;

-- At the end of the period: nothing changes before, and then all of it does.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select plan from billing.subscribe(:'corp', 'solo');
set local billing.test_clock = '2027-06-11 00:00:00+00';
select * from billing.change_plan(:'corp', 'team', at_period_end => true);
select included, remaining from billing.check_limit(:'corp', 'call');
select billing.get_total_credits(:'corp');
-- The same by subscribe: the start is the end of the period. Any other moment to come is refused.
select plan, pending_plan from billing.subscribe(:'corp', 'mini', '2027-07-01 00:00:00+00');
select plan, pending_plan from billing.subscribe(:'corp', 'team', '2027-07-01 00:00:00+00');
select * from billing.subscribe(:'corp', 'team', '2027-07-02 00:00:00+00');
\echo :LAST_ERROR_SQLSTATE
set local billing.test_clock = '2027-07-01 00:00:00+00';
select allowed, included, remaining, credits_available, resets_at from billing.check_limit(:'corp', 'call');
select renewed from billing.settle_org(:'corp');
select plan, starts_at, ends_at, anchor, next_period_at, pending_plan from billing.subscriptions where org_id = :'corp' order by starts_at;
select billing.get_total_credits(:'corp');
-- The same plan again takes back what was to come, and gives nothing.
select plan, pending_plan from billing.change_plan(:'corp', 'mini', true);
select plan, pending_plan from billing.subscribe(:'corp', 'team');
select plan, cancel_at_period_end from billing.cancel_subscription(:'corp');
select plan, cancel_at_period_end, pending_plan from billing.change_plan(:'corp', 'mini', true);
select plan, cancel_at_period_end, pending_plan from billing.change_plan(:'corp', 'team', true);
select billing.get_total_credits(:'corp');
select count(*) from billing.subscriptions where org_id = :'corp';

-- To another cycle: a new period begins now, and the old credits stay until they expire.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select plan from billing.subscribe(:'dyne', 'solo');
select included from billing.consume_credits(:'dyne', 'call', 90);
set local billing.test_clock = '2027-06-16 00:00:00+00';
select plan, starts_at, period_start, period_end from billing.change_plan(:'dyne', 'year');
select amount, remaining, expires_at from billing.grants where org_id = :'dyne' order by grant_id;
select used, included, remaining, resets_at from billing.check_limit(:'dyne', 'call');
-- Back at the end of the year: from then on by months again.
select pending_plan, period_end from billing.change_plan(:'dyne', 'solo', true);
set local billing.test_clock = '2028-06-20 00:00:00+00';
select renewed from billing.settle_org(:'dyne');
select plan, starts_at, ends_at, anchor, next_period_at from billing.subscriptions where org_id = :'dyne' order by starts_at;

-- A repeated call gets its first answer, whatever happened since; the same key for something else is refused.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select plan, status, period_end, replayed from billing.subscribe(:'eden', 'solo', idempotency_key => 's-1');
set local billing.test_clock = '2027-06-11 00:00:00+00';
select plan, pending_plan, replayed from billing.change_plan(:'eden', 'team', idempotency_key => 'c-1');
select billing.get_total_credits(:'eden');
select plan, status, period_end, replayed from billing.subscribe(:'eden', 'solo', idempotency_key => 's-1');
select plan, pending_plan, replayed from billing.change_plan(:'eden', 'team', idempotency_key => 'c-1');
select * from billing.subscribe(:'eden', 'team', idempotency_key => 's-1');
\echo :LAST_ERROR_SQLSTATE
select * from billing.change_plan(:'eden', 'team', true, idempotency_key => 'c-1');
\echo :LAST_ERROR_SQLSTATE
select * from billing.change_plan(:'eden', 'team', idempotency_key => 's-1');
\echo :LAST_ERROR_SQLSTATE
select * from billing.subscribe(:'eden', 'solo', idempotency_key => 's-1', metadata => '{"a": 1}');
\echo :LAST_ERROR_SQLSTATE
select billing.get_total_credits(:'eden');
-- The keys of another org are its own.
select plan, replayed from billing.subscribe(:'foxy', 'team', idempotency_key => 's-1');
-- Also when nobody can subscribe to the plan any more.
select action, name from billing.apply_catalog(jsonb_build_object('plans', (billing.export_catalog() -> 'plans') - 'solo'));
select plan, replayed from billing.subscribe(:'eden', 'solo', idempotency_key => 's-1');
select action, name from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{plans,solo}', '{"credits": {"amount": 300}, "allowances": {"call": 100, "seat": 3}}'));

-- Nobody to change: no subscription, or one that has not begun.
select * from billing.change_plan('00000000-0000-4000-8000-00000000dead', 'team');
\echo :LAST_ERROR_SQLSTATE
select status from billing.subscribe('00000000-0000-4000-8000-000000000017', 'solo', '2027-06-12');
select * from billing.change_plan('00000000-0000-4000-8000-000000000017', 'team');
\echo :LAST_ERROR_SQLSTATE
select * from billing.change_plan(:'acme', 'king');
\echo :LAST_ERROR_SQLSTATE
select * from billing.change_plan(:'acme', 'team', null);
\echo :LAST_ERROR_SQLSTATE

-- An allowance of one's own holds at once, whole, under every plan; and a limit.
set local billing.test_clock = '2027-06-20 00:00:00+00';
select included, credits from billing.consume_credits(:'foxy', 'call', 1100);
select billing.set_org_allowance(:'foxy', 'call', 2000);
select used, included, remaining, credits_required from billing.check_limit(:'foxy', 'call', 1100);
select plan from billing.change_plan(:'foxy', 'solo');
select used, included, remaining from billing.check_limit(:'foxy', 'call');
select billing.set_org_allowance(:'foxy', 'call', 0);
select allowed, reason, used, included, remaining from billing.check_limit(:'foxy', 'call');
select billing.set_org_allowance(:'foxy', 'call', limit_kind => 'unlimited');
select allowed, reason, used, included, remaining from billing.check_limit(:'foxy', 'call', 100000);
select included, credits from billing.consume_credits(:'foxy', 'call', 100000);
-- Back to the plans: (9 x 1000 + 21 x 100) / 30.
select billing.set_org_allowance(:'foxy', 'call');
select allowed, reason, used, included, remaining from billing.check_limit(:'foxy', 'call');
select count(*) from billing.org_allowances where org_id = :'foxy';
-- Who was unlimited for a part of the period has the whole of what comes after.
select used, included, remaining from billing.check_limit(:'foxy', 'seat');
-- Also without any plan.
select billing.set_org_allowance('00000000-0000-4000-8000-000000000027', 'seat', 2, 'hard');
select grant_id from billing.grant_credits('00000000-0000-4000-8000-000000000027', 5);
select included from billing.consume_credits('00000000-0000-4000-8000-000000000027', 'seat', 2);
select * from billing.consume_credits('00000000-0000-4000-8000-000000000027', 'seat');
\echo :LAST_ERROR_SQLSTATE
select billing.set_org_allowance(:'foxy', 'call', -1);
\echo :LAST_ERROR_SQLSTATE
select billing.set_org_allowance(:'foxy', 'call', 1, 'firm');
\echo :LAST_ERROR_SQLSTATE
select billing.set_org_allowance(:'foxy', 'teleport', 1);
\echo :LAST_ERROR_SQLSTATE
select billing.set_org_allowance(null, 'call', 1);
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
