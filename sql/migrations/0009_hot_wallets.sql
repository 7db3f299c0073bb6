-- Wallets that many spend from at once: split into lanes (docs/DESIGN.md, Lanes).
alter table billing.lanes add column lanes smallint not null default 1, add column alert_base bigint not null default 0;
comment on column billing.lanes.lanes is 'Into how many lanes the wallet is split; 1: consumptions burn from lane 0 itself. Holds on lane 0, which is the wallet''s lock and keeps what no other lane holds.';
comment on column billing.lanes.alert_base is 'Balance of the wallet after its last grant: what shares of the balance are shares of.';

update billing.lanes l
   set alert_base = e.balance_after
  from billing.lots g join billing.entries e on e.org_id = g.org_id and e.entry_id = g.grant_id
 where g.org_id = l.org_id and g.unit = l.unit
   and g.grant_id = (select max(n.grant_id) from billing.lots n where n.org_id = g.org_id and n.unit = g.unit);

alter table billing.wallet_settings
    add column lanes smallint not null default 1 check (lanes between 0 and 64),
    add column contended_at timestamptz;
create index wallet_settings_contended on billing.wallet_settings (contended_at) where contended_at is not null;
comment on column billing.wallet_settings.lanes is 'As set_wallet_lanes() was told; 0: automatic.';
comment on column billing.wallet_settings.contended_at is 'When consumptions last had to wait for each other, to a minute; null unless lanes are automatic and more than one.';

comment on column billing.lanes.balance is 'Sum of the amounts of the lane''s entries: all its credit that is neither reserved nor locked, scoped and future credit included.';
comment on column billing.entries.source is 'What the movement stems from: the source of a grant; hold, operation, transfer or lane with its id in source_id.';
comment on column billing.entries.kind is 'usage, hold, release, refund, void, expiry, adjustment, payout_hold, payout_release, payout, transfer, lane (from one lane of the wallet to another), or the source of a grant.';

-- As on lanes and entries: the server parses each anew for every reservation. verify_ledger() proves what they say.
alter table billing.holds
    drop constraint holds_credits_check, drop constraint holds_parts_check, drop constraint holds_kind_check,
    drop constraint holds_status_check, drop constraint holds_check, drop constraint holds_check1;
