-- Wallets, grants, holds, and what the members of an org use.

create table billing_internal.wallet_settings (
    org_id uuid not null,
    unit text collate "C" not null,
    owner_type text not null default 'organization' check (owner_type in ('user', 'community', 'organization')),
    low_balance_threshold bigint check (low_balance_threshold >= 0),
    created_at timestamptz not null,
    lanes smallint not null default 1 check (lanes between 0 and 64),
    contended_at timestamptz,
    primary key (org_id, unit)
);
create index wallet_settings_contended on billing_internal.wallet_settings (contended_at) where contended_at is not null;
comment on table billing_internal.wallet_settings is 'One row per wallet: who owns it and when it counts as low. Balances are in lanes; read both through the view wallets.';
comment on column billing_internal.wallet_settings.org_id is 'The billed customer.';
comment on column billing_internal.wallet_settings.unit is 'credit, or an ISO 4217 currency (minor units).';
comment on column billing_internal.wallet_settings.owner_type is 'user, community or organization.';
comment on column billing_internal.wallet_settings.low_balance_threshold is 'The wallet counts as low below this; null: never.';
comment on column billing_internal.wallet_settings.created_at is 'When the wallet was made.';
comment on column billing_internal.wallet_settings.lanes is 'As set_wallet_lanes() was told; 0: automatic.';
comment on column billing_internal.wallet_settings.contended_at is 'When consumptions last had to wait for each other, to a minute; null unless lanes are automatic and more than one.';
create trigger wallet_settings_stay before delete or truncate on billing_internal.wallet_settings
    for each statement execute function billing_internal.refuse_change();

-- The row that every consumption updates. It has no CHECK: the server parses each anew for every UPDATE, which was a tenth of the
-- whole call; the writing module keeps the balance above zero, and verify_ledger() proves it. Room on the page keeps the updates HOT,
-- so there is no index but the keys and two for columns that the slow path alone changes. No index has an expression or a predicate:
-- the row is written without a statement, and nothing is evaluated for its indexes.
create table billing_internal.lanes (
    org_id uuid not null,
    fresh_until timestamptz not null default 'infinity',
    holds_due timestamptz not null default 'infinity',
    reserved bigint not null default 0,
    locked bigint not null default 0,
    purchased bigint not null default 0,
    scoped bigint not null default 0,
    future bigint not null default 0,
    slice_grant bigint not null default 0,
    lane smallint not null default 0,
    slot smallint not null,
    unit text collate "C" not null,
    fast_until timestamptz not null default 'infinity',
    -- What a consumption changes stands together at the end: WAL holds the rest of the row only once.
    last_entry_id bigint not null,
    balance bigint not null default 0,
    slice_credits bigint not null default 0,
    consumed bigint not null default 0,
    head bytea not null default '',
    alert_below bigint not null default 0,
    lanes smallint not null default 1,
    alert_base bigint not null default 0,
    recent bytea,
    primary key (org_id, unit, lane),
    unique (org_id, slot)
) with (fillfactor = 50);
create index lanes_fresh_until on billing_internal.lanes (fresh_until);
create index lanes_holds_due on billing_internal.lanes (holds_due);
comment on table billing_internal.lanes is 'The balance rows: a wallet has one or more lanes, each with its own hash chain of entries.';
comment on column billing_internal.lanes.org_id is 'The billed customer.';
comment on column billing_internal.lanes.fresh_until is 'scoped, future and the slice hold up to this moment, when a grant expires or becomes effective.';
comment on column billing_internal.lanes.holds_due is 'No open usage hold times out before this moment.';
comment on column billing_internal.lanes.reserved is 'Credit in open usage holds.';
comment on column billing_internal.lanes.locked is 'Credit in open payout holds.';
comment on column billing_internal.lanes.purchased is 'Credit that purchases ever brought in.';
comment on column billing_internal.lanes.scoped is 'Part of the balance that belongs to grants for some metrics only.';
comment on column billing_internal.lanes.future is 'Part of the balance that belongs to unscoped grants that are not effective yet.';
comment on column billing_internal.lanes.slice_grant is 'Grant that is burned next; 0 when there is none. What is left of it stands in slice_credits, not in grants.remaining.';
comment on column billing_internal.lanes.lane is 'Number of the lane within the wallet.';
comment on column billing_internal.lanes.slot is 'Number of the lane within the org; entry ids of the lane are slot * 2^40 + 1, 2, 3, …';
comment on column billing_internal.lanes.unit is 'Unit of the wallet.';
comment on column billing_internal.lanes.fast_until is 'Until then the balance is what can be spent and the slice may be burned without a look at anything else; -infinity where credit is scoped or not effective yet.';
comment on column billing_internal.lanes.last_entry_id is 'Id of the newest entry of the lane.';
comment on column billing_internal.lanes.balance is 'Sum of the amounts of the lane''s entries: all its credit that is neither reserved nor locked, scoped and future credit included.';
comment on column billing_internal.lanes.slice_credits is 'Credit of slice_grant that this lane holds.';
comment on column billing_internal.lanes.consumed is 'Credit that usage ever burned, less refunds.';
comment on column billing_internal.lanes.head is 'entry_hash of the newest entry; empty before the first.';
comment on column billing_internal.lanes.alert_below is 'The consumption that brings the balance below this looks at the alerts of the balance.';
comment on column billing_internal.lanes.lanes is 'Into how many lanes the wallet is split; 1: consumptions burn from lane 0 itself. Holds on lane 0, which is the wallet''s lock and keeps what no other lane holds.';
comment on column billing_internal.lanes.alert_base is 'Balance of the wallet after its last grant: what shares of the balance are shares of.';
comment on column billing_internal.lanes.recent is 'What the entries come to that are not in usage_days and credit_months yet, and which entries those are (src/usage/recent.rs); null, or of other entries: to be read from the ledger.';
create trigger lanes_stay before delete or truncate on billing_internal.lanes
    for each statement execute function billing_internal.refuse_change();

create table billing_internal.grants (
    org_id uuid not null,
    grant_id bigint not null,
    amount bigint not null check (amount > 0),
    remaining bigint not null check (remaining between 0 and amount),
    written_off bigint not null default 0 check (written_off >= 0),
    cost_minor bigint not null default 0 check (cost_minor >= 0),
    effective_at timestamptz not null,
    expires_at timestamptz,
    voided_at timestamptz,
    created_at timestamptz not null,
    priority integer not null,
    unit text collate "C" not null,
    source text not null,
    category text not null check (category in ('paid', 'promotional')),
    currency text,
    metrics text[] check (cardinality(metrics) > 0),
    metadata jsonb not null default '{}',
    primary key (org_id, grant_id),
    check (expires_at > effective_at)
) with (fillfactor = 80);
create index grants_live on billing_internal.grants (org_id, unit) where remaining > 0;
comment on table billing_internal.grants is 'Grants of credit as stored; read them through the view grants, which adds the slice that a lane holds.';
comment on column billing_internal.grants.org_id is 'The billed customer.';
comment on column billing_internal.grants.grant_id is 'Entry id of the grants own entry.';
comment on column billing_internal.grants.amount is 'Credit granted.';
comment on column billing_internal.grants.remaining is 'What is left outside of lanes.slice_credits.';
comment on column billing_internal.grants.written_off is 'What of it expired or was voided.';
comment on column billing_internal.grants.cost_minor is 'What the customer paid for the whole grant, in minor units of currency.';
comment on column billing_internal.grants.effective_at is 'From when it can be spent.';
comment on column billing_internal.grants.expires_at is 'Until when; null: for ever.';
comment on column billing_internal.grants.voided_at is 'When it was voided.';
comment on column billing_internal.grants.created_at is 'When it was granted.';
comment on column billing_internal.grants.priority is 'Lower burns first.';
comment on column billing_internal.grants.unit is 'Unit of the wallet.';
comment on column billing_internal.grants.source is 'purchase, plan, bonus, gift_card, voucher, refund, adjustment or transfer.';
comment on column billing_internal.grants.category is 'paid or promotional.';
comment on column billing_internal.grants.currency is 'Currency of cost_minor.';
comment on column billing_internal.grants.metrics is 'The only metrics this credit may be spent on; null: any.';
comment on column billing_internal.grants.metadata is 'What the caller noted.';
create trigger grants_stay before delete or truncate on billing_internal.grants
    for each statement execute function billing_internal.refuse_change();

-- No CHECK, as on lanes: verify_ledger() proves what one would say. A hold is closed without touching an index (HOT).
create table billing.holds (
    org_id uuid not null,
    hold_id bigint not null,
    credits bigint not null,
    quantity bigint,
    member_id uuid,
    expires_at timestamptz,
    created_at timestamptz not null,
    closed_at timestamptz,
    closed_by bigint,
    parts integer not null,
    unit text collate "C" not null,
    kind text not null,
    status text not null default 'open',
    metric text collate "C",
    reason text,
    price jsonb,
    grant_id bigint,
    primary key (org_id, hold_id)
) with (fillfactor = 80);
create index holds_expires on billing.holds (org_id, unit, expires_at);
comment on table billing.holds is 'Credit set aside: usage holds (reserve, then capture or release) and payout holds. An open usage hold whose expires_at has passed no longer binds credit, also before it is booked as expired.';
comment on column billing.holds.org_id is 'The billed customer.';
comment on column billing.holds.hold_id is 'Id of the operation that made the hold; its entries tell which grants it took.';
comment on column billing.holds.credits is 'Credit set aside.';
comment on column billing.holds.quantity is 'Quantity of the metric that was reserved.';
comment on column billing.holds.member_id is 'Who in the org it is for.';
comment on column billing.holds.expires_at is 'When a usage hold times out.';
comment on column billing.holds.created_at is 'When it was made.';
comment on column billing.holds.closed_at is 'When it was closed.';
comment on column billing.holds.closed_by is 'Operation that closed the hold.';
comment on column billing.holds.parts is 'Number of entries of the operation that made the hold: one per grant that it took from.';
comment on column billing.holds.unit is 'Unit of the wallet.';
comment on column billing.holds.kind is 'usage or payout.';
comment on column billing.holds.status is 'open, captured, released, expired or paid_out.';
comment on column billing.holds.metric is 'What was reserved.';
comment on column billing.holds.reason is 'Why credit was locked.';
comment on column billing.holds.price is 'The price at which it was reserved, and will be captured; null: free.';
comment on column billing.holds.grant_id is 'The grant that it took from; null where that was none or several.';
create trigger holds_stay before delete or truncate on billing.holds
    for each statement execute function billing_internal.refuse_change();

create table billing.member_usage (
    org_id uuid not null,
    unit text collate "C" not null,
    member_id uuid not null,
    consumed bigint not null default 0,
    period_consumed bigint not null default 0,
    period_start timestamptz not null default '-infinity',
    last_activity_at timestamptz,
    budget bigint check (budget >= 0),
    budget_per text check (budget_per in ('day', 'month', 'total')),
    primary key (org_id, unit, member_id),
    check ((budget is null) = (budget_per is null))
) with (fillfactor = 70);
comment on table billing.member_usage is 'Credit consumed per member of a wallet, with the last activity and an optional budget.';
comment on column billing.member_usage.org_id is 'The billed customer.';
comment on column billing.member_usage.unit is 'Unit of the wallet.';
comment on column billing.member_usage.member_id is 'A member of the org.';
comment on column billing.member_usage.consumed is 'Credit that consumptions naming the member have burned, ever.';
comment on column billing.member_usage.period_consumed is 'Credit consumed and reserved in the budget''s current period.';
comment on column billing.member_usage.period_start is 'When the budgets current period began.';
comment on column billing.member_usage.last_activity_at is 'Last consumption or reservation.';
comment on column billing.member_usage.budget is 'Most credit per period; null: no limit.';
comment on column billing.member_usage.budget_per is 'day, month or total.';
