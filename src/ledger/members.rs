//! Budgets of the members of a wallet.

use crate::arguments::{required, required_uuid, unit};
use crate::catalog::cache;
use crate::clock;
use crate::error::Error;
use crate::ledger::store;
use crate::raise::or_raise;
use crate::sql::{self, At};
use crate::time::Period;
use crate::{args, statements};
use pgrx::prelude::*;

statements! {
    // What was consumed and is reserved in the current period counts from the start.
    SET_BUDGET(uuid, text, uuid, int8, text, timestamptz) =
        "insert into billing.member_usage as m (org_id, unit, member_id, budget, budget_per, period_start, period_consumed)
         select $1, $2, $3, $4, $5, $6,
                greatest(0, coalesce((select -sum(amount) from billing.entries
                           where org_id = $1 and unit = $2 and member_id = $3 and created_at >= $6
                             and (kind = 'usage' or kind = 'refund' and source = 'operation')), 0)
                + coalesce((select sum(credits) from billing.holds
                             where org_id = $1 and unit = $2 and member_id = $3 and status = 'open'
                               and created_at >= $6), 0))::bigint
         on conflict (org_id, unit, member_id) do update
            set budget = excluded.budget, budget_per = excluded.budget_per, period_start = excluded.period_start,
                period_consumed = excluded.period_consumed";
}

/// Limits what a member of a wallet may consume per day, month (calendar, UTC) or in total; null takes the limit away.
///
/// `credits`: from 0, in the wallet's unit. Consumption and reservation beyond it are refused with PT429 `cap_exceeded`. Errors:
/// PT404 `unknown_org`; 22023.
#[pg_extern(volatile, security_definer)]
#[search_path(pg_catalog, billing, pg_temp)]
fn set_member_budget(
    org_id: Option<pgrx::Uuid>,
    member_id: Option<pgrx::Uuid>,
    credits: Option<i64>,
    per: default!(Option<&str>, "'month'"),
    unit: default!(Option<&str>, "'credit'"),
) {
    or_raise((|| {
        let org_id = required_uuid("org_id", org_id)?;
        let member_id = required_uuid("member_id", member_id)?;
        let unit = self::unit(unit)?;
        let per = required("per", per)?;
        let period = Period::parse(per).ok_or(Error::invalid("per", "must be day, month or total"))?;
        if credits.is_some_and(|c| c < 0) {
            return Err(Error::invalid("credits", "must not be negative"));
        }
        sql::connect(|db| {
            cache::require_installed(db)?;
            store::lock(db, org_id, unit).ok_or_else(|| Error::unknown("unknown_org", org_id.to_string()))?;
            // Without a budget the figures are kept as those of all time.
            let (per, period) = if credits.is_some() { (Some(per), period) } else { (None, Period::Total) };
            let start = At(period.start(clock::now()));
            db.write(&SET_BUDGET, args![org_id, unit, member_id, credits, per, start]);
            Ok(())
        })
    })());
}
