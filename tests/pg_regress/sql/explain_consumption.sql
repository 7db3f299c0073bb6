-- explain_consumption: which grants would be burned, and what they would have left. It changes nothing, and what it says comes true.
\i preamble.psql
select * from billing.apply_catalog('{"metrics": {"call": {"price": 3}, "view": {"price": 0}}}');
select grant_id from billing.grant_credits(:'acme', 10, 'purchase');
select grant_id from billing.grant_credits(:'acme', 10, 'plan', expires_at => '2026-04-01 00:00+00');
select grant_id from billing.grant_credits(:'acme', 10, 'bonus', metrics => '{call}');
select grant_id from billing.grant_credits(:'acme', 10, 'bonus', effective_at => '2026-03-20 00:00+00');

select * from billing.explain_consumption(:'acme', 'call');
select * from billing.explain_consumption(:'acme', 'call', 9);
select * from billing.explain_consumption(:'acme', 'view', 9);
select count(*) from billing.entries;
select credits from billing.consume_credits(:'acme', 'call', 9);
select grant_id, remaining from billing.grants where org_id = :'acme' order by grant_id;
-- More than there is: refused as the consumption would be.
select * from billing.explain_consumption(:'acme', 'call', 2);
\echo :LAST_ERROR_SQLSTATE
-- Later another grant is effective, and one has expired.
set local billing.test_clock = '2026-04-01 00:00:00+00';
select * from billing.explain_consumption(:'acme', 'call', 4);
-- A hold is not spendable.
select hold_id from billing.reserve_credits(:'acme', 'call', 2);
select * from billing.explain_consumption(:'acme', 'call', 2);
select * from billing.explain_consumption(:'acme', 'call', 3);
\echo :LAST_ERROR_SQLSTATE
select * from billing.explain_consumption(:'acme', 'teleport', 3);
\echo :LAST_ERROR_SQLSTATE
select * from billing.explain_consumption('00000000-0000-4000-8000-00000000dead', 'call', 3);
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
