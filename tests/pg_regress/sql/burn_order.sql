-- One total burn order: scoped before general, then priority, expires_at (never last), promotional
-- before paid, effective_at, and last the id. Grants are made in the opposite order, ten credits each,
-- and carry in "burned" the place at which they must be burned.
\i preamble.psql

select * from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "page": {"price": 1}}}');

select grant_id from billing.grant_credits(:'acme', 10, 'purchase', metadata => '{"burned": 9, "why": "never expires, paid, effective now, made first"}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase', metadata => '{"burned": 10, "why": "the same, made later"}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase', effective_at => '2026-02-01 00:00+00', metadata => '{"burned": 8, "why": "effective earlier"}');
select grant_id from billing.grant_credits(:'acme', 10, 'bonus', metadata => '{"burned": 7, "why": "promotional before paid"}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase', expires_at => '2026-12-01 00:00+00', metadata => '{"burned": 6, "why": "expires, if late"}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase', expires_at => '2026-06-01 00:00+00', metadata => '{"burned": 5, "why": "expires earlier"}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase', priority => 40, metadata => '{"burned": 4, "why": "lower priority number"}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase', priority => 10, metadata => '{"burned": 3, "why": "lowest priority number"}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase', metrics => '{call}', priority => 99, metadata => '{"burned": 2, "why": "scoped, whatever its priority"}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase', metrics => '{page,call}', priority => 90, metadata => '{"burned": 1, "why": "scoped too, its priority first"}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase', metrics => '{page}', priority => 0, metadata => '{"burned": null, "why": "for another metric"}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase', priority => 999, metadata => '{"burned": 11, "why": "highest priority number"}');

-- The dry run says it ...
select x.credits, x.remaining_after, g.metadata ->> 'burned' as burned, g.metadata ->> 'why' as why
    from billing.explain_consumption(:'acme', 'call', 105) with ordinality x
    join billing.grants g on g.org_id = :'acme' and g.grant_id = x.grant_id order by x.ordinality;

-- ... one consumption over all of them does it, one entry for each grant ...
select * from billing.consume_credits(:'acme', 'call', 105);
select e.entry_id, e.amount, g.metadata ->> 'burned' as burned, g.metadata ->> 'why' as why
    from billing.entries e join billing.grants g using (org_id, grant_id)
    where e.org_id = :'acme' and e.kind = 'usage' order by e.entry_id;

-- ... and only the last of them and the one for another metric have something left.
select grant_id, remaining, metadata ->> 'burned' as burned from billing.grants where org_id = :'acme' and remaining > 0 order by grant_id;
select billing.get_total_credits(:'acme') as general, billing.get_total_credits(:'acme', metric => 'call') as on_calls,
       billing.get_total_credits(:'acme', metric => 'page') as on_pages;

-- Scoped credit is not taken for another metric, not even when it is all there is.
select * from billing.consume_credits(:'acme', 'call', 6);
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits(:'acme', 'page', 15);

-- Burning one by one keeps the same order as burning at once.
select grant_id from billing.grant_credits(:'bolt', 3, 'purchase');
select grant_id from billing.grant_credits(:'bolt', 3, 'bonus');
select grant_id from billing.grant_credits(:'bolt', 3, 'bonus', expires_at => '2026-06-01 00:00+00');
select credits, balance_after from generate_series(1, 8) i, billing.consume_credits(:'bolt', 'call', metadata => jsonb_build_object('i', i));
-- A better grant that arrives in between goes first from then on.
select grant_id from billing.grant_credits(:'bolt', 3, 'bonus', priority => 1);
select credits, balance_after from billing.consume_credits(:'bolt', 'call', 2);
select entry_id, kind, amount, balance_before, balance_after, grant_id from billing.entries where org_id = :'bolt' order by entry_id;
select * from billing.verify_ledger();
rollback;
