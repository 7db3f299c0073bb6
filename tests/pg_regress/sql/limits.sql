-- check_limit: whether an org may go on with a metric, and why or why not. The first reason that applies is the answer.
\i preamble.psql
set local billing.test_clock = '2027-06-10 00:00:00+00';
\set dead 00000000-0000-4000-8000-00000000dead
select action, kind, name from billing.apply_catalog('{"metrics": {
        "call": {"price": 2}, "seat": {}, "free": {}, "soft": {"price": 2}, "open": {"price": 2}, "hard": {"price": 2}, "shut": {},
        "core": {"price": 2, "tier": "core"}, "corehard": {"price": 2, "tier": "core"}, "corefree": {"tier": "core"}, "best": {"price": 2, "tier": "premium"},
        "capped": {"price": 2, "category": "AI"}, "other": {"price": 2}},
    "plans": {"solo": {"allowances": {"call": 5, "seat": 3, "core": 5, "corefree": 5, "best": 5, "soft": 5, "open": 5, "hard": 5, "corehard": 5, "capped": 50},
                       "limits": {"soft": "soft", "open": "unlimited", "hard": "hard", "shut": "hard", "corehard": "hard"}}},
    "caps": [{"category": "AI", "per": "day", "limit": 10}, {"metric": "capped", "per": "month", "limit": 20}, {"category": "AI", "per": "day", "for": "member", "limit": 2}]}');
select plan, period_end from billing.subscribe(:'acme', 'solo');
select grant_id from billing.grant_credits(:'acme', 20);
select plan from billing.subscribe(:'bolt', 'solo');

-- Included, to the last one.
select * from billing.check_limit(:'acme', 'call');
select allowed, reason, remaining, credits_required from billing.check_limit(:'acme', 'call', 5);
-- Beyond that, credits: exactly as many as there are, and one more.
select allowed, reason, remaining, credits_required, credits_available from billing.check_limit(:'acme', 'call', 6);
select allowed, reason, remaining, credits_required, credits_available from billing.check_limit(:'acme', 'call', 15);
select allowed, reason, remaining, credits_required, credits_available from billing.check_limit(:'acme', 'call', 16);
select included, credits from billing.consume_credits(:'acme', 'call', 15);
select * from billing.consume_credits(:'acme', 'call');
\echo :LAST_ERROR_SQLSTATE

-- bolt has no credits: what the plan includes ends there, price or not; core and soft go on.
select m.metric, c.allowed, c.reason, c.used, c.included, c.remaining, c.credits_required, c.credits_available
    from unnest(array['call', 'seat', 'free', 'soft', 'open', 'hard', 'shut', 'core', 'corehard', 'corefree', 'best', 'other']) with ordinality m (metric, n), billing.check_limit(:'bolt', m.metric, 6) c order by m.n;
-- The same within what is included.
select m.metric, c.allowed, c.reason, c.credits_required
    from unnest(array['call', 'seat', 'soft', 'open', 'hard', 'core', 'corehard', 'corefree', 'best']) with ordinality m (metric, n), billing.check_limit(:'bolt', m.metric, 3) c order by m.n;
-- With some credits, but not 12: hard and soft, core and premium.
select grant_id from billing.grant_credits(:'bolt', 1);
select m.metric, c.allowed, c.reason, c.credits_required, c.credits_available
    from unnest(array['call', 'seat', 'free', 'soft', 'open', 'hard', 'shut', 'core', 'corehard', 'corefree', 'best', 'other']) with ordinality m (metric, n), billing.check_limit(:'bolt', m.metric, 6) c order by m.n;
-- With enough of them, what has a price goes on.
select grant_id from billing.grant_credits(:'bolt', 11);
select m.metric, c.allowed, c.reason, c.credits_required, c.credits_available
    from unnest(array['call', 'seat', 'free', 'soft', 'open', 'hard', 'shut', 'core', 'corehard', 'corefree', 'best', 'other']) with ordinality m (metric, n), billing.check_limit(:'bolt', m.metric, 6) c order by m.n;

-- What a consumption would say: no price, no more; too few credits. allows() is the same in a word.
select * from billing.consume_credits(:'bolt', 'seat', 4);
\echo :LAST_ERROR_SQLSTATE
select * from billing.reserve_credits(:'bolt', 'seat', 4);
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'bolt', 'shut');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'bolt', 'call', 12);
\echo :LAST_ERROR_SQLSTATE
select included from billing.consume_credits(:'bolt', 'corefree', 6);
select included, credits from billing.consume_credits(:'bolt', 'open', 600);
select item, status, detail from billing.consume_credits_batch('[{"org_id": "00000000-0000-4000-8000-000000000002", "metric": "seat", "quantity": 2}, {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "seat", "quantity": 2}]');
select billing.allows(:'bolt', 'seat') as one, billing.allows(:'bolt', 'seat', 2) as two, billing.allows(:'bolt', 'free', 1000000) as free;
-- Recorded usage is never refused: it has happened.
select billing.record_usage(:'bolt', 'seat', 4);
select allowed, reason, used, remaining from billing.check_limit(:'bolt', 'seat');

-- A cap comes before everything else, and resets with its day or month; the later one when both are reached.
select allowed, reason, used, included, remaining, resets_at from billing.check_limit(:'acme', 'capped', 10);
select allowed, reason, used, included, remaining, resets_at from billing.check_limit(:'acme', 'capped', 11);
select allowed, reason, resets_at from billing.check_limit(:'acme', 'capped', 21);
select included from billing.consume_credits(:'acme', 'capped', 9);
select allowed, reason from billing.check_limit(:'acme', 'capped');
select allowed, reason from billing.check_limit(:'acme', 'capped', 2);
set local billing.test_clock = '2027-06-11 00:00:00+00';
select allowed, reason, used, resets_at from billing.check_limit(:'acme', 'capped', 10);
select included from billing.consume_credits(:'acme', 'capped', 10);
set local billing.test_clock = '2027-06-12 00:00:00+00';
select allowed, reason, resets_at from billing.check_limit(:'acme', 'capped', 2);

-- What is owed is not available: unpaid overage, and what was recorded and not settled. Never below zero.
select grant_id from billing.grant_credits(:'corp', 100);
select billing.record_usage(:'corp', 'other', 30);
select allowed, reason, credits_available from billing.check_limit(:'corp', 'other');
select allowed, reason, credits_available from billing.check_limit(:'corp', 'call', 20);
select allowed, reason, credits_available from billing.check_limit(:'corp', 'call', 21);
select billing.record_usage(:'corp', 'other', 30);
select allowed, reason, credits_required, credits_available from billing.check_limit(:'corp', 'other');
select charged, unpaid from billing.settle_org(:'corp');
select allowed, reason, credits_required, credits_available from billing.check_limit(:'corp', 'other');
select grant_id from billing.grant_credits(:'corp', 25);
select allowed, reason, credits_required, credits_available from billing.check_limit(:'corp', 'other', 2);
-- Credit that is scoped to a metric is available for that one.
select grant_id from billing.grant_credits(:'corp', 50, metrics => '{call}');
select metric, credits_available from unnest(array['call', 'other']) m, billing.check_limit(:'corp', m);

-- An org that nobody knows: nothing used, nothing there, no error.
select allowed, reason, used, included, remaining, credits_available, resets_at from billing.check_limit(:'dead', 'call');
select allowed, reason, used, included, remaining from billing.check_limit(:'dead', 'free');
select billing.allows(:'dead', 'call'), billing.allows(:'dead', 'free'), billing.allows(null, 'free') as nobody;

select * from billing.check_limit(:'acme', 'teleport');
\echo :LAST_ERROR_SQLSTATE
select billing.allows(:'acme', 'teleport');
\echo :LAST_ERROR_SQLSTATE
select * from billing.check_limit(null, 'call');
\echo :LAST_ERROR_SQLSTATE
select * from billing.check_limit(:'acme', null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.check_limit(:'acme', 'call', 0);
\echo :LAST_ERROR_SQLSTATE
select * from billing.check_limit(:'acme', 'call', null);
\echo :LAST_ERROR_SQLSTATE
select billing.allows(:'acme', 'call', -1);
\echo :LAST_ERROR_SQLSTATE
-- Reading changed nothing.
select count(*) from billing.entries where org_id = :'dead';
select * from billing.verify_ledger();
rollback;
