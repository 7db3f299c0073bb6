-- The outbox: work for the world outside.

create table billing.outbox (
    org_id uuid not null,
    event_id uuid not null,
    topic text collate "C" not null,
    payload jsonb not null,
    created_at timestamptz not null,
    available_at timestamptz not null,
    attempts integer not null default 0,
    delivered_at timestamptz,
    dead_at timestamptz,
    request_id bigint,
    last_error text,
    primary key (org_id, event_id)
);
create index outbox_due on billing.outbox (topic, available_at) where delivered_at is null and dead_at is null;
create index outbox_by_id on billing.outbox (event_id);
comment on table billing.outbox is 'What is to be done outside: payments to make, messages to send. At least once: claim_events(), ack_events(), fail_event().';
comment on column billing.outbox.org_id is 'The billed customer.';
comment on column billing.outbox.event_id is 'Its id, in order of time.';
comment on column billing.outbox.topic is 'What kind of work.';
comment on column billing.outbox.payload is 'What is to be done.';
comment on column billing.outbox.created_at is 'When it was put there.';
comment on column billing.outbox.available_at is 'Not before: after a failure, or while somebody has claimed it.';
comment on column billing.outbox.attempts is 'How often it was claimed.';
comment on column billing.outbox.delivered_at is 'When it was acknowledged.';
comment on column billing.outbox.dead_at is 'When it was given up, see requeue_event().';
comment on column billing.outbox.request_id is 'Of pg_net, while its answer is waited for.';
comment on column billing.outbox.last_error is 'What the last attempt said.';
