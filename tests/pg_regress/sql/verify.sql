-- verify_ledger finds tampering. Somebody with a superuser's rights switches the guards off and changes things: every column
-- of every entry, one by one; entries removed; balances, grants and holds altered. Each change is undone before the next.
\i preamble.psql
-- A history with an entry of every kind.
select count(*) from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "page": {"price": {"steps": [{"credits": 1, "per": 3}]}}}}');
select grant_id from billing.grant_credits(:'acme', 100, 'purchase', idempotency_key => 'g1', metadata => '{"order": 1}');
select grant_id from billing.grant_credits(:'acme', 50, 'plan', expires_at => '2026-03-02 00:00+00');
select grant_id from billing.grant_credits(:'acme', 30, 'bonus', metrics => '{page}');
select credits from billing.consume_credits(:'acme', 'call', 7, 'u1', :'ann', '{"n": 1}');
select credits from billing.consume_credits(:'acme', 'page', 10);
select hold_id from billing.reserve_credits(:'acme', 'call', 10) \gset h1_
select credits from billing.capture_credits(:'acme', :h1_hold_id, 8);
select hold_id from billing.reserve_credits(:'acme', 'call', 5) \gset h2_
select credits from billing.release_credits(:'acme', :h2_hold_id);
select credits from billing.refund_credits(:'acme', 4, 3, 'sorry');
select hold_id from billing.lock_credits(:'acme', 4, 'payout') \gset p1_
select credits from billing.pay_out(:'acme', :p1_hold_id);
select amount from billing.adjust_credits(:'acme', 20, 'gift');
select unit from billing.create_wallet(:'bolt');
select amount from billing.transfer_credits(:'acme', :'bolt', 6);
set local billing.test_clock = '2026-03-02 00:00:00+00';
select credits from billing.consume_credits(:'acme', 'call', 1);
select voided from billing.void_grant(:'acme', 3, 'withdrawn');
select hold_id, credits from billing.reserve_credits(:'acme', 'call', 9, ttl => '1 day');
select hold_id, credits from billing.lock_credits(:'acme', 9, 'payout');
\set coil 00000000-0000-4000-8000-000000000003
select grant_id from billing.grant_credits(:'coil', 5, 'plan', expires_at => '2026-03-03 00:00+00');
select credits from billing.consume_credits(:'coil', 'call', 2);
select count(*) as entries, count(distinct kind) as kinds from billing.entries;
select * from billing.verify_ledger();

-- What verify_ledger says after a statement, which is undone.
create function pg_temp.after(statement text, out touched bigint, out violations text[]) language plpgsql as $$
begin
    perform pg_catalog.set_config('session_replication_role', 'replica', true);
    begin
        execute statement;
        get diagnostics touched = row_count;
        select array_agg(distinct v.violation order by v.violation) into violations from billing.verify_ledger() v;
        raise exception using errcode = 'UNDO0';
    exception when sqlstate 'UNDO0' then null;
    end;
    perform pg_catalog.set_config('session_replication_role', 'origin', true);
end $$;
create function pg_temp.refused(statement text) returns text language plpgsql as $$
declare said text;
begin
    execute statement;
    return null;
exception when others then
    get stacked diagnostics said = pg_exception_detail;
    return sqlstate || ' ' || (said::jsonb ->> 'code');
end $$;
-- The controls: a statement that changes nothing is no violation, and what was tampered with is sound again afterwards.
select * from pg_temp.after('update billing.ledger set amount = amount');

-- Another value of the same type.
create function pg_temp.other_value(name text, type text) returns text language sql as $$
    select case
        when type in ('smallint', 'integer', 'bigint') then format('coalesce(%I, -9) + 1', name)
        when type in ('text', 'character varying') then format('coalesce(%I, '''') || ''~''', name)
        when type = 'uuid' then format('case when %1$I is null then %2$L::uuid else overlay(%1$I::text placing ''f0'' from 1)::uuid end', name, 'ffffffff-0000-4000-8000-000000000000')
        when type = 'jsonb' then format('coalesce(%I, ''{}'') || ''{"tampered": true}''', name)
        when type = 'timestamp with time zone' then format('coalesce(%I, ''epoch'') + ''1 microsecond''', name)
        when type = 'bytea' then format('coalesce(%I, '''') || ''\x00''', name)
        when type = 'boolean' then format('not coalesce(%I, false)', name)
        else format('no_other_value_of_type(%L)', type) end
$$;
-- Constraints and unique keys would stop some of it: away with them, too.
do $$
declare r record;
begin
    for r in select conrelid::regclass as relation, conname from pg_constraint
             where connamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and contype in ('c', 'u', 'f', 'p')
             order by case contype when 'f' then 0 else 1 end loop
        execute format('alter table %s drop constraint %I', r.relation, r.conname);
    end loop;
    for r in select i.indexrelid::regclass as index from pg_index i join pg_class c on c.oid = i.indrelid
             where c.relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and i.indisunique loop
        execute format('drop index %s', r.index);
    end loop;
end $$;
-- Each column of each entry gets another value, then NULL where the column allows it. "unnoticed" is what must be 0.
create function pg_temp.each_column(out "column" name, out changed bigint, out emptied bigint, out unnoticed bigint) returns setof record language plpgsql as $$
declare
    type text;
    nullable boolean;
    entry record;
    hit record;
begin
    for "column", type, nullable in select attname, format_type(atttypid, null), not attnotnull from pg_attribute
                          where attrelid = 'billing.ledger'::regclass and attnum > 0 and not attisdropped order by attnum loop
        changed := 0; emptied := 0; unnoticed := 0;
        for entry in execute format('select e.ctid, e.%I is null as empty from billing.ledger e order by e.org_id, e.entry_id', "column") loop
            hit := pg_temp.after(format('update billing.ledger set %I = %s where ctid = %L', "column", pg_temp.other_value("column", type), entry.ctid));
            changed := changed + hit.touched;
            unnoticed := unnoticed + (hit.violations is null)::int;
            if nullable and not entry.empty then
                hit := pg_temp.after(format('update billing.ledger set %I = null where ctid = %L', "column", entry.ctid));
                emptied := emptied + hit.touched;
                unnoticed := unnoticed + (hit.violations is null)::int;
            end if;
        end loop;
        return next;
    end loop;
end $$;
select "column", changed = (select count(*) from billing.ledger) as all_changed, unnoticed from pg_temp.each_column();

-- Entries removed: each one alone, the newest, the newest two, everything of an org.
select count(*) filter (where touched = 1) as removed, count(*) filter (where violations is null) as unnoticed
    from (select (pg_temp.after(format('delete from billing.ledger where ctid = %L', ctid))).* from billing.ledger) x;
select * from pg_temp.after($$delete from billing.ledger where (org_id, entry_id) in (select org_id, entry_id from billing.ledger where org_id = '00000000-0000-4000-8000-000000000001' order by entry_id desc limit 1)$$);
select * from pg_temp.after($$delete from billing.ledger where (org_id, entry_id) in (select org_id, entry_id from billing.ledger where org_id = '00000000-0000-4000-8000-000000000001' order by entry_id desc limit 2)$$);
select touched > 0 as touched, violations from pg_temp.after($$delete from billing.ledger where org_id = '00000000-0000-4000-8000-000000000002'$$);
-- An entry put in twice.
select * from pg_temp.after($$insert into billing.ledger select * from billing.ledger where org_id = '00000000-0000-4000-8000-000000000001' order by entry_id desc limit 1$$);

-- Balances.
select x.name, y.touched > 0 as touched, y.violations from unnest(array['balance', 'reserved', 'locked', 'purchased', 'consumed', 'last_entry_id', 'scoped', 'future', 'slice_credits']) x (name),
    pg_temp.after(format($$update billing_internal.lanes set %1$I = %1$I + 1 where org_id = '00000000-0000-4000-8000-000000000001'$$, x.name)) y;
select touched > 0 as touched, violations from pg_temp.after($$update billing_internal.lanes set head = sha256(head)$$);
select touched > 0 as touched, violations from pg_temp.after($$delete from billing_internal.lanes where org_id = '00000000-0000-4000-8000-000000000001'$$);
-- Grants: more left than the ledger says, below zero, a larger amount, gone.
select * from pg_temp.after($$update billing_internal.grants set remaining = remaining + 1 where grant_id = 2 and org_id = '00000000-0000-4000-8000-000000000001'$$);
select * from pg_temp.after($$update billing_internal.grants set remaining = -1 where grant_id = 2 and org_id = '00000000-0000-4000-8000-000000000001'$$);
select * from pg_temp.after($$update billing_internal.grants set amount = amount + 1 where grant_id = 1 and org_id = '00000000-0000-4000-8000-000000000001'$$);
select * from pg_temp.after($$delete from billing_internal.grants where grant_id = 1 and org_id = '00000000-0000-4000-8000-000000000001'$$);
-- Holds: another amount, opened again, closed in silence, gone.
select touched > 0 as touched, violations from pg_temp.after($$update billing.holds set credits = credits + 1 where status = 'open'$$);
select touched > 0 as touched, violations from pg_temp.after($$update billing.holds set status = 'open' where status = 'released'$$);
select touched > 0 as touched, violations from pg_temp.after($$update billing.holds set status = 'released' where status = 'open'$$);
select touched > 0 as touched, violations from pg_temp.after($$delete from billing.holds where status = 'open'$$);

-- Rows that claim to hold for longer than they do would go on spending what has expired.
select x.org, x.change, y.touched, y.violations from (values ('01', 'fast_until = ''infinity'''), ('01', 'holds_due = ''infinity'''), ('01', 'holds_due = holds_due + interval ''1 microsecond'''),
        ('03', 'fresh_until = ''infinity'''), ('03', 'fresh_until = fresh_until + interval ''1 microsecond''')) x (org, change),
    pg_temp.after(format($$update billing_internal.lanes set %s where org_id = '00000000-0000-4000-8000-0000000000%s'$$, x.change, x.org)) y;
-- Earlier than need be is no harm: the next call settles it.
select * from pg_temp.after($$update billing_internal.lanes set fast_until = '-infinity'$$);
-- The terms of a grant, each of them, and what became of it.
select x.grant_id, x.change, y.touched, y.violations from (values
        (1, 'expires_at = ''2027-01-01'''), (2, 'expires_at = null'), (1, 'effective_at = effective_at - interval ''1 microsecond'''), (1, 'priority = priority + 1'),
        (1, 'cost_minor = cost_minor + 1'), (1, 'currency = ''USD'''), (1, 'metrics = ''{call}'''), (3, 'metrics = null'), (1, 'category = ''promotional'''), (2, 'category = ''paid'''),
        (1, 'unit = ''EUR'''), (1, 'written_off = written_off + 1'), (2, 'written_off = 0'), (3, 'written_off = written_off - 1'), (1, 'voided_at = now()'), (3, 'voided_at = null')) x (grant_id, change),
    pg_temp.after(format($$update billing_internal.grants set %s where org_id = '00000000-0000-4000-8000-000000000001' and grant_id = %s$$, x.change, x.grant_id)) y;
-- The refunds so far: bent, gone, put in.
select * from pg_temp.after($$update billing_internal.refunds set credits = credits - 1$$);
select * from pg_temp.after($$update billing_internal.refunds set credits = credits + 1$$);
select * from pg_temp.after($$update billing_internal.refunds set grant_id = grant_id + 1$$);
select * from pg_temp.after($$update billing_internal.refunds set operation_id = operation_id + 1$$);
select * from pg_temp.after($$delete from billing_internal.refunds$$);
select * from pg_temp.after($$insert into billing_internal.refunds values ('00000000-0000-4000-8000-000000000001', 5, 3, 1)$$);
-- What an open hold will be captured by: its price, what it is for, until when, and where its credit came from.
select x.change, y.touched, y.violations is not null as noticed from unnest(array['price = jsonb_set(price, ''{steps,0,credits}'', ''50'')', 'price = null', 'quantity = quantity + 1', 'metric = ''page''',
        'member_id = ''00000000-0000-4000-8000-0000000000a1''', 'expires_at = ''infinity''', 'created_at = created_at - interval ''1 day''', 'parts = parts + 1', 'grant_id = grant_id + 1', 'kind = ''payout''']) x (change),
    pg_temp.after(format($$update billing.holds set %s where status = 'open' and kind = 'usage'$$, x.change)) y;

-- The guards are on: nobody changes an entry, and nothing of a wallet is removed.
select c.relname, s.what, pg_temp.refused(format(s.statement, c.oid::regclass)) as refused
    from pg_class c, unnest(array['update', 'delete', 'truncate'], array['update %s set org_id = org_id', 'delete from %s', 'truncate %s']) s (what, statement)
    where c.oid in ('billing.ledger'::regclass, 'billing_internal.lanes'::regclass, 'billing_internal.grants'::regclass, 'billing.holds'::regclass, 'billing_internal.refunds'::regclass, 'billing_internal.wallet_settings'::regclass)
      and (s.what <> 'update' or c.relname = 'ledger')
    order by c.relname collate "C", s.what collate "C";

-- Afterwards everything is sound, for one org and for all.
select * from billing.verify_ledger(:'acme');
select * from billing.verify_ledger();
rollback;
