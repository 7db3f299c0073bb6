-- The triggers of metered tables. A table that is gone is left alone, and so is another one of its name that has no such columns.

do $$
declare
    lost record;
begin
    for lost in select c.oid::pg_catalog.regclass as relation, m.metric, m.org_column::pg_catalog.name, m.quantity_column::pg_catalog.name,
                       m.member_column::pg_catalog.name, m.key_column::pg_catalog.name, m.mode
                  from billing.metered_tables m
                  join pg_catalog.pg_namespace n on n.nspname = m.table_schema
                  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = m.table_name and c.relkind in ('r', 'p')
                 where not exists (select from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgname = billing.meter_trigger(m.metric)) loop
        if billing.meter_fault(lost.relation, lost.org_column, lost.quantity_column, lost.member_column, lost.key_column) is null then
            perform billing.attach_meter(lost.relation, lost.metric, lost.org_column, lost.quantity_column, lost.member_column, lost.key_column, lost.mode);
        end if;
    end loop;
end $$;
