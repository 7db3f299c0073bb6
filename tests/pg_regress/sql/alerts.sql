-- Alerts: one row per crossing of a threshold, resolved when it no longer holds, and raised anew when it is crossed again.
\i preamble.psql
set local billing.test_clock = '2027-06-01 00:00:00+00';
select action, kind, name from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "seat": {"aggregation": "last"}, "chat": {"price": 1, "category": "AI"}, "mail": {"price": 1}},
    "plans": {"solo": {"allowances": {"call": 10, "seat": 4}}},
    "caps": [{"category": "AI", "per": "day", "limit": 9}, {"metric": "chat", "per": "day", "for": "member", "limit": 5}]}');

-- allowance: by settlement, of consumed and recorded usage. The share is reached at its part of the allowance, rounded up: 8 of 10 for 75 %.
select plan, period_end from billing.subscribe(:'acme', 'solo');
select included from billing.consume_credits(:'acme', 'call', 5);
select billing.record_usage(:'acme', 'seat', 2);
select count(*) from billing.alerts;
select unpaid from billing.settle_org(:'acme');
select kind, subject, share, raised_at, resolved_at, value, threshold, number from billing.alerts where org_id = :'acme' order by kind, subject, share;
set local billing.test_clock = '2027-06-02 00:00:00+00';
select included from billing.consume_credits(:'acme', 'call', 2);
select unpaid from billing.settle_org(:'acme');
select subject, share, value from billing.alerts where org_id = :'acme' order by kind, subject, share;
select included from billing.consume_credits(:'acme', 'call', 1);
select billing.record_usage(:'acme', 'call', 30);
select unpaid from billing.settle_org(:'acme');
select subject, share, raised_at, resolved_at, value, threshold, number from billing.alerts where org_id = :'acme' order by kind, subject, share;
-- Those that stand are not raised again. A level that goes down resolves its own, and raises another when it comes up again.
set local billing.test_clock = '2027-06-03 00:00:00+00';
select billing.record_usage(:'acme', 'seat', 1);
select unpaid from billing.settle_org(:'acme');
set local billing.test_clock = '2027-06-04 00:00:00+00';
select billing.record_usage(:'acme', 'seat', 4);
select unpaid from billing.settle_org(:'acme');
select subject, share, raised_at, resolved_at, value, number from billing.alerts where org_id = :'acme' and subject = 'seat' order by share, number;
-- A larger allowance resolves: 38 of 75 are 50 %, rounded up. So does the next period; the level of seats goes on.
select billing.set_org_allowance(:'acme', 'call', 75);
select unpaid from billing.settle_org(:'acme');
select subject, share, resolved_at, value, threshold from billing.alerts where org_id = :'acme' and subject = 'call' order by share, number;
set local billing.test_clock = '2027-07-01 00:00:00+00';
select renewed from billing.settle_org(:'acme');
select subject, share, resolved_at from billing.alerts where org_id = :'acme' and resolved_at is null order by subject, share;

-- cap: at once, by the consumption or reservation that crosses it; with recorded usage, by settlement. Only those of the org.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select grant_id from billing.grant_credits(:'bolt', 100000);
select credits from billing.consume_credits(:'bolt', 'chat', 4, member_id => :'ann');
select kind, subject, share from billing.alerts where org_id = :'bolt';
select credits from billing.consume_credits(:'bolt', 'chat', 1, member_id => :'ann');
select kind, subject, share, raised_at, value, threshold from billing.alerts where org_id = :'bolt' order by share;
select hold_id from billing.reserve_credits(:'bolt', 'chat', 4) \gset hold_
select subject, share, value, threshold, number from billing.alerts where org_id = :'bolt' order by share;
-- Given back: settlement sees that 75 % and more no longer hold. Used again: crossed again.
select credits from billing.release_credits(:'bolt', :hold_hold_id);
select unpaid from billing.settle_org(:'bolt');
select billing.record_usage(:'bolt', 'chat', 2);
select unpaid from billing.settle_org(:'bolt');
select share, raised_at, resolved_at, value, number from billing.alerts where org_id = :'bolt' order by share, number;
-- The next day: those of yesterday are resolved when they are crossed anew, or by settlement.
set local billing.test_clock = '2027-06-02 06:00:00+00';
select credits from billing.consume_credits(:'bolt', 'chat', 5);
select share, raised_at, resolved_at, value, number from billing.alerts where org_id = :'bolt' order by share, number;
select unpaid from billing.settle_org(:'bolt');
select share, raised_at, resolved_at, value, number from billing.alerts where org_id = :'bolt' and resolved_at is null;
set local billing.test_clock = '2027-06-03 00:00:00+00';
select unpaid from billing.settle_org(:'bolt');
select count(*) from billing.alerts where org_id = :'bolt' and resolved_at is null;

-- balance and low_balance: at once. The share is what was used of the balance after the last grant.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select available from billing.create_wallet(:'corp', low_balance_threshold => 30);
select kind, share, value, threshold from billing.alerts where org_id = :'corp';
select balance_after from billing.grant_credits(:'corp', 200);
select credits from billing.consume_credits(:'corp', 'mail', 99);
select kind, share from billing.alerts where org_id = :'corp';
select credits, balance_after from billing.consume_credits(:'corp', 'mail', 1);
select kind, subject, share, raised_at, resolved_at, value, threshold, number from billing.alerts where org_id = :'corp' order by kind, share;
select credits, balance_after from billing.consume_credits(:'corp', 'mail', 71);
select kind, share, value, threshold, number from billing.alerts where org_id = :'corp' and resolved_at is null order by kind, share;
-- 10 % left is 90 % used; then the last one.
select credits, balance_after from billing.consume_credits(:'corp', 'mail', 9);
select credits, balance_after from billing.consume_credits(:'corp', 'mail', 20);
select kind, share, value, threshold, number from billing.alerts where org_id = :'corp' and resolved_at is null order by kind, share;
-- A top-up resolves them all; then they are crossed again, by a reservation, too: 35 of 70.
set local billing.test_clock = '2027-06-05 00:00:00+00';
select balance_after from billing.grant_credits(:'corp', 70, 'purchase');
select kind, share, resolved_at from billing.alerts where org_id = :'corp' and resolved_at is null;
select hold_id from billing.reserve_credits(:'corp', 'mail', 35) \gset hold_
select kind, share, value, threshold, number from billing.alerts where org_id = :'corp' and resolved_at is null order by kind, share;
select credits, balance_after from billing.release_credits(:'corp', :hold_hold_id);
select unpaid from billing.settle_org(:'corp');
select kind, share, raised_at, resolved_at, value, threshold, number from billing.alerts where org_id = :'corp' order by kind, share, number;
-- By settlement, and in a currency.
select balance_after from billing.grant_credits(:'corp', 1000, unit => 'EUR');
select amount, balance_after from billing.adjust_credits(:'corp', -600, 'correction', 'EUR');
select kind, subject, share, value, threshold from billing.alerts where org_id = :'corp' and subject = 'EUR';

-- expiring: by settlement, seven days before a grant with something left expires.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select grant_id from billing.grant_credits(:'dyne', 50, expires_at => '2027-06-08 00:00:00+00');
select grant_id from billing.grant_credits(:'dyne', 40, expires_at => '2027-06-08 00:00:00.000001+00');
select grant_id from billing.grant_credits(:'dyne', 30, effective_at => '2027-06-02', expires_at => '2027-06-03');
select grant_id from billing.grant_credits(:'dyne', 20);
select unpaid from billing.settle_org(:'dyne');
select kind, subject, share, raised_at, resolved_at, value, threshold from billing.alerts where org_id = :'dyne' and kind = 'expiring' order by subject;
set local billing.test_clock = '2027-06-02 00:00:00+00';
select credits, balance_after from billing.consume_credits(:'dyne', 'mail', 40);
select unpaid from billing.settle_org(:'dyne');
select subject, raised_at, resolved_at, value, threshold from billing.alerts where org_id = :'dyne' and kind = 'expiring' order by subject;
-- Spent or expired: resolved.
set local billing.test_clock = '2027-06-04 00:00:00+00';
select credits, balance_after from billing.consume_credits(:'dyne', 'mail', 40);
select unpaid from billing.settle_org(:'dyne');
set local billing.test_clock = '2027-06-09 00:00:00+00';
select unpaid from billing.settle_org(:'dyne');
select subject, raised_at, resolved_at, value from billing.alerts where org_id = :'dyne' and kind = 'expiring' order by subject, number;

-- Other shares, and other days: they hold from the next look on, and what they do not name any more is resolved.
set local billing.test_clock = '2027-06-01 00:00:00+00';
select plan from billing.subscribe(:'eden', 'solo');
select grant_id from billing.grant_credits(:'eden', 100, expires_at => '2027-06-25');
select included from billing.consume_credits(:'eden', 'call', 6);
select unpaid from billing.settle_org(:'eden');
select kind, subject, share from billing.alerts where org_id = :'eden' order by kind, subject, share;
select billing.configure_alerts('{20,60,95}', 30);
set local billing.test_clock = '2027-06-02 00:00:00+00';
select unpaid from billing.settle_org(:'eden');
select kind, subject, share, raised_at, resolved_at, value, threshold from billing.alerts where org_id = :'eden' order by kind, subject, share;
select billing.configure_alerts('{}', 0);
select unpaid from billing.settle_org(:'eden');
select count(*) from billing.alerts where org_id = :'eden' and resolved_at is null;
select billing.configure_alerts();
select billing.configure_alerts('{0}');
\echo :LAST_ERROR_SQLSTATE
select billing.configure_alerts('{101}');
\echo :LAST_ERROR_SQLSTATE
select billing.configure_alerts('{50,null}');
\echo :LAST_ERROR_SQLSTATE
select billing.configure_alerts(null);
\echo :LAST_ERROR_SQLSTATE
select billing.configure_alerts((select array_agg(n) from generate_series(1, 21) n));
\echo :LAST_ERROR_SQLSTATE
select billing.configure_alerts(expiring_days => -1);
\echo :LAST_ERROR_SQLSTATE
select billing.configure_alerts(expiring_days => 367);
\echo :LAST_ERROR_SQLSTATE
select billing.configure_alerts(expiring_days => null);
\echo :LAST_ERROR_SQLSTATE
select * from billing.verify_ledger();
rollback;
