-- Row security on every table. A member sees its own orgs' rows; whoever may verify the ledger sees all. The caller's
-- orgs stand in a sub-select so that they are computed once per statement, not per row.

do $$
declare
    tenant text;
    name text;
begin
    for name in select c.relname from pg_catalog.pg_class c
                 where c.relnamespace = 'billing'::regnamespace and c.relkind in ('r', 'p') and not c.relrowsecurity loop
        execute pg_catalog.format('alter table billing.%I enable row level security', name);
    end loop;
    foreach tenant in array array['wallet_settings', 'lanes', 'lots', 'holds', 'ledger', 'refunds', 'member_usage', 'period_usage',
                                  'org_prices', 'subscriptions', 'org_allowances', 'usage_events', 'unsettled_usage', 'unpaid_overage', 'cap_usage',
                                  'usage_days', 'credit_months', 'folded', 'alerts', 'payments', 'payment_refs', 'provider_customers',
                                  'provider_subscriptions', 'auto_recharges', 'gift_card_redemptions'] loop
        if not exists (select from pg_catalog.pg_policy
                        where polrelid = pg_catalog.format('billing.%I', tenant)::regclass and polname = 'own_orgs') then
            execute pg_catalog.format($policy$
                create policy own_orgs on billing.%I for select using (
                    org_id = any ((select billing.my_orgs())::uuid[])
                    or (select pg_catalog.has_function_privilege('billing.verify_ledger(pg_catalog.uuid)', 'execute')))$policy$, tenant);
        end if;
    end loop;
    -- What only those may see who see every org.
    foreach name in array array['settlement_runs', 'settlement_faults', 'webhook_events', 'outbox', 'flags', 'freezes', 'gift_cards'] loop
        if not exists (select from pg_catalog.pg_policy
                        where polrelid = pg_catalog.format('billing.%I', name)::regclass and polname = 'every_org') then
            execute pg_catalog.format($policy$
                create policy every_org on billing.%I for select using (
                    (select pg_catalog.has_function_privilege('billing.verify_ledger(pg_catalog.uuid)', 'execute')))$policy$, name);
        end if;
    end loop;
    foreach name in array array['metrics', 'prices', 'plans', 'caps', 'packs', 'surcharges'] loop
        if not exists (select from pg_catalog.pg_policy
                        where polrelid = pg_catalog.format('billing.%I', name)::regclass and polname = 'list_prices') then
            execute pg_catalog.format('create policy list_prices on billing.%I for select using (true)', name);
        end if;
    end loop;
end $$;
