//! History: an org's credit by month, and its usage that is not folded into days yet.

use crate::base::error::{Error, Result};
use crate::base::time::NEG_INFINITY;
use crate::ledger::recent::Sum;
use crate::pg::arguments::{required, required_uuid};
use crate::pg::clock;
use crate::pg::spi::Timestamptz;
use crate::reports::tail;
use crate::schema::Snapshot;
use crate::{access, args, entry_point, statements};
use pgrx::prelude::*;
use uuid::Uuid;

const MOST_MONTHS: i32 = 1200;

statements! {
    // The folded months, and the entries that are not folded yet.
    HISTORY(uuid, timestamptz, int4) =
        "with moved as (
            select unit, month, kind, metric, credits from billing_internal.credit_months where org_id = $1
            union all
            select e.unit, date_trunc('month', e.created_at at time zone 'UTC')::date, e.kind,
                   case when e.kind = 'usage' then coalesce(e.metric, '') else '' end, e.amount
              from billing_internal.lanes l
              left join billing_internal.fold_positions f on f.org_id = l.org_id and f.slot = l.slot
              join billing.entries e on e.org_id = l.org_id and e.entry_id <= l.last_entry_id
                                    and e.entry_id > coalesce(f.entry_id, l.slot::bigint << 40)
             where l.org_id = $1),
         sums as (
            select unit, month, sum(credits) as change,
                   coalesce(sum(credits) filter (where kind in ('purchase', 'plan', 'bonus', 'gift_card', 'voucher')), 0)
                       as came_in,
                   -coalesce(sum(credits) filter (where kind = 'usage'), 0) as used,
                   -coalesce(sum(credits) filter (where kind = 'expiry'), 0) as expired,
                   coalesce(sum(credits) filter (where kind = 'refund'), 0) as refunded
              from moved group by unit, month),
         by_metric as (
            select unit, month, jsonb_object_agg(metric, used) as used
              from (select unit, month, metric, -sum(credits) as used from moved
                     where kind = 'usage' and metric <> '' group by unit, month, metric) m
             group by unit, month),
         months as (
            select (date_trunc('month', $2 at time zone 'UTC') - make_interval(months => n))::date as month
              from generate_series(0, $3 - 1) n)
         select (m.month::timestamp at time zone 'UTC'), u.unit, coalesce(s.came_in, 0)::int8, coalesce(s.used, 0)::int8,
                coalesce(b.used, '{}')::text, coalesce(s.expired, 0)::int8, coalesce(s.refunded, 0)::int8,
                coalesce(s.change - s.came_in + s.used + s.expired - s.refunded, 0)::int8,
                coalesce((select sum(c.change) from sums c where c.unit = u.unit and c.month <= m.month), 0)::int8
           from months m cross join (select distinct unit from billing_internal.lanes where org_id = $1) u
           left join sums s on s.unit = u.unit and s.month = m.month
           left join by_metric b on b.unit = u.unit and b.month = m.month
          order by m.month desc, u.unit";
}

/// The quantity of a metric that was consumed on a day, and the credits that were charged for it.
type Consumed = (String, i32, i64, i64);

/// The usage of an org that is not folded into days yet.
fn unfolded(org_id: Uuid) -> Vec<Consumed> {
    let mut all = Vec::new();
    for mut tail in tail::tails(org_id, Snapshot::Callers) {
        let known = tail.recent.take();
        let recent = known.unwrap_or_else(|| tail::read(org_id, &tail, Snapshot::Callers, NEG_INFINITY));
        let consumed = recent.sums.into_iter().filter(Sum::is_consumed);
        all.extend(consumed.map(|sum| (sum.metric, sum.day, sum.quantity, sum.amount.saturating_neg())));
    }
    all
}

/// Gives what an org consumed that is not counted in `usage_days` yet, by metric and day (UTC): for
/// the view `usage_by_day`.
///
/// `credits` is what was charged for it. Errors: 42501 `not_authorized` for an org that is not the
/// caller's; 22023.
#[pg_extern(
    stable,
    sql = r#"
create function billing_internal.unfolded_usage(org_id uuid) returns table (metric text, day date, quantity bigint, credits bigint)
    language c stable set search_path to pg_catalog, pg_temp
    as 'MODULE_PATHNAME', 'unfolded_usage_wrapper';"#
)]
fn unfolded_usage(
    org_id: Option<pgrx::Uuid>,
) -> TableIterator<
    'static,
    (name!(metric, String), name!(day, pgrx::datum::Date), name!(quantity, i64), name!(credits, i64)),
> {
    let rows = entry_point::reader(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        access::authorize(db, org_id)?;
        Ok(unfolded(org_id))
    });
    // SAFETY: the days come from moments of the ledger, which are dates.
    let date = |day| unsafe { pgrx::datum::Date::from_pg_epoch_days(day) };
    TableIterator::new(
        rows.into_iter().map(move |(metric, day, quantity, credits)| (metric, date(day), quantity, credits)),
    )
}

/// Gives the credit of an org month by month (calendar, UTC), the current month first: per unit
/// what came in, was used (also per metric), expired, was refunded, what else moved (holds,
/// adjustments, voids, transfers, payouts), and the closing balance.
///
/// `months`: 1 to 1200. A month's refunds are those made in it. Answers in the same time however
/// long the ledger. Errors: 42501 `not_authorized`; 22023.
#[pg_extern(stable)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn credit_history(
    org_id: Option<pgrx::Uuid>,
    months: default!(Option<i32>, 12),
) -> TableIterator<
    'static,
    (
        name!(month, pgrx::datum::Date),
        name!(unit, String),
        name!(came_in, i64),
        name!(used, i64),
        name!(used_by_metric, pgrx::JsonB),
        name!(expired, i64),
        name!(refunded, i64),
        name!(other, i64),
        name!(closing_balance, i64),
    ),
> {
    let rows = entry_point::reader(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let months = required("months", months)?;
        if !(1..=MOST_MONTHS).contains(&months) {
            return Err(Error::invalid("months", "must be 1 to 1200"));
        }
        access::authorize(db, org_id)?;
        let rows = db.read(&HISTORY, args![org_id, Timestamptz(clock::now()), months]);
        rows.iter()
            .map(|row| {
                let month = pgrx::datum::TimestampWithTimeZone::try_from(row.get::<i64>(0))
                    .map_err(|_| Error::invalid("months", "reach back too far"))?;
                let used: serde_json::Value =
                    serde_json::from_str(&row.get::<String>(4)).unwrap_or(serde_json::Value::Null);
                Ok((
                    pgrx::datum::Date::from(month.to_utc()),
                    row.get(1),
                    row.get(2),
                    row.get(3),
                    pgrx::JsonB(used),
                    row.get(5),
                    row.get(6),
                    row.get(7),
                    row.get(8),
                ))
            })
            .collect::<Result<Vec<_>>>()
    });
    TableIterator::new(rows)
}
