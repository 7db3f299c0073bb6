//! What was used of a metric in the current month, for prices that depend on it. The lane must be locked before.

use crate::sql::{At, Db};
use crate::time::{Moment, Period};
use crate::{args, statements};
use uuid::Uuid;

statements! {
    LOCK(uuid, text, timestamptz) =
        "select quantity from billing.period_usage where org_id = $1 and metric = $2 and period_start = $3 for update";
    MAKE(uuid, text, timestamptz) =
        "insert into billing.period_usage (org_id, metric, period_start) values ($1, $2, $3) on conflict do nothing";
    ADD(uuid, text, timestamptz, int8, int8) =
        "update billing.period_usage set quantity = quantity + $4, credits = credits + $5
          where org_id = $1 and metric = $2 and period_start = $3";
}

/// A counter, locked.
pub struct Counter {
    org_id: Uuid,
    metric: String,
    period: At,
    /// Used so far in the month.
    pub quantity: i64,
}

impl Counter {
    /// Locks the counter of the month: whoever prices by it is alone with it.
    pub fn lock(db: &Db, org_id: Uuid, metric: &str, now: Moment) -> Self {
        let period = At(Period::Month.start(now));
        let read = || db.write(&LOCK, args![org_id, metric, period]).first().map(|row| row.get(0));
        let quantity = read().unwrap_or_else(|| {
            db.write(&MAKE, args![org_id, metric, period]);
            read().unwrap_or(0)
        });
        Self { org_id, metric: metric.to_owned(), period, quantity }
    }

    /// Adds what was used and charged.
    pub fn add(&self, db: &Db, quantity: i64, credits: i64) {
        db.write(&ADD, args![self.org_id, &self.metric, self.period, quantity, credits]);
    }
}
