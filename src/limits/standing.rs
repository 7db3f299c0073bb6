//! The usage of a metric by an org: what its plan includes, what is used, and what is owed for it.
//! Only reads.

use crate::base::error::Result;
use crate::base::time::Moment;
use crate::base::units;
use crate::catalog::cache::{self, Metric};
use crate::catalog::price::{self, Price};
use crate::catalog::sections::metrics::Aggregation;
use crate::limits::state::{UnsettledRow, UnsettledState};
use crate::pg::spi::{Db, Timestamptz};
use crate::plans::period::{Span, Terms, Timeline};
use crate::plans::store as plans;
use crate::reports::tail;
use crate::usage::counters::{self, Counter};
use crate::usage::tally::{Charge, Tally};
use crate::{args, statements};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

statements! {
    LAST_LEVEL(uuid, text, timestamptz) =
        "select level, level_at from billing_internal.period_usage
          where org_id = $1 and metric = $2 and period_start <= $3 and level is not null order by period_start desc limit 1";
}

/// Reads the usage of one org at one moment.
pub struct Reader<'a> {
    db: &'a Db,
    org_id: Uuid,
    now: Moment,
    timeline: Timeline,
    /// Whether to read what this transaction has written, too.
    fresh: bool,
    state: OnceCell<UnsettledState>,
}

/// The usage of a metric by an org in the current period.
#[derive(Debug, Clone)]
pub struct MetricUsage {
    /// The terms of the metric for the org.
    pub terms: Terms,
    /// The quantity that was used, exact to the last recorded event.
    pub used: i64,
    tally: Tally,
    unsettled: i64,
}

impl MetricUsage {
    /// The rest of the allowance; None if it is unlimited.
    pub fn remaining(&self) -> Option<i64> {
        self.tally.remaining(self.terms.allowance, self.unsettled)
    }

    /// The charge for so much more.
    pub fn charge(&self, quantity: i64, price: Option<&Price>) -> Result<Charge> {
        self.tally.charge(quantity, self.terms.allowance, self.unsettled, price).map_err(price::too_large)
    }
}

impl<'a> Reader<'a> {
    /// A reader for an org at a moment.
    pub fn new(db: &'a Db, org_id: Uuid, now: Moment) -> Result<Self> {
        let timeline = plans::timeline(db, org_id, false)?;
        Ok(Self { db, org_id, now, timeline, fresh: false, state: OnceCell::new() })
    }

    /// A reader for a call that holds the wallets' locks, knows the plans, and will ask for all of
    /// these metrics, which are read at once.
    pub fn over(db: &'a Db, org_id: Uuid, now: Moment, timeline: Timeline, metrics: &[Rc<Metric>]) -> Self {
        let reader = Self { db, org_id, now, timeline, fresh: true, state: OnceCell::new() };
        let names = metrics.iter().map(|metric| (metric.name.clone(), reader.terms(metric, now).span.start));
        let state = reader.look(names.collect());
        reader.state.set(state).ok();
        reader
    }

    /// The credits that a consumption would find in addition, because it begins the period.
    pub fn credits_due(&self) -> i64 {
        self.timeline.credits_due(self.now)
    }

    fn state(&self) -> &UnsettledState {
        self.state.get_or_init(|| self.look(Vec::new()))
    }

    /// The counter of a metric. The first one that is asked for is read together with everything
    /// else.
    fn counter(&self, metric: &str, span: Span) -> Counter {
        let name = (metric.to_owned(), span.start);
        let state = self.state.get_or_init(|| self.look(vec![name.clone()]));
        match state.counters.get(&name) {
            Some(known) => known.clone().unwrap_or_else(|| Counter::new(self.org_id, metric, span)),
            None => counters::read_one(self.org_id, metric, span),
        }
    }

    fn look(&self, names: Vec<(String, Moment)>) -> UnsettledState {
        UnsettledState::read(self.org_id, names, self.fresh)
    }

    fn terms(&self, metric: &Metric, at: Moment) -> Terms {
        self.timeline.terms(&metric.name, plans::own_terms(self.db, self.org_id, metric, self.fresh), at)
    }

    /// The org's usage of a metric.
    pub fn standing(&self, metric: &Metric) -> Result<MetricUsage> {
        let terms = self.terms(metric, self.now);
        let counter = self.counter(&metric.name, terms.span);
        let recorded = |p: &&UnsettledRow| p.metric == metric.name && p.span.start == terms.span.start;
        let decided = counter.tally.quantity;
        let unsettled = match metric.aggregation {
            Aggregation::Max | Aggregation::Last => (self.level(metric, &counter) - decided).max(0),
            Aggregation::Sum | Aggregation::Unique => {
                self.state().pending.iter().filter(recorded).fold(0, |sum, p| p.quantity.saturating_add(sum))
            }
        };
        let mut used = match metric.aggregation {
            Aggregation::Last => self.level(metric, &counter),
            Aggregation::Sum | Aggregation::Max | Aggregation::Unique => decided.saturating_add(unsettled),
        };
        let price = cache::price(self.db, metric, Some(self.org_id), self.now)?;
        if metric.is_plain(price.as_deref()) {
            used = used.saturating_add(self.consumed(&metric.name, terms.span));
        }
        Ok(MetricUsage { terms, used, tally: counter.tally, unsettled })
    }

    /// The quantity of a metric without a counter that was consumed in a period.
    fn consumed(&self, metric: &str, span: Span) -> i64 {
        tail::consumed(self.org_id, metric, span.start, span.end)
    }

    /// The level of a gauge: for max the highest of the period, for last the newest. A period
    /// begins with the level before it.
    fn level(&self, metric: &Metric, counter: &Counter) -> i64 {
        let start = counter.span.start;
        let mine = || self.state().pending.iter().filter(|p| p.metric == metric.name);
        // For max, the level that this period itself reached is decided already.
        let until = match metric.aggregation {
            Aggregation::Max => start.saturating_sub(1),
            Aggregation::Last | Aggregation::Sum | Aggregation::Unique => start,
        };
        let earlier = self.db.query(self.fresh, &LAST_LEVEL, args![self.org_id, &metric.name, Timestamptz(until)]);
        let earlier = earlier.first().and_then(|row| row.opt::<i64>(0).zip(row.opt::<Moment>(1)));
        let newest = |until: Moment| {
            let recorded = mine().filter(|p| p.span.start < until).filter_map(|p| p.level);
            recorded.chain(earlier).max_by_key(|(_, at)| *at).map_or(0, |(level, _)| level)
        };
        match metric.aggregation {
            Aggregation::Last => return newest(counter.span.end),
            Aggregation::Max | Aggregation::Sum | Aggregation::Unique => {}
        }
        let highest = mine().filter(|p| p.span.start == start).map(|p| p.quantity).max().unwrap_or(0);
        highest.max(newest(start)).max(counter.tally.quantity)
    }

    /// The org's debt in a unit: unpaid overage, and the charge for what is recorded and not
    /// settled.
    pub fn owed(&self, unit: &str) -> Result<i64> {
        let mut owed = self.state().unpaid.get(unit).copied().unwrap_or(0);
        let mut groups: BTreeMap<(&str, Span), Vec<&UnsettledRow>> = BTreeMap::new();
        for pending in &self.state().pending {
            groups.entry((&pending.metric, pending.span)).or_default().push(pending);
        }
        for ((metric, span), parts) in groups {
            let metric = cache::any_metric(self.db, metric)?;
            let mut tally = self.counter(&metric.name, span).tally;
            let newest = parts.iter().filter_map(|p| p.level).max_by_key(|(_, at)| *at);
            let today = cache::price(self.db, &metric, Some(self.org_id), self.now)?;
            for part in parts {
                let quantity = match metric.aggregation {
                    Aggregation::Max => (part.quantity - tally.quantity).max(0),
                    Aggregation::Last => newest.map_or(0, |(level, _)| (level - tally.quantity).max(0)),
                    Aggregation::Sum | Aggregation::Unique => part.quantity,
                };
                let terms = self.terms(&metric, part.segment.max(span.start));
                let price = cache::price(self.db, &metric, Some(self.org_id), part.segment)?;
                let price = price.as_deref();
                let charge = tally.settle(quantity, terms.allowance, price, price != today.as_deref());
                // A charge that does not fit 63 bits is more than anybody can pay.
                let credits = charge.map_or(i64::MAX, |charge| charge.credits);
                if price.map_or(units::CREDIT, |p| p.unit.as_str()) == unit {
                    owed = owed.saturating_add(credits);
                }
            }
        }
        Ok(owed)
    }
}
