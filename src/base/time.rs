//! Moments and calendar periods, without a server.

use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveTime, Utc};
use std::str::FromStr;

/// A moment as PostgreSQL keeps it: microseconds since 2000-01-01 UTC, with both infinities at the ends.
pub type Moment = i64;

/// `'infinity'::timestamptz`
pub const INFINITY: Moment = i64::MAX;
/// `'-infinity'::timestamptz`
pub const NEG_INFINITY: Moment = i64::MIN;

/// Microseconds from the Unix epoch to PostgreSQL's.
const EPOCH: i64 = 946_684_800_000_000;

/// 0001-01-01 and the end of 9999, in microseconds of the Unix epoch.
const FIRST: i64 = -62_135_596_800_000_000;
const LAST: i64 = 253_402_300_799_999_999;

const DAY: Moment = 24 * 3600 * 1_000_000;

/// The day of a moment, as the server counts them.
pub fn day(at: Moment) -> i32 {
    i32::try_from(at.div_euclid(DAY)).unwrap_or(if at < 0 { i32::MIN } else { i32::MAX })
}

/// When a day begins.
pub fn start_of(day: i32) -> Moment {
    i64::from(day).saturating_mul(DAY)
}

/// Length of a budget period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// A day, UTC.
    Day,
    /// A calendar month, UTC.
    Month,
    /// All of time.
    Total,
}

impl Period {
    /// From its name in SQL.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "day" => Some(Self::Day),
            "month" => Some(Self::Month),
            "total" => Some(Self::Total),
            _ => None,
        }
    }

    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Total => "total",
        }
    }

    /// When the period that contains `at` began.
    pub fn start(self, at: Moment) -> Moment {
        let Some(date) = date_of(at) else { return NEG_INFINITY };
        match self {
            Self::Day => midnight(date),
            Self::Month => midnight(date.with_day(1).unwrap_or(date)),
            Self::Total => NEG_INFINITY,
        }
    }
}

fn date_of(at: Moment) -> Option<NaiveDate> {
    utc(at).map(|t| t.date_naive())
}

fn midnight(date: NaiveDate) -> Moment {
    date.and_time(NaiveTime::MIN).and_utc().timestamp_micros() - EPOCH
}

fn utc(at: Moment) -> Option<DateTime<Utc>> {
    at.checked_add(EPOCH).and_then(DateTime::<Utc>::from_timestamp_micros)
}

/// Whole seconds of the Unix epoch.
pub fn to_unix(at: Moment) -> i64 {
    at.div_euclid(1_000_000) + EPOCH / 1_000_000
}

/// The moment of so many seconds of the Unix epoch.
pub fn from_unix(seconds: i64) -> Moment {
    seconds.saturating_sub(EPOCH / 1_000_000).saturating_mul(1_000_000)
}

/// So many days later, or earlier; without end where the calendar ends.
pub fn add_days(at: Moment, days: i64) -> Moment {
    days.checked_mul(DAY).and_then(|d| at.checked_add(d)).unwrap_or(if days < 0 { NEG_INFINITY } else { INFINITY })
}

/// So many months later, or earlier, at the same time of day; the last day of a month that is shorter.
pub fn add_months(at: Moment, months: i64) -> Moment {
    let moved = utc(at).and_then(|t| {
        let count = Months::new(u32::try_from(months.unsigned_abs()).ok()?);
        if months < 0 { t.checked_sub_months(count) } else { t.checked_add_months(count) }
    });
    moved.map_or(if months < 0 { NEG_INFINITY } else { INFINITY }, |t| t.timestamp_micros() - EPOCH)
}

/// Calendar months from one moment to another, days not regarded.
pub fn months_between(from: Moment, to: Moment) -> i64 {
    let count = |at| utc(at).map_or(0, |t: DateTime<Utc>| i64::from(t.year()) * 12 + i64::from(t.month0()));
    count(to) - count(from)
}

/// ISO 8601 in UTC, for details of errors and stored results.
pub fn display(at: Moment) -> String {
    if at == INFINITY {
        return "infinity".to_owned();
    }
    utc(at).map_or_else(|| "-infinity".to_owned(), |t| t.to_rfc3339())
}

/// A date (midnight UTC) or a timestamp with time zone, ISO 8601.
pub fn parse(text: &str) -> Option<Moment> {
    let unix = match DateTime::parse_from_rfc3339(text) {
        Ok(moment) => moment.timestamp_micros(),
        // As PostgreSQL prints it.
        Err(_) if text.len() > 10 => DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok()?.timestamp_micros(),
        Err(_) => NaiveDate::from_str(text).ok()?.and_time(NaiveTime::MIN).and_utc().timestamp_micros(),
    };
    // Years that every reader of a timestamp can show.
    (FIRST..=LAST).contains(&unix).then(|| unix - EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Moment {
        parse(text).unwrap()
    }

    #[test]
    fn months_follow_the_calendar() {
        let leap_day = at("2024-02-29T23:59:59.999999Z");
        assert_eq!(Period::Month.start(leap_day), at("2024-02-01T00:00:00Z"));
        assert_eq!(Period::Month.start(at("2024-12-31T12:00:00Z")), at("2024-12-01T00:00:00Z"));
    }

    #[test]
    fn a_day_holds_its_first_moment_and_not_the_next_ones() {
        let midnight = at("1999-12-31T00:00:00Z");
        assert_eq!(Period::Day.start(midnight), midnight);
        assert_eq!(Period::Day.start(midnight - 1), at("1999-12-30T00:00:00Z"));
    }

    #[test]
    fn total_has_no_ends() {
        assert_eq!(Period::Total.start(0), NEG_INFINITY);
    }
}
