-- Gift cards and vouchers.

-- A code stands nowhere: only its hash under a key of this database does, so that neither a dump of gift_cards nor a look at it gives
-- a code that could be redeemed, nor a code that could be tried out elsewhere.
create table billing.gift_cards (
    code_hash bytea primary key,
    credits bigint not null check (credits > 0),
    created_at timestamptz not null,
    expires_at timestamptz,
    voided_at timestamptz,
    max_redemptions integer not null check (max_redemptions > 0),
    redeemed integer not null default 0 check (redeemed between 0 and max_redemptions),
    unit text collate "C" not null,
    name text collate "C" not null,
    source text collate "C" not null check (source in ('gift_card', 'voucher')),
    validity text collate "C",
    metrics text[],
    metadata jsonb not null default '{}'
) with (fillfactor = 80);
create index gift_cards_name on billing.gift_cards (name);
comment on table billing.gift_cards is 'One row per code of a gift card or voucher; read it through gift_card_batches.';
comment on column billing.gift_cards.code_hash is 'HMAC-SHA256 of the code under the secret gift_cards.';
comment on column billing.gift_cards.credits is 'What each redemption grants, in the unit.';
comment on column billing.gift_cards.created_at is 'When it was made.';
comment on column billing.gift_cards.expires_at is 'Until when the code can be redeemed; null: for ever.';
comment on column billing.gift_cards.voided_at is 'Since when the code cannot be redeemed any more; null: it was not voided.';
comment on column billing.gift_cards.max_redemptions is 'How often it can be redeemed in all; each org can once.';
comment on column billing.gift_cards.redeemed is 'How often it was.';
comment on column billing.gift_cards.unit is 'credit, or an ISO 4217 currency (minor units).';
comment on column billing.gift_cards.name is 'The batch; source_id of the entries that its redemptions make.';
comment on column billing.gift_cards.source is 'gift_card or voucher: the source of the grants.';
comment on column billing.gift_cards.validity is 'How long the credit can be spent once the code is redeemed, as in 30 days, 6 months, 1 year; null: for ever.';
comment on column billing.gift_cards.metrics is 'The only metrics on which the credit may be spent; null: any.';
comment on column billing.gift_cards.metadata is 'What the caller noted.';
create trigger gift_cards_stay before delete or truncate on billing.gift_cards
    for each statement execute function billing_internal.refuse_change();

create table billing.gift_card_redemptions (
    org_id uuid not null,
    code_hash bytea not null,
    grant_id bigint not null,
    redeemed_at timestamptz not null,
    name text collate "C" not null,
    primary key (org_id, code_hash)
);
create index gift_card_redemptions_name on billing.gift_card_redemptions (name);
comment on table billing.gift_card_redemptions is 'Who redeemed which code: an org redeems a code once.';
comment on column billing.gift_card_redemptions.org_id is 'The billed customer.';
comment on column billing.gift_card_redemptions.code_hash is 'The code, see gift_cards.';
comment on column billing.gift_card_redemptions.grant_id is 'What it was granted.';
comment on column billing.gift_card_redemptions.redeemed_at is 'When.';
comment on column billing.gift_card_redemptions.name is 'The batch of the code.';
create trigger gift_card_redemptions_append_only before update or delete or truncate on billing.gift_card_redemptions
    for each statement execute function billing_internal.refuse_change();

create table billing_internal.gift_card_attempts (
    org_id uuid not null,
    attempted_at timestamptz not null,
    attempt_id uuid not null,
    primary key (org_id, attempted_at, attempt_id)
);
comment on table billing_internal.gift_card_attempts is 'Codes that an org tried in vain, of the last day: noted in transactions of their own, since a call that fails takes back what it wrote.';
comment on column billing_internal.gift_card_attempts.org_id is 'Who tried.';
comment on column billing_internal.gift_card_attempts.attempted_at is 'When, billing time.';
comment on column billing_internal.gift_card_attempts.attempt_id is 'Random.';
