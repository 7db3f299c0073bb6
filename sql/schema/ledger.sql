-- The ledger, and what was refunded of it.

-- No CHECK constraints on purpose: entries are written by one module and proved by verify_ledger(), which must also be able to show a
-- row that somebody bent with the guards switched off. What follows from the rest of a row, or is nearly always the same, is null:
-- a common consumption takes three quarters of the bytes. The view entries shows every column.
create table billing.ledger (
    org_id uuid not null,
    entry_id bigint not null,
    amount bigint not null,
    balance_after bigint not null,
    created_at timestamptz not null,
    grant_id bigint,
    quantity bigint,
    request_id bigint,
    key_uuid uuid,
    member_id uuid,
    operation_id bigint,
    request_hash bigint,
    unit text collate "C",
    kind text collate "C",
    metric text collate "C",
    source text collate "C",
    source_id text collate "C",
    key_text text collate "C",
    reason text,
    actor text,
    metadata jsonb,
    result text,
    entry_hash bytea not null,
    primary key (org_id, entry_id) with (fillfactor = 100)
);
-- Of the first entries of operations with an idempotency key, which are the only ones that have one. The entries of an operation are
-- found by number: they follow each other in the chain.
create unique index ledger_request on billing.ledger (org_id, request_id) where request_id is not null;
comment on table billing.ledger is 'The ledger as stored: one immutable row per movement of credit, chained by hash within its lane. Read it through the view entries. What is usual is left out: null says so.';
comment on column billing.ledger.org_id is 'The billed customer.';
comment on column billing.ledger.entry_id is 'Number in the chain of its lane.';
comment on column billing.ledger.amount is 'Signed, as the balance sees it.';
comment on column billing.ledger.balance_after is 'Balance of the lane after the entry.';
comment on column billing.ledger.created_at is 'Billing time of the call.';
comment on column billing.ledger.grant_id is 'The grant that was credited or burned; null for usage that cost nothing.';
comment on column billing.ledger.quantity is 'Quantity of the metric; of usage, null for 1 and 0 for none.';
comment on column billing.ledger.request_id is 'First 64 bits of the SHA-256 of the idempotency key: what makes it unique, in a narrow index whatever keys an application uses. Two keys of an org that share them by chance count as a conflict: the later call is refused, and may be made with another key.';
comment on column billing.ledger.key_uuid is 'Key of the call, on its first entry, where the key is a UUID as the server writes it.';
comment on column billing.ledger.member_id is 'Who in the org it was for.';
comment on column billing.ledger.operation_id is 'The call that wrote the entry: the entry_id of its first entry; null on the first entry.';
comment on column billing.ledger.request_hash is 'Fingerprint of the request, where it came with an idempotency key and the columns do not tell all of it.';
comment on column billing.ledger.unit is 'Unit of the wallet; null for credit.';
comment on column billing.ledger.kind is 'As in entries; null for usage.';
comment on column billing.ledger.metric is 'What was used.';
comment on column billing.ledger.source is 'What the movement stems from: the source of a grant; hold, operation, transfer or lane with its id in source_id.';
comment on column billing.ledger.source_id is 'Id of the source.';
comment on column billing.ledger.key_text is 'Key of the call, on its first entry, where it is anything else.';
comment on column billing.ledger.reason is 'Why, on corrections.';
comment on column billing.ledger.actor is 'Who asked for it, on corrections: the JWT subject, else the database role.';
comment on column billing.ledger.metadata is 'What the caller noted; null for nothing.';
comment on column billing.ledger.result is 'What the call answered, where its entries alone do not tell; given again to a repeated call.';
comment on column billing.ledger.entry_hash is 'SHA-256 over the previous hash of the lane and every column of the view entries (docs/DESIGN.md, The chain).';
create trigger ledger_append_only before update or delete or truncate on billing.ledger
    for each statement execute function billing_internal.refuse_change();

create table billing_internal.refunds (
    org_id uuid not null,
    operation_id bigint not null,
    grant_id bigint not null,
    credits bigint not null check (credits > 0),
    primary key (org_id, operation_id, grant_id)
);
comment on table billing_internal.refunds is 'What was refunded so far of each consumption, per grant that it burned.';
comment on column billing_internal.refunds.org_id is 'The billed customer.';
comment on column billing_internal.refunds.operation_id is 'The consumption.';
comment on column billing_internal.refunds.grant_id is 'The grant that got it back.';
comment on column billing_internal.refunds.credits is 'Credit refunded.';
create trigger refunds_stay before delete or truncate on billing_internal.refunds
    for each statement execute function billing_internal.refuse_change();
