\set wallet random(:first, :last)
select hold_id from billing.reserve_credits(('00000000-0000-4000-8000-' || lpad(to_hex(:wallet::int), 12, '0'))::uuid, 'bench_call', 1, idempotency_key => gen_random_uuid()::text) \gset
select * from billing.capture_credits(('00000000-0000-4000-8000-' || lpad(to_hex(:wallet::int), 12, '0'))::uuid, :hold_id, idempotency_key => gen_random_uuid()::text);
