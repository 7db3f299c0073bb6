-- What rights and owners hang on is known by its number, not only by its name.

alter table billing.access add column role_oid oid, add column cluster text collate "C";
alter table billing.access drop constraint access_pkey;
alter table billing.access add constraint access_pkey primary key (role_name, level);
comment on table billing.access is 'Which role was given which levels by grant_access(): what functions ask, and what grants and policies follow from. Change it by grant_access() and revoke_access() only.';
comment on column billing.access.level is 'member, service, auditor or webhook.';
comment on column billing.access.role_oid is 'The role itself, whatever it is called by now; null until install() has found it.';
comment on column billing.access.cluster is 'The database cluster in which role_oid means something (pg_control_system).';
update billing.access a set role_oid = r.oid, cluster = (select system_identifier::text from pg_catalog.pg_control_system())
  from pg_catalog.pg_roles r where r.rolname = a.role_name;

-- Policies are made anew: see sql/standing/policies.sql.
do $$
declare
    old record;
begin
    for old in select polname, polrelid::pg_catalog.regclass as relation from pg_catalog.pg_policy p join pg_catalog.pg_class c on c.oid = p.polrelid
                where c.relnamespace = 'billing'::pg_catalog.regnamespace and polname in ('own_orgs', 'every_org') loop
        execute pg_catalog.format('drop policy %I on %s', old.polname, old.relation);
    end loop;
end $$;

-- Metered tables belong to who owned them then: another table of that name may be another's.
alter table billing.metered_tables add column owner text collate "C", add column relation oid, add column place text collate "C";
comment on table billing.metered_tables is 'Tables of the app with a metric on their inserts, as meter_table() was told.';
comment on column billing.metered_tables.owner is 'The role that owned the table when it was metered.';
comment on column billing.metered_tables.relation is 'The table itself, whatever it is called by now.';
comment on column billing.metered_tables.place is 'The database cluster and database in which relation means something.';
update billing.metered_tables m set owner = pg_catalog.quote_ident(r.rolname), relation = c.oid, place = billing_internal.place()
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_roles r on r.oid = c.relowner
 where n.nspname = m.table_schema and c.relname = m.table_name;
-- One that is not there by its name any more: status() names it.
update billing.metered_tables set owner = '' where owner is null;
alter table billing.metered_tables alter column owner set not null;

-- The app's table of members, likewise.
update billing.settings s
   set value = pg_catalog.jsonb_build_object('schema', n.nspname, 'table', c.relname, 'owner', r.rolname, 'oid', c.oid::bigint,
                   'database', (select d.oid::bigint from pg_catalog.pg_database d where d.datname = current_database()),
                   'cluster', (select system_identifier::text from pg_catalog.pg_control_system()),
                   'org_column', s.value ->> 'org_column', 'user_column', s.value ->> 'user_column')
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_roles r on r.oid = c.relowner
 where s.name = 'membership' and c.oid = pg_catalog.to_regclass(s.value ->> 'relation');

-- A table that is published needs something by which a row is told.
alter table billing.webhook_secrets add column secret_id uuid not null default pg_catalog.gen_random_uuid() primary key;
comment on column billing.webhook_secrets.secret_id is 'Tells it from others.';

-- One settlement of a share at a time: by a row that only the settlement writes.
-- Its numbers come from the table itself.
alter table billing.settlement_runs alter column run_id drop identity;
update billing.settlement_runs set shard = mod(shard, shards);
create unique index settlement_runs_running on billing.settlement_runs (shards, shard) where status = 'running';
comment on column billing.settlement_runs.orgs_failed is 'Orgs left as they were, see settlement_faults; those that somebody held locked for too long among them.';

-- No table of ours is emptied by who came to that right by a grant on all tables: row security knows no TRUNCATE.
create function billing.refuse_truncate() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    if not pg_has_role(current_user, (select relowner from pg_class where oid = tg_relid), 'USAGE') then
        raise exception using errcode = '42501', message = 'only the owner empties a table of pg_billing',
            detail = jsonb_build_object('code', 'not_owner', 'table', tg_table_name)::text;
    end if;
    return null;
end $$;
comment on function billing.refuse_truncate() is 'Trigger that lets only the owner of a table empty it.';
revoke all on function billing.refuse_truncate() from public;
