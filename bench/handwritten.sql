-- The opponent: what a good developer writes by hand when a balance column and a list of what happened will do.
-- No grants, no expiry, no holds, no chain; the price is the caller's business. Two indexes in all, as few as it can have.

create schema handwritten;

create table handwritten.balances (
    org     uuid   primary key,
    balance bigint not null check (balance >= 0)
);

create table handwritten.ledger (
    org             uuid        not null,
    amount          bigint      not null,
    balance_after   bigint      not null,
    metric          text        not null,
    quantity        bigint      not null,
    idempotency_key text        not null,
    created_at      timestamptz not null default now(),
    primary key (org, idempotency_key)
);

create function handwritten.consume(p_org uuid, p_metric text, p_quantity bigint, p_cost bigint, p_key text)
returns bigint
language plpgsql
as $$
declare
    new_balance bigint;
begin
    update handwritten.balances
       set balance = balance - p_cost
     where org = p_org and balance >= p_cost
    returning balance into new_balance;
    if not found then
        raise exception 'insufficient credits';
    end if;

    insert into handwritten.ledger (org, amount, balance_after, metric, quantity, idempotency_key)
    values (p_org, -p_cost, new_balance, p_metric, p_quantity, p_key);

    return new_balance;
end
$$;

-- For usage that is only recorded: a table of events that takes each event once. No counts: whoever wants one groups it.
create table handwritten.events (
    id          bigint      generated always as identity primary key,
    org         uuid        not null,
    metric      text        not null,
    quantity    bigint      not null,
    event_id    text        not null,
    properties  jsonb       not null default '{}',
    occurred_at timestamptz not null default now(),
    unique (org, event_id)
);

grant usage on schema handwritten to billing_bench;
grant select, update on handwritten.balances to billing_bench;
grant select, insert on handwritten.ledger to billing_bench;
grant select, insert on handwritten.events to billing_bench;
