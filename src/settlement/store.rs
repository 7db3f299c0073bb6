//! The statements of settlement: usage that is taken out to be charged, the counters of periods,
//! and the days of the reports.

use crate::base::time::Moment;
use crate::catalog::cache::Metric;
use crate::pg::spi::{Db, Timestamptz};
use crate::plans::period::Span;
use crate::settlement::rules::TakenUsage;
use crate::{args, statements};
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

statements! {
    // The metrics and the units in which something is or may be owed.
    OPEN(uuid) =
        "select metric, null from billing_internal.unsettled_usage where org_id = $1
         union
         select metric, null from billing_internal.period_usage where org_id = $1 and level is not null and not carried
         union
         select null, unit from billing.unpaid_overage where org_id = $1";
    // A row that a writer holds is left for the next settlement; rows of a metric that counts its
    // newest level wait for the end of the period.
    TAKE(uuid, timestamptz, timestamptz) =
        "delete from billing_internal.unsettled_usage
          where ctid = any (array(select s.ctid from billing_internal.unsettled_usage s
                                    join billing.metrics m using (metric)
                                   where s.org_id = $1 and s.period_start < $2
                                     and (m.aggregation <> 'last' or s.period_end <= $3)
                                     for update of s skip locked))
         returning metric, period_start, period_end, segment, quantity, level, level_at, events";
    DAYS(uuid, texts, timestamptzs, int8s, int8s, timestamptzs) =
        "insert into billing_internal.usage_days as d (org_id, metric, day, recorded, credits, level_at)
         select $1, u.metric, (u.segment at time zone 'UTC')::date,
                case m.aggregation
                when 'max' then max(u.quantity)
                when 'last' then (array_agg(u.quantity order by u.level_at desc))[1]
                else sum(u.quantity) end, sum(u.credits), max(u.level_at)
           from unnest($2, $3, $4, $5, $6) u (metric, segment, quantity, credits, level_at)
           join billing.metrics m using (metric)
          group by 2, 3, m.aggregation order by 2, 3
         on conflict (org_id, metric, day) do update
            set credits = d.credits + excluded.credits, level_at = greatest(d.level_at, excluded.level_at),
                recorded = case (select aggregation from billing.metrics m where m.metric = d.metric)
                           when 'max' then greatest(d.recorded, excluded.recorded)
                           when 'last' then case when d.level_at > excluded.level_at then d.recorded
                                                 else excluded.recorded end
                           else d.recorded + excluded.recorded end";
    LEVELS(uuid, timestamptz) =
        "select metric, period_start, period_end from billing_internal.period_usage
          where org_id = $1 and level is not null and not carried and period_end <= $2
          order by period_start, metric";
    EXISTS(uuid, text, timestamptz) =
        "select from billing_internal.period_usage where org_id = $1 and metric = $2 and period_start = $3";
    // A row that a writer holds is left as it is: its segment names the right terms all the same.
    CUT_UNSETTLED(uuid, timestamptz) =
        "update billing_internal.unsettled_usage set period_end = $2
          where org_id = $1 and ctid = any (array(select s.ctid from billing_internal.unsettled_usage s
                                                   where s.org_id = $1 and s.period_start < $2 and s.period_end > $2
                                                     for update of s skip locked))";
    CUT_COUNTERS(uuid, timestamptz) =
        "update billing_internal.period_usage set period_end = $2
          where org_id = $1 and period_start < $2 and period_end > $2";
    JOIN_UNSETTLED(uuid, timestamptz, timestamptz, timestamptz) =
        "update billing_internal.unsettled_usage set period_end = $4
          where org_id = $1 and ctid = any (array(select s.ctid from billing_internal.unsettled_usage s
                                                   where s.org_id = $1 and s.period_start = $2 and s.period_end = $3
                                                     for update of s skip locked))";
    JOIN_COUNTERS(uuid, timestamptz, timestamptz, timestamptz) =
        "update billing_internal.period_usage set period_end = $4
          where org_id = $1 and period_start = $2 and period_end = $3";
    SET_END(uuid, text, timestamptz, timestamptz) =
        "update billing_internal.period_usage set period_end = $4 where org_id = $1 and metric = $2 and period_start = $3";
    CARRIED(uuid, text, timestamptz) =
        "update billing_internal.period_usage set carried = true where org_id = $1 and metric = $2 and period_start = $3";
    // The credit of the last period's grants that expired unused, booked already or about to be.
    EXPIRED(uuid, int8s, timestamptz) =
        "select coalesce(sum(g.written_off + g.remaining
                             + coalesce((select sum(l.slice_credits) from billing_internal.lanes l
                                          where l.org_id = g.org_id and l.unit = g.unit and l.slice_grant = g.grant_id), 0)),
                         0)::int8
           from billing_internal.grants g
          where g.org_id = $1 and g.grant_id = any ($2) and g.expires_at <= $3 and g.voided_at is null";
}

/// A metric or a unit in which something is or may be owed.
pub enum Owed {
    /// Usage of a metric is not settled.
    Usage(String),
    /// Overage is not paid.
    Overage(String),
}

/// The metrics and units in which an org owes or may owe something.
pub fn owed(db: &Db, org_id: Uuid) -> Vec<Owed> {
    let rows = db.write(&OPEN, args![org_id]);
    rows.iter().map(|row| row.opt(0).map_or_else(|| Owed::Overage(row.get(1)), Owed::Usage)).collect()
}

/// Usage that was taken out, by metric and period.
pub type TakenPeriods = BTreeMap<(String, Span), Vec<TakenUsage>>;

/// Takes out the usage of the periods that began before `before`; of metrics that count their
/// newest level, that of the periods that ended by `ended`.
pub fn take_unsettled(db: &Db, org_id: Uuid, before: Moment, ended: Moment) -> TakenPeriods {
    let mut periods = TakenPeriods::new();
    for row in db.write(&TAKE, args![org_id, Timestamptz(before), Timestamptz(ended)]).iter() {
        let span = Span { start: row.get(1), end: row.get(2) };
        let level = row.opt(5).zip(row.opt(6));
        let taken = TakenUsage { segment: row.get(3), quantity: row.get(4), level, events: row.get(7) };
        periods.entry((row.get(0), span)).or_default().push(taken);
    }
    periods
}

/// A day's usage and charge of a metric, for the reports.
#[allow(missing_docs)]
pub struct Day {
    pub metric: Rc<Metric>,
    pub segment: Moment,
    pub quantity: i64,
    pub credits: i64,
    pub level_at: Moment,
}

/// Adds to the days of the reports.
pub fn add_to_reports(db: &Db, org_id: Uuid, days: &[Day]) {
    if days.is_empty() {
        return;
    }
    db.write(
        &DAYS,
        args![
            org_id,
            days.iter().map(|d| d.metric.name.clone()).collect::<Vec<_>>(),
            days.iter().map(|d| Timestamptz(d.segment)).collect::<Vec<_>>(),
            days.iter().map(|d| d.quantity).collect::<Vec<_>>(),
            days.iter().map(|d| d.credits).collect::<Vec<_>>(),
            days.iter().map(|d| Timestamptz(d.level_at)).collect::<Vec<_>>(),
        ],
    );
}

/// The metrics and periods that have ended by then, as their counters have them, and whose levels
/// were not carried on yet.
pub fn ended_levels(db: &Db, org_id: Uuid, by: Moment) -> Vec<(String, Span)> {
    let rows = db.write(&LEVELS, args![org_id, Timestamptz(by)]);
    rows.iter().map(|row| (row.get(0), Span { start: row.get(1), end: row.get(2) })).collect()
}

/// Whether there is a counter of a metric for the period that starts there.
pub fn has_counter(db: &Db, org_id: Uuid, metric: &str, start: Moment) -> bool {
    db.write(&EXISTS, args![org_id, metric, Timestamptz(start)]).count() > 0
}

/// Notes where the period of a counter ends.
pub fn set_period_end(db: &Db, org_id: Uuid, metric: &str, period: Span) {
    db.write(&SET_END, args![org_id, metric, Timestamptz(period.start), Timestamptz(period.end)]);
}

/// Notes that the level of a period was carried into the next one.
pub fn mark_carried(db: &Db, org_id: Uuid, metric: &str, start: Moment) {
    db.write(&CARRIED, args![org_id, metric, Timestamptz(start)]);
}

/// Ends the periods that run at a moment, because the subscription begins or ends there.
pub fn cut_period(db: &Db, org_id: Uuid, at: Moment) {
    db.write(&CUT_UNSETTLED, args![org_id, Timestamptz(at)]);
    db.write(&CUT_COUNTERS, args![org_id, Timestamptz(at)]);
}

/// Undoes `cut_period` for a moment: the period is the whole of `span` again.
pub fn join_period(db: &Db, org_id: Uuid, at: Moment, span: Span) {
    db.write(&JOIN_UNSETTLED, args![org_id, Timestamptz(span.start), Timestamptz(at), Timestamptz(span.end)]);
    db.write(&JOIN_COUNTERS, args![org_id, Timestamptz(span.start), Timestamptz(at), Timestamptz(span.end)]);
}

/// The credit of grants that has expired unused by then, booked already or about to be.
pub fn expired_credit(db: &Db, org_id: Uuid, grants: &[i64], by: Moment) -> i64 {
    let rows = db.write(&EXPIRED, args![org_id, grants.to_vec(), Timestamptz(by)]);
    rows.first().map_or(0, |row| row.get(0))
}
