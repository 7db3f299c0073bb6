//! The time for which credit can be spent once it is granted, such as `30 days` or `1 year`.

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment};
use crate::base::words::Word;
use crate::words;
use std::fmt;

/// The longest validity, in months of 30 days: a hundred years.
const MOST_MONTHS: i64 = 1200;

/// A length of time as calendars count it: months differ in length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    count: i64,
    unit: Unit,
}

words! {
    /// The unit of a validity, in the singular.
    enum Unit {
        Day = "day",
        Week = "week",
        Month = "month",
        Year = "year",
    }
}

impl Unit {
    /// The largest count of the unit.
    fn most(self) -> i64 {
        match self {
            Self::Day => MOST_MONTHS * 30,
            Self::Week => MOST_MONTHS * 30 / 7,
            Self::Month => MOST_MONTHS,
            Self::Year => MOST_MONTHS / 12,
        }
    }
}

impl Validity {
    /// Reads a whole number from 1 and a unit, singular or plural; None for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let (count, unit, None) = (words.next()?, words.next()?, words.next()) else { return None };
        let unit = Unit::parse(unit.strip_suffix('s').unwrap_or(unit))?;
        // `parse` would take a sign, which no validity has.
        let count = count.bytes().all(|b| b.is_ascii_digit()).then(|| count.parse().ok())??;
        (1..=unit.most()).contains(&count).then_some(Self { count, unit })
    }

    /// Reads an argument that may be absent.
    pub fn argument(name: &str, value: Option<&str>) -> Result<Option<Self>> {
        const FAULT: &str = "must be a number of days, weeks, months or years, at most a hundred years";
        value.map(|text| Self::parse(text).ok_or_else(|| Error::invalid(name, FAULT))).transpose()
    }

    /// The end of a validity that begins at a moment. Months and years end on the same day of the
    /// month, or on its last.
    pub fn after(self, at: Moment) -> Moment {
        match self.unit {
            Unit::Day => time::add_days(at, self.count),
            Unit::Week => time::add_days(at, self.count * 7),
            Unit::Month => time::add_months(at, self.count),
            Unit::Year => time::add_months(at, self.count * 12),
        }
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.count == 1 { "" } else { "s" };
        write!(out, "{} {}{plural}", self.count, self.unit.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(validity: &str, at: &str) -> Moment {
        Validity::parse(validity).unwrap().after(time::parse(at).unwrap())
    }

    fn at(text: &str) -> Moment {
        time::parse(text).unwrap()
    }

    #[test]
    fn days_and_months_follow_the_calendar() {
        assert_eq!(after("30 days", "2024-02-01T12:30:00Z"), at("2024-03-02T12:30:00Z"));
        assert_eq!(after("2 weeks", "2024-12-25T00:00:00Z"), at("2025-01-08T00:00:00Z"));
        assert_eq!(after("1 month", "2024-01-31T00:00:00Z"), at("2024-02-29T00:00:00Z"));
        assert_eq!(after("1 year", "2024-02-29T00:00:00Z"), at("2025-02-28T00:00:00Z"));
        assert_eq!(after("100 years", "9990-01-01T00:00:00Z"), at("9990-01-01T00:00:00Z") + 36_525 * 86_400_000_000);
    }

    #[test]
    fn what_is_none_is_not_parsed() {
        for wrong in [
            "",
            "1",
            "year",
            "0 days",
            "-1 days",
            "+1 day",
            "1.5 days",
            "1 yea",
            "1 days more",
            "1 Year",
            "1day",
            "P1Y",
            "1 dayss",
            "1201 months",
            "101 years",
            "36001 days",
            "99999999999999999999 days",
            "s 1",
            "1 s",
        ] {
            assert_eq!(Validity::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        /// A validity is shown in a form that is parsed, with any blanks between the words; and it
        /// ends after its begin.
        #[test]
        fn what_is_shown_is_parsed(count in 1..=100i64, unit in 0..4usize, at in 0..1i64 << 60) {
            let validity = Validity { count, unit: Unit::ALL[unit] };
            let shown = validity.to_string();
            prop_assert_eq!(Validity::parse(&shown), Some(validity));
            prop_assert_eq!(Validity::parse(&format!(" {} ", shown.replace(' ', "\t "))), Some(validity));
            prop_assert!(validity.after(at) > at);
        }
    }
}
