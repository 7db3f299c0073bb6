-- Row security on every table. Members see their own orgs' rows: their orgs stand in a sub-select so that they are computed once per
-- statement, not per row, and nothing else stands in that policy, so that the rows are found by an index. Who sees every org has a policy
-- of its own (billing_internal.let_staff_see).

do $$
declare
    relation regclass;
begin
    for relation in select c.oid::regclass from pg_catalog.pg_class c
                     where c.relnamespace = 'billing'::regnamespace and c.relkind in ('r', 'p') and not c.relrowsecurity loop
        execute pg_catalog.format('alter table %s enable row level security', relation);
    end loop;
    for relation in select c.oid::regclass from pg_catalog.pg_class c
                     where c.relnamespace = 'billing'::regnamespace and c.relkind in ('r', 'p')
                       -- TRIGGER_TYPE_TRUNCATE
                       and not exists (select from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgtype & 32 <> 0) loop
        execute pg_catalog.format('create trigger stay before truncate on %s for each statement execute function billing.refuse_truncate()', relation);
    end loop;
    for relation in select t from billing_internal.tables_of_orgs() t
                     where not exists (select from pg_catalog.pg_policy where polrelid = t and polname = 'own_orgs') loop
        execute pg_catalog.format('create policy own_orgs on %s for select using (org_id = any ((select billing.my_orgs())::uuid[]))', relation);
    end loop;
    for relation in select t from billing_internal.tables_of_prices() t
                     where not exists (select from pg_catalog.pg_policy where polrelid = t and polname = 'list_prices') loop
        execute pg_catalog.format('create policy list_prices on %s for select using (true)', relation);
    end loop;
end $$;
