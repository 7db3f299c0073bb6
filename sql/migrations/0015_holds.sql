-- Holds whose row stays in its place when they are closed: no index is for a column that changes then. When the next one of a
-- wallet times out its lane says, so what is due is found there.

lock table billing.lanes, billing.ledger, billing.holds in access exclusive mode;

alter table billing.holds add column grant_id bigint;
comment on column billing.holds.grant_id is 'The grant that it took from; null where that was none or several.';
update billing.holds h set grant_id = e.grant_id
  from billing.ledger e
 where h.status = 'open' and h.parts = 1 and e.org_id = h.org_id and e.entry_id = h.hold_id;

drop index billing.holds_open, billing.holds_due;
create index holds_expires on billing.holds (org_id, expires_at);
-- Without a condition, as lanes_fresh_until: rows of that table are written without statements.
create index lanes_holds_due on billing.lanes (holds_due);

-- Only the first entry of an operation has a key, if any. And an index of all entries in another order than theirs was sometimes taken for
-- reading them in order, with a sort of all of an org's for each portion.
drop index billing.ledger_request;
create unique index ledger_request on billing.ledger (org_id, request_id) where request_id is not null;
