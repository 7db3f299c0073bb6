-- The catalog is one JSON document: tried, compared, applied, exported; a bad one is refused with every fault and its path.
\i preamble.psql
select billing.export_catalog();

-- A dry run says what would be done and does nothing.
select * from billing.apply_catalog('{"metrics": {"ai_summary": {"category": "AI", "tier": "premium", "price": 15},
    "bandwidth": {"unit": "byte", "aggregation": "sum", "category": "Network",
                  "price": {"steps": [{"up_to": 1099511627776, "credits": 600, "per": 1073741824}, {"credits": 500, "per": 1073741824}]}}}}', dry_run => true);
select billing.export_catalog();
select * from billing.apply_catalog('{"metrics": {"ai_summary": {"category": "AI", "tier": "premium", "price": 15},
    "bandwidth": {"unit": "byte", "aggregation": "sum", "category": "Network",
                  "price": {"steps": [{"up_to": 1099511627776, "credits": 600, "per": 1073741824}, {"credits": 500, "per": 1073741824}]}}}}');
select jsonb_pretty(billing.export_catalog());

-- What was exported changes nothing when it is applied; nor does the same document again.
select * from billing.apply_catalog(billing.export_catalog());
select * from billing.apply_catalog('{"metrics": {"ai_summary": {"category": "AI", "tier": "premium", "price": 15},
    "bandwidth": {"unit": "byte", "aggregation": "sum", "category": "Network",
                  "price": {"steps": [{"up_to": 1099511627776, "credits": 600, "per": 1073741824}, {"credits": 500, "per": 1073741824}]}}}}');

-- One changed, one retired, one new.
select * from billing.grant_credits(:'acme', 100000);
select credits from billing.consume_credits(:'acme', 'ai_summary');
select * from billing.apply_catalog('{"metrics": {"ai_summary": {"category": "AI", "tier": "premium", "price": 20}, "call": {"price": 1}}}', true);
select * from billing.apply_catalog('{"metrics": {"ai_summary": {"category": "AI", "tier": "premium", "price": 20}, "call": {"price": 1}}}');
select jsonb_pretty(billing.export_catalog());
select credits from billing.consume_credits(:'acme', 'ai_summary');
select credits from billing.consume_credits(:'acme', 'call');
select credits from billing.consume_credits(:'acme', 'bandwidth');
\echo :LAST_ERROR_SQLSTATE
-- A retired metric can come back.
select * from billing.apply_catalog('{"metrics": {"ai_summary": {"category": "AI", "tier": "premium", "price": 20}, "call": {"price": 1}, "bandwidth": {"price": 3}}}');
select credits from billing.consume_credits(:'acme', 'bandwidth');

-- A price with a date takes effect at its moment, and not before.
select * from billing.apply_catalog('{"metrics": {"ai_summary": {"category": "AI", "tier": "premium", "price": {"steps": [{"credits": 50, "per": 1}], "effective_at": "2026-03-10T00:00:00Z"}},
    "call": {"price": 1}, "bandwidth": {"price": 3}}}');
select billing.calculate_cost('ai_summary', 2) as today;
select jsonb_pretty(billing.export_catalog() #> '{metrics,ai_summary}');
set local billing.test_clock = '2026-03-09 23:59:59.999999+00';
select billing.calculate_cost('ai_summary', 2) as just_before;
set local billing.test_clock = '2026-03-10 00:00:00+00';
select billing.calculate_cost('ai_summary', 2) as from_then_on;
select credits from billing.consume_credits(:'acme', 'ai_summary');
set local billing.test_clock = '2026-03-01 00:00:00+00';

-- A failed apply leaves everything as it was, and lists every fault.
select billing.export_catalog() as before \gset
select * from billing.apply_catalog('{"metrics": {"call": {"price": 2},
    "a": {"price": -1}, "b": {"price": 1.5}, "c": {"price": "7"}, "d": {}, "e": {"price": {"steps": []}},
    "f": {"price": {"steps": [{"credits": 1, "per": 0}]}},
    "g": {"price": {"steps": [{"up_to": 10, "credits": 2, "per": 1}, {"up_to": 10, "credits": 1, "per": 1}, {"credits": 1, "per": 1}]}},
    "h": {"price": {"steps": [{"up_to": 10, "credits": 2, "per": 1}]}},
    "i": {"price": {"steps": [{"credits": 2, "per": 1}, {"up_to": 10, "credits": 2, "per": 1}]}},
    "j": {"price": 1, "colour": "red"}, "k": {"price": 1, "tier": "gold"}, "l": {"price": 1, "aggregation": "median"},
    "m": {"price": {"steps": [{"credits": 2, "per": 1}], "unit": "gold"}},
    "n": {"price": {"steps": [{"credits": 2, "per": 1, "colour": "red"}], "effective_at": "soon"}},
    "": {"price": 1}, "o": {"price": 9223372036854775808}, "p": 7, "q": null},
    "colours": {}}');
\echo :LAST_ERROR_SQLSTATE
select billing.export_catalog() = :'before' as unchanged;
select * from billing.apply_catalog(jsonb_build_object('metrics', jsonb_build_object(repeat('x', 63), '{"price": 1}'::jsonb, repeat('y', 64), '{"price": 1}'::jsonb)));
\echo :LAST_ERROR_SQLSTATE
select * from billing.apply_catalog('[]');
\echo :LAST_ERROR_SQLSTATE
select * from billing.apply_catalog('{"metrics": []}');
\echo :LAST_ERROR_SQLSTATE
select * from billing.apply_catalog(null);
\echo :LAST_ERROR_SQLSTATE
select billing.export_catalog() = :'before' as unchanged;

-- A price with a date that another one superseded comes back when the document with that date is applied again.
set local billing.test_clock = '2026-09-10 00:00:00+00';
select action from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{metrics,dated}', '{"price": 1}'));
select action from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{metrics,dated}', '{"price": {"credits": 2, "effective_at": "2026-09-20"}}'));
set local billing.test_clock = '2026-09-20 00:00:00+00';
select billing.calculate_cost('dated');
select action from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{metrics,dated}', '{"price": {"credits": 2, "effective_at": "2026-09-20"}}'));
set local billing.test_clock = '2026-09-25 00:00:00+00';
select action from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{metrics,dated}', '{"price": 3}'));
select billing.calculate_cost('dated');
set local billing.test_clock = '2026-09-30 00:00:00+00';
select action, name, detail from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{metrics,dated}', '{"price": {"credits": 2, "effective_at": "2026-09-20"}}'));
select billing.calculate_cost('dated');
select action from billing.apply_catalog(jsonb_set(billing.export_catalog(), '{metrics,dated}', '{"price": {"credits": 2, "effective_at": "2026-09-20"}}'));
select effective_at, price -> 'steps' -> 0 -> 'credits' as credits from billing.prices where metric = 'dated' order by 1;

-- An empty document retires everything.
select action, kind, name from billing.apply_catalog('{"metrics": {}}') order by name;
select billing.export_catalog();
select * from billing.verify_ledger();
rollback;
