-- Who may do what. The levels of roles stand in billing.access: the functions ask there, and grants and policies follow from it.
-- What is in the schema billing_internal is of use to nobody else: the bodies of functions in billing (src/access/gate.rs), which run
-- with the rights of who calls them.

-- Where oids of relations mean something: the database cluster, and the database in it.
create function billing_internal.place() returns text
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select billing_internal.cluster() || ':' || (select oid from pg_database where datname = current_database())
$$;

-- One list of what each level may execute. Services may call all that is in the schema billing but the administration; of the machinery, levels
-- may what views and settle() call as who reads or settles.
create function billing_internal.routines_of(level text) returns setof regprocedure
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select p.oid::regprocedure
      from pg_extension e
      join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
                      and d.classid = 'pg_proc'::regclass
      join pg_proc p on p.oid = d.objid
      join pg_namespace n on n.oid = p.pronamespace
     where e.extname = 'pg_billing'
       and case n.nspname || ' ' || level
           when 'billing service' then
               p.proname <> all ('{install,grant_access,revoke_access,configure_membership}')
           when 'billing_internal service' then
               p.proname = any ('{every_org,unfolded_usage,settlement_is_running,begin_settlement,settlement_due,settle_orgs,settlement_phase}')
           when 'billing auditor' then
               p.proname = any ('{my_orgs,get_total_credits,get_wallet,explain_consumption,calculate_cost,clock,version,
                                  verify_ledger,export_catalog,check_limit,allows,credit_history,quote_pack,status}')
           when 'billing_internal auditor' then
               p.proname = any ('{every_org,unfolded_usage,settlement_is_running}')
           when 'billing member' then
               p.proname = any ('{my_orgs,get_total_credits,get_wallet,explain_consumption,calculate_cost,clock,version,
                                  check_limit,allows,credit_history,quote_pack,start_purchase,configure_auto_recharge,
                                  redeem_gift_card}')
           when 'billing_internal member' then
               p.proname = any ('{unfolded_usage}')
           when 'billing webhook' then
               p.prosrc = 'webhook_gate'
           else false
           end
$$;

-- The tables whose rows are of one of these kinds, see relations().
create function billing_internal.tables_with(rows text[]) returns setof regclass
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select format('%I.%I', r.schema, r.name)::regclass from billing_internal.relations() r where r.rows = any (tables_with.rows)
$$;

-- The roles that have one of these levels, as far as they are here.
create function billing_internal.roles_with(levels text[]) returns setof oid
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select distinct r.oid from billing.access a join pg_roles r on r.oid = a.role_oid
     where a.cluster = billing_internal.cluster() and a.level = any (levels) order by 1
$$;

-- What the policy of those asks who see every org. The server folds it away while it plans; but it goes with the extension, and the policy with it: then nobody sees
-- anything, until there is somebody again to say who may.
create function billing_internal.every_org() returns boolean
    language sql immutable leakproof parallel safe as $$ select true $$;

-- A policy on each of some tables for some roles, or none where there are none.
create function billing_internal.let_see(policy name, tables regclass[], roles oid[], condition text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    names constant text := (select string_agg(quote_ident(rolname), ', ' order by oid) from pg_roles where oid = any (roles));
    see record;
begin
    for see in select t as relation, p.oid is not null as is_there, array(select unnest(p.polroles) order by 1) is distinct from roles as is_other
                 from unnest(tables) t left join pg_policy p on p.polrelid = t and p.polname = policy loop
        if names is null then
            if see.is_there then
                execute format('drop policy %I on %s', policy, see.relation);
            end if;
        elsif not see.is_there then
            execute format('create policy %I on %s for select to %s using (%s)', policy, see.relation, names, condition);
        elsif see.is_other then
            execute format('alter policy %I on %s to %s', policy, see.relation, names);
        end if;
    end loop;
end $$;

-- Members see the rows of their own orgs, which stand in a sub-select so that they are computed once per statement; nothing else stands in that
-- policy, so that the rows are found by an index. Who sees every org has a policy of its own: in one, it would keep the server from that.
create function billing_internal.let_roles_see() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
begin
    -- With the very types, as everywhere.
    perform billing_internal.let_see('own_orgs'::name, array(select billing_internal.tables_with('{org}'::text[])), array(select billing_internal.roles_with('{member}'::text[])),
                                     'org_id = any ((select billing.my_orgs())::uuid[])'::text);
    perform billing_internal.let_see('every_org'::name, array(select billing_internal.tables_with('{org,staff}'::text[])),
                                     array(select billing_internal.roles_with('{service,auditor}'::text[])), 'billing_internal.every_org()'::text);
end $$;

-- Every right in our schemas of roles other than the owners of things: by a grant, by default privileges that made one, or of PUBLIC.
create function billing_internal.rights() returns table (grantee oid, object text, privilege text, can_pass_on boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    with ours as (select oid, nspname, nspowner, nspacl from pg_namespace where nspname in ('billing', 'billing_internal')),
    given (object, acl, owner) as (
        select format('schema %I', nspname), nspacl, nspowner from ours
        union all
        select format('%s %I.%I', case c.relkind when 'S' then 'sequence' when 'v' then 'view' else 'table' end, o.nspname, c.relname), c.relacl, c.relowner
          from pg_class c join ours o on o.oid = c.relnamespace
        union all
        select format('column %I of table %I.%I', a.attname, o.nspname, c.relname), a.attacl, c.relowner
          from pg_attribute a join pg_class c on c.oid = a.attrelid join ours o on o.oid = c.relnamespace where a.attacl is not null
        union all
        select format('function %s', p.oid::regprocedure), coalesce(p.proacl, acldefault('f', p.proowner)), p.proowner
          from pg_proc p join ours o on o.oid = p.pronamespace
        union all
        select format('default privileges of %s in schema %I', d.defaclrole::regrole, o.nspname), d.defaclacl, d.defaclrole
          from pg_default_acl d join ours o on o.oid = d.defaclnamespace)
    select distinct a.grantee, g.object, a.privilege_type, a.is_grantable from given g cross join lateral aclexplode(g.acl) a where a.grantee <> g.owner
$$;

-- What the levels of a role allow: the one list from which rights are given, and by which those are told that came otherwise.
create function billing_internal.rights_of(levels text[]) returns table (object text, privilege text)
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select 'schema billing', 'USAGE' where levels <> '{}'
    union all
    -- settle() runs as who calls it, and so does what it calls by name.
    select 'schema billing_internal', 'USAGE' where 'service' = any (levels)
    union all
    select distinct 'function ' || r, 'EXECUTE' from unnest(levels) l, billing_internal.routines_of(l) r
    union all
    select format('%s %I.%I', case c.relkind when 'v' then 'view' else 'table' end, r.schema, r.name), 'SELECT'
      from billing_internal.relations() r
      join pg_namespace n on n.nspname = r.schema
      join pg_class c on c.relnamespace = n.oid and c.relname = r.name
     where r.readers = 'members' and levels && '{member,service,auditor}' or r.readers = 'staff' and levels && '{service,auditor}'
    union all
    -- All but the codes.
    select format('column %I of table billing.gift_cards', a.attname), 'SELECT'
      from pg_attribute a
     where levels && '{service,auditor}' and a.attrelid = to_regclass('billing.gift_cards')
       and a.attname in ('name', 'source', 'unit', 'credits', 'metrics', 'max_redemptions', 'redeemed', 'validity', 'expires_at', 'voided_at', 'created_at', 'metadata')
$$;

create function billing_internal.levels_of(role oid) returns text[]
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select array(select a.level from billing.access a where a.role_oid = role and a.cluster = billing_internal.cluster())
$$;

-- The rights that no level allows.
create function billing_internal.foreign_rights() returns table (grantee oid, object text, privilege text)
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select r.grantee, r.object, r.privilege from billing_internal.rights() r where r.can_pass_on
    union
    (select r.grantee, r.object, r.privilege from billing_internal.rights() r
     except
     select g.grantee, e.object, e.privilege
       from (select distinct grantee from billing_internal.rights()) g, billing_internal.rights_of(billing_internal.levels_of(g.grantee)) e)
$$;

create function billing_internal.role_name(role oid) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    select case role when 0 then 'PUBLIC' else coalesce((select rolname::text from pg_roles where oid = role), role::text) end
$$;

-- Takes every right in our schemas from a role (0: PUBLIC), and what it passed on.
create function billing_internal.take_rights(role oid) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    name constant text := case role when 0 then 'public' else (select quote_ident(rolname) from pg_roles where oid = role) end;
    given record;
begin
    if name is null then
        return;
    end if;
    execute format('revoke all on all tables in schema billing, billing_internal from %s cascade', name);
    execute format('revoke all on all sequences in schema billing, billing_internal from %s cascade', name);
    execute format('revoke all on schema billing, billing_internal from %s cascade', name);
    for given in select p.oid::regprocedure as routine from pg_proc p
                  where p.pronamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace)
                    and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = role) loop
        execute format('revoke all on routine %s from %s cascade', given.routine, name);
    end loop;
    for given in select d.defaclrole::regrole as grantor, n.nspname,
                        case d.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'routines' when 'T' then 'types' end as kind
                   from pg_default_acl d join pg_namespace n on n.oid = d.defaclnamespace
                  where n.nspname in ('billing', 'billing_internal') and exists (select from aclexplode(d.defaclacl) a where a.grantee = role) loop
        execute format('alter default privileges for role %s in schema %I revoke all on %s from %s', given.grantor, given.nspname, given.kind, name);
    end loop;
end $$;

-- Takes the rights of all roles without a level; says whose they were.
create function billing_internal.take_foreign_rights() returns text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    known record;
    said text[] := '{}';
begin
    for known in select f.grantee, billing_internal.role_name(f.grantee) as name, count(distinct f.object) as objects,
                        string_agg(distinct lower(f.privilege), ', ' order by lower(f.privilege)) as privileges
                   from billing_internal.foreign_rights() f group by f.grantee order by 2 loop
        perform billing_internal.give_rights(known.grantee);
        said := said || format('%s (%s on %s)', known.name, known.privileges,
                               case known.objects when 1 then '1 object' else known.objects || ' objects' end);
    end loop;
    return array_to_string(said, ', ');
end $$;

-- Gives a role what its levels allow, and takes what else it has.
create function billing_internal.give_rights(role oid) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    name constant text := (select quote_ident(rolname) from pg_roles where oid = role);
    given record;
begin
    perform billing_internal.take_rights(role);
    for given in select r.object, r.privilege from billing_internal.rights_of(billing_internal.levels_of(role)) r where name is not null loop
        if given.object like 'column % of table billing.gift_cards' then
            execute format('grant select (%s) on billing.gift_cards to %s', split_part(given.object, ' ', 2), name);
        else
            -- A view is a table to GRANT; settle() is a procedure.
            execute format('grant %s on %s to %s', given.privilege, regexp_replace(regexp_replace(given.object, '^(view|table) ', ''), '^function ', 'routine '), name);
        end if;
    end loop;
end $$;

-- Finds the roles of billing.access anew where they are known by name only (restored from another cluster), follows those that were
-- renamed, and forgets those that were dropped: a role that is made again by such a name is another one.
create function billing_internal.find_roles() returns text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    here constant text := billing_internal.cluster();
    said constant text[] := array(
        select case when r.oid is null then format('%s was dropped and is no longer %s', a.role_name, a.level)
                    else format('%s (%s) is now called %s', a.role_name, a.level, r.rolname) end
          from billing.access a left join pg_roles r on r.oid = a.role_oid
         where a.cluster = here and r.rolname is distinct from a.role_name order by 1);
    oids oid[];
    levels text[];
begin
    -- All at once: names may have been exchanged.
    if said <> '{}' then
        select array_agg(a.role_oid), array_agg(a.level) into oids, levels from billing.access a where a.cluster = here;
        delete from billing.access a where a.cluster = here;
        insert into billing.access (role_name, level, role_oid, cluster)
        select r.rolname, n.level, r.oid, here from unnest(oids, levels) n (role_oid, level) join pg_roles r on r.oid = n.role_oid
        on conflict on constraint access_pkey do update set role_oid = excluded.role_oid, cluster = excluded.cluster;
    end if;
    update billing.access a set role_oid = r.oid, cluster = here from pg_roles r
     where r.rolname = a.role_name and a.cluster is distinct from here;
    return array_to_string(said, ', ');
end $$;

create function billing.grant_access(role name, level text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    known constant oid := (select oid from pg_roles where rolname = grant_access.role);
begin
    perform billing_internal.require_administrator();
    if role is null or level is null or level not in ('member', 'service', 'auditor', 'webhook') then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "level", "fault": "must be member, service, auditor or webhook"}';
    end if;
    if known is null then
        raise exception using errcode = '42704', message = 'no such role',
            detail = jsonb_build_object('code', 'unknown_role', 'role', role)::text;
    end if;
    -- By the names that roles have now: what is given to one takes nothing from another that had the name.
    perform billing_internal.find_roles();
    -- What a role sees and does is one of these three, and the newest word counts; reports of providers come beside it.
    if level <> 'webhook' then
        delete from billing.access a where a.role_name = grant_access.role and a.level not in (grant_access.level, 'webhook');
    end if;
    insert into billing.access (role_name, level, role_oid, cluster) values (role, grant_access.level, known, billing_internal.cluster())
    on conflict on constraint access_pkey do update set role_oid = excluded.role_oid, cluster = excluded.cluster;
    perform billing_internal.give_rights(known);
    perform billing_internal.let_roles_see();
    perform billing_internal.forget_levels();
end $$;
comment on function billing.grant_access is
'Gives a role a level: member (reads its own orgs), service (calls everything), auditor (reads everything), webhook (delivers providers'' reports). A role has one of the first three, the newest given, and webhook beside it. For the owner of the extension. Errors: 42501 no_level, 42704 unknown_role, 22023.';

create function billing.revoke_access(role name) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
begin
    perform billing.revoke_access(role, null);
end $$;
comment on function billing.revoke_access(name) is
'Takes all levels from a role, and with them every right in the schema billing. For the owner of the extension. Errors: as with a level.';

create function billing.revoke_access(role name, level text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    here constant text := billing_internal.cluster();
    known constant oid := (select oid from pg_roles where rolname = revoke_access.role);
    renamed name;
    was_known boolean;
begin
    perform billing_internal.require_administrator();
    if role is null then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "role", "fault": "must not be null"}';
    end if;
    if level is not null and level not in ('member', 'service', 'auditor', 'webhook') then
        raise exception using errcode = '22023', message = 'invalid argument',
            detail = '{"code": "invalid_argument", "argument": "level", "fault": "must be member, service, auditor, webhook or null for all"}';
    end if;
    -- The name of another by now, or nobody's: whoever is meant must be told.
    select r.rolname into renamed from billing.access a join pg_roles r on r.oid = a.role_oid
     where a.role_name = revoke_access.role and a.cluster = here and a.role_oid is distinct from known;
    was_known := exists (select from billing.access a where a.role_name = revoke_access.role);
    perform billing_internal.find_roles();
    if renamed is not null and not exists (select from billing.access a where a.role_name = revoke_access.role) then
        raise exception using errcode = '42704', message = 'no such role',
            detail = jsonb_build_object('code', 'unknown_role', 'role', role, 'renamed_to', renamed)::text,
            hint = 'The role that had a level by this name was renamed: name it as it is called now.';
    end if;
    if known is null and not was_known then
        raise exception using errcode = '42704', message = 'no such role',
            detail = jsonb_build_object('code', 'unknown_role', 'role', role)::text;
    end if;
    delete from billing.access a where a.role_name = revoke_access.role and a.level = coalesce(revoke_access.level, a.level);
    if known is not null then
        perform billing_internal.give_rights(known);
    end if;
    perform billing_internal.let_roles_see();
    perform billing_internal.forget_levels();
end $$;
comment on function billing.revoke_access(name, text) is
'Takes a level from a role, or all of them (null), and what rights in the schema billing came with it. For the owner of the extension. Errors: 42501 no_level, 42704 unknown_role (with what it is called now, where it was renamed), 22023.';

-- What is others', and would run with our rights or hold up our work: triggers on our tables whose function is another role's (they run with
-- the rights of whoever writes the table); functions in our schemas, which may fit a call better than ours; foreign keys to our tables of
-- tables that are others' (their checks run casts as the owner of ours, and their rows hold ours). Superusers are nobody else.
create function billing_internal.foreign_things() returns table (kind text, name text, relation regclass, routine regprocedure, owner text)
    language sql stable
    set search_path = pg_catalog, pg_temp as $$
    with ours as (select oid from pg_namespace where nspname in ('billing', 'billing_internal')),
    things (kind, name, relation, routine, owner, ours) as (
        select 'trigger', t.tgname::text, c.oid::regclass, p.oid::regprocedure, p.proowner, c.relowner
          from pg_class c
          join pg_trigger t on t.tgrelid = c.oid and not t.tgisinternal
          join pg_proc p on p.oid = t.tgfoid
         where c.relnamespace in (select oid from ours)
        union all
        select 'function', p.proname::text, null, p.oid::regprocedure, p.proowner, (select extowner from pg_extension where extname = 'pg_billing')
          from pg_proc p
         where p.pronamespace in (select oid from ours)
        union all
        select 'foreign key', f.conname::text, f.conrelid::regclass, null, c.relowner, r.relowner
          from pg_constraint f
          join pg_class r on r.oid = f.confrelid
          join pg_class c on c.oid = f.conrelid
         where f.contype = 'f' and f.conparentid = 0 and r.relnamespace in (select oid from ours))
    select t.kind, t.name, t.relation, t.routine, o.rolname::text
      from things t
      join pg_roles o on o.oid = t.owner
     where t.owner <> t.ours and not o.rolsuper
     order by t.relation, t.name
$$;

create function billing_internal.drop_foreign_things() returns text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    found record;
    said text[] := '{}';
begin
    for found in select * from billing_internal.foreign_things() f where f.kind in ('trigger', 'foreign key') order by f.kind desc, f.relation, f.name loop
        if found.kind = 'trigger' then
            execute format('drop trigger %I on %s', found.name, found.relation);
            said := said || format('trigger %s on %s, function of %s', found.name, found.relation, found.owner);
        else
            execute format('alter table %s drop constraint %I', found.relation, found.name);
            said := said || format('foreign key %s of %s, of %s', found.name, found.relation, found.owner);
        end if;
    end loop;
    return array_to_string(said, ', ');
end $$;

-- Things of others that would run with our rights, or hold up what we do, are not made in the first place: triggers on our tables, foreign keys
-- to them (whose checks run casts of the referring column as the owner of ours, and whose rows keep ours from going), and anything in our schemas.
-- Whoever has a right to these has it by a grant that was not meant.
create function billing_internal.guard() returns event_trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp as $$
declare
    made record;
begin
    if (select r.rolsuper from pg_roles r where r.rolname = current_user)
       or pg_has_role(current_user, (select extowner from pg_extension where extname = 'pg_billing'), 'USAGE') then
        return;
    end if;
    select c.object_identity, c.object_type into made
      from pg_event_trigger_ddl_commands() c
     where c.command_tag not in ('GRANT', 'REVOKE')
       and (c.schema_name in ('billing', 'billing_internal')
            or c.classid = 'pg_trigger'::regclass
               and exists (select from pg_trigger t join pg_class r on r.oid = t.tgrelid where t.oid = c.objid and r.relnamespace in (to_regnamespace('billing'), to_regnamespace('billing_internal')))
            or c.classid = 'pg_class'::regclass
               -- One that was made now: numbers of this transaction are not below its own. Those of partitions follow their parents'.
               and exists (select from pg_constraint f join pg_class r on r.oid = f.confrelid
                            where f.conrelid = c.objid and f.contype = 'f' and r.relnamespace in (to_regnamespace('billing'), to_regnamespace('billing_internal')) and f.conparentid = 0
                              and f.xmin::text::bigint >= mod(pg_current_xact_id()::text::bigint, 4294967296)))
     limit 1;
    if found then
        raise exception using errcode = '42501', message = 'only the owner of pg_billing adds to its schemas and tables',
            detail = jsonb_build_object('code', 'not_owner', 'object', made.object_identity, 'type', made.object_type, 'role', current_user)::text,
            hint = 'Keep your own things in a schema of your own; refer to orgs and metrics without a foreign key.';
    end if;
end $$;
create event trigger pg_billing_guard on ddl_command_end execute function billing_internal.guard();
comment on event trigger pg_billing_guard is 'Lets nobody but the owner of pg_billing add triggers, foreign keys and objects to its tables and schemas.';
