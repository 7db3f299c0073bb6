-- The ledger only grows. Plain plpgsql that is no member of the extension, so that the guards outlive it.

create function billing.refuse_change() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    raise exception using errcode = '42501', message = 'the ledger is append-only',
        detail = jsonb_build_object('code', 'append_only', 'table', tg_table_name, 'operation', tg_op)::text,
        hint = 'Correct a movement with another one: refund_credits, void_grant, adjust_credits.';
end $$;
comment on function billing.refuse_change() is 'Trigger that refuses to change or remove what the ledger recorded.';
revoke all on function billing.refuse_change() from public;

create trigger entries_append_only before update or delete or truncate on billing.entries
    for each statement execute function billing.refuse_change();
create trigger lanes_stay before delete or truncate on billing.lanes
    for each statement execute function billing.refuse_change();
create trigger lots_stay before delete or truncate on billing.lots
    for each statement execute function billing.refuse_change();
create trigger holds_stay before delete or truncate on billing.holds
    for each statement execute function billing.refuse_change();
create trigger refunds_stay before delete or truncate on billing.refunds
    for each statement execute function billing.refuse_change();
create trigger wallet_settings_stay before delete or truncate on billing.wallet_settings
    for each statement execute function billing.refuse_change();
