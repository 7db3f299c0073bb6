//! The rules of settlement: which moment may be settled, which part of recorded usage counts, and
//! what becomes of a plan's credit when its period ends.

use crate::base::error::{Error, Result};
use crate::base::time::{INFINITY, Moment, NEG_INFINITY};
use crate::catalog::sections::metrics::Aggregation;
use crate::catalog::sections::plans::{Credits, Rollover};

/// The moment as of which to settle: None is now, and the future cannot be settled.
pub fn moment_to_settle(as_of: Option<Moment>, now: Moment) -> Result<Moment> {
    match as_of {
        None => Ok(now),
        Some(at) if at > now => Err(Error::invalid("as_of", "must not be in the future")),
        Some(NEG_INFINITY) => Err(Error::invalid("as_of", "must be finite")),
        Some(at) => Ok(at),
    }
}

/// A row of `unsettled_usage` that was taken out.
#[allow(missing_docs)]
pub struct TakenUsage {
    pub segment: Moment,
    pub quantity: i64,
    pub level: Option<(i64, Moment)>,
    pub events: i64,
}

/// Usage of a metric that is to be charged.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Usage {
    pub quantity: i64,
    /// The quantity that reports show; for a gauge, its level.
    pub shown: i64,
    pub segment: Moment,
    pub level_at: Moment,
}

impl Usage {
    /// The usage that a level comes to, charged as far as it goes beyond what was charged before.
    pub fn of_level(level: i64, level_at: Moment, charged: i64, segment: Moment) -> Self {
        Self { quantity: (level - charged).max(0), shown: level, segment, level_at }
    }
}

/// The usage that a row of recorded usage comes to, in a period in which `charged` was charged so
/// far.
pub fn usage_of(aggregation: Aggregation, taken: &TakenUsage, charged: i64) -> Usage {
    let (shown, quantity) = match aggregation {
        // A maximum charges only what goes beyond the highest level so far.
        Aggregation::Max => (taken.quantity, (taken.quantity - charged).max(0)),
        // The newest level is charged at the end of the period.
        Aggregation::Last => (taken.level.map_or(taken.quantity, |(level, _)| level), 0),
        Aggregation::Sum | Aggregation::Unique => (taken.quantity, taken.quantity),
    };
    let level_at = taken.level.map_or(0, |(_, at)| at);
    Usage { quantity, shown, segment: taken.segment, level_at }
}

/// The moment at which the credit that a plan grants for a period expires.
pub fn expiry(credits: Option<Credits>, end: Moment) -> Moment {
    match credits.map(|credits| credits.rollover) {
        Some(Rollover::All) | None => INFINITY,
        Some(_) => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_past_is_settled() {
        assert_eq!(moment_to_settle(None, 10), Ok(10));
        assert_eq!(moment_to_settle(Some(10), 10), Ok(10));
        assert!(moment_to_settle(Some(11), 10).is_err() && moment_to_settle(Some(NEG_INFINITY), 10).is_err());
    }

    #[test]
    fn each_aggregation_counts_in_its_own_way() {
        let taken = TakenUsage { segment: 1, quantity: 9, level: Some((7, 3)), events: 2 };
        let counted = |aggregation| {
            let usage = usage_of(aggregation, &taken, 5);
            (usage.quantity, usage.shown)
        };
        assert_eq!(counted(Aggregation::Sum), (9, 9));
        assert_eq!(counted(Aggregation::Unique), (9, 9));
        assert_eq!(counted(Aggregation::Max), (4, 9));
        assert_eq!(counted(Aggregation::Last), (0, 7));
        assert_eq!(usage_of(Aggregation::Max, &taken, 10).quantity, 0);
        assert_eq!(Usage::of_level(7, 3, 5, 1).quantity, 2);
        assert_eq!(Usage::of_level(4, 3, 5, 1).quantity, 0);
    }

    #[test]
    fn credit_that_rolls_over_without_limit_never_expires() {
        let credits = |rollover| Some(Credits { amount: 1, rollover });
        assert_eq!(expiry(credits(Rollover::All), 10), INFINITY);
        assert_eq!(expiry(credits(Rollover::Capped(5)), 10), 10);
        assert_eq!(expiry(credits(Rollover::None), 10), 10);
    }
}
