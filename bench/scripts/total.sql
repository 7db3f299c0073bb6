\set wallet random(:first, :last)
select billing.get_total_credits(('00000000-0000-4000-8000-' || lpad(to_hex(:wallet::int), 12, '0'))::uuid);
