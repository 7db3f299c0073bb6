-- Payments, what providers report of them, and automatic recharging.

create table billing.payments (
    org_id uuid not null,
    payment_id uuid not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    paid_at timestamptz,
    price bigint not null check (price >= 0),
    tax bigint not null check (tax >= 0),
    fee bigint not null check (fee >= 0),
    total bigint not null check (total >= 0),
    credits bigint not null check (credits >= 0),
    bonus bigint not null check (bonus >= 0),
    refunded bigint not null default 0 check (refunded >= 0),
    disputed_amount bigint not null default 0 check (disputed_amount >= 0),
    last_report_at bigint not null default 0,
    unrecovered bigint not null default 0 check (unrecovered >= 0),
    request_hash bigint,
    priority integer not null default 50,
    status text collate "C" not null check (status in ('idle', 'processing', 'pending', 'succeeded', 'failed', 'refunded')),
    source text collate "C" not null check (source in ('purchase', 'auto_recharge', 'subscription')),
    provider text collate "C" not null,
    pack text collate "C",
    plan text collate "C",
    unit text collate "C" not null,
    currency text collate "C" not null,
    validity text,
    dispute text collate "C" check (dispute in ('open', 'won', 'lost')),
    failure text,
    customer text,
    payment_method text,
    fingerprint text,
    idempotency_key text collate "C",
    subscription text,
    period_start timestamptz,
    period_end timestamptz,
    metrics text[],
    grants bigint[] not null default '{}',
    taken_back bigint[] not null default '{}',
    metadata jsonb not null default '{}',
    primary key (org_id, payment_id),
    check (cardinality(grants) = cardinality(taken_back))
);
create unique index payments_request on billing.payments (org_id, idempotency_key) where idempotency_key is not null;
create index payments_open on billing.payments (org_id, unit) where status in ('idle', 'processing', 'pending');
create index payments_by_id on billing.payments (payment_id);
create index payments_by_time on billing.payments (org_id, created_at);
create index payments_fingerprint on billing.payments (fingerprint) where fingerprint is not null;
comment on table billing.payments is 'Money for credit. Credit is granted when, and only when, the provider says that the money is there.';
comment on column billing.payments.org_id is 'The billed customer.';
comment on column billing.payments.payment_id is 'Give it to the provider as metadata.payment_id (with metadata.org_id) or client_reference_id.';
comment on column billing.payments.created_at is 'When it was started.';
comment on column billing.payments.updated_at is 'When something about it last changed.';
comment on column billing.payments.paid_at is 'When the money was reported; null: it was not.';
comment on column billing.payments.price is 'Of the pack, minor units.';
comment on column billing.payments.tax is 'Minor units.';
comment on column billing.payments.fee is 'Platform fee, minor units.';
comment on column billing.payments.total is 'What the provider is to charge, minor units.';
comment on column billing.payments.credits is 'What it buys.';
comment on column billing.payments.bonus is 'What comes on top.';
comment on column billing.payments.refunded is 'What went back to the customer so far, minor units.';
comment on column billing.payments.disputed_amount is 'What a lost dispute took, minor units.';
comment on column billing.payments.last_report_at is 'When the provider made the newest report of an unpaid payment, in seconds of the Unix epoch: what is older changes nothing.';
comment on column billing.payments.unrecovered is 'Credit of money that went back, which was spent before: nobody paid for it.';
comment on column billing.payments.request_hash is 'Fingerprint of the request that started it.';
comment on column billing.payments.priority is 'Of its grants: lower burns first.';
comment on column billing.payments.status is 'idle, processing, pending, succeeded, failed or refunded.';
comment on column billing.payments.source is 'purchase, auto_recharge or subscription.';
comment on column billing.payments.provider is 'stripe, razorpay, or another that set_payment_status() speaks for.';
comment on column billing.payments.pack is 'What was bought.';
comment on column billing.payments.plan is 'What was subscribed to.';
comment on column billing.payments.unit is 'Unit of the wallet.';
comment on column billing.payments.currency is 'ISO 4217.';
comment on column billing.payments.validity is 'How long the credit is good; null: for ever.';
comment on column billing.payments.dispute is 'open, won or lost; null: there was none.';
comment on column billing.payments.failure is 'Why it failed, in the provider''s words.';
comment on column billing.payments.customer is 'The provider''s id of the customer.';
comment on column billing.payments.payment_method is 'The provider''s id of the card or account.';
comment on column billing.payments.fingerprint is 'The provider''s fingerprint of the card.';
comment on column billing.payments.idempotency_key is 'Key of the request that started it.';
comment on column billing.payments.subscription is 'The provider''s id of the subscription that it paid.';
comment on column billing.payments.period_start is 'Start of what it paid of the subscription.';
comment on column billing.payments.period_end is 'End of that.';
comment on column billing.payments.metrics is 'The only metrics the credit may be spent on; null: any.';
comment on column billing.payments.grants is 'The grants that it brought.';
comment on column billing.payments.taken_back is 'What of each was taken back with the money, spent credit included.';
comment on column billing.payments.metadata is 'What the caller noted.';

create table billing.payment_refs (
    org_id uuid not null,
    provider text collate "C" not null,
    ref text collate "C" not null,
    payment_id uuid not null,
    primary key (org_id, provider, ref)
);
create index payment_refs_by_ref on billing.payment_refs (provider, ref);
comment on table billing.payment_refs is 'By which ids the provider knows a payment: sessions, intents, charges, invoices.';
comment on column billing.payment_refs.org_id is 'The billed customer.';
comment on column billing.payment_refs.provider is 'Whose id it is.';
comment on column billing.payment_refs.ref is 'The id.';
comment on column billing.payment_refs.payment_id is 'See payments.';

create table billing.provider_customers (
    org_id uuid not null,
    provider text collate "C" not null,
    customer text collate "C" not null,
    primary key (org_id, provider, customer)
);
create index provider_customers_by_customer on billing.provider_customers (provider, customer);
comment on table billing.provider_customers is 'Which org a provider''s customer is.';
comment on column billing.provider_customers.org_id is 'The billed customer.';
comment on column billing.provider_customers.provider is 'Whose customer.';
comment on column billing.provider_customers.customer is 'The provider''s id.';

create table billing.provider_subscriptions (
    org_id uuid not null,
    provider text collate "C" not null,
    subscription text collate "C" not null,
    state text collate "C" not null check (state in ('incomplete', 'active', 'past_due', 'canceled')),
    plan text collate "C",
    cancel_at_period_end boolean not null default false,
    paid_until timestamptz,
    last_report_at bigint not null default 0,
    last_paid_report_at bigint not null default 0,
    primary key (org_id, provider, subscription)
);
create index provider_subscriptions_by_id on billing.provider_subscriptions (provider, subscription);
comment on table billing.provider_subscriptions is 'Subscriptions at a provider that pay for a plan here.';
comment on column billing.provider_subscriptions.org_id is 'The billed customer.';
comment on column billing.provider_subscriptions.provider is 'stripe or razorpay.';
comment on column billing.provider_subscriptions.subscription is 'The provider''s id.';
comment on column billing.provider_subscriptions.state is 'incomplete, active, past_due or canceled.';
comment on column billing.provider_subscriptions.plan is 'The plan of its price; null: not known yet.';
comment on column billing.provider_subscriptions.cancel_at_period_end is 'It ends with the period that is paid.';
comment on column billing.provider_subscriptions.paid_until is 'End of the last period that was paid.';
comment on column billing.provider_subscriptions.last_report_at is 'When the provider made the newest report, in seconds of the Unix epoch.';
comment on column billing.provider_subscriptions.last_paid_report_at is 'When the provider made the newest report of a payment, likewise.';

create table billing.auto_recharges (
    org_id uuid not null,
    unit text collate "C" not null,
    threshold bigint not null check (threshold > 0),
    pack text collate "C" not null,
    currency text collate "C" not null,
    provider text collate "C" not null,
    customer text,
    payment_method text,
    monthly_ceiling bigint check (monthly_ceiling > 0),
    enabled boolean not null,
    failures integer not null default 0,
    next_attempt_at timestamptz,
    stopped_at timestamptz,
    primary key (org_id, unit)
);
comment on table billing.auto_recharges is 'Which pack is bought when a wallet runs low.';
comment on column billing.auto_recharges.org_id is 'The billed customer.';
comment on column billing.auto_recharges.unit is 'Unit of the wallet.';
comment on column billing.auto_recharges.threshold is 'A purchase is due when the spendable and the pending credit together are below this.';
comment on column billing.auto_recharges.pack is 'What is bought.';
comment on column billing.auto_recharges.currency is 'ISO 4217.';
comment on column billing.auto_recharges.provider is 'Who is to charge.';
comment on column billing.auto_recharges.customer is 'The provider''s id of the customer.';
comment on column billing.auto_recharges.payment_method is 'The provider''s id of the card or account.';
comment on column billing.auto_recharges.monthly_ceiling is 'Most that is charged in a calendar month (UTC), minor units; null: no ceiling.';
comment on column billing.auto_recharges.enabled is 'Whether it buys at all.';
comment on column billing.auto_recharges.failures is 'Payments that failed since the last success.';
comment on column billing.auto_recharges.next_attempt_at is 'Not before this moment, after a failure.';
comment on column billing.auto_recharges.stopped_at is 'When it gave up; configure_auto_recharge() starts it again.';

create table billing_internal.webhook_secrets (
    provider text collate "C" not null,
    created_at timestamptz not null,
    expires_at timestamptz,
    secret bytea not null,
    secret_id uuid not null default gen_random_uuid() primary key
);
create index webhook_secrets_by_provider on billing_internal.webhook_secrets (provider);
comment on table billing_internal.webhook_secrets is 'What providers sign with. No role may read it.';
comment on column billing_internal.webhook_secrets.provider is 'stripe or razorpay.';
comment on column billing_internal.webhook_secrets.created_at is 'When it was set.';
comment on column billing_internal.webhook_secrets.expires_at is 'Until when it is good, once another was set; null: it is the newest.';
comment on column billing_internal.webhook_secrets.secret is 'The secret.';
comment on column billing_internal.webhook_secrets.secret_id is 'Tells it from others.';

create table billing.webhook_events (
    provider text collate "C" not null,
    event_id text collate "C" not null,
    type text not null,
    status text collate "C" not null check (status in ('processed', 'ignored', 'review')),
    reason text,
    received_at timestamptz not null,
    processed_at timestamptz,
    deliveries bigint not null default 1,
    org_id uuid,
    refs text[] not null default '{}',
    payload text not null,
    primary key (provider, event_id)
);
create index webhook_events_review on billing.webhook_events using gin (refs) where status = 'review';
comment on table billing.webhook_events is 'What providers reported, signed by them. What waits for a person has the status review: see replay_webhook().';
comment on column billing.webhook_events.provider is 'Who sent it.';
comment on column billing.webhook_events.event_id is 'The provider''s id of it.';
comment on column billing.webhook_events.type is 'The provider''s name of what happened.';
comment on column billing.webhook_events.status is 'processed; ignored: of a type that is not used; review: kept for a person.';
comment on column billing.webhook_events.reason is 'Why it waits for a person.';
comment on column billing.webhook_events.received_at is 'When it came first.';
comment on column billing.webhook_events.processed_at is 'When its work was done.';
comment on column billing.webhook_events.deliveries is 'How often it came.';
comment on column billing.webhook_events.org_id is 'Whom it is about, as far as known.';
comment on column billing.webhook_events.refs is 'The provider''s ids of the payment that it is about.';
comment on column billing.webhook_events.payload is 'As it came.';
