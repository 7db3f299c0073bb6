-- Row security on every table, and a guard against TRUNCATE, which it does not know. Whose rows a role sees follows from its level
-- (billing_internal.let_roles_see); the price list is everybody's.

do $$
declare
    relation regclass;
begin
    for relation in select c.oid::regclass from pg_catalog.pg_class c
                     where c.relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and c.relkind in ('r', 'p') and not c.relrowsecurity loop
        execute pg_catalog.format('alter table %s enable row level security', relation);
    end loop;
    for relation in select c.oid::regclass from pg_catalog.pg_class c
                     where c.relnamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and c.relkind in ('r', 'p')
                       -- TRIGGER_TYPE_TRUNCATE
                       and not exists (select from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgtype & 32 <> 0) loop
        execute pg_catalog.format('create trigger stay before truncate on %s for each statement execute function billing_internal.refuse_truncate()', relation);
    end loop;
    for relation in select t from billing_internal.tables_with('{everybody}'::text[]) t
                     where not exists (select from pg_catalog.pg_policy where polrelid = t and polname = 'list_prices') loop
        execute pg_catalog.format('create policy list_prices on %s for select using (true)', relation);
    end loop;
end $$;
