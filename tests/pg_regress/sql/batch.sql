-- Many consumptions in one call: each has its own outcome, in the order given; one refused item does not stop the others.
\i preamble.psql
select * from billing.apply_catalog('{"metrics": {"call": {"price": 1}, "page": {"price": 5}}}');
select * from billing.grant_credits(:'acme', 20);
select * from billing.grant_credits(:'bolt', 3);
select credits from billing.consume_credits(:'acme', 'call', 2, 'before');

select * from billing.consume_credits_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call", "quantity": 1},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "page", "quantity": 2, "idempotency_key": "b1"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 2, "idempotency_key": "before"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "page", "quantity": 2, "idempotency_key": "b1"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "page", "quantity": 3, "idempotency_key": "b1"},
    {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "page"},
    {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call", "quantity": 2, "member_id": "00000000-0000-4000-8000-0000000000a1", "metadata": {"n": 7}},
    {"org_id": "00000000-0000-4000-8000-000000000002", "metric": "call"},
    {"org_id": "00000000-0000-4000-8000-00000000dead", "metric": "call"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "teleport"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 0},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 1.5},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": "3"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 9223372036854775808},
    {"org_id": "not a uuid", "metric": "call"},
    {"metric": "call"},
    {"org_id": "00000000-0000-4000-8000-000000000001"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "qantity": 3},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "metadata": [1]},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "idempotency_key": ""},
    "call",
    null,
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 8}
]') order by item;
select billing.get_total_credits(:'acme') as acme, billing.get_total_credits(:'bolt') as bolt;

-- The whole batch again: what had a key is replayed, the rest is charged anew, or refused.
select * from billing.consume_credits_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "page", "quantity": 2, "idempotency_key": "b1"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "quantity": 1}
]') order by item;

-- A member's budget, in a batch.
select billing.set_member_budget(:'acme', '00000000-0000-4000-8000-0000000000a1', 1);
select * from billing.grant_credits(:'acme', 20);
select * from billing.consume_credits_batch('[
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "member_id": "00000000-0000-4000-8000-0000000000a1"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call", "member_id": "00000000-0000-4000-8000-0000000000a1"},
    {"org_id": "00000000-0000-4000-8000-000000000001", "metric": "call"}
]') order by item;

-- No items; not an array.
select * from billing.consume_credits_batch('[]');
select * from billing.consume_credits_batch('{}');
\echo :LAST_ERROR_SQLSTATE
select * from billing.consume_credits_batch(null);
\echo :LAST_ERROR_SQLSTATE

select org_id, entry_id, kind, amount, balance_after, metric, quantity, member_id, idempotency_key, metadata
    from billing.entries order by org_id, entry_id;
select * from billing.verify_ledger();
rollback;
