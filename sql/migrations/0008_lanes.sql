-- Without a predicate: what consumes writes the row of a lane without a statement, and evaluates nothing for its indexes.
drop index billing.lanes_fresh_until;
create index lanes_fresh_until on billing.lanes (fresh_until);
