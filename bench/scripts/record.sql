\set wallet random(:first, :last)
select billing.record_usage(('00000000-0000-4000-8000-' || lpad(to_hex(:wallet::int), 12, '0'))::uuid, 'bench_event', 1, gen_random_uuid()::text);
