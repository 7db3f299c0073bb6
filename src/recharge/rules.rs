//! The rules of automatic recharging: whether a purchase is due, and how long to wait after a
//! failure.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;

/// The number of failures after which automatic recharging stops.
pub const MOST_FAILURES: i32 = 4;
/// The number of payments within an hour after which it waits: whatever was set, a card is not
/// charged without end.
const MOST_AN_HOUR: i64 = 3;
/// The highest threshold that a member may set, in packs.
const MOST_PACKS: i64 = 10;
/// A minute, as moments are counted.
pub const MINUTE: Moment = 60_000_000;

/// The time after a failure in which nothing is tried: an hour, then four, then sixteen.
pub fn retry_delay(failures: i32) -> Moment {
    let exponent = u32::try_from(failures.clamp(0, 6)).unwrap_or_default();
    60 * MINUTE * 4_i64.pow(exponent)
}

/// The decision whether a purchase is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is enough credit.
    Enough,
    /// A purchase is under way, or one was tried too lately.
    Later,
    /// The purchase would exceed what may be charged in a month.
    Ceiling,
    /// A pack is to be bought.
    Due,
}

/// The facts that decide whether a purchase is due.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct RechargeSettings {
    pub threshold: i64,
    /// The credit of the wallet, spendable and pending together.
    pub credit: i64,
    pub is_under_way: bool,
    pub next_attempt_at: Option<Moment>,
    pub now: Moment,
    pub ceiling: Option<i64>,
    pub this_month: i64,
    /// The number of payments that automatic recharging asked for within the last hour.
    pub lately: i64,
    pub total: i64,
}

/// Decides whether a purchase is due.
pub fn verdict(settings: &RechargeSettings) -> Verdict {
    if settings.credit >= settings.threshold {
        Verdict::Enough
    } else if settings.is_under_way
        || settings.lately >= MOST_AN_HOUR
        || settings.next_attempt_at.is_some_and(|at| at > settings.now)
    {
        Verdict::Later
    } else if settings.ceiling.is_some_and(|ceiling| settings.this_month.saturating_add(settings.total) > ceiling) {
        Verdict::Ceiling
    } else {
        Verdict::Due
    }
}

/// Checks the limits for members: the setting charges a card again and again, so a ceiling is
/// needed, and the threshold must suit the pack.
pub fn check_member_limits(ceiling: Option<i64>, threshold: i64, credits: i64) -> Result<()> {
    if ceiling.is_none() {
        return Err(Error::invalid("monthly_ceiling", "must be given by a member"));
    }
    let most = credits.saturating_mul(MOST_PACKS);
    if threshold > most {
        return Err(Error::invalid("threshold", "must be at most ten times what the pack brings").with("most", most));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_buys_when_there_is_too_little_and_nothing_under_way() {
        let settings = RechargeSettings {
            threshold: 100,
            credit: 99,
            is_under_way: false,
            next_attempt_at: None,
            now: 10,
            ceiling: Some(1000),
            this_month: 500,
            lately: 2,
            total: 500,
        };
        assert_eq!(verdict(&settings), Verdict::Due);
        assert_eq!(verdict(&RechargeSettings { credit: 100, ..settings }), Verdict::Enough);
        assert_eq!(verdict(&RechargeSettings { is_under_way: true, ..settings }), Verdict::Later);
        assert_eq!(verdict(&RechargeSettings { lately: 3, ..settings }), Verdict::Later);
        assert_eq!(verdict(&RechargeSettings { next_attempt_at: Some(11), ..settings }), Verdict::Later);
        assert_eq!(verdict(&RechargeSettings { next_attempt_at: Some(10), ..settings }), Verdict::Due);
        assert_eq!(verdict(&RechargeSettings { total: 501, ..settings }), Verdict::Ceiling);
        assert_eq!(verdict(&RechargeSettings { total: i64::MAX, ceiling: None, ..settings }), Verdict::Due);
    }

    #[test]
    fn it_waits_longer_after_each_failure() {
        let hours: Vec<i64> = (0..3).map(|failures| retry_delay(failures) / (60 * MINUTE)).collect();
        assert_eq!(hours, [1, 4, 16]);
    }
}
