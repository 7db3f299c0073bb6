-- What a lane's newest entries come to, in the row that is written with each of them anyway: so that they need not be read again.
alter table billing.lanes add column recent bytea;
comment on column billing.lanes.recent is 'What the entries come to that are not in usage_days and credit_months yet, and which entries those are (src/usage/recent.rs); null, or of other entries: to be read from the ledger.';
