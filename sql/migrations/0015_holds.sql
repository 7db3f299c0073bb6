-- Holds whose row stays in its place when they are closed: no index is for a column that changes then. When the next one of a
-- wallet times out its lane says, so what is due is found there.

-- Captures take these tables in another order than reservations: so nobody is waited for for long, and it is tried again.
do $$
declare
    before text := current_setting('lock_timeout');
begin
    for attempt in 1..200 loop
        begin
            perform set_config('lock_timeout', '300ms', true);
            lock table billing.lanes, billing.ledger, billing.holds in access exclusive mode;
            exit;
        exception when lock_not_available or deadlock_detected then
            if attempt = 200 then
                raise;
            end if;
            perform pg_sleep(random() / 5);
        end;
    end loop;
    perform set_config('lock_timeout', before, true);
end $$;

alter table billing.holds add column grant_id bigint;
comment on column billing.holds.grant_id is 'The grant that it took from; null where that was none or several.';
drop index billing.holds_open, billing.holds_due;
create index holds_expires on billing.holds (org_id, unit, expires_at);
update billing.holds h set grant_id = e.grant_id
  from billing.ledger e
 where h.status = 'open' and h.parts = 1 and e.org_id = h.org_id and e.entry_id = h.hold_id;

-- Without a condition, as lanes_fresh_until: rows of that table are written without statements.
create index lanes_holds_due on billing.lanes (holds_due);
-- Wallets whose holds were all closed before their time would all be due.
update billing.lanes l set holds_due = h.due
  from (select w.org_id, w.unit, coalesce(min(h.expires_at), 'infinity') as due
          from billing.lanes w
          left join billing.holds h on h.org_id = w.org_id and h.unit = w.unit and h.status = 'open'
         where w.lane = 0 and w.holds_due < 'infinity' group by 1, 2) h
 where l.org_id = h.org_id and l.unit = h.unit and l.lane = 0 and l.holds_due < h.due;

-- Only the first entry of an operation has a key, if any. And an index of all entries in another order than theirs was sometimes taken for
-- reading them in order, with a sort of all of an org's for each portion.
drop index billing.ledger_request;
create unique index ledger_request on billing.ledger (org_id, request_id) where request_id is not null;
