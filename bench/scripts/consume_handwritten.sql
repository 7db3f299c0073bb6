\set wallet random(:first, :last)
select * from handwritten.consume(('00000000-0000-4000-8000-' || lpad(to_hex(:wallet::int), 12, '0'))::uuid, 'bench_call', 1, 15, gen_random_uuid()::text);
