\set document random(1, :documents)
select * from billing.consume_credits_batch((select items from bench.documents where id = :document)) where status <> 'ok';
