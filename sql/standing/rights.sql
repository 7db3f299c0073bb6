-- Nothing for PUBLIC; the roles that were given access before (the functions' rights went with DROP EXTENSION); and
-- Supabase's own roles where they exist.

revoke all on all tables in schema billing from public;

do $$
declare
    known record;
begin
    insert into billing.access (role_name, level)
    select r.rolname, case r.rolname when 'service_role' then 'service' else 'member' end
      from pg_catalog.pg_roles r
     where r.rolname in ('authenticated', 'service_role')
       and not exists (select from billing.settings where name = 'supabase_roles_served')
    on conflict do nothing;
    if exists (select from pg_catalog.pg_roles where rolname in ('authenticated', 'service_role')) then
        insert into billing.settings (name, value) values ('supabase_roles_served', 'true') on conflict do nothing;
    end if;
    for known in select a.role_name, a.level from billing.access a
                   join pg_catalog.pg_roles r on r.rolname = a.role_name loop
        perform billing.grant_access(known.role_name, known.level);
    end loop;
end $$;

-- Partitions for the events of this month and the next two; settlement makes the later ones.
select billing.make_partitions(billing.clock());
