//! Where an org stands with a metric: what its plan includes, what is used, and what is owed for it. Only reads.

use crate::catalog;
use crate::catalog::cache::{self, Metric};
use crate::catalog::price::Price;
use crate::error::Result;
use crate::plans::period::{Span, Terms, Timeline};
use crate::plans::store as plans;
use crate::sql::{At, Db};
use crate::time::Moment;
use crate::units;
use crate::usage::counters::{self, Counter};
use crate::usage::tally::{Charge, Tally};
use crate::{args, statements};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use uuid::Uuid;

statements! {
    PENDING(uuid) =
        "select metric, period_start, period_end, segment, quantity, level, level_at from billing.unsettled_usage
          where org_id = $1 order by metric, period_start, segment";
    LAST_LEVEL(uuid, text, timestamptz) =
        "select level, level_at from billing.period_usage
          where org_id = $1 and metric = $2 and period_start <= $3 order by period_start desc limit 1";
    UNPAID(uuid, text) =
        "select coalesce(sum(unpaid), 0)::int8 from billing.period_usage where org_id = $1 and unpaid > 0 and unit = $2";
    // What is consumed without a counter: by the day, and what of the ledger is not folded yet.
    CONSUMED(uuid, text, timestamptz, timestamptz) =
        "select (coalesce((select sum(consumed) from billing.usage_days
                            where org_id = $1 and metric = $2
                              and day between ($3 at time zone 'UTC')::date and ($4 at time zone 'UTC')::date), 0)
               + coalesce((select sum(o.quantity)
                             from (select min(e.quantity) as quantity
                                     from billing.lanes l
                                     left join billing.folded f on f.org_id = l.org_id and f.slot = l.slot
                                     join billing.entries e
                                       on e.org_id = l.org_id and e.entry_id <= l.last_entry_id
                                      and e.entry_id > coalesce(f.entry_id, l.slot::bigint << 40)
                                    where l.org_id = $1 and e.kind = 'usage' and e.metric = $2 and e.created_at >= $3
                                      and e.source is distinct from 'settlement'
                                    group by e.operation_id) o), 0))::int8";
}

/// A row of `unsettled_usage`.
struct Pending {
    metric: String,
    span: Span,
    segment: Moment,
    quantity: i64,
    level: Option<(i64, Moment)>,
}

/// Reads where one org stands, at one moment.
pub struct Reader<'a> {
    db: &'a Db,
    org_id: Uuid,
    now: Moment,
    timeline: Timeline,
    pending: OnceCell<Vec<Pending>>,
}

/// Where an org stands with a metric in the current period.
#[derive(Debug, Clone)]
pub struct Standing {
    /// What holds.
    pub terms: Terms,
    /// Exact to the last recorded event.
    pub used: i64,
    tally: Tally,
    unsettled: i64,
}

impl Standing {
    /// What of the allowance is left; None: unlimited.
    pub fn remaining(&self) -> Option<i64> {
        self.tally.remaining(self.terms.allowance, self.unsettled)
    }

    /// What so much more would come to.
    pub fn charge(&self, quantity: i64, price: Option<&Price>) -> Result<Charge> {
        self.tally.charge(quantity, self.terms.allowance, self.unsettled, price).map_err(catalog::too_large)
    }
}

impl<'a> Reader<'a> {
    /// For an org at a moment.
    pub fn new(db: &'a Db, org_id: Uuid, now: Moment) -> Result<Self> {
        let timeline = plans::timeline(db, org_id, false)?;
        Ok(Self { db, org_id, now, timeline, pending: OnceCell::new() })
    }

    /// Credits that a consumption would find, because it begins the period.
    pub fn credits_due(&self) -> i64 {
        self.timeline.credits_due(self.now)
    }

    fn pending(&self) -> &[Pending] {
        self.pending.get_or_init(|| {
            let rows = self.db.read(&PENDING, args![self.org_id]);
            let pending = |row: crate::sql::Row| Pending {
                metric: row.get(0),
                span: Span { start: row.get(1), end: row.get(2) },
                segment: row.get(3),
                quantity: row.get(4),
                level: row.opt(5).zip(row.opt(6)),
            };
            rows.iter().map(pending).collect()
        })
    }

    fn terms(&self, metric: &Metric, at: Moment) -> Terms {
        self.timeline.terms(&metric.name, plans::own_terms(self.db, self.org_id, metric, false), at)
    }

    /// Where the org stands with a metric.
    pub fn standing(&self, metric: &Metric) -> Result<Standing> {
        let terms = self.terms(metric, self.now);
        let counter = counters::peek(self.db, self.org_id, &metric.name, terms.span);
        let recorded = |p: &&Pending| p.metric == metric.name && p.span.start == terms.span.start;
        let decided = counter.tally.quantity;
        let unsettled = if metric.is_gauge() {
            (self.level(metric, &counter) - decided).max(0)
        } else {
            self.pending().iter().filter(recorded).fold(0, |sum, p| p.quantity.saturating_add(sum))
        };
        let mut used = decided.saturating_add(unsettled);
        if metric.aggregation == "last" {
            used = self.level(metric, &counter);
        }
        let price = cache::price(self.db, metric, Some(self.org_id), self.now)?;
        if metric.is_plain(price.as_deref()) {
            let (from, to) = (At(terms.span.start), At(terms.span.end));
            let consumed = self.db.read(&CONSUMED, args![self.org_id, &metric.name, from, to]);
            used = used.saturating_add(consumed.first().map_or(0, |row| row.get(0)));
        }
        Ok(Standing { terms, used, tally: counter.tally, unsettled })
    }

    /// The level of a gauge: for max the highest of the period, for last the newest. A period begins with the level before it.
    fn level(&self, metric: &Metric, counter: &Counter) -> i64 {
        let start = counter.span.start;
        let mine = || self.pending().iter().filter(|p| p.metric == metric.name);
        let earlier = self.db.read(&LAST_LEVEL, args![self.org_id, &metric.name, At(start)]);
        let earlier = earlier.first().and_then(|row| row.opt::<i64>(0).zip(row.opt::<Moment>(1)));
        let newest = |until: Moment| {
            let recorded = mine().filter(|p| p.span.start < until).filter_map(|p| p.level);
            recorded.chain(earlier).max_by_key(|(_, at)| *at).map_or(0, |(level, _)| level)
        };
        if metric.aggregation == "last" {
            return newest(counter.span.end);
        }
        let highest = mine().filter(|p| p.span.start == start).map(|p| p.quantity).max().unwrap_or(0);
        highest.max(newest(start)).max(counter.tally.quantity)
    }

    /// What the org owes in a unit: unpaid overage, and what will be charged for what is recorded and not settled.
    pub fn owed(&self, unit: &str) -> Result<i64> {
        let unpaid = self.db.read(&UNPAID, args![self.org_id, unit]);
        let mut owed: i64 = unpaid.first().map_or(0, |row| row.get(0));
        let mut groups: BTreeMap<(&str, Span), Vec<&Pending>> = BTreeMap::new();
        for pending in self.pending() {
            groups.entry((&pending.metric, pending.span)).or_default().push(pending);
        }
        for ((metric, span), parts) in groups {
            let metric = cache::any_metric(self.db, metric)?;
            let terms = self.terms(&metric, self.now.min(span.end - 1).max(span.start));
            let mut tally = counters::peek(self.db, self.org_id, &metric.name, span).tally;
            let newest = parts.iter().filter_map(|p| p.level).max_by_key(|(_, at)| *at);
            for part in parts {
                let quantity = match metric.aggregation.as_str() {
                    "max" => (part.quantity - tally.quantity).max(0),
                    "last" => newest.map_or(0, |(level, _)| (level - tally.quantity).max(0)),
                    _ => part.quantity,
                };
                let price = cache::price(self.db, &metric, Some(self.org_id), part.segment)?;
                let charge = tally.settle(quantity, terms.allowance, price.as_deref()).map_err(catalog::too_large)?;
                tally.add(charge, price.as_deref()).map_err(catalog::too_large)?;
                if price.as_ref().map_or(units::CREDIT, |p| p.unit.as_str()) == unit {
                    owed = owed.saturating_add(charge.credits);
                }
            }
        }
        Ok(owed)
    }
}
