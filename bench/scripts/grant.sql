\set wallet random(:first, :last)
select * from billing.grant_credits(('00000000-0000-4000-8000-' || lpad(to_hex(:wallet::int), 12, '0'))::uuid, 1000, 'bonus', expires_at => now() + interval '10 minutes', idempotency_key => gen_random_uuid()::text);
