-- The roles that were given access before (the functions' rights went with DROP EXTENSION), and Supabase's own where they exist.

do $$
begin
    insert into billing.access (role_name, level, role_oid, cluster)
    select r.rolname, case r.rolname when 'service_role' then 'service' else 'member' end, r.oid, billing_internal.cluster()
      from pg_catalog.pg_roles r
     where r.rolname in ('authenticated', 'service_role')
       and not exists (select from billing_internal.settings where name = 'supabase_roles_served')
    on conflict do nothing;
    if exists (select from pg_catalog.pg_roles where rolname in ('authenticated', 'service_role')) then
        insert into billing_internal.settings (name, value) values ('supabase_roles_served', 'true') on conflict do nothing;
    end if;
    perform billing_internal.give_rights(role_oid)
       from (select distinct a.role_oid from billing.access a join pg_catalog.pg_roles r on r.oid = a.role_oid
              where a.cluster = billing_internal.cluster()) known;
    perform billing_internal.let_roles_see();
    perform billing_internal.forget_levels();
end $$;

-- Partitions for the events of this month and the next two; settlement makes the later ones.
select billing_internal.make_partitions(billing.clock());
