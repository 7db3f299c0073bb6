//! What was used of a metric in the current month, for prices that depend on it. The lane must be locked before.

use crate::catalog::price::{Overflow, Price};
use crate::catalog::too_large;
use crate::error::Result;
use crate::sql::{At, Db};
use crate::time::{Moment, Period};
use crate::{args, statements};
use uuid::Uuid;

statements! {
    COUNT(uuid, text, timestamptz, int8) =
        "insert into billing.period_usage as u (org_id, metric, period_start, quantity) values ($1, $2, $3, $4)
         on conflict (org_id, metric, period_start) do update set quantity = u.quantity + $4
          where u.quantity <= 9223372036854775807 - $4
         returning quantity";
    ADD(uuid, text, timestamptz, int8, int8) =
        "update billing.period_usage set quantity = quantity + $4, credits = credits + $5
          where org_id = $1 and metric = $2 and period_start = $3";
}

/// A quantity that was counted and priced.
pub struct Counted {
    org_id: Uuid,
    metric: String,
    period: Moment,
    quantity: i64,
    /// What it costs after what was used before.
    pub credits: i64,
}

impl Counted {
    /// Counts a quantity and prices it. The row stays locked, so nobody gets in between.
    pub fn new(db: &Db, org_id: Uuid, metric: &str, price: &Price, quantity: i64, now: Moment) -> Result<Self> {
        let period = Period::Month.start(now);
        let rows = db.write(&COUNT, args![org_id, metric, At(period), quantity]);
        let after: i64 = rows.first().map(|row| row.get(0)).ok_or(too_large(Overflow))?;
        let credits = price.charge(after - quantity, quantity).map_err(too_large)?;
        Ok(Self { org_id, metric: metric.to_owned(), period, quantity, credits })
    }

    /// Notes that it was charged.
    pub fn charged(&self, db: &Db) {
        if self.credits > 0 {
            db.write(&ADD, args![self.org_id, &self.metric, At(self.period), 0_i64, self.credits]);
        }
    }

    /// Takes it back.
    pub fn undo(&self, db: &Db) {
        db.write(&ADD, args![self.org_id, &self.metric, At(self.period), -self.quantity, 0_i64]);
    }
}
