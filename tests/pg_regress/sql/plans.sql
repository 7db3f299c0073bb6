-- Plans: a subscription's periods count from its start and find back to the ends of months; each begins with the plan's credits,
-- and what is left of the last ones expires, stays, or goes on up to a cap. Cancelled, scheduled, and the plan of all others.
\i preamble.psql
set local billing.test_clock = '2027-01-31 12:00:00+00';
\set gaia 00000000-0000-4000-8000-000000000007
\set hobo 00000000-0000-4000-8000-000000000008
select action, kind, name from billing.apply_catalog('{"metrics": {"call": {"price": 1}},
    "plans": {"solo": {"price": {"USD": 1400}, "credits": {"amount": 100}, "allowances": {"call": 10}},
              "keep": {"credits": {"amount": 100, "rollover": "all"}},
              "part": {"credits": {"amount": 100, "rollover": "capped", "cap": 30}},
              "year": {"period": "year", "credits": {"amount": 1000}},
              "daily": {"period": "day", "credits": {"amount": 5}}, "weekly": {"period": "week"}}}');

-- The first period begins at once: the wallet is made, and the plan's credits are in it until the period ends.
select * from billing.subscribe(:'acme', 'solo', metadata => '{"contract": 7}');
select starts_at, ends_at, anchor, next_period_at, plan, origin, grants, metadata from billing.subscriptions where org_id = :'acme';
select grant_id, source, category, amount, remaining, effective_at, expires_at from billing.grants where org_id = :'acme';
select kind, amount, balance_after, source, source_id, created_at from billing.entries where org_id = :'acme';
-- 10 calls are included; 40 of the other 50 credits' worth come after.
select included, credits, balance_after from billing.consume_credits(:'acme', 'call', 50);
set local billing.test_clock = '2027-02-28 11:59:59.999999+00';
select allowed, reason, used, included, remaining, credits_available, resets_at from billing.check_limit(:'acme', 'call');
select billing.get_total_credits(:'acme');

-- The very moment of the next period: everything anew, though nobody has settled.
set local billing.test_clock = '2027-02-28 12:00:00+00';
select allowed, reason, used, included, remaining, credits_available, resets_at from billing.check_limit(:'acme', 'call', 70);
-- Whoever needs the credits begins the period.
select included, credits, balance_before, balance_after from billing.consume_credits(:'acme', 'call', 70);
select * from billing.settle_org(:'acme');

-- Three months pass unseen. Each period is begun in its turn, and the last day of a month stays that.
set local billing.test_clock = '2027-05-31 11:00:00+00';
select * from billing.settle_org(:'acme');
select * from billing.settle_org(:'acme');
set local billing.test_clock = '2027-05-31 12:00:00+00';
select charged, renewed from billing.settle_org(:'acme');
select grant_id, amount, remaining, effective_at, expires_at from billing.grants where org_id = :'acme' order by grant_id;
select entry_id, kind, amount, balance_after, source_id, created_at from billing.entries where org_id = :'acme' order by entry_id;

-- Rollover all: nothing expires.
set local billing.test_clock = '2027-01-31 12:00:00+00';
select plan, period_end from billing.subscribe(:'bolt', 'keep');
select credits from billing.consume_credits(:'bolt', 'call', 30);
set local billing.test_clock = '2027-04-01 00:00:00+00';
select charged, renewed from billing.settle_org(:'bolt');
select grant_id, amount, remaining, expires_at from billing.grants where org_id = :'bolt' order by grant_id;
select billing.get_total_credits(:'bolt');

-- Rollover capped: of what is left at most 30 go on. 50 are left, then 130, then 10, then nothing.
set local billing.test_clock = '2027-01-01 00:00:00+00';
select plan, period_end from billing.subscribe(:'corp', 'part');
select credits, balance_after from billing.consume_credits(:'corp', 'call', 50);
set local billing.test_clock = '2027-02-10 00:00:00+00';
select renewed from billing.settle_org(:'corp');
select billing.get_total_credits(:'corp');
set local billing.test_clock = '2027-03-10 00:00:00+00';
select renewed from billing.settle_org(:'corp');
select billing.get_total_credits(:'corp');
select credits, balance_after from billing.consume_credits(:'corp', 'call', 120);
set local billing.test_clock = '2027-04-10 00:00:00+00';
select renewed from billing.settle_org(:'corp');
select billing.get_total_credits(:'corp');
select credits, balance_after from billing.consume_credits(:'corp', 'call', 110);
set local billing.test_clock = '2027-05-10 00:00:00+00';
select renewed from billing.settle_org(:'corp');
select grant_id, amount, remaining, effective_at, expires_at from billing.grants where org_id = :'corp' order by grant_id;
select kind, sum(amount), count(*) from billing.entries where org_id = :'corp' group by kind order by kind;

-- Cancelled: the period is still paid for. Taken back by subscribing to the same plan.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select plan, status, period_start, period_end from billing.subscribe(:'dyne', 'solo');
set local billing.test_clock = '2027-06-11 00:00:00+00';
select * from billing.cancel_subscription(:'dyne');
select plan, status, cancel_at_period_end from billing.subscribe(:'dyne', 'solo');
select plan, status, cancel_at_period_end from billing.cancel_subscription(:'dyne');
select included, credits from billing.consume_credits(:'dyne', 'call', 10);
-- It ends with the period: no more credits, and what was left of the last ones expires.
set local billing.test_clock = '2027-07-01 00:00:00+00';
select allowed, reason, used, included, credits_available, resets_at from billing.check_limit(:'dyne', 'call');
select charged, unpaid, events from billing.settle_org(:'dyne');
select starts_at, ends_at, next_period_at, cancel_at_period_end from billing.subscriptions where org_id = :'dyne';
select * from billing.cancel_subscription(:'dyne');
\echo :LAST_ERROR_SQLSTATE
-- Another subscription, another anchor. Cancelled at once: the credits stay until they expire, and what the plan included until
-- then is not charged.
set local billing.test_clock = '2027-07-04 00:00:00+00';
select plan, status, starts_at, period_end from billing.subscribe(:'dyne', 'solo');
select billing.record_usage(:'dyne', 'call', 8);
set local billing.test_clock = '2027-07-05 00:00:00+00';
select * from billing.cancel_subscription(:'dyne', at_period_end => false);
select charged from billing.settle_org(:'dyne');
select billing.get_total_credits(:'dyne');
select allowed, reason, used, included, credits_required, credits_available, resets_at from billing.check_limit(:'dyne', 'call');
set local billing.test_clock = '2027-08-04 00:00:00+00';
select billing.get_total_credits(:'dyne');
select starts_at, ends_at from billing.subscriptions where org_id = :'dyne' order by starts_at;

-- Scheduled: nothing before its start, everything from then on.
set local billing.test_clock = '2027-06-10 00:00:00+00';
select * from billing.subscribe(:'eden', 'solo', '2027-06-15 08:00:00+00');
select billing.get_total_credits(:'eden');
-- Another plan, another start, before it has begun: that one is forgotten.
select plan, status, starts_at, period_start, period_end from billing.subscribe(:'eden', 'keep', '2027-06-20 00:00:00+00');
select plan, status, starts_at, ends_at from billing.cancel_subscription(:'eden');
select count(*) from billing.subscriptions where org_id = :'eden';
select plan, status, starts_at from billing.subscribe(:'eden', 'solo', '2027-06-15 08:00:00+00');
set local billing.test_clock = '2027-06-15 07:59:59.999999+00';
select renewed from billing.settle_org(:'eden');
set local billing.test_clock = '2027-06-15 08:00:00+00';
select renewed from billing.settle_org(:'eden');
select effective_at, expires_at, remaining from billing.grants where org_id = :'eden';

-- In the past: its periods are begun in their turn, and the credits of those that are over have expired.
set local billing.test_clock = '2027-06-10 00:00:00+00';
select plan, status, starts_at, period_start, period_end from billing.subscribe(:'foxy', 'solo', '2027-03-31 00:00:00+00');
select grant_id, amount, remaining, effective_at, expires_at from billing.grants where org_id = :'foxy' order by grant_id;
select billing.get_total_credits(:'foxy');
-- But not within an earlier subscription.
select status from billing.cancel_subscription(:'foxy', false);
select * from billing.subscribe(:'foxy', 'solo', '2027-06-09 00:00:00+00');
\echo :LAST_ERROR_SQLSTATE
select * from billing.subscribe(:'foxy', 'solo', 'infinity');
\echo :LAST_ERROR_SQLSTATE

-- Years, weeks and days.
set local billing.test_clock = '2028-02-29 00:00:00+00';
select plan, period_start, period_end from billing.subscribe(:'gaia', 'year');
set local billing.test_clock = '2032-03-01 00:00:00+00';
select renewed from billing.settle_org(:'gaia');
select grant_id, effective_at, expires_at from billing.grants where org_id = :'gaia' order by grant_id;
select plan, period_start, period_end from billing.subscribe('00000000-0000-4000-8000-000000000017', 'weekly');
select plan, period_start, period_end from billing.subscribe('00000000-0000-4000-8000-000000000027', 'daily');
set local billing.test_clock = '2032-03-03 23:59:59+00';
select renewed from billing.settle_org('00000000-0000-4000-8000-000000000027');
select billing.get_total_credits('00000000-0000-4000-8000-000000000027');

-- A default plan is everybody's who has no other: by calendar months, from the first call on.
set local billing.test_clock = '2027-09-10 00:00:00+00';
select action, kind, name, detail from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{plans,free}', '{"default": true, "allowances": {"call": 3}}'));
select allowed, reason, used, included, remaining, resets_at from billing.check_limit(:'hobo', 'call');
select included, credits, balance_after from billing.consume_credits(:'hobo', 'call', 2);
select * from billing.consume_credits(:'hobo', 'call', 2);
\echo :LAST_ERROR_SQLSTATE
select included, credits from billing.consume_credits(:'hobo', 'call');
set local billing.test_clock = '2027-10-01 00:00:00+00';
select included, credits from billing.consume_credits(:'hobo', 'call', 3);
select * from billing.settle_org(:'hobo');
select count(*) from billing.subscriptions where org_id = :'hobo';
-- Also theirs whose subscription has ended.
select allowed, reason, used, included, resets_at from billing.check_limit(:'dyne', 'call');

-- A default plan with credits has to be begun: settlement does, for the month that runs.
set local billing.test_clock = '2027-10-10 00:00:00+00';
select action, kind, name, detail from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{plans,free,credits}', '{"amount": 25}'));
select * from billing.settle_org(:'hobo');
select starts_at, ends_at, anchor, next_period_at, plan, origin from billing.subscriptions where org_id = :'hobo';
select grant_id, amount, effective_at, expires_at from billing.grants where org_id = :'hobo';
select credits, balance_after from billing.consume_credits(:'hobo', 'call', 5);
set local billing.test_clock = '2027-11-01 00:00:00+00';
select allowed, reason, used, included, credits_available from billing.check_limit(:'hobo', 'call', 20);
select renewed from billing.settle_org(:'hobo');
-- So does the first consumption of an org that nobody knew.
select included, credits, balance_after from billing.consume_credits('00000000-0000-4000-8000-000000000037', 'call', 5);
-- A subscription takes its place, and it comes back when that ends.
set local billing.test_clock = '2027-11-16 00:00:00+00';
select plan, status, starts_at, period_start, period_end from billing.subscribe(:'hobo', 'solo');
select starts_at, ends_at, plan, origin from billing.subscriptions where org_id = :'hobo' order by starts_at;
select status from billing.cancel_subscription(:'hobo');
set local billing.test_clock = '2027-12-20 00:00:00+00';
select unpaid from billing.settle_org(:'hobo');
select starts_at, ends_at, anchor, next_period_at, plan, origin from billing.subscriptions where org_id = :'hobo' order by starts_at;
select amount, effective_at, expires_at from billing.grants where org_id = :'hobo' order by grant_id;
-- A default plan that nobody has any more goes at the end of the month.
select action, name from billing.apply_catalog(jsonb_build_object('plans', (billing.export_catalog() -> 'plans') - 'free'));
set local billing.test_clock = '2028-01-02 00:00:00+00';
select unpaid from billing.settle_org(:'hobo');
select starts_at, ends_at, next_period_at from billing.subscriptions where org_id = :'hobo' order by starts_at;

select * from billing.subscribe(:'acme', 'king');
\echo :LAST_ERROR_SQLSTATE
select * from billing.subscribe(:'acme', 'free');
\echo :LAST_ERROR_SQLSTATE
select * from billing.subscribe(null, 'solo');
\echo :LAST_ERROR_SQLSTATE
select * from billing.subscribe(:'acme', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
