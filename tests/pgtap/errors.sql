-- Errors: each refusal of the interface with its SQLSTATE, a constant ASCII message, and a JSON detail that says the code
-- and what was variable. A refusal changes nothing.
\ir preamble.psql
set local billing.test_clock = '2026-03-01 00:00:00+00';

select count(*) from billing.apply_catalog('{"metrics": {"call": {"price": 2}, "sms": {"price": {"steps": [{"credits": 1, "per": 1}], "unit": "EUR"}}, "dear": {"price": 9223372036854775807},
        "seat": {}, "image": {"price": 1, "category": "AI"}, "chat": {"price": 1, "category": "Chat"}, "level": {"aggregation": "max"}, "user": {"aggregation": "unique"}, "visitor": {"aggregation": "unique", "unique_by": "email"}},
    "plans": {"solo": {"allowances": {"seat": 2}}, "gone": {}},
    "caps": [{"category": "AI", "per": "day", "limit": 3}, {"metric": "chat", "per": "month", "for": "member", "limit": 3}]}') \gset
select count(*) from billing.grant_credits(:'acme', 100) \gset
select count(*) from billing.grant_credits(:'bolt', 9223372036854775807, idempotency_key => 'used') \gset
select operation_id from billing.consume_credits(:'acme', 'call', 5, 'used', :'ann') \gset u_
select hold_id from billing.reserve_credits(:'acme', 'call', 5) \gset open_
select hold_id from billing.reserve_credits(:'acme', 'call', 5) \gset released_
select count(*) from billing.release_credits(:'acme', :released_hold_id) \gset
select hold_id from billing.lock_credits(:'acme', 5, 'payout') \gset locked_
select count(billing.set_member_budget(:'acme', :'ann', 12)) from generate_series(1, 1) \gset
select grant_id from billing.grant_credits(:'acme', 10) \gset bonus_
select count(*) from billing.refund_credits(:'acme', :u_operation_id, 4) \gset
select count(*) from billing.subscribe(:'acme', 'solo', idempotency_key => 'subscribed') \gset
select count(*) from billing.change_plan(:'acme', 'gone', true, idempotency_key => 'changed') \gset
select count(*) from billing.apply_catalog('{"plans": {"solo": {"allowances": {"seat": 2}}}}') \gset
select count(billing.record_usage(:'acme', 'seat', 1, 'event')) from generate_series(1, 1) \gset
create table public.tap_metered (org_id uuid, quantity bigint, note text, flag boolean);

create temp table refusal (n int generated always as identity, call text, state text, code text, fields text[] default '{}');
-- %1$s acme, %2$s bolt, %3$s an org that does not exist, %4$s Ann, %5$s the consumption, %6$s an open hold, %7$s a released hold, %8$s a payout hold, %9$s a grant
insert into refusal (call, state, code, fields) values
    ('consume_credits(%1$L, ''call'', 51)', 'PT402', 'insufficient_credits', '{required,available}'),
    ('consume_credits(%1$L, ''call'', 1000)', 'PT402', 'insufficient_credits', '{required,available}'),
    ('reserve_credits(%1$L, ''call'', 51)', 'PT402', 'insufficient_credits', '{required,available}'),
    ('lock_credits(%1$L, 500, ''payout'')', 'PT402', 'insufficient_credits', '{required,available}'),
    ('adjust_credits(%1$L, -500, ''correction'')', 'PT402', 'insufficient_credits', '{required,available}'),
    ('transfer_credits(%1$L, %2$L, 500)', 'PT402', 'insufficient_credits', '{required,available}'),
    ('capture_credits(%1$L, %6$s, 5000)', 'PT402', 'insufficient_credits', '{required,available}'),
    ('consume_credits(%1$L, ''sms'')', 'PT402', 'insufficient_credits', '{required,available}'),
    ('explain_consumption(%1$L, ''call'', 5000)', 'PT402', 'insufficient_credits', '{required,available}'),
    ('consume_credits(%3$L, ''call'')', 'PT404', 'unknown_org', '{}'),
    ('reserve_credits(%3$L, ''call'', 1)', 'PT404', 'unknown_org', '{}'),
    ('lock_credits(%3$L, 1, ''payout'')', 'PT404', 'unknown_org', '{}'),
    ('adjust_credits(%3$L, 1, ''gift'')', 'PT404', 'unknown_org', '{}'),
    ('transfer_credits(%3$L, %1$L, 1)', 'PT404', 'unknown_org', '{}'),
    ('get_wallet(%3$L)', 'PT404', 'unknown_org', '{}'),
    ('explain_consumption(%3$L, ''call'')', 'PT404', 'unknown_org', '{}'),
    ('set_member_budget(%3$L, %4$L, 1)', 'PT404', 'unknown_org', '{}'),
    ('consume_credits(%1$L, ''teleport'')', 'PT404', 'unknown_metric', '{}'),
    ('reserve_credits(%1$L, ''teleport'', 1)', 'PT404', 'unknown_metric', '{}'),
    ('explain_consumption(%1$L, ''teleport'')', 'PT404', 'unknown_metric', '{}'),
    ('calculate_cost(''teleport'')', 'PT404', 'unknown_metric', '{}'),
    ('calculate_cost(''{"teleport": 1}''::jsonb)', 'PT404', 'unknown_metric', '{}'),
    ('set_org_price(%1$L, ''teleport'', ''1'')', 'PT404', 'unknown_metric', '{}'),
    ('capture_credits(%1$L, 99999)', 'PT404', 'unknown_hold', '{}'),
    ('release_credits(%1$L, 99999)', 'PT404', 'unknown_hold', '{}'),
    ('release_credits(%2$L, %6$s)', 'PT404', 'unknown_hold', '{}'),
    ('pay_out(%1$L, 99999)', 'PT404', 'unknown_hold', '{}'),
    ('refund_credits(%1$L, 99999)', 'PT404', 'unknown_operation', '{}'),
    ('void_grant(%1$L, 99999, ''chargeback'')', 'PT404', 'unknown_grant', '{}'),
    ('consume_credits(%1$L, ''call'', 4, ''used'', %4$L)', 'PT409', 'idempotency_conflict', '{}'),
    ('consume_credits(%1$L, ''sms'', 5, ''used'', %4$L)', 'PT409', 'idempotency_conflict', '{}'),
    ('consume_credits(%1$L, ''call'', 5, ''used'')', 'PT409', 'idempotency_conflict', '{}'),
    ('consume_credits(%1$L, ''call'', 5, ''used'', %4$L, ''{"a": 1}'')', 'PT409', 'idempotency_conflict', '{}'),
    ('reserve_credits(%1$L, ''call'', 5, idempotency_key => ''used'', member_id => %4$L)', 'PT409', 'idempotency_conflict', '{}'),
    ('capture_credits(%1$L, %6$s, idempotency_key => ''used'')', 'PT409', 'idempotency_conflict', '{}'),
    ('lock_credits(%1$L, 5, ''payout'', idempotency_key => ''used'')', 'PT409', 'idempotency_conflict', '{}'),
    ('pay_out(%1$L, %8$s, ''used'')', 'PT409', 'idempotency_conflict', '{}'),
    ('refund_credits(%1$L, %5$s, 1, idempotency_key => ''used'')', 'PT409', 'idempotency_conflict', '{}'),
    ('adjust_credits(%1$L, 5, ''gift'', idempotency_key => ''used'')', 'PT409', 'idempotency_conflict', '{}'),
    ('void_grant(%1$L, %9$s, ''chargeback'', ''used'')', 'PT409', 'idempotency_conflict', '{}'),
    ('transfer_credits(%1$L, %2$L, 1, idempotency_key => ''used'')', 'PT409', 'idempotency_conflict', '{}'),
    ('grant_credits(%2$L, 1, idempotency_key => ''used'')', 'PT409', 'idempotency_conflict', '{}'),
    ('capture_credits(%1$L, %7$s)', 'PT409', 'hold_closed', '{}'),
    ('capture_credits(%1$L, %6$s, 6, beyond => ''refuse'')', 'PT409', 'capture_exceeds', '{reserved,required}'),
    ('refund_credits(%1$L, %5$s, 7)', 'PT409', 'refund_exceeds', '{}'),
    ('refund_credits(%1$L, %5$s, 5000)', 'PT409', 'refund_exceeds', '{}'),
    ('consume_credits(%1$L, ''call'', 6, member_id => %4$L)', 'PT429', 'cap_exceeded', '{}'),
    ('reserve_credits(%1$L, ''call'', 6, member_id => %4$L)', 'PT429', 'cap_exceeded', '{}'),
    ('consume_credits(%1$L, ''call'', 0)', '22023', 'invalid_argument', '{}'),
    ('consume_credits(%1$L, ''call'', -7)', '22023', 'invalid_argument', '{}'),
    ('consume_credits(null, ''call'')', '22023', 'invalid_argument', '{}'),
    ('consume_credits(%1$L, null)', '22023', 'invalid_argument', '{}'),
    ('consume_credits(%1$L, ''call'', null)', '22023', 'invalid_argument', '{}'),
    ('consume_credits(%1$L, ''call'', 1, '''')', '22023', 'invalid_argument', '{}'),
    ('consume_credits(%1$L, ''call'', 1, repeat(''k'', 256))', '22023', 'invalid_argument', '{}'),
    ('consume_credits(%1$L, ''call'', 1, metadata => ''[]'')', '22023', 'invalid_argument', '{}'),
    ('consume_credits(%1$L, ''dear'', 2)', '22023', 'invalid_argument', '{}'),
    ('grant_credits(%1$L, 0)', '22023', 'invalid_argument', '{}'),
    ('grant_credits(%1$L, 9223372036854775807)', '22023', 'invalid_argument', '{}'),
    ('grant_credits(%1$L, 1, ''lottery'')', '22023', 'invalid_argument', '{}'),
    ('grant_credits(%1$L, 1, unit => ''XXY'')', '22023', 'invalid_argument', '{}'),
    ('grant_credits(%1$L, 1, effective_at => ''2026-05-01'', expires_at => ''2026-04-01'')', '22023', 'invalid_argument', '{}'),
    ('adjust_credits(%1$L, 0, ''nothing'')', '22023', 'invalid_argument', '{}'),
    ('adjust_credits(%1$L, 1, null)', '22023', 'invalid_argument', '{}'),
    ('reserve_credits(%1$L, ''call'', 1, ''0'')', '22023', 'invalid_argument', '{}'),
    ('reserve_credits(%1$L, ''call'', 1, ''2 years'')', '22023', 'invalid_argument', '{}'),
    ('capture_credits(%1$L, %6$s, beyond => ''maybe'')', '22023', 'invalid_argument', '{}'),
    ('transfer_credits(%1$L, %1$L, 1)', '22023', 'invalid_argument', '{}'),
    ('get_total_credits(null)', '22023', 'invalid_argument', '{}'),
    ('calculate_cost(null::jsonb)', '22023', 'invalid_argument', '{}'),
    ('calculate_cost(''dear'', 2)', '22023', 'invalid_argument', '{}'),
    ('consume_credits_batch(''{}'')', '22023', 'invalid_argument', '{}'),
    ('set_member_budget(%1$L, %4$L, 1, ''week'')', '22023', 'invalid_argument', '{}'),
    ('create_wallet(%1$L, owner_type => ''robot'')', '22023', 'invalid_argument', '{}'),
    ('apply_catalog(''{"metrics": {"a": {"price": -1}}}'')', '22023', 'invalid_catalog', '{faults}'),
    ('apply_catalog(''{"metrics": 7}'')', '22023', 'invalid_catalog', '{faults}'),
    ('apply_catalog(''{"colours": {}}'')', '22023', 'invalid_catalog', '{faults}'),
    -- Plans, recorded usage, limits, settlement.
    ('consume_credits(%1$L, ''seat'', 2)', 'PT402', 'plan_limit', '{metric,allowance,remaining,quantity}'),
    ('reserve_credits(%1$L, ''seat'', 2)', 'PT402', 'plan_limit', '{metric,allowance,remaining,quantity}'),
    ('subscribe(%2$L, ''teleport'')', 'PT404', 'unknown_plan', '{plan}'),
    ('subscribe(%2$L, ''gone'')', 'PT404', 'unknown_plan', '{plan}'),
    ('change_plan(%1$L, ''teleport'')', 'PT404', 'unknown_plan', '{plan}'),
    ('change_plan(%2$L, ''solo'')', 'PT404', 'unknown_subscription', '{org_id}'),
    ('change_plan(%3$L, ''solo'')', 'PT404', 'unknown_subscription', '{org_id}'),
    ('cancel_subscription(%2$L)', 'PT404', 'unknown_subscription', '{org_id}'),
    ('cancel_subscription(%3$L, false)', 'PT404', 'unknown_subscription', '{org_id}'),
    ('record_usage(%1$L, ''teleport'')', 'PT404', 'unknown_metric', '{metric}'),
    ('record_usage_batch(jsonb_build_array(jsonb_build_object(''org_id'', %1$L, ''metric'', ''call''), jsonb_build_object(''org_id'', %1$L, ''metric'', ''teleport'')))', 'PT404', 'unknown_metric', '{metric,item}'),
    ('check_limit(%1$L, ''teleport'')', 'PT404', 'unknown_metric', '{metric}'),
    ('allows(%1$L, ''teleport'')', 'PT404', 'unknown_metric', '{metric}'),
    ('set_org_allowance(%1$L, ''teleport'', 1)', 'PT404', 'unknown_metric', '{metric}'),
    ('meter_table(''public.tap_metered'', ''teleport'', ''org_id'')', 'PT404', 'unknown_metric', '{metric}'),
    ('subscribe(%1$L, ''solo'', ''2026-04-01'', ''subscribed'')', 'PT409', 'idempotency_conflict', '{idempotency_key}'),
    ('subscribe(%1$L, ''solo'', idempotency_key => ''subscribed'', metadata => ''{"a": 1}'')', 'PT409', 'idempotency_conflict', '{idempotency_key}'),
    ('subscribe(%1$L, ''solo'', idempotency_key => ''changed'')', 'PT409', 'idempotency_conflict', '{idempotency_key}'),
    ('change_plan(%1$L, ''solo'', true, ''changed'')', 'PT409', 'idempotency_conflict', '{idempotency_key}'),
    ('consume_credits(%1$L, ''image'', 4)', 'PT429', 'cap_exceeded', '{cap,category,per,limit,used,required,resets_at}'),
    ('reserve_credits(%1$L, ''image'', 4)', 'PT429', 'cap_exceeded', '{cap,category,per,limit,used,required,resets_at}'),
    ('consume_credits(%2$L, ''chat'', 4, member_id => %4$L)', 'PT429', 'cap_exceeded', '{cap,metric,per,limit,used,required,resets_at,member_id}'),
    ('subscribe(null, ''solo'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('subscribe(%1$L, ''solo'', ''infinity'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('subscribe(%1$L, ''solo'', ''2026-03-20'')', '22023', 'invalid_argument', '{argument,fault,period_end}'),
    ('subscribe(%1$L, ''solo'', idempotency_key => '''')', '22023', 'invalid_argument', '{argument,fault}'),
    ('subscribe(%1$L, ''solo'', metadata => ''[]'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('change_plan(%1$L, null)', '22023', 'invalid_argument', '{argument,fault}'),
    ('change_plan(%1$L, ''solo'', null)', '22023', 'invalid_argument', '{argument,fault}'),
    ('cancel_subscription(%1$L, null)', '22023', 'invalid_argument', '{argument,fault}'),
    ('set_org_allowance(%1$L, ''seat'', -7)', '22023', 'invalid_argument', '{argument,fault}'),
    ('set_org_allowance(%1$L, ''seat'', 1, ''robot'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('record_usage(%1$L, ''seat'', 0)', '22023', 'invalid_argument', '{argument,fault}'),
    ('record_usage(%1$L, ''level'', -7)', '22023', 'invalid_argument', '{argument,fault}'),
    ('record_usage(%1$L, ''seat'', 1, '''')', '22023', 'invalid_argument', '{argument,fault}'),
    ('record_usage(%1$L, ''seat'', 1, occurred_at => ''2026-03-01 00:05:01+00'')', '22023', 'invalid_argument', '{argument,fault,occurred_at,now}'),
    ('record_usage(%1$L, ''seat'', 1, properties => ''[]'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('record_usage(%1$L, ''user'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('record_usage(%1$L, ''visitor'')', '22023', 'invalid_argument', '{argument,fault,property}'),
    ('record_usage_batch(''{}'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('record_usage_batch(''[7]'')', '22023', 'invalid_argument', '{argument,fault,item}'),
    ('record_usage_batch(jsonb_build_array(jsonb_build_object(''org_id'', %1$L, ''metric'', ''seat'', ''quantity'', 500.5)))', '22023', 'invalid_argument', '{argument,fault,item}'),
    ('record_usage_batch(jsonb_build_array(jsonb_build_object(''org_id'', ''robot'', ''metric'', ''seat'')))', '22023', 'invalid_argument', '{argument,fault,item}'),
    ('record_usage_batch(jsonb_build_array(jsonb_build_object(''org_id'', %1$L, ''metric'', ''seat'', ''colour'', 1)))', '22023', 'invalid_argument', '{argument,fault,item,key}'),
    ('check_limit(null, ''call'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('check_limit(%1$L, ''call'', 0)', '22023', 'invalid_argument', '{argument,fault}'),
    ('allows(%1$L, ''call'', -7)', '22023', 'invalid_argument', '{argument,fault}'),
    ('credit_history(%1$L, 0)', '22023', 'invalid_argument', '{argument,fault}'),
    ('configure_alerts(''{500}'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('configure_alerts(expiring_days => -7)', '22023', 'invalid_argument', '{argument,fault}'),
    ('settle_org(null)', '22023', 'invalid_argument', '{argument,fault}'),
    ('settle_org(%1$L, ''2026-03-02'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('internal.begin_settlement(''2026-03-02'', 0, 1)', '22023', 'invalid_argument', '{argument,fault}'),
    ('internal.begin_settlement(''2026-03-01'', 0, 0)', '22023', 'invalid_argument', '{argument,fault}'),
    ('internal.begin_settlement(''2026-03-01'', -7, 2)', '22023', 'invalid_argument', '{argument,fault}'),
    ('meter_table(null, ''call'', ''org_id'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('meter_table(''billing_internal.lanes'', ''call'', ''org_id'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('meter_table(''public.tap_metered'', ''call'', ''note'')', '22023', 'invalid_argument', '{argument,column,fault}'),
    ('meter_table(''public.tap_metered'', ''call'', ''org_id'', ''flag'')', '22023', 'invalid_argument', '{argument,column,fault}'),
    ('meter_table(''public.tap_metered'', ''call'', ''org_id'', mode => ''maybe'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('unmeter_table(''public.tap_metered'', null)', '22023', 'invalid_argument', '{argument,fault}'),
    ('schedule_settlement(null)', '22023', 'invalid_argument', '{argument,fault}'),
    -- Gift cards. (Codes that could be ones are tried in tests/live: that is noted for good.)
    ('redeem_gift_card(%1$L, ''nonsense'')', 'PT404', 'unknown_code', '{}'),
    ('redeem_gift_card(%3$L, '''')', 'PT404', 'unknown_code', '{}'),
    ('redeem_gift_card(null, ''nonsense'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('redeem_gift_card(%1$L, null)', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards(null, 5)', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards('' '', 5)', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards(''party'', 0)', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards(''party'', 5, 0)', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards(''party'', 5, max_redemptions => -7)', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards(''party'', 5, unit => ''XXY'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards(''party'', 5, validity => ''soon'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards(''party'', 5, expires_at => ''2026-03-01 00:00:00+00'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards(''party'', 5, source => ''bonus'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards(''party'', 5, metrics => ''{}'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('create_gift_cards(''party'', 5, metrics => ''{teleport}'')', 'PT404', 'unknown_metric', '{metric}'),
    ('create_gift_cards(''party'', 5, metadata => ''[]'')', '22023', 'invalid_argument', '{argument,fault}'),
    ('void_gift_cards(''nobody'')', 'PT404', 'unknown_batch', '{batch}'),
    ('void_gift_cards(null)', '22023', 'invalid_argument', '{argument,fault}'),
    ('apply_catalog(''{"plans": {"solo": {"period": "week"}}}'')', '22023', 'invalid_catalog', '{faults}'),
    ('apply_catalog(''{"plans": {"a": {"allowances": {"teleport": 1}}}}'')', '22023', 'invalid_catalog', '{faults}'),
    ('apply_catalog(''{"plans": {"a": {"limits": {"call": "maybe"}}}}'')', '22023', 'invalid_catalog', '{faults}'),
    ('apply_catalog(''{"caps": [{"per": "week"}]}'')', '22023', 'invalid_catalog', '{faults}'),
    ('apply_catalog(''{"caps": [{"metric": "teleport", "per": "day", "limit": 1}]}'')', '22023', 'invalid_catalog', '{faults}');
-- Where pg_cron is absent.
insert into refusal (call, state, code, fields)
    select c.call, '0A000', 'pg_cron_missing', '{database}' from (values ('schedule_settlement()'), ('unschedule_settlement()')) c (call)
    where not exists (select from pg_extension where extname = 'pg_cron');

-- What an error says; every attempt is undone, also a call that succeeds against expectation.
create function pg_temp.attempt(call text, out state text, out message text, out detail text) language plpgsql as $$
begin
    begin
        execute call;
        state := '00000';
        raise exception using errcode = 'UNDO0';
    exception when others then
        if sqlstate <> 'UNDO0' then
            get stacked diagnostics state = returned_sqlstate, message = message_text, detail = pg_exception_detail;
        end if;
    end;
end $$;
create temp table before as select (select count(*) from billing.entries) as entries, billing.get_total_credits(:'acme') as total;
create temp table outcome as
    select r.*, a.state as got_state, a.message, a.detail
    from refusal r, lateral pg_temp.attempt('select * from billing' || case when r.call like 'internal.%' then '_' else '.' end || format(r.call, :'acme', :'bolt', '00000000-0000-4000-8000-00000000dead', :'ann',
        :u_operation_id, :open_hold_id, :released_hold_id, :locked_hold_id, :bonus_grant_id)) a;

select is(got_state, state, 'SQLSTATE of ' || call) from outcome order by n;
select is(case when pg_input.valid then detail::jsonb ->> 'code' end, code, 'code of ' || call)
    from outcome, lateral (select detail like '{%}' as valid) pg_input order by n;
select ok(detail::jsonb ?& fields, format('detail of %s has %s', call, fields)) from outcome where fields <> '{}' and detail like '{%}' order by n;
select ok(message ~ '^[\x20-\x7e]+$', 'an ASCII message on one line: ' || call) from outcome order by n;
-- Constant: whatever was asked, the same code has the same message; arguments have a message for each rule, without values.
select is(count(distinct message), 1::bigint, 'one message for ' || code) from outcome where code <> 'invalid_argument' group by code order by code;
select ok(message !~ '99999|500|teleport|lottery|robot|week|maybe|XXY|-7|00000000', 'no value in the message: ' || call || ': ' || message) from outcome where message is not null order by n;
-- Numbers are numbers.
select is(detail::jsonb ->> 'required', '102', 'what was required') from outcome where call = 'consume_credits(%1$L, ''call'', 51)';
select is((detail::jsonb ->> 'available')::bigint, billing.get_total_credits(:'acme'), 'what was available') from outcome where call = 'consume_credits(%1$L, ''call'', 51)';
select is(jsonb_typeof(detail::jsonb -> 'required') || jsonb_typeof(detail::jsonb -> 'available'), 'numbernumber', 'as numbers') from outcome where call = 'consume_credits(%1$L, ''call'', 51)';
select ok(jsonb_array_length(detail::jsonb -> 'faults') > 0 and detail::jsonb -> 'faults' -> 0 ?& '{path,fault}', 'faults with paths: ' || call) from outcome where code = 'invalid_catalog';
-- In a batch of consumptions each item has its own.
select is(b.status || ' ' || (b.detail ->> 'code'), x.expected, 'an item: ' || x.item::text)
    from (values ('{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "seat", "quantity": 2}'::jsonb, 'insufficient_credits plan_limit'),
                 ('{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 500}', 'insufficient_credits insufficient_credits'),
                 ('{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "image", "quantity": 4}', 'cap_exceeded cap_exceeded'),
                 ('{"org_id": "00000000-0000-4000-8000-000000000002", "metric": "chat", "quantity": 4, "member_id": "00000000-0000-4000-8000-0000000000a1"}', 'cap_exceeded cap_exceeded'),
                 ('{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 6, "member_id": "00000000-0000-4000-8000-0000000000a1"}', 'cap_exceeded cap_exceeded'),
                 ('{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "teleport"}', 'invalid unknown_metric'),
                 ('{"org_id": "00000000-0000-4000-8000-00000000dead", "metric": "call"}', 'invalid unknown_org'),
                 ('{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "idempotency_key": "used"}', 'invalid idempotency_conflict'),
                 ('{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 0}', 'invalid invalid_argument'),
                 ('{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "colour": "red"}', 'invalid invalid_argument'),
                 ('7', 'invalid invalid_argument')) x (item, expected), billing.consume_credits_batch(jsonb_build_array(x.item)) b;
select ok((b.detail ->> 'cap') = 'category AI per day and org' and b.detail ?& '{category,per,limit,used,required,resets_at}', 'which cap it was')
    from billing.consume_credits_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "image", "quantity": 4}]') b;
select is((pg_temp.attempt($$select * from billing.record_usage_batch('[{"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call"}, {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": -7}]')$$)).detail::jsonb ->> 'item',
          '2', 'which event of a batch it was');
select is(jsonb_array_length((pg_temp.attempt($$select * from billing.apply_catalog('{"metrics": {"a": {"price": -1}, "b": {"price": 1.5}, "c": {"colour": 1, "price": 1}}}')$$)).detail::jsonb -> 'faults'), 3, 'every fault is listed');

-- No right.
create role tap_member;
select count(billing.grant_access('tap_member', 'member')) from generate_series(1, 1) \gset
set local role tap_member;
select set_config('request.jwt.claims', '{"org_id": "00000000-0000-4000-8000-000000000001"}', true) is null as nothing \gset
select throws_ok($$select billing.get_total_credits('00000000-0000-4000-8000-000000000002')$$, '42501', null, 'another org');
select throws_ok($$select * from billing.grant_credits('00000000-0000-4000-8000-000000000001', 1)$$, '42501', null, 'a function of another level');
select throws_ok($$select * from billing.check_limit('00000000-0000-4000-8000-000000000002', 'call')$$, '42501', null, 'the limits of another org');
select throws_ok($$select * from billing.credit_history('00000000-0000-4000-8000-000000000002')$$, '42501', null, 'the history of another org');
select throws_ok($$select billing.record_usage('00000000-0000-4000-8000-000000000001', 'call')$$, '42501', null, 'no recording');
select throws_ok($$insert into billing.entries (org_id) values ('00000000-0000-4000-8000-000000000001')$$, '42501', null, 'no writing');
reset role;
create role tap_service;
select count(billing.grant_access('tap_service', 'service')) from generate_series(1, 1) \gset
set local role tap_service;
select is((pg_temp.attempt($$select billing.meter_table('public.tap_metered', 'call', 'org_id')$$)).detail::jsonb ->> 'code', 'not_owner', 'somebody else''s table');
reset role;
select is((pg_temp.attempt('update billing.usage_events set quantity = 1')).detail::jsonb ->> 'code', 'append_only', 'events stay as they are');

select is((select count(*) from billing.entries), entries, 'no refusal wrote an entry') from before;
select is(billing.get_total_credits(:'acme'), total, 'or moved a credit') from before;
select is_empty('select * from billing.verify_ledger()', 'the ledger is sound');
select * from finish();
rollback;
