-- Where 63 bits end: what does not fit is refused by name, and no wallet gets stuck there.
\i preamble.psql
\set coil 00000000-0000-4000-8000-000000000003
\set most 9223372036854775807
select name from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "many": {"price": {"credits": 1, "per": 3}}}}') order by name;

-- What is reserved and locked can always come back: it counts for what may still be granted.
select balance_after from billing.grant_credits(:'acme', :most);
select hold_id from billing.reserve_credits(:'acme', 'call', 9223372036854775000, '1 day') \gset h_
select hold_id from billing.lock_credits(:'acme', 800, 'payout') \gset p_
select available, reserved, locked from billing.get_wallet(:'acme');
select balance_after from billing.grant_credits(:'acme', 1);
\echo :LAST_ERROR_SQLSTATE
select balance_after from billing.adjust_credits(:'acme', 1, 'one more');
\echo :LAST_ERROR_SQLSTATE
select grant_id from billing.grant_credits(:'bolt', 10);
select from_balance from billing.transfer_credits(:'bolt', :'acme', 1);
\echo :LAST_ERROR_SQLSTATE
select balance_after from billing.release_credits(:'acme', :p_hold_id);
-- The hold times out: everything is back, and can be spent.
set local billing.test_clock = '2026-03-02 00:00:00+00';
select billing.get_total_credits(:'acme') = :most as all_of_it;
select billing.book_expiries();
select operation_id, balance_after from billing.consume_credits(:'acme', 'call', :most) \gset u_
select balance_after from billing.refund_credits(:'acme', :u_operation_id);
select voided, already_spent, balance_after from billing.void_grant(:'acme', 1, 'withdrawn');
select available, reserved, locked, lifetime_consumed from billing.get_wallet(:'acme');
select * from billing.verify_ledger();

-- What was ever consumed ends there, too. Whoever is refused is charged nothing, in a batch as alone.
select balance_after from billing.grant_credits(:'coil', :most);
select balance_after from billing.consume_credits(:'coil', 'call', 9223372036854775800);
select balance_after from billing.grant_credits(:'coil', 100);
select credits from billing.consume_credits(:'coil', 'call', 8, 'too much');
\echo :LAST_ERROR_SQLSTATE
select item, status, credits, balance_after, detail from billing.consume_credits_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "call", "quantity": 8, "idempotency_key": "too much"},
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "call", "quantity": 5},
    {"org_id": "00000000-0000-4000-8000-000000000003", "metric": "call", "quantity": 3},
    {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call", "quantity": 3}
]') order by item;
select hold_id from billing.reserve_credits(:'coil', 'call', 50, '1 day') \gset h_
select credits from billing.capture_credits(:'coil', :h_hold_id);
\echo :LAST_ERROR_SQLSTATE
select credits, balance_after from billing.capture_credits(:'coil', :h_hold_id, 2);
select available, reserved, lifetime_consumed from billing.get_wallet(:'coil');
select entry_id, kind, amount from billing.entries where org_id = :'coil' order by entry_id;
select * from billing.verify_ledger();

-- The common consumption, too, sees the end before it comes there.
\set ergo 00000000-0000-4000-8000-000000000005
select balance_after from billing.grant_credits(:'ergo', :most);
select balance_after from billing.consume_credits(:'ergo', 'call', 4000000000000000000);
select balance_after from billing.adjust_credits(:'ergo', -5223372036854775807, 'moved elsewhere');
select balance_after from billing.grant_credits(:'ergo', :most);
select credits from billing.consume_credits(:'ergo', 'call', 5223372036854775808);
\echo :LAST_ERROR_SQLSTATE
select balance_after from billing.consume_credits(:'ergo', 'call', 5223372036854775807);
select available, lifetime_consumed from billing.get_wallet(:'ergo');

-- What was ever purchased, and a member's figures.
select balance_after from billing.grant_credits(:'dyne', :most, 'purchase');
select balance_after from billing.adjust_credits(:'dyne', -9223372036854775807, 'moved elsewhere');
select balance_after from billing.grant_credits(:'dyne', 1, 'purchase');
\echo :LAST_ERROR_SQLSTATE
select balance_after from billing.adjust_credits(:'dyne', -9223372036854775808, 'below');
\echo :LAST_ERROR_SQLSTATE
select balance_after from billing.grant_credits(:'dyne', 10, 'bonus');
select billing.set_member_budget(:'dyne', '00000000-0000-4000-8000-0000000000a1', :most, 'total');
select credits from billing.consume_credits(:'dyne', 'call', 10, member_id => '00000000-0000-4000-8000-0000000000a1');

-- Time limits that no calendar holds.
create function pg_temp.refusal(statement text) returns text language plpgsql as $$
declare said text;
begin
    execute statement;
    return 'done';
exception when others then
    get stacked diagnostics said = pg_exception_detail;
    return sqlstate || ' ' || coalesce(said::jsonb ->> 'fault', said::jsonb #>> '{faults,0,fault}');
end $$;
select ttl, pg_temp.refusal(format('select billing.reserve_credits(%L, %L, 1, %L)', :'bolt', 'call', ttl)) as refusal
    from unnest(array['-178956970 years -8 months', '178956970 years', '-2147483648 days', '2147483647 days', '-2562047788:00:54.775807', '2562047788:00:54.775807', '1 month -31 days', '1 year 2 days']) ttl;
-- A grant may last until the end of the calendar and begin at its beginning.
select balance_after from billing.grant_credits(:'bolt', 5, effective_at => '4714-11-24 00:00:00+00 BC', expires_at => '294276-12-31 23:59:59.999999+00');
select balance_after from billing.grant_credits(:'bolt', 5, effective_at => '-infinity', expires_at => 'infinity');
select pg_temp.refusal(format('select billing.grant_credits(%L, 5, effective_at => %L)', :'bolt', 'infinity')) as refusal;
-- Prices hold from a year that every program can show.
select d.day, f.refusal from unnest(array['-200000-01-01', '0000-12-31', '0001-01-01', '9999-12-31', '+10000-01-01', '+262000-01-01T00:00:00Z']) d (day)
    cross join lateral (select pg_temp.refusal(format('select billing.set_org_price(%L, %L, %L)', :'bolt', 'many', jsonb_build_object('credits', 1, 'effective_at', d.day))) as refusal) f;
select * from billing.apply_catalog('{"metrics": {"call": {"price": {"credits": 1, "effective_at": "+10000-01-01"}}}}');
\echo :LAST_ERROR_SQLSTATE

-- Numbers in JSON that no program's number holds, and depths.
select balance_after from billing.consume_credits(:'bolt', 'call', 1, metadata => '{"a": 1e400}');
select item, status, credits, detail from billing.consume_credits_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call", "metadata": {"a": 1e400}, "idempotency_key": "huge"},
    {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call", "quantity": 1e400},
    {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call", "quantity": 1e1},
    {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call"}
]') order by item;
select item, status from billing.consume_credits_batch('[{"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call", "metadata": {"a": 1e400}, "idempotency_key": "huge"}]');
select length(metadata::text) from billing.entries where org_id = :'bolt' and idempotency_key = 'huge';
select status, credits from billing.consume_credits_batch(format('[{"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call", "metadata": {"a": %s1%s}}]', repeat('[', 500), repeat(']', 500))::jsonb);
select * from billing.apply_catalog('{"metrics": {"call": {"price": 1e400}}}');
\echo :LAST_ERROR_SQLSTATE
select billing.calculate_cost('{"call": 1e400}'::jsonb);
\echo :LAST_ERROR_SQLSTATE

-- A name of a hundred thousand bytes is not told back in full.
select * from billing.consume_credits(:'bolt', repeat('x', 100000));
\echo :LAST_ERROR_SQLSTATE
select status, length(detail::text) < 200 as short from billing.consume_credits_batch(jsonb_build_array(jsonb_build_object('org_id', :'bolt', 'metric', repeat('x', 100000))));
select * from billing.verify_ledger();
rollback;
