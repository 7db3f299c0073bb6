-- consume_credits: charged once for a key, refused as a whole when the credits do not reach, retried after a top-up.
\i preamble.psql

select * from billing.apply_catalog('{"metrics": {"call": {"price": 15}, "view": {"price": 0}}}');
select * from billing.grant_credits(:'acme', 100, 'purchase');

select * from billing.consume_credits(:'acme', 'call');
select * from billing.consume_credits(:'acme', 'call', 2, 'req-1', :'ann', '{"path": "/v1/chat"}');
-- The same again: nothing is charged, the first answer comes back.
select * from billing.consume_credits(:'acme', 'call', 2, 'req-1', :'ann', '{"path": "/v1/chat"}');
select billing.get_total_credits(:'acme');
-- The same key for something else: refused.
select * from billing.consume_credits(:'acme', 'call', 3, 'req-1', :'ann', '{"path": "/v1/chat"}');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'view', 2, 'req-1', :'ann', '{"path": "/v1/chat"}');
\echo :LAST_ERROR_SQLSTATE
-- One key names one operation of the org, of whatever sort.
select * from billing.grant_credits(:'acme', 2, idempotency_key => 'req-1');
\echo :LAST_ERROR_SQLSTATE

-- 55 left: four calls cost 60, and nothing at all is taken.
select * from billing.consume_credits(:'acme', 'call', 4, 'req-2');
\echo :LAST_ERROR_SQLSTATE
select billing.get_total_credits(:'acme');
-- A refused key was not used up: after a top-up it succeeds.
select * from billing.grant_credits(:'acme', 5, 'purchase');
select * from billing.consume_credits(:'acme', 'call', 4, 'req-2');
select * from billing.consume_credits(:'acme', 'call', 1);
\echo :LAST_ERROR_SQLSTATE
-- What is free goes on without credits, and is recorded; its replay is a replay.
select * from billing.consume_credits(:'acme', 'view', 3, 'free-1');
select * from billing.consume_credits(:'acme', 'view', 3, 'free-1');
-- A replay is answered when the wallet is empty, too, and when the price has changed since.
select * from billing.apply_catalog('{"metrics": {"call": {"price": 99}, "view": {"price": 1}}}');
select * from billing.consume_credits(:'acme', 'call', 4, 'req-2');
select * from billing.consume_credits(:'acme', 'view', 3, 'free-1');
-- A year later, still.
set local billing.test_clock = '2027-03-01 00:00:00+00';
select * from billing.consume_credits(:'acme', 'call', 2, 'req-1', :'ann', '{"path": "/v1/chat"}');
set local billing.test_clock = '2026-03-01 00:00:00+00';

select entry_id, operation_id, kind, amount, balance_before, balance_after, grant_id, metric, quantity, member_id, idempotency_key, metadata
    from billing.entries where org_id = :'acme' order by entry_id;
select available, lifetime_purchased, lifetime_consumed from billing.get_wallet(:'acme');
select count(*) as usage_operations from billing.operations where org_id = :'acme' and kind = 'usage';

-- Unknown org, unknown metric.
select * from billing.consume_credits('00000000-0000-4000-8000-00000000dead', 'call');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'teleport');
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
