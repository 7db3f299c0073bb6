//! The rules of subscriptions: which one counts, when one may begin, how much credit the plans of a
//! period come to, and which item a provider's price stands for.

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment};
use crate::catalog::cycle::Cycle;
use crate::catalog::sections::packs::Pack;
use crate::catalog::sections::plans::Plan;
use crate::plans::period::{GRACE, Span, prorated, whole_period};
use crate::plans::store::Subscription;
use std::rc::Rc;

/// The number of months that a subscription may begin in the past or in the future.
const LONGEST_AGO: i64 = 120;

/// The subscription that runs, or is about to begin.
pub fn current_subscription(all: &[Subscription], now: Moment) -> Option<&Subscription> {
    all.iter().rev().find(|s| !s.is_void() && s.ends_at.is_none_or(|end| end > now))
}

/// The current subscription, if it is not the default plan.
pub fn chosen_subscription(all: &[Subscription], now: Moment) -> Option<&Subscription> {
    current_subscription(all, now).filter(|s| !s.by_default)
}

/// The current subscription, if it is not the default plan and has begun.
pub fn running_subscription(all: &[Subscription], now: Moment) -> Option<&Subscription> {
    chosen_subscription(all, now).filter(|s| s.starts_at <= now)
}

/// Whether a subscription has ended, or never held.
pub fn has_ended(subscription: &Subscription, now: Moment) -> bool {
    subscription.is_void() || subscription.ends_at.is_some_and(|end| end <= now)
}

/// The name of the status of a subscription.
pub fn status_name(subscription: &Subscription, now: Moment) -> &'static str {
    match subscription {
        s if has_ended(s, now) => "canceled",
        s if s.starts_at > now => "scheduled",
        _ => "active",
    }
}

/// Checks that a moment at which a subscription is to begin is finite.
pub fn finite_start(at: Moment) -> Result<Moment> {
    match at {
        time::INFINITY | time::NEG_INFINITY => Err(Error::invalid("starts_at", "must be finite")),
        at => Ok(at),
    }
}

/// Checks that a subscription may begin at a moment: not too far away, and after all earlier ones.
pub fn check_start(all: &[Subscription], starts_at: Moment, now: Moment) -> Result<()> {
    // Each period since then is begun, one after the other.
    if starts_at < time::add_months(now, -LONGEST_AGO) || starts_at > time::add_months(now, LONGEST_AGO) {
        return Err(Error::invalid("starts_at", "must be at most 10 years away"));
    }
    let mut before = all.iter().filter(|s| !s.by_default && !s.is_void()).filter_map(|s| s.ends_at);
    if before.any(|end| end > starts_at) {
        return Err(Error::invalid("starts_at", "lies within an earlier subscription"));
    }
    Ok(())
}

/// The time within a period for which a plan holds.
#[derive(Debug, Clone, Copy)]
pub struct PlanShare {
    /// The credit that the plan grants for a whole period.
    pub credits: i64,
    /// The moment from which the plan holds.
    pub from: Moment,
    /// The moment until which it holds; None for the end of the period.
    pub until: Option<Moment>,
}

/// The credit that the plans of a whole period come to, each in proportion to its time.
pub fn credit_by_time(whole: Span, shares: &[PlanShare]) -> i64 {
    let rest = |share: &PlanShare, from| prorated(share.credits, whole, from);
    let credit = |share: &PlanShare| rest(share, share.from) - share.until.map_or(0, |until| rest(share, until));
    shares.iter().map(credit).sum()
}

/// Whether a paid period goes further than the running one and does not fit its cycle. The money
/// for a change of plan in the middle of a period ends with that period, and so begins no new
/// cycle.
pub fn is_new_anchor(current: &Subscription, cycle: Cycle, paid: Span) -> bool {
    let Span { start, end: until } = paid;
    let goes_further = current.next_period_at.is_none_or(|next| until > next + GRACE);
    if !goes_further || start <= current.starts_at + GRACE {
        return false;
    }
    let period = whole_period(cycle, current.anchor, start.saturating_add(GRACE));
    (period.start - start).abs() > GRACE
}

/// The grants that the subscriptions of an org have now and did not have before.
pub fn new_grants(before: &[Subscription], after: &[Subscription]) -> Vec<i64> {
    let known: Vec<i64> = before.iter().flat_map(|s| s.grants.clone()).collect();
    let mut new: Vec<i64> = after.iter().flat_map(|s| s.grants.clone()).collect();
    new.retain(|grant_id| !known.contains(grant_id));
    new.sort_unstable();
    new.dedup();
    new
}

/// The item that a provider's price stands for.
#[derive(Debug)]
pub enum Item {
    /// A plan.
    Plan(Rc<Plan>),
    /// A pack.
    Pack(Rc<Pack>),
}

/// Whether some of the prices are those of packs.
pub fn names_pack(packs: &[(Rc<Pack>, bool)], provider: &str, prices: &[String]) -> bool {
    let ids = |pack: &Pack| pack.provider_ids.get(provider).is_some_and(|ids| ids.iter().any(|id| prices.contains(id)));
    packs.iter().any(|(pack, _)| ids(pack))
}

/// The item of the prices: the first one is that of the period and counts before the others, and
/// plans count before packs.
pub fn find_item(
    plans: &[(Rc<Plan>, bool)],
    packs: &[(Rc<Pack>, bool)],
    provider: &str,
    prices: &[String],
) -> Option<Item> {
    let names = |ids: Option<&Vec<String>>, price: &String| ids.is_some_and(|ids| ids.contains(price));
    let plan = |price| plans.iter().find(|(plan, _)| names(plan.provider_ids.get(provider), price));
    let pack = |price| packs.iter().find(|(pack, _)| names(pack.provider_ids.get(provider), price));
    let plan = prices.iter().find_map(plan).map(|(plan, _)| Item::Plan(Rc::clone(plan)));
    plan.or_else(|| prices.iter().find_map(pack).map(|(pack, _)| Item::Pack(Rc::clone(pack))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::parse;

    fn at(text: &str) -> Moment {
        parse(text).unwrap()
    }

    fn subscription(starts_at: Moment, ends_at: Option<Moment>) -> Subscription {
        Subscription {
            starts_at,
            ends_at,
            anchor: starts_at,
            next_period_at: None,
            plan: "basic".into(),
            pending_plan: None,
            cancel_at_period_end: false,
            by_default: false,
            grants: Vec::new(),
            granted: 0,
            taken_back: 0,
            awaiting_payment: false,
            billing_provider: None,
        }
    }

    #[test]
    fn a_subscription_is_scheduled_runs_and_ends() {
        let all = [subscription(10, Some(20)), subscription(30, Some(30)), subscription(40, None)];
        let starts = |s: Option<&Subscription>| s.map(|s| s.starts_at);
        assert_eq!(starts(running_subscription(&all, 15)), None);
        assert_eq!(starts(chosen_subscription(&all, 15)), Some(40));
        assert_eq!(starts(running_subscription(&all, 40)), Some(40));
        assert_eq!(starts(running_subscription(&all[..2], 15)), Some(10));
        assert_eq!(starts(current_subscription(&all[..2], 20)), None);
        let names =
            [status_name(&all[2], 39), status_name(&all[2], 40), status_name(&all[0], 20), status_name(&all[1], 0)];
        assert_eq!(names, ["scheduled", "active", "canceled", "canceled"]);
        let by_default = [Subscription { by_default: true, ..subscription(0, None) }];
        assert!(current_subscription(&by_default, 5).is_some() && chosen_subscription(&by_default, 5).is_none());
    }

    #[test]
    fn a_subscription_begins_within_ten_years_and_after_earlier_ones() {
        let now = at("2026-01-15 00:00:00+00");
        let start = |text| check_start(&[subscription(0, Some(at("2026-01-10 00:00:00+00")))], at(text), now);
        assert!(start("2026-01-10 00:00:00+00").is_ok() && start("2036-01-15 00:00:00+00").is_ok());
        assert!(start("2026-01-09 00:00:00+00").is_err() && start("2036-01-16 00:00:00+00").is_err());
        assert!(finite_start(now).is_ok() && finite_start(time::INFINITY).is_err());
    }

    #[test]
    fn many_changes_of_plan_bring_no_more_credit_than_the_best_plan() {
        let whole = Span { start: 0, end: 100 };
        let share = |credits, from, until| PlanShare { credits, from, until };
        assert_eq!(credit_by_time(whole, &[share(1000, 0, None)]), 1000);
        assert_eq!(credit_by_time(whole, &[share(1000, 50, None), share(200, 0, Some(50))]), 600);
        let back_and_forth = [share(1000, 90, None), share(200, 80, Some(90)), share(1000, 0, Some(80))];
        assert_eq!(credit_by_time(whole, &back_and_forth), 920);
    }

    #[test]
    fn a_period_paid_to_another_day_begins_a_new_cycle() {
        let january = at("2026-01-01 00:00:00+00");
        let current =
            Subscription { next_period_at: Some(at("2026-02-01 00:00:00+00")), ..subscription(january, None) };
        let is_new = |start, end| is_new_anchor(&current, Cycle::Month, Span { start: at(start), end: at(end) });
        assert!(!is_new("2026-02-01 06:00:00+00", "2026-03-01 06:00:00+00"), "within the grace");
        assert!(is_new("2026-01-20 00:00:00+00", "2026-02-20 00:00:00+00"));
        assert!(!is_new("2026-01-20 00:00:00+00", "2026-02-01 00:00:00+00"), "a change within the period");
    }

    #[test]
    fn plans_count_before_packs_and_the_first_price_before_the_others() {
        let ids = |id: &str| [("stripe".to_owned(), vec![id.to_owned()])].into_iter().collect();
        let plan =
            |name: &str, id| (Rc::new(Plan { name: name.into(), provider_ids: ids(id), ..Plan::default() }), false);
        let plans = [plan("basic", "p1"), plan("pro", "p2")];
        let found = |provider, prices: &[&str]| {
            let prices: Vec<String> = prices.iter().map(|&price| price.to_owned()).collect();
            match find_item(&plans, &[], provider, &prices) {
                Some(Item::Plan(plan)) => Some(plan.name.clone()),
                _ => None,
            }
        };
        assert_eq!(found("stripe", &["p2", "p1"]).as_deref(), Some("pro"));
        assert_eq!(found("stripe", &["other", "p1"]).as_deref(), Some("basic"));
        assert_eq!(found("razorpay", &["p1"]), None);
    }

    #[test]
    fn only_grants_that_were_not_there_before_are_new() {
        let with = |grants: &[i64]| [Subscription { grants: grants.to_vec(), ..subscription(0, None) }];
        assert_eq!(new_grants(&with(&[1, 2]), &with(&[4, 2, 3, 3])), [3, 4]);
    }
}
