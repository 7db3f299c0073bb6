-- The public face of the tables. security_invoker: row security applies to who reads, not to who owns the view.

create or replace view billing.wallets with (security_invoker = true) as
select s.org_id, s.unit, w.owner_type, w.available, w.reserved, w.locked, w.pending, w.lifetime_purchased, w.lifetime_consumed, w.low_balance_threshold,
       w.scoped, w.future, w.created_at
  from billing_internal.wallet_settings s cross join lateral billing.get_wallet(s.org_id, s.unit) w;
comment on view billing.wallets is 'Wallets as they are at this moment: see the type wallet_status.';

create or replace view billing.grants with (security_invoker = true) as
select g.org_id, g.grant_id, g.unit, g.source, g.category, g.amount,
       g.remaining + coalesce(s.credits, 0) as remaining,
       g.cost_minor, g.currency, g.priority, g.metrics, g.effective_at, g.expires_at, g.voided_at, g.created_at, g.metadata
  from billing_internal.grants g
  -- A query of its own, not one per grant: row security would look for the orgs of the caller in each.
  left join (select l.org_id, l.unit, l.slice_grant, sum(l.slice_credits)::bigint as credits from billing_internal.lanes l
              where l.slice_grant <> 0 group by l.org_id, l.unit, l.slice_grant) s
         on s.org_id = g.org_id and s.unit = g.unit and s.slice_grant = g.grant_id;
comment on view billing.grants is 'Grants of credit with what is left of them. An expired grant shows its rest until that is booked.';

-- A key is a UUID or a text; where somebody made it both, it shows.
create or replace view billing.entries with (security_invoker = true) as
select org_id, coalesce(operation_id, entry_id) as operation_id, entry_id, amount, balance_after - amount as balance_before,
       balance_after, created_at, grant_id, case when kind is null then nullif(coalesce(quantity, 1), 0) else quantity end as quantity,
       request_hash, request_id, member_id, coalesce(unit, 'credit') as unit,
       coalesce(kind, 'usage') as kind, metric, source, source_id, coalesce(key_text || key_uuid::text, key_text, key_uuid::text) as idempotency_key, reason,
       actor, coalesce(metadata, '{}') as metadata, result, entry_hash
  from billing.ledger;
comment on view billing.entries is 'The ledger: one immutable row per movement of credit, chained by hash within its lane.';
comment on column billing.entries.org_id is 'The billed customer.';
comment on column billing.entries.operation_id is 'The call that wrote the entry: the entry_id of its first entry.';
comment on column billing.entries.entry_id is 'Number in the chain of its lane.';
comment on column billing.entries.amount is 'Signed, as the balance sees it.';
comment on column billing.entries.balance_before is 'Balance of the lane (of the wallet, as long as it has one lane) before the entry.';
comment on column billing.entries.balance_after is 'Balance of the lane after the entry.';
comment on column billing.entries.created_at is 'Billing time of the call.';
comment on column billing.entries.grant_id is 'The grant that was credited or burned; null for usage that cost nothing.';
comment on column billing.entries.quantity is 'Quantity of the metric.';
comment on column billing.entries.request_hash is 'Fingerprint of the request, where it came with an idempotency key and the columns do not tell all of it.';
comment on column billing.entries.request_id is 'What makes the idempotency key unique: see billing.ledger.';
comment on column billing.entries.member_id is 'Who in the org it was for.';
comment on column billing.entries.unit is 'Unit of the wallet.';
comment on column billing.entries.kind is 'usage, hold, release, refund, void, expiry, adjustment, payout_hold, payout_release, payout, transfer, lane (from one lane of the wallet to another), or the source of a grant.';
comment on column billing.entries.metric is 'What was used.';
comment on column billing.entries.source is 'What the movement stems from: the source of a grant; hold, operation, transfer or lane with its id in source_id.';
comment on column billing.entries.source_id is 'Id of the source.';
comment on column billing.entries.idempotency_key is 'Key of the call, on its first entry.';
comment on column billing.entries.reason is 'Why, on corrections.';
comment on column billing.entries.actor is 'Who asked for it, on corrections: the JWT subject, else the database role.';
comment on column billing.entries.metadata is 'What the caller noted.';
comment on column billing.entries.result is 'What the call answered, where its entries alone do not tell; given again to a repeated call.';
comment on column billing.entries.entry_hash is 'SHA-256 over the previous hash of the lane and every column of the row (docs/DESIGN.md, The chain).';

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

create or replace view billing.usage_by_day with (security_invoker = true) as
select d.org_id, d.day, d.metric,
       case max(m.aggregation)
       when 'max' then max(d.quantity) filter (where d.quantity > 0 or d.level_at is not null)
       when 'last' then (array_agg(coalesce(d.level, d.quantity) order by d.level_at desc nulls last))[1]
       else least(sum(d.quantity), 9223372036854775807) end::bigint as quantity,
       sum(d.credits)::bigint as credits, max(m.aggregation) as aggregation
  from (select org_id, metric, day, consumed + recorded as quantity, credits, level_at, null::bigint as level from billing_internal.usage_days
        union all
        select org_id, metric, (segment at time zone 'UTC')::date, quantity, 0, level_at, level from billing_internal.unsettled_usage
        union all
        -- A function, which knows at once whether an org is the caller's: row security would look for it among the caller's orgs anew for each.
        select o.org_id, u.metric, u.day, u.quantity, u.credits, null, null
          from (select distinct org_id from billing_internal.lanes) o cross join lateral billing_internal.unfolded_usage(o.org_id) u) d
  join billing.metrics m using (metric)
 group by d.org_id, d.day, d.metric;
comment on view billing.usage_by_day is 'Usage per day (UTC) and metric, exact to this moment. credits is what was charged for it so far; aggregation says how quantities make one: sum, max, last or unique.';

create or replace view billing.usage_by_month with (security_invoker = true) as
select d.org_id, date_trunc('month', d.day)::date as month, d.metric,
       case max(d.aggregation)
       when 'max' then max(d.quantity)
       when 'last' then (array_agg(d.quantity order by d.day desc))[1]
       else least(sum(d.quantity), 9223372036854775807) end::bigint as quantity,
       sum(d.credits)::bigint as credits
  from billing.usage_by_day d
 group by d.org_id, date_trunc('month', d.day), d.metric;
comment on view billing.usage_by_month is 'Usage per calendar month (UTC) and metric. For unique counts, values that were new in their billing period.';

create or replace view billing.settlement_progress with (security_invoker = true) as
select r.run_id, r.pid, r.phase, r.orgs_done, r.orgs_failed, r.orgs_total, r.charged, r.as_of, r.shard, r.shards, r.started_at,
       clock_timestamp() - r.started_at as running_for
  from billing.settlement_runs r
 where r.status = 'running' and billing_internal.settlement_is_running(r.run_id);
comment on view billing.settlement_progress is 'Settlements that run now. Brought up to date with each batch of orgs.';

create or replace view billing.gift_card_batches with (security_invoker = true) as
select name, source, unit, credits, metrics, max_redemptions, validity, expires_at, metadata,
       count(*) as cards, sum(redeemed)::bigint as redemptions, sum(redeemed * credits::numeric) as credits_granted,
       count(*) filter (where redeemed = max_redemptions) as used_up, count(*) filter (where voided_at is not null) as voided,
       min(created_at) as created_at
  from billing.gift_cards
 group by name, source, unit, credits, metrics, max_redemptions, validity, expires_at, metadata;
comment on view billing.gift_card_batches is 'Gift cards and vouchers, one row per batch and terms: how many codes there are, how often they were redeemed and what that granted, how many are used up or voided.';
