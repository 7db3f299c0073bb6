-- Caps: the most that an org, or each of its members, may use of a metric or category per calendar day or month. Consumptions and
-- reservations are refused beyond; what is recorded counts, but is never refused.
\i preamble.psql
set local billing.test_clock = '2027-06-30 12:00:00+00';
\set bob 00000000-0000-4000-8000-0000000000b2
select action, kind, name, detail from billing.apply_catalog('{"metrics": {"chat": {"price": 1, "category": "AI"}, "image": {"price": 5, "category": "AI"}, "mail": {"price": 1}, "level": {"aggregation": "max", "category": "AI"}},
    "caps": [{"category": "AI", "per": "day", "limit": 10}, {"category": "AI", "per": "month", "limit": 25}, {"metric": "chat", "per": "day", "limit": 8},
             {"metric": "mail", "per": "day", "for": "member", "limit": 3}, {"metric": "mail", "per": "month", "for": "member", "limit": 4}]}');
select count(*) from unnest(array[:'acme', :'bolt', :'corp', :'dyne', :'eden']::uuid[]) org, billing.grant_credits(org, 1000);

-- A metric's own cap, and that of its category; the detail says which.
select credits from billing.consume_credits(:'acme', 'chat', 8, 'k-1');
select * from billing.consume_credits(:'acme', 'chat');
\echo :LAST_ERROR_SQLSTATE
select credits from billing.consume_credits(:'acme', 'image', 2);
select * from billing.consume_credits(:'acme', 'image');
\echo :LAST_ERROR_SQLSTATE
select * from billing.reserve_credits(:'acme', 'image', 1);
\echo :LAST_ERROR_SQLSTATE
-- A repeated call has its answer, whatever is reached.
select credits, replayed from billing.consume_credits(:'acme', 'chat', 8, 'k-1');
select cap, member_id, period_start, quantity from billing_internal.cap_usage where org_id = :'acme' order by cap;
-- Other orgs have their own.
select credits from billing.consume_credits(:'bolt', 'chat', 8);
-- More than there can ever be.
select * from billing.consume_credits(:'bolt', 'chat', 9);
\echo :LAST_ERROR_SQLSTATE
-- Midnight (UTC): another day, and with it another month.
set local billing.test_clock = '2027-06-30 23:59:59.999999+00';
select * from billing.consume_credits(:'acme', 'image');
\echo :LAST_ERROR_SQLSTATE
set local billing.test_clock = '2027-07-01 00:00:00+00';
select credits from billing.consume_credits(:'acme', 'image', 10);
set local billing.test_clock = '2027-07-02 00:00:00+00';
select credits from billing.consume_credits(:'acme', 'image', 10);
set local billing.test_clock = '2027-07-03 00:00:00+00';
select * from billing.consume_credits(:'acme', 'image', 6);
\echo :LAST_ERROR_SQLSTATE
select credits from billing.consume_credits(:'acme', 'image', 5);
select * from billing.consume_credits(:'acme', 'chat');
\echo :LAST_ERROR_SQLSTATE
select credits from billing.consume_credits(:'acme', 'mail');

-- Per member: each has its own; who is not named has none.
select credits from billing.consume_credits(:'acme', 'mail', 3, member_id => :'ann');
select * from billing.consume_credits(:'acme', 'mail', 1, member_id => :'ann');
\echo :LAST_ERROR_SQLSTATE
select credits from billing.consume_credits(:'acme', 'mail', 3, member_id => :'bob');
select credits from billing.consume_credits(:'acme', 'mail', 100);
set local billing.test_clock = '2027-07-04 00:00:00+00';
select * from billing.reserve_credits(:'acme', 'mail', 2, member_id => :'ann');
\echo :LAST_ERROR_SQLSTATE
select credits from billing.consume_credits(:'acme', 'mail', 1, member_id => :'ann');
select cap, right(member_id::text, 2) as member, period_start, quantity from billing_internal.cap_usage where org_id = :'acme' and cap like '%member' order by cap, member, period_start;

-- A reservation counts. Captured for less, for more, released, timed out: what was not used is free again.
set local billing.test_clock = '2027-07-10 12:00:00+00';
select hold_id, credits from billing.reserve_credits(:'corp', 'chat', 6, '1 hour') \gset less_
select * from billing.consume_credits(:'corp', 'chat', 3);
\echo :LAST_ERROR_SQLSTATE
select allowed, reason, used from billing.check_limit(:'corp', 'chat', 3);
select credits from billing.capture_credits(:'corp', :less_hold_id, 4);
select allowed, reason, used from billing.check_limit(:'corp', 'chat', 4);
select hold_id, credits from billing.reserve_credits(:'corp', 'chat', 4, '1 hour') \gset released_
select allowed, reason, used from billing.check_limit(:'corp', 'chat', 1);
select credits from billing.release_credits(:'corp', :released_hold_id);
select hold_id, credits from billing.reserve_credits(:'corp', 'chat', 4, '1 hour') \gset late_
select * from billing.consume_credits(:'corp', 'chat');
\echo :LAST_ERROR_SQLSTATE
set local billing.test_clock = '2027-07-10 13:00:00+00';
select credits from billing.consume_credits(:'corp', 'chat');
select allowed, reason, used from billing.check_limit(:'corp', 'chat', 3);
select hold_id, credits from billing.reserve_credits(:'corp', 'chat', 1, '1 hour') \gset more_
select credits from billing.capture_credits(:'corp', :more_hold_id, 2);
select cap, quantity from billing_internal.cap_usage where org_id = :'corp' order by cap;
-- One of yesterday gives back to yesterday. What it used counts there.
select hold_id, credits from billing.reserve_credits(:'corp', 'chat', 1, '1 day') \gset over_
set local billing.test_clock = '2027-07-11 12:00:00+00';
select credits from billing.capture_credits(:'corp', :over_hold_id, 1);
select cap, period_start, quantity from billing_internal.cap_usage where org_id = :'corp' order by cap, period_start;
select credits from billing.consume_credits(:'corp', 'chat', 8);

-- In a batch each item counts for the next one, and one that is refused does not.
select item, status, credits, detail from billing.consume_credits_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000004", "metric": "chat", "quantity": 5},
    {"org_id": "00000000-0000-4000-8000-000000000004", "metric": "chat", "quantity": 4},
    {"org_id": "00000000-0000-4000-8000-000000000004", "metric": "chat", "quantity": 3},
    {"org_id": "00000000-0000-4000-8000-000000000004", "metric": "image", "quantity": 2},
    {"org_id": "00000000-0000-4000-8000-000000000004", "metric": "image", "quantity": 1},
    {"org_id": "00000000-0000-4000-8000-000000000004", "metric": "mail", "quantity": 4, "member_id": "00000000-0000-4000-8000-0000000000a1"},
    {"org_id": "00000000-0000-4000-8000-000000000004", "metric": "mail", "quantity": 3, "member_id": "00000000-0000-4000-8000-0000000000a1"},
    {"org_id": "00000000-0000-4000-8000-000000000004", "metric": "mail", "quantity": 1, "member_id": "00000000-0000-4000-8000-0000000000a1"}]');

-- What is recorded counts for the org, before and after settlement, on the day on which it occurred; and is not refused itself.
select billing.record_usage(:'eden', 'chat', 7), billing.record_usage(:'eden', 'image', 4, occurred_at => '2027-07-10 00:00+00');
select credits from billing.consume_credits(:'eden', 'chat');
select * from billing.consume_credits(:'eden', 'chat');
\echo :LAST_ERROR_SQLSTATE
select charged from billing.settle_org(:'eden');
select * from billing.consume_credits(:'eden', 'chat');
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'eden', 'chat', 50);
select allowed, reason, used from billing.check_limit(:'eden', 'chat');
select allowed, reason, resets_at from billing.check_limit(:'eden', 'image');
-- Levels do not add up: no cap counts them.
select billing.record_usage(:'bolt', 'level', 1000);
select credits from billing.consume_credits(:'bolt', 'image');

-- Other limits hold at once, with what was used so far. Without a cap there is none.
set local billing.test_clock = '2027-07-11 13:00:00+00';
select action, name, detail from billing.apply_catalog('{"caps": [{"metric": "chat", "per": "day", "limit": 9}, {"metric": "image", "per": "day", "limit": 0}]}');
select * from billing.consume_credits(:'corp', 'chat', 2);
\echo :LAST_ERROR_SQLSTATE
select credits from billing.consume_credits(:'corp', 'chat', 1);
select * from billing.consume_credits(:'corp', 'image');
\echo :LAST_ERROR_SQLSTATE
select action, name from billing.apply_catalog('{"caps": []}');
select credits from billing.consume_credits(:'corp', 'image', 100);
select * from billing.verify_ledger();
rollback;
