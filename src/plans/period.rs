//! Billing periods: which one a moment falls into, and how much an org's plans include in it.
//!
//! An org's plans follow each other in tenures. The periods of a subscription count from its
//! anchor, so that the 31st stays the 31st: 31 January, 28 February, 31 March. Without a
//! subscription, periods are calendar months (UTC).

use crate::base::time::{INFINITY, Moment, Period};
use crate::catalog::cycle::Cycle;
use crate::catalog::sections::metrics::Tier;
use crate::catalog::sections::plans::{Limit, Plan};
use std::rc::Rc;

/// The time by which a provider's periods may differ from those here, and for which a period goes
/// on without its money: a provider's clock is not ours, and its months end in their own way.
pub const GRACE: Moment = 12 * 3600 * 1_000_000;

/// The time from `start` up to `end`, without `end` itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Span {
    pub start: Moment,
    pub end: Moment,
}

impl Span {
    fn contains(self, at: Moment) -> bool {
        self.start <= at && at < self.end
    }
}

/// The time for which an org has, or had, a plan.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct PlanTenure {
    pub starts_at: Moment,
    /// The end; `INFINITY` where none is known.
    pub ends_at: Moment,
    pub anchor: Moment,
    pub plan: Rc<Plan>,
    /// The start of the first period that was not begun.
    pub next_period_at: Option<Moment>,
    /// Whether that period waits until a provider has collected for it.
    pub awaiting_payment: bool,
}

impl PlanTenure {
    fn span(&self) -> Span {
        Span { start: self.starts_at, end: self.ends_at }
    }

    /// The whole period around a moment, even where the tenure begins or ends within it.
    fn whole_period(&self, at: Moment) -> Span {
        whole_period(self.plan.cycle, self.anchor, at)
    }

    /// Whether the other one counts the same periods: a change of plan within a period keeps the
    /// anchor.
    fn shares_period_with(&self, other: &Self) -> bool {
        self.anchor == other.anchor && self.plan.cycle == other.plan.cycle
    }
}

/// An org's own terms for a metric, each in place of the plan's; None: the plan's holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Override {
    pub allowance: Option<i64>,
    pub limit: Option<Limit>,
}

/// The terms of a metric for an org in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The period.
    pub span: Span,
    /// The quantity that is included; None: unlimited.
    pub allowance: Option<i64>,
    /// The consequence of going beyond it; None: neither the plan nor the org's own terms say.
    pub limit: Option<Limit>,
    /// Whether the plan, or the org's own terms, include some of it.
    pub included: bool,
}

impl Terms {
    /// Whether only credit pays for usage beyond the allowance. A core metric stays open unless its
    /// limit is hard.
    pub fn ends_at_allowance(&self, tier: Option<Tier>) -> bool {
        match self.limit {
            Some(Limit::Hard) => true,
            Some(_) => false,
            None => self.included && !Tier::stays_open(tier),
        }
    }
}

/// The plans that an org has and had, in the order of time, and the one that it has otherwise.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Timeline {
    pub tenures: Vec<PlanTenure>,
    pub fallback: Option<Rc<Plan>>,
}

impl Timeline {
    fn at(&self, at: Moment) -> Option<usize> {
        self.tenures.iter().position(|s| s.span().contains(at))
    }

    /// The plan of the org at a moment.
    pub fn plan(&self, at: Moment) -> Option<&Rc<Plan>> {
        self.at(at).map(|i| &self.tenures[i].plan).or(self.fallback.as_ref())
    }

    /// The credits that the current period will grant once it is begun, where that is still to be
    /// done.
    pub fn credits_due(&self, now: Moment) -> i64 {
        let due = self.at(now).map(|i| &self.tenures[i]).filter(|s| s.next_period_at.is_some_and(|at| at <= now));
        let due = due.filter(|s| !s.awaiting_payment);
        due.and_then(|s| s.plan.credits).map_or(0, |credits| credits.amount)
    }

    /// The billing period around a moment.
    pub fn period(&self, at: Moment) -> Span {
        let Some(i) = self.at(at) else { return self.calendar_month(at) };
        let tenure = &self.tenures[i];
        let mut period = tenure.whole_period(at);
        // A period ends early where its subscription does; a change of plan within it is no end.
        let mut last = tenure;
        for next in &self.tenures[i + 1..] {
            if last.ends_at >= period.end || next.starts_at != last.ends_at || !next.shares_period_with(last) {
                break;
            }
            last = next;
        }
        period.end = period.end.min(last.ends_at);
        // The first period of a subscription begins with the subscription.
        let mut first = tenure;
        for earlier in self.tenures[..i].iter().rev() {
            if first.starts_at <= period.start
                || earlier.ends_at != first.starts_at
                || !earlier.shares_period_with(first)
            {
                break;
            }
            first = earlier;
        }
        period.start = period.start.max(first.starts_at);
        period
    }

    fn calendar_month(&self, at: Moment) -> Span {
        let start = Period::Month.start(at);
        let mut span = Span { start, end: Cycle::Month.boundary(start, 1) };
        for tenure in &self.tenures {
            if tenure.ends_at <= at {
                span.start = span.start.max(tenure.ends_at);
            }
            if tenure.starts_at > at {
                span.end = span.end.min(tenure.starts_at);
            }
        }
        span
    }

    /// The terms of a metric in the period around a moment.
    pub fn terms(&self, metric: &str, own: Option<Override>, at: Moment) -> Terms {
        let span = self.period(at);
        let own = own.unwrap_or_default();
        let limit = own.limit.or_else(|| self.plan(at)?.limits.get(metric).copied());
        let included = match (limit, own.allowance) {
            (Some(Limit::Unlimited), _) => Included::Unlimited,
            (_, Some(own)) => Included::Quantity(own),
            (_, None) => self.included(metric, span, at),
        };
        let allowance = match included {
            Included::Unlimited => None,
            Included::Quantity(quantity) => Some(quantity),
            Included::Nothing => Some(0),
        };
        Terms { span, allowance, limit, included: included != Included::Nothing }
    }

    /// The quantity that the plans of a period include, each for the part of the period in which it
    /// held.
    fn included(&self, metric: &str, span: Span, at: Moment) -> Included {
        let of = |plan: &Plan| match plan.allowances.get(metric) {
            None => Included::Nothing,
            Some(None) => Included::Unlimited,
            Some(Some(quantity)) => Included::Quantity(*quantity),
        };
        let Some(current) = self.at(at) else {
            return self.fallback.as_ref().map_or(Included::Nothing, |plan| of(plan));
        };
        let tenure = &self.tenures[current];
        let parts: Vec<&PlanTenure> = self
            .tenures
            .iter()
            .filter(|s| s.shares_period_with(tenure) && s.starts_at < span.end && s.ends_at > span.start)
            .collect();
        // An org that has, or had, no limit in the period gets a limited allowance whole, not a
        // part of it.
        let one_plan = parts.iter().all(|s| s.plan.name == tenure.plan.name);
        if one_plan || parts.iter().any(|s| of(&s.plan) == Included::Unlimited) {
            return of(&tenure.plan);
        }
        if parts.iter().all(|s| of(&s.plan) == Included::Nothing) {
            return Included::Nothing;
        }
        let sum: i128 = parts
            .iter()
            .map(|s| {
                let held = s.ends_at.min(span.end) - s.starts_at.max(span.start);
                let quantity = s.plan.allowances.get(metric).copied().flatten().unwrap_or(0);
                i128::from(quantity) * i128::from(held)
            })
            .sum();
        let length = i128::from(span.end - span.start).max(1);
        Included::Quantity(i64::try_from(sum / length).unwrap_or(i64::MAX))
    }
}

/// The quantity of a metric that plans include.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Included {
    Nothing,
    Quantity(i64),
    Unlimited,
}

/// The period around a moment among those that count from the anchor.
pub fn whole_period(cycle: Cycle, anchor: Moment, at: Moment) -> Span {
    let n = cycle.index(anchor, at);
    Span { start: cycle.boundary(anchor, n), end: cycle.boundary(anchor, n + 1) }
}

/// The part of an amount that falls on the rest of a period.
pub fn prorated(amount: i64, span: Span, from: Moment) -> i64 {
    if span.end == INFINITY || span.end <= span.start {
        return amount;
    }
    let rest = i128::from(span.end - from.clamp(span.start, span.end));
    let part = i128::from(amount) * rest / i128::from(span.end - span.start);
    i64::try_from(part).unwrap_or(amount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::parse;
    use std::collections::BTreeMap;

    fn at(text: &str) -> Moment {
        parse(text).unwrap()
    }

    fn plan(name: &str, api: Option<i64>) -> Rc<Plan> {
        let allowances = BTreeMap::from([("api".to_owned(), api)]);
        Rc::new(Plan { name: name.into(), allowances, ..Plan::default() })
    }

    fn tenure(from: &str, to: Moment, anchor: &str, plan: &Rc<Plan>) -> PlanTenure {
        PlanTenure {
            starts_at: at(from),
            ends_at: to,
            anchor: at(anchor),
            plan: Rc::clone(plan),
            next_period_at: None,
            awaiting_payment: false,
        }
    }

    fn span(start: &str, end: &str) -> Span {
        Span { start: at(start), end: at(end) }
    }

    #[test]
    fn month_ends_come_back() {
        let solo = plan("solo", Some(100));
        let line = Timeline { tenures: vec![tenure("2027-01-31", INFINITY, "2027-01-31", &solo)], fallback: None };
        assert_eq!(line.period(at("2027-02-10")), span("2027-01-31", "2027-02-28"));
        assert_eq!(line.period(at("2027-02-28")), span("2027-02-28", "2027-03-31"));
        assert_eq!(line.period(at("2027-04-30")), span("2027-04-30", "2027-05-31"));
        assert_eq!(line.period(at("2028-02-29")), span("2028-02-29", "2028-03-31"));
        assert_eq!(line.period(at("2028-02-28T23:59:59.999999Z")), span("2028-01-31", "2028-02-29"));
    }

    #[test]
    fn a_leap_day_starts_again_on_the_28th() {
        assert_eq!(Cycle::Year.boundary(at("2028-02-29"), 1), at("2029-02-28"));
        assert_eq!(Cycle::Year.boundary(at("2028-02-29"), 4), at("2032-02-29"));
        assert_eq!(Cycle::Year.index(at("2028-02-29"), at("2029-02-28")), 1);
        assert_eq!(Cycle::Year.index(at("2028-02-29"), at("2029-02-27")), 0);
    }

    #[test]
    fn without_a_subscription_calendar_months_around_it() {
        let solo = plan("solo", Some(100));
        let line =
            Timeline { tenures: vec![tenure("2027-01-15", at("2027-03-20"), "2027-01-15", &solo)], fallback: None };
        assert_eq!(line.period(at("2027-01-10")), span("2027-01-01", "2027-01-15"));
        assert_eq!(line.period(at("2027-03-16")), span("2027-03-15", "2027-03-20"));
        assert_eq!(line.period(at("2027-03-20")), span("2027-03-20", "2027-04-01"));
        assert_eq!(line.period(at("2027-05-02")), span("2027-05-01", "2027-06-01"));
    }

    #[test]
    fn a_change_of_plan_prorates_the_allowance() {
        let (solo, team) = (plan("solo", Some(100)), plan("team", Some(1000)));
        let line = Timeline {
            tenures: vec![
                tenure("2027-06-01", at("2027-06-11"), "2027-06-01", &solo),
                tenure("2027-06-11", INFINITY, "2027-06-01", &team),
            ],
            fallback: None,
        };
        let june = span("2027-06-01", "2027-07-01");
        for day in ["2027-06-05", "2027-06-20"] {
            let terms = line.terms("api", None, at(day));
            assert_eq!((terms.span, terms.allowance), (june, Some((100 * 10 + 1000 * 20) / 30)));
        }
        assert_eq!(line.terms("api", None, at("2027-07-05")).allowance, Some(1000));
        assert_eq!(line.terms("else", None, at("2027-07-05")).allowance, Some(0));
        assert!(!line.terms("else", None, at("2027-07-05")).included);
    }

    #[test]
    fn own_terms_come_first_and_unlimited_has_no_number() {
        let solo = plan("solo", None);
        let line = Timeline { tenures: vec![], fallback: Some(solo) };
        assert_eq!(line.terms("api", None, 0).allowance, None);
        let own = Override { allowance: Some(7), limit: Some(Limit::Soft) };
        assert_eq!(line.terms("api", Some(own), 0).allowance, Some(7));
        let open = Override { allowance: Some(7), limit: Some(Limit::Unlimited) };
        assert_eq!(line.terms("api", Some(open), 0).allowance, None);
    }

    #[test]
    fn proration_rounds_down_and_has_ends() {
        let week = span("2027-06-01", "2027-06-08");
        assert_eq!(prorated(100, week, at("2027-06-01")), 100);
        assert_eq!(prorated(100, week, at("2027-06-04")), 57);
        assert_eq!(prorated(100, week, at("2027-06-09")), 0);
    }
}
