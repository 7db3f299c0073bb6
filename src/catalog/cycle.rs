//! Cycles of billing periods: where a period begins that is counted from an anchor.

use crate::base::time::{self, Moment};
use crate::words;

words! {
    /// The length of a plan's period, or of the time after which a pack is bought anew.
    #[derive(Default)]
    pub enum Cycle {
        /// A calendar month; the 31st stays the 31st where a month has one.
        #[default]
        Month = "month",
        /// A day.
        Day = "day",
        /// Seven days.
        Week = "week",
        /// Twelve calendar months.
        Year = "year",
    }
}

const DAY: i64 = 86_400_000_000;

impl Cycle {
    /// The start of the n-th period from the anchor, the first being 0.
    pub fn boundary(self, anchor: Moment, n: i64) -> Moment {
        match self {
            Self::Day => time::add_days(anchor, n),
            Self::Week => time::add_days(anchor, n.saturating_mul(7)),
            Self::Month => time::add_months(anchor, n),
            Self::Year => time::add_months(anchor, n.saturating_mul(12)),
        }
    }

    /// The number of the period that contains a moment; negative before the anchor.
    pub fn index(self, anchor: Moment, at: Moment) -> i64 {
        // A first guess that is at most one too high or too low, whatever the lengths of months.
        let days = at.saturating_sub(anchor).div_euclid(DAY);
        let mut n = match self {
            Self::Day => days,
            Self::Week => days.div_euclid(7),
            Self::Month => time::months_between(anchor, at),
            Self::Year => time::months_between(anchor, at).div_euclid(12),
        };
        while self.boundary(anchor, n) > at {
            n -= 1;
        }
        while self.boundary(anchor, n + 1) <= at {
            n += 1;
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_of_days_and_weeks() {
        let monday = time::parse("2027-06-07").unwrap();
        assert_eq!(Cycle::Week.boundary(monday, 2), time::parse("2027-06-21").unwrap());
        assert_eq!(Cycle::Week.index(monday, time::parse("2027-06-20").unwrap()), 1);
        assert_eq!(Cycle::Day.index(monday, time::parse("2027-06-06").unwrap()), -1);
    }
}
