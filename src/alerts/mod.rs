//! Alerts: one row per crossing of a threshold, resolved when it no longer holds, and raised again
//! at the next crossing.
//!
//! Settlement looks at all alerts of an org; the consumption that crosses a threshold of a cap or
//! of the balance raises that alert at once.

pub mod rules;
pub mod store;
pub mod sync;

use crate::base::error::Result;
use crate::catalog::cache;
use crate::entry_point;
use crate::pg::arguments::required;
use pgrx::prelude::*;

/// Says when alerts are raised: at which percentages of an allowance, cap or balance, and how many
/// days before a grant expires.
///
/// `shares`: 1 to 100 each, at most 20; `expiring_days`: 0 to 366; `deliver`: each alert that is
/// raised also goes into the outbox, topic `alert.raised`. Holds from the next look on. Errors:
/// 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn configure_alerts(
    shares: default!(Option<Vec<Option<i32>>>, "'{50,75,90,100}'"),
    expiring_days: default!(Option<i32>, 7),
    deliver: default!(Option<bool>, false),
) {
    entry_point::service(|db| {
        let shares = required("shares", shares)?;
        let shares: Vec<i32> = shares.into_iter().map(|share| required("shares", share)).collect::<Result<Vec<_>>>()?;
        rules::check_shares(&shares)?;
        let days = required("expiring_days", expiring_days)?;
        let deliver = required("deliver", deliver)?;
        rules::check_expiring_days(days)?;
        store::configure(db, &serde_json::json!({"shares": shares, "expiring_days": days, "deliver": deliver}));
        cache::invalidate(db);
        Ok(())
    });
}
