\set wallet random(:first, :last)
select balance from handwritten.balances where org = ('00000000-0000-4000-8000-' || lpad(to_hex(:wallet::int), 12, '0'))::uuid;
