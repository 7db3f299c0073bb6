-- Ordinary tables of the database, and no members of the extension: a ledger of money must survive DROP EXTENSION … CASCADE and
-- travel whole in a dump (docs/DESIGN.md). For the same reason columns have built-in types, no default or constraint calls a function
-- of the extension, and these functions of the guarding triggers are plain plpgsql that outlives it.
-- org_id stands first in every key, so that tables can be distributed by it.

create function billing_internal.refuse_change() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using errcode = '42501', message = 'the ledger is append-only',
        detail = jsonb_build_object('code', 'append_only', 'table', tg_table_name, 'operation', tg_op)::text,
        hint = 'Correct a movement with another one: refund_credits, void_grant, adjust_credits.';
end $$;
comment on function billing_internal.refuse_change() is 'Trigger that refuses to change or remove what the ledger recorded.';
revoke all on function billing_internal.refuse_change() from public;

create function billing_internal.refuse_event_change() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using errcode = '42501', message = 'usage events are append-only',
        detail = jsonb_build_object('code', 'append_only', 'table', tg_table_name, 'operation', tg_op)::text,
        hint = 'Drop partitions that are no longer needed; correct usage with another event.';
end $$;
comment on function billing_internal.refuse_event_change() is 'Trigger that refuses to change or remove recorded events.';
revoke all on function billing_internal.refuse_event_change() from public;

-- No table is emptied by who came to that right by a grant on all tables: row security knows no TRUNCATE.
create function billing_internal.refuse_truncate() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    if not pg_has_role(current_user, (select relowner from pg_class where oid = tg_relid), 'USAGE') then
        raise exception using errcode = '42501', message = 'only the owner empties a table of pg_billing',
            detail = jsonb_build_object('code', 'not_owner', 'table', tg_table_name)::text;
    end if;
    return null;
end $$;
comment on function billing_internal.refuse_truncate() is 'Trigger that lets only the owner of a table empty it.';
revoke all on function billing_internal.refuse_truncate() from public;
