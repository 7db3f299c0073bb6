-- The public face of the tables. security_invoker: row security applies to who reads, not to who owns the view.

create or replace view billing.wallets with (security_invoker = true) as
select w.* from billing.wallet_settings s cross join lateral billing.get_wallet(s.org_id, s.unit) w;
comment on view billing.wallets is 'Wallets as they are at this moment: see the type wallet_status.';

create or replace view billing.grants with (security_invoker = true) as
select g.org_id, g.grant_id, g.unit, g.source, g.category, g.amount,
       g.remaining + coalesce((select sum(l.slice_credits) from billing.lanes l
                                where l.org_id = g.org_id and l.unit = g.unit and l.slice_grant = g.grant_id), 0)::bigint
           as remaining,
       g.cost_minor, g.currency, g.priority, g.metrics, g.effective_at, g.expires_at, g.voided_at, g.created_at, g.metadata
  from billing.lots g;
comment on view billing.grants is 'Grants of credit with what is left of them. An expired grant shows its rest until that is booked.';

create or replace view billing.operations with (security_invoker = true) as
select org_id, operation_id, unit, min(created_at) as created_at,
       (array_agg(kind order by entry_id desc))[1] as kind,
       (array_agg(metric order by entry_id desc))[1] as metric,
       (array_agg(quantity order by entry_id desc))[1] as quantity,
       (array_agg(member_id order by entry_id desc))[1] as member_id,
       sum(amount)::bigint as amount, count(*) as entries,
       max(idempotency_key) as idempotency_key
  from billing.entries group by org_id, operation_id, unit;
comment on view billing.operations is 'One row per call that moved credit, with the sum of its entries. kind, metric and quantity are those of its last entry.';
