-- The triggers of metered tables. A table that is gone is left alone, and so is another one of its name: one that belongs to somebody else or
-- has no such columns.

do $$
declare
    lost record;
begin
    update billing.metered_tables m set relation = c.oid, place = billing_internal.place()
      from pg_catalog.pg_namespace n join pg_catalog.pg_class c on c.relnamespace = n.oid
     where m.place is distinct from billing_internal.place()
       and n.nspname = m.table_schema and c.relname = m.table_name and c.relkind in ('r', 'p') and c.relowner::pg_catalog.regrole::text = m.owner;
    for lost in select c.oid::pg_catalog.regclass as relation, m.metric, m.org_column::pg_catalog.name, m.quantity_column::pg_catalog.name,
                       m.member_column::pg_catalog.name, m.key_column::pg_catalog.name, m.mode
                  from billing.metered_tables m
                  join pg_catalog.pg_class c on c.oid = m.relation and c.relkind in ('r', 'p')
                 where m.place = billing_internal.place()
                   and not exists (select from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgname = billing_internal.meter_trigger(m.metric)) loop
        if billing_internal.meter_fault(lost.relation, lost.org_column, lost.quantity_column, lost.member_column, lost.key_column) is null then
            perform billing_internal.attach_meter(lost.relation, lost.metric, lost.org_column, lost.quantity_column, lost.member_column, lost.key_column, lost.mode);
        end if;
    end loop;
end $$;
