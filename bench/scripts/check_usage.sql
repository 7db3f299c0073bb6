\set wallet random(:first, :last)
select * from billing.check_limit(('00000000-0000-4000-8000-' || lpad(to_hex(:wallet::int), 12, '0'))::uuid, 'bench_event');
