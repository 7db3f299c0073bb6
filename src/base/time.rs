//! Moments and calendar periods, without a server.

use crate::words;
use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveTime, Utc};
use std::str::FromStr;

/// A moment as PostgreSQL keeps it: microseconds since 2000-01-01 UTC, with both infinities at the
/// ends.
pub type Moment = i64;

/// The moment after all others, `'infinity'::timestamptz`.
pub const INFINITY: Moment = i64::MAX;
/// The moment before all others, `'-infinity'::timestamptz`.
pub const NEG_INFINITY: Moment = i64::MIN;

/// The microseconds from the Unix epoch to that of PostgreSQL.
const EPOCH: i64 = 946_684_800_000_000;

/// The start of the year 1, in microseconds of the Unix epoch.
const FIRST: i64 = -62_135_596_800_000_000;
/// The end of the year 9999, in microseconds of the Unix epoch.
const LAST: i64 = 253_402_300_799_999_999;

const DAY: Moment = 24 * 3600 * 1_000_000;

/// The day of a moment, as the server counts them.
pub fn day(at: Moment) -> i32 {
    i32::try_from(at.div_euclid(DAY)).unwrap_or(if at < 0 { i32::MIN } else { i32::MAX })
}

/// The start of a day, UTC.
pub fn start_of(day: i32) -> Moment {
    i64::from(day).saturating_mul(DAY)
}

words! {
    /// The time after which a budget begins anew (UTC).
    pub enum Period {
        /// A day.
        Day = "day",
        /// A calendar month.
        Month = "month",
        /// All of time: such a budget never begins anew.
        Total = "total",
    }
}

impl Period {
    /// The start of the period that contains a moment.
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

/// Converts a moment to whole seconds of the Unix epoch.
pub fn to_unix(at: Moment) -> i64 {
    at.div_euclid(1_000_000) + EPOCH / 1_000_000
}

/// Converts seconds of the Unix epoch to a moment.
pub fn from_unix(seconds: i64) -> Moment {
    seconds.saturating_sub(EPOCH / 1_000_000).saturating_mul(1_000_000)
}

/// Adds days, or takes them away; the result is an infinity where the calendar ends.
pub fn add_days(at: Moment, days: i64) -> Moment {
    days.checked_mul(DAY).and_then(|d| at.checked_add(d)).unwrap_or(if days < 0 { NEG_INFINITY } else { INFINITY })
}

/// Adds months, or takes them away, at the same time of day; in a month that is too short, it is
/// the last day.
pub fn add_months(at: Moment, months: i64) -> Moment {
    let moved = utc(at).and_then(|t| {
        let count = Months::new(u32::try_from(months.unsigned_abs()).ok()?);
        if months < 0 { t.checked_sub_months(count) } else { t.checked_add_months(count) }
    });
    moved.map_or(if months < 0 { NEG_INFINITY } else { INFINITY }, |t| t.timestamp_micros() - EPOCH)
}

/// Counts the calendar months from one moment to another, days not regarded.
pub fn months_between(from: Moment, to: Moment) -> i64 {
    let count = |at| utc(at).map_or(0, |t: DateTime<Utc>| i64::from(t.year()) * 12 + i64::from(t.month0()));
    count(to) - count(from)
}

/// Writes a moment in ISO 8601 and UTC, for details of errors and stored results.
pub fn display(at: Moment) -> String {
    if at == INFINITY {
        return "infinity".to_owned();
    }
    utc(at).map_or_else(|| "-infinity".to_owned(), |t| t.to_rfc3339())
}

/// Reads a date (midnight UTC) or a timestamp with time zone, ISO 8601.
pub fn parse(text: &str) -> Option<Moment> {
    let unix = match DateTime::parse_from_rfc3339(text) {
        Ok(moment) => moment.timestamp_micros(),
        // PostgreSQL prints a blank between date and time.
        Err(_) if text.len() > 10 => DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok()?.timestamp_micros(),
        Err(_) => NaiveDate::from_str(text).ok()?.and_time(NaiveTime::MIN).and_utc().timestamp_micros(),
    };
    // Other years could be stored, but not every client could show them.
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
