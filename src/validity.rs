//! How long something is good: `30 days`, `6 months`, `1 year`.

use crate::time::{self, Moment};
use std::fmt;

/// A number of calendar months, or of days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Validity {
    Days(i64),
    Months(i64),
}

/// A hundred years.
const LONGEST_IN_DAYS: i64 = 36_525;

impl Validity {
    /// A whole number and days, weeks, months or years; at most a hundred years.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, unit) = text.trim().split_once(' ')?;
        let number: i64 = number.parse().ok().filter(|n| (1..=LONGEST_IN_DAYS).contains(n))?;
        let validity = match unit.trim() {
            "day" | "days" => Self::Days(number),
            "week" | "weeks" => Self::Days(number * 7),
            "month" | "months" => Self::Months(number),
            "year" | "years" => Self::Months(number * 12),
            _ => return None,
        };
        let is_short = match validity {
            Self::Days(days) => days <= LONGEST_IN_DAYS,
            Self::Months(months) => months <= 1200,
        };
        is_short.then_some(validity)
    }

    /// The end of what begins then.
    pub fn after(self, start: Moment) -> Moment {
        match self {
            Self::Days(days) => time::add_days(start, days),
            Self::Months(months) => time::add_months(start, months),
        }
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match *self {
            Self::Days(days) => (days, "day"),
            Self::Months(months) if months % 12 == 0 => (months / 12, "year"),
            Self::Months(months) => (months, "month"),
        };
        write!(f, "{number} {unit}{}", if number == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_as_itself() {
        for text in ["1 day", "30 days", "1 month", "6 months", "1 year", "100 years"] {
            assert_eq!(Validity::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Validity::parse("2 weeks"), Some(Validity::Days(14)));
        assert_eq!(Validity::parse("12 months").unwrap().to_string(), "1 year");
        for text in
            ["", "1", "day", "0 days", "-1 days", "1.5 years", "101 years", "99999999999999999999 days", "1 fortnight"]
        {
            assert_eq!(Validity::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_year_from_a_leap_day() {
        let at = |text| time::parse(text).unwrap();
        assert_eq!(Validity::Months(12).after(at("2024-02-29")), at("2025-02-28"));
        assert_eq!(Validity::Days(1).after(at("2024-02-29")), at("2024-03-01"));
    }
}
