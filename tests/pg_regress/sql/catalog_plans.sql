-- Plans and caps of the catalog: every fault with its path, what a document would change, dry runs, and an export that changes nothing
-- when it is applied. Who is on a plan that is dropped stays on it.
\i preamble.psql
set local billing.test_clock = '2027-06-01 00:00:00+00';
\set document '{"metrics": {"call": {"price": 1, "category": "AI"}, "seat": {"aggregation": "last"}, "visitor": {"aggregation": "unique", "unique_by": "email", "price": 2}}, "plans": {"free": {"default": true, "allowances": {"call": 5}}, "solo": {"price": {"USD": 1400, "EUR": 1300}, "credits": {"amount": 100, "rollover": "capped", "cap": 50}, "allowances": {"call": 1000, "seat": "unlimited"}, "limits": {"call": "soft"}}, "year": {"period": "year", "credits": {"amount": 1000, "rollover": "all"}}}, "caps": [{"category": "AI", "per": "day", "limit": 200}, {"metric": "call", "per": "month", "for": "member", "limit": 0}]}'

-- Tried, then applied.
select * from billing.apply_catalog(:'document', dry_run => true);
select billing.export_catalog();
select action, kind, name from billing.apply_catalog(:'document');
select jsonb_pretty(billing.export_catalog());
-- The export, and the same document again, change nothing. What is the default need not be said.
select * from billing.apply_catalog(billing.export_catalog());
select * from billing.apply_catalog(:'document');
select * from billing.apply_catalog('{"plans": {"free": {"period": "month", "default": true, "price": {}, "credits": null, "allowances": {"call": 5}, "limits": {}},
    "solo": {"price": {"EUR": 1300, "USD": 1400}, "credits": {"amount": 100, "rollover": "capped", "cap": 50}, "allowances": {"call": 1000, "seat": "unlimited"}, "limits": {"call": "soft"}},
    "year": {"period": "year", "credits": {"amount": 1000, "rollover": "all"}, "default": false}}, "caps": [{"category": "AI", "per": "day", "for": "org", "limit": 200}, {"metric": "call", "per": "month", "for": "member", "limit": 0}]}');

-- A section that is absent is left alone; one that is present is complete.
select action, kind, name, detail from billing.apply_catalog('{"caps": [{"category": "AI", "per": "day", "limit": 300}]}');
select action, kind, name, detail from billing.apply_catalog('{"plans": {"free": {"default": true, "allowances": {"call": 6}}, "solo": {"price": {"USD": 1500}, "credits": {"amount": 100}, "allowances": {"call": 1000}}, "team": {"period": "week"}}}', true);
select billing.export_catalog() -> 'plans' -> 'free' as free;

-- Who is on it stays, with its terms, whether it changes or goes. Changes hold at once.
select plan from billing.subscribe(:'acme', 'solo');
select action, kind, name, detail from billing.apply_catalog('{"plans": {"free": {"default": true, "allowances": {"call": 6}}, "solo": {"price": {"USD": 1500}, "credits": {"amount": 70}, "allowances": {"call": 900}}}}');
select used, included, remaining from billing.check_limit(:'acme', 'call');
select plan, terms, retired_at from billing.plans order by plan;
select action, kind, name, detail from billing.apply_catalog('{"plans": {}}');
select billing.export_catalog();
select * from billing.subscribe(:'bolt', 'solo');
\echo :LAST_ERROR_SQLSTATE
set local billing.test_clock = '2027-07-01 00:00:00+00';
select renewed from billing.settle_org(:'acme');
select amount, remaining, expires_at from billing.grants where org_id = :'acme' order by grant_id;
select used, included, remaining from billing.check_limit(:'acme', 'call');
select allowed, reason, included from billing.check_limit(:'bolt', 'call');
-- It may come back, with other terms, but not with another period.
select action, kind, name from billing.apply_catalog('{"plans": {"solo": {"period": "year"}}}');
\echo :LAST_ERROR_SQLSTATE
select action, kind, name, detail from billing.apply_catalog('{"plans": {"solo": {"period": "month", "allowances": {"call": 7}}}}');
select included from billing.check_limit(:'acme', 'call');
select action, kind, name from billing.apply_catalog('{"plans": {"solo": {"period": "week", "allowances": {"call": 7}}}}', true);
\echo :LAST_ERROR_SQLSTATE

-- What names a metric must name one that is there: in the document, or in the catalog where the document has no metrics.
select action, kind, name from billing.apply_catalog('{"metrics": {"call": {"price": 1}}, "plans": {"solo": {"allowances": {"call": 1, "seat": 1}, "limits": {"teleport": "hard", "visitor": "soft"}}}, "caps": [{"metric": "seat", "per": "day", "limit": 1}]}');
\echo :LAST_ERROR_SQLSTATE
select action, kind, name from billing.apply_catalog('{"plans": {"solo": {"allowances": {"call": 1, "seat": 1}, "limits": {"teleport": "hard", "visitor": "soft"}}}, "caps": [{"metric": "seat", "per": "day", "limit": 1}]}');
\echo :LAST_ERROR_SQLSTATE

-- Every fault with its path, and nothing is applied.
select billing.export_catalog() as before \gset
select * from billing.apply_catalog('{"metrics": {"a": {"aggregation": "sum", "unique_by": "x"}, "b": {"aggregation": "unique", "unique_by": ""}, "c": {"tier": null}, "call": {"tier": "core"}},
    "plans": {"": {}, "a": {"period": "fortnight", "colour": "red"}, "b": {"price": {"usd": 1, "USD": -1, "EUR": 1.5}}, "c": {"price": 1400},
              "d": {"credits": {"rollover": "some"}}, "e": {"credits": {"amount": 0}}, "f": {"credits": {"amount": 1, "rollover": "capped"}}, "g": {"credits": {"amount": 1, "cap": 5}}, "h": {"credits": {"amount": 1, "rollover": "all", "cap": -1, "colour": 1}},
              "i": {"credits": 100}, "j": {"allowances": {"call": -1, "a": "some", "b": 1.5}}, "k": {"allowances": []}, "l": {"limits": {"call": "firm", "a": null}}, "m": {"default": "yes"}, "n": {"default": true}, "o": {"default": true}, "p": 7},
    "caps": [{"per": "day", "limit": 1}, {"metric": "a", "category": "AI", "per": "day", "limit": 1}, {"metric": "b", "limit": 1}, {"metric": "c", "per": "week", "limit": 1}, {"metric": "d", "per": "day"}, {"metric": "e", "per": "day", "limit": -1},
             {"metric": "f", "per": "day", "for": "user", "limit": 1}, {"category": "X", "per": "day", "limit": 1}, {"category": "X", "per": "day", "limit": 2}, {"category": "Y", "per": "day", "limit": 2, "colour": "red"}, 7]}');
\echo :LAST_ERROR_SQLSTATE
select * from billing.apply_catalog('{"plans": []}');
\echo :LAST_ERROR_SQLSTATE
select * from billing.apply_catalog('{"caps": {}}');
\echo :LAST_ERROR_SQLSTATE
select billing.export_catalog() = :'before' as unchanged;
select * from billing.verify_ledger();
rollback;
