-- The clock of a server can go back: after a switch-over, or when it is put right. The ledger stays sound then, whatever
-- the rows had settled for the later moment, and goes on when the clock does.
\i preamble.psql
select name from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "page": {"price": 1}}}') order by name;
-- On March 10: a grant that began on March 1, one of the new year that ends on April 1, one for pages since March 5, one that begins on May 1.
set local billing.test_clock = '2026-03-10 00:00:00+00';
select grant_id from billing.grant_credits(:'acme', 100, 'plan', priority => 10, effective_at => '2026-03-01 00:00+00');
select grant_id from billing.grant_credits(:'acme', 100, 'bonus', effective_at => '2026-01-01 00:00+00', expires_at => '2026-04-01 00:00+00');
select grant_id from billing.grant_credits(:'acme', 100, 'bonus', metrics => '{page}', effective_at => '2026-03-05 00:00+00');
select grant_id from billing.grant_credits(:'acme', 100, effective_at => '2026-05-01 00:00+00');
select operation_id, credits from billing.consume_credits(:'acme', 'call', 10, member_id => :'ann') \gset u_
select hold_id from billing.reserve_credits(:'acme', 'call', 20, '1 day', member_id => :'ann') \gset h1_
select hold_id from billing.reserve_credits(:'acme', 'page', 20, '1 day') \gset h2_
select billing.get_total_credits(:'acme') as general, billing.get_total_credits(:'acme', metric => 'page') as on_pages;
select * from billing.verify_ledger();

-- Back in February, where neither the plan nor the credit for pages has begun.
set local billing.test_clock = '2026-02-01 00:00:00+00';
select * from billing.verify_ledger();
select hold_id, credits, expires_at from billing.reserve_credits(:'acme', 'call', 5, '1 hour') \gset h3_
select * from billing.verify_ledger();
select credits from billing.capture_credits(:'acme', :h1_hold_id, 15);
select * from billing.verify_ledger();
select credits from billing.release_credits(:'acme', :h2_hold_id);
select * from billing.verify_ledger();
select credits from billing.refund_credits(:'acme', :u_operation_id, 4);
select * from billing.verify_ledger();
select voided, already_spent from billing.void_grant(:'acme', 4, 'withdrawn');
select grant_id from billing.grant_credits(:'acme', 7, 'bonus', expires_at => '2026-02-02 00:00+00');
select billing.book_expiries() >= 0 as booked;
select * from billing.verify_ledger();

-- In April the hold of February has timed out, and the bonus and the 7 have expired.
set local billing.test_clock = '2026-04-01 00:00:00+00';
select billing.get_total_credits(:'acme') as general, billing.get_total_credits(:'acme', metric => 'page') as on_pages;
select * from billing.verify_ledger();
select billing.book_expiries() as booked;
select billing.get_total_credits(:'acme') as general, billing.get_total_credits(:'acme', metric => 'page') as on_pages;
select * from billing.verify_ledger();
-- Back to March once more: what was booked as expired stays so.
set local billing.test_clock = '2026-03-20 00:00:00+00';
select balance_after from billing.consume_credits(:'acme', 'call', 1);
select hold_id, status from billing.holds where org_id = :'acme' order by hold_id;
select grant_id, remaining, voided_at from billing.grants where org_id = :'acme' order by grant_id;
select available, reserved, lifetime_consumed from billing.get_wallet(:'acme');
select * from billing.verify_ledger();
rollback;
