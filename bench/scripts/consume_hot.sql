select * from billing.consume_credits(('00000000-0000-4000-8000-' || lpad(to_hex(:hot::int), 12, '0'))::uuid, 'bench_call', 1, gen_random_uuid()::text);
