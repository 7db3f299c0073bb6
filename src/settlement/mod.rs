//! Settlement: recorded usage is charged, periods begin, expired credit is booked, reports and
//! alerts are brought up to date.
//!
//! Each org is settled in one transaction, under the locks of its wallets. Missed periods are made
//! up for one by one, as if settlement had run at the end of each. The counters decide what is
//! charged, so running it again charges nothing.

mod charge;
mod pay;
pub mod periods;
pub mod renewal;
mod rules;
mod settle;
mod store;

use crate::base::time::Moment;
use crate::entry_point;
use crate::pg::arguments::required_uuid;
use crate::pg::clock;
use crate::settlement::settle::SettlementReceipt;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

/// Begins the periods of an org that are due, each after the usage before it is charged; gives
/// their number. Consumption does it by itself.
///
/// Errors: 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn begin_periods(org_id: Option<pgrx::Uuid>) -> i64 {
    entry_point::service(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        periods::begin(db, org_id)
    })
}

/// Settles one org as of a moment (null: now): charges recorded usage beyond what is included,
/// begins periods that are due, books what expired, brings reports and alerts up to date.
///
/// `charged`: credits burned; `unpaid`: what the wallet could not pay, and the next credit that
/// comes in will; `renewed`: periods begun; `events`: recorded events that were settled. Run again,
/// it charges nothing. Errors: 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn settle_org(org_id: Option<pgrx::Uuid>, as_of: default!(Option<TimestampWithTimeZone>, "NULL")) -> SettlementReceipt {
    entry_point::service(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let as_of = rules::moment_to_settle(as_of.map(Moment::from), clock::now())?;
        settle::settle(db, org_id, as_of)
    })
}
