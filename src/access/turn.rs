//! Turns for the bodies that are written in plpgsql.

use crate::access;
use crate::pg::raise::or_raise;
use crate::pg::turn;
use pgrx::prelude::*;

/// Waits for a turn, for bodies in plpgsql; nobody else can take one.
#[pg_extern(
    volatile,
    sql = r#"
create function billing_internal.take_turn(name text) returns void
    language c volatile
    as 'MODULE_PATHNAME', 'take_turn_wrapper';"#
)]
fn take_turn(name: Option<&str>) {
    or_raise(access::administrator(|| {
        turn::take(name);
        Ok(())
    }));
}
