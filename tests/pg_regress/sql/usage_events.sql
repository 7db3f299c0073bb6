-- Usage that is recorded: counted at once, charged by settlement. An event counts once, in the period in which it occurred,
-- however late it comes; a batch counts as a whole or not at all.
\i preamble.psql
set local billing.test_clock = '2027-03-10 12:00:00+00';
\set bob 00000000-0000-4000-8000-0000000000b2
select action, kind, name from billing.apply_catalog('{"metrics": {"call": {"price": 2}, "byte": {"price": {"credits": 3, "per": 1000}}, "user": {"aggregation": "unique", "price": 10}},
    "plans": {"solo": {"allowances": {"call": 100}}}}');
select grant_id from billing.grant_credits(:'acme', 1000);
select grant_id from billing.grant_credits(:'bolt', 1000);

-- Counted at once, charged later. The event is kept as it came.
select billing.record_usage(:'acme', 'call', 5, 'e-1', member_id => :'ann', properties => '{"path": "/v1"}');
select billing.record_usage(:'acme', 'call');
select metric, quantity, event_id, occurred_at, recorded_at, member_id, properties from billing.usage_events where org_id = :'acme' order by quantity;
select used, included, credits_required, credits_available from billing.check_limit(:'acme', 'call');
select billing.get_total_credits(:'acme');

-- An event of an org counts once: the same again, with another quantity, of another metric, months later, in a batch.
select billing.record_usage(:'acme', 'call', 5, 'e-1', member_id => :'ann', properties => '{"path": "/v1"}');
select billing.record_usage(:'acme', 'call', 500, 'e-1');
select billing.record_usage(:'acme', 'byte', 500, 'e-1');
select billing.record_usage(:'bolt', 'call', 7, 'e-1');
select used from billing.check_limit(:'acme', 'call');
select used from billing.check_limit(:'bolt', 'call');
-- Without an id each is another one.
select billing.record_usage(:'acme', 'call'), billing.record_usage(:'acme', 'call');
select used from billing.check_limit(:'acme', 'call');
select * from billing.settle_org(:'acme');
select billing.get_total_credits(:'acme');
set local billing.test_clock = '2028-03-10 12:00:00+00';
select billing.record_usage(:'acme', 'call', 5, 'e-1');
select * from billing.settle_org(:'acme');
set local billing.test_clock = '2027-03-10 12:00:00+00';

-- A batch: accepted and duplicates, within it and of what was before. null and absent are the same.
select * from billing.record_usage_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 10, "event_id": "b-1"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 99, "event_id": "b-1"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "event_id": "e-1"},
    {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call", "quantity": 3, "event_id": "b-1", "occurred_at": "2027-03-10T11:00:00Z"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "byte", "quantity": 1500, "member_id": "00000000-0000-4000-8000-0000000000a1", "properties": {"zone": "eu"}},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "byte", "event_id": null, "occurred_at": null, "member_id": null, "properties": null}]');
select * from billing.record_usage_batch('[]');
select org_id, metric, quantity, event_id, occurred_at, member_id, properties from billing.usage_events where event_id = 'b-1' or metric = 'byte' order by org_id, metric, quantity;
-- 1,501 bytes are 4.503 credits, rounded up once.
select used, credits_required from billing.check_limit(:'acme', 'byte');
select charged, events from billing.settle_org(:'acme');
select charged, events from billing.settle_org(:'bolt');
-- All or nothing: the third is bad, and the first two are not recorded.
select * from billing.record_usage_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "event_id": "c-1"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "event_id": "c-2"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "teleport", "event_id": "c-3"}]');
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'call', 1, 'c-1');

-- Late: it counts in the period in which it occurred, also when that was settled. What is left of February's 100 covers 80.
set local billing.test_clock = '2027-02-01 00:00:00+00';
select plan, period_end from billing.subscribe(:'corp', 'solo');
select grant_id from billing.grant_credits(:'corp', 1000);
select billing.record_usage(:'corp', 'call', 20);
set local billing.test_clock = '2027-03-02 00:00:00+00';
select charged, renewed, events from billing.settle_org(:'corp');
select billing.record_usage(:'corp', 'call', 90, 'late-1', '2027-02-27 23:00:00+00');
select used, included, remaining from billing.check_limit(:'corp', 'call');
select charged, events from billing.settle_org(:'corp');
select period_start, period_end, quantity, overage, credits from billing_internal.period_usage where org_id = :'corp' order by period_start;
-- The last moment of a period and the first of the next one.
select billing.record_usage(:'corp', 'call', 1, 'edge-1', '2027-02-28 23:59:59.999999+00'), billing.record_usage(:'corp', 'call', 1, 'edge-2', '2027-03-01 00:00:00+00');
-- Before there was a plan: a calendar month without one, all of it is charged.
select billing.record_usage(:'corp', 'call', 4, 'late-2', '2027-01-31 23:00:00+00');
select charged, events from billing.settle_org(:'corp');
select period_start, period_end, quantity, overage, credits from billing_internal.period_usage where org_id = :'corp' order by period_start;
select amount, source, source_id, quantity, created_at from billing.entries where org_id = :'corp' and kind = 'usage' order by entry_id;
-- Clocks differ: up to five minutes ahead.
select billing.record_usage(:'corp', 'call', 1, 'soon', '2027-03-02 00:05:00+00');
select billing.record_usage(:'corp', 'call', 1, 'too soon', '2027-03-02 00:05:00.000001+00');
\echo :LAST_ERROR_SQLSTATE

-- An org that nobody knows yet: recorded, and charged with the wallet that settlement makes.
select billing.record_usage('00000000-0000-4000-8000-00000000000f', 'call', 3);
select * from billing.settle_org('00000000-0000-4000-8000-00000000000f');
select unit, available from billing.wallets where org_id = '00000000-0000-4000-8000-00000000000f';

-- Bad input.
select billing.record_usage(null, 'call');
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', null);
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'teleport');
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'call', 0);
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'call', -1);
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'call', null);
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'call', 1, '');
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'call', 1, repeat('e', 256));
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'call', 1, repeat('e', 255)), billing.record_usage(:'acme', 'call', 1, repeat('e', 255));
select billing.record_usage(:'acme', 'call', 1, 'x', 'infinity');
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'call', 1, 'x', '-infinity');
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'call', 1, 'x', properties => '[]');
\echo :LAST_ERROR_SQLSTATE
select billing.record_usage(:'acme', 'user', 1, 'x');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch(null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('{}');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[7]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"metric": "call"}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001"}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "acme", "metric": "call"}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "member_id": "ann"}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": "5"}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": null}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 1.5}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 9223372036854775808}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call"}, {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 0}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "occurred_at": "yesterday"}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "properties": []}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "idempotency_key": "x"}]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.record_usage_batch((select jsonb_agg('{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call"}'::jsonb) from generate_series(1, 100001)));
\echo :LAST_ERROR_SQLSTATE
-- Events are evidence: nobody changes them.
update billing.usage_events set quantity = 0;
\echo :LAST_ERROR_SQLSTATE
delete from billing.usage_events where false;
\echo :LAST_ERROR_SQLSTATE
truncate billing.usage_events;
\echo :LAST_ERROR_SQLSTATE
delete from billing_internal.usage_event_keys;
\echo :LAST_ERROR_SQLSTATE
select org_id, count(*), sum(quantity) from billing.usage_events where event_id is distinct from repeat('e', 255) group by org_id order by org_id;
select * from billing.verify_ledger();
rollback;
