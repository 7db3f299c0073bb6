//! Budgets of the members of a wallet.

use crate::base::error::Error;
use crate::base::time::Period;
use crate::base::words::Word;
use crate::entry_point;
use crate::ledger::store;
use crate::pg::arguments::{required, required_uuid, unit};
use crate::pg::clock;
use crate::pg::spi::Timestamptz;
use crate::{args, statements};
use pgrx::prelude::*;

statements! {
    MAKE_MEMBER(uuid, text, uuid) =
        "insert into billing.member_usage (org_id, unit, member_id) values ($1, $2, $3) on conflict do nothing";
    LOCK_MEMBER(uuid, text, uuid) =
        "select from billing.member_usage where org_id = $1 and unit = $2 and member_id = $3 for update";
    // What was used (and not refunded) and is reserved in the current period counts from the start.
    SET_BUDGET(uuid, text, uuid, int8, text, timestamptz) =
        "insert into billing.member_usage as m (org_id, unit, member_id, budget, budget_per, period_start, period_consumed)
         select $1, $2, $3, $4, $5, $6,
                (coalesce((select -sum(e.amount) from billing.entries e
                            where e.org_id = $1 and e.unit = $2 and e.member_id = $3 and e.created_at >= $6
                              and e.kind = 'usage'), 0)
                 - coalesce((select sum(r.credits) from billing_internal.refunds r
                             join billing.entries e on e.org_id = r.org_id and e.entry_id = r.operation_id
                            where r.org_id = $1 and e.unit = $2 and e.member_id = $3 and e.created_at >= $6), 0)
                 + coalesce((select sum(h.credits) from billing.holds h
                             where h.org_id = $1 and h.unit = $2 and h.member_id = $3 and h.status = 'open'
                               and h.created_at >= $6
                               and h.expires_at >= (select holds_due from billing_internal.lanes
                                                     where org_id = $1 and unit = $2 and lane = 0)), 0))::bigint
         on conflict (org_id, unit, member_id) do update
            set budget = excluded.budget, budget_per = excluded.budget_per, period_start = excluded.period_start,
                period_consumed = excluded.period_consumed";
    CLEAR_BUDGET(uuid, text, uuid) =
        "update billing.member_usage set budget = null, budget_per = null
          where org_id = $1 and unit = $2 and member_id = $3";
}

/// Limits what a member of a wallet may consume per day, month (calendar, UTC) or in total; null takes the limit away.
///
/// `credits`: from 0, in the wallet's unit. Consumption and reservation beyond it are refused with PT429 `cap_exceeded`. Errors:
/// PT404 `unknown_org`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn set_member_budget(
    org_id: Option<pgrx::Uuid>,
    member_id: Option<pgrx::Uuid>,
    credits: Option<i64>,
    per: default!(Option<&str>, "'month'"),
    unit: default!(Option<&str>, "'credit'"),
) {
    entry_point::service(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let member_id = required_uuid("member_id", member_id)?;
        let unit = self::unit(unit)?;
        let per = required("per", per)?;
        let period = Period::parse(per).ok_or(Error::invalid("per", "must be day, month or total"))?;
        if credits.is_some_and(|c| c < 0) {
            return Err(Error::invalid("credits", "must not be negative"));
        }
        store::lock(org_id, unit).ok_or_else(|| Error::unknown("unknown_org", org_id.to_string()))?;
        if credits.is_some() {
            // Consumptions on other lanes hold the member's row, not the wallet: they are counted once they have ended.
            db.write(&MAKE_MEMBER, args![org_id, unit, member_id]);
            db.write(&LOCK_MEMBER, args![org_id, unit, member_id]);
            let start = Timestamptz(period.start(clock::now()));
            db.write(&SET_BUDGET, args![org_id, unit, member_id, credits, per, start]);
        } else {
            db.write(&CLEAR_BUDGET, args![org_id, unit, member_id]);
        }
        Ok(())
    });
}
