revoke all on all routines in schema billing from public;
