\set document random(1, :documents)
select * from billing.consume_credits_batch((select jsonb_agg(i || jsonb_build_object('idempotency_key', gen_random_uuid()::text)) from bench.documents, jsonb_array_elements(items) i where id = :document)) where status <> 'ok';
