//! The statements of automatic recharging.

use crate::base::time::{Moment, Period};
use crate::pg::spi::{Db, Timestamptz};
use crate::recharge::rules::{MINUTE, MOST_FAILURES, retry_delay};
use crate::{args, statements};
use uuid::Uuid;

statements! {
    // One statement tells what is set, what is under way or was paid this month, and how many
    // payments were asked for lately.
    LOCK(uuid, text, timestamptz, timestamptz) =
        "select r.threshold, r.pack, r.currency, r.provider, r.customer, r.payment_method, r.monthly_ceiling,
                r.next_attempt_at,
                exists (select from billing.payments p
                         where p.org_id = r.org_id and p.unit = r.unit and p.status in ('idle', 'processing', 'pending')
                           and p.source = 'auto_recharge'),
                (select coalesce(sum(p.total), 0)::int8 from billing.payments p
                  where p.org_id = r.org_id and p.unit = r.unit and p.source = 'auto_recharge' and p.currency = r.currency
                    and p.status in ('processing', 'pending', 'succeeded') and p.created_at >= $3),
                (select count(*) from billing.payments p
                  where p.org_id = r.org_id and p.unit = r.unit and p.source = 'auto_recharge' and p.created_at > $4)
           from billing.auto_recharges r
          where r.org_id = $1 and r.unit = $2 and r.enabled and r.stopped_at is null
            for update of r";
    CONFIGURE(uuid, text, int8, text, text, text, text, text, int8, boolean) =
        "insert into billing.auto_recharges
                (org_id, unit, threshold, pack, currency, provider, customer, payment_method, monthly_ceiling, enabled)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         on conflict (org_id, unit) do update
            set threshold = $3, pack = $4, currency = $5, provider = $6, customer = $7, payment_method = $8,
                monthly_ceiling = $9, enabled = $10, failures = 0, next_attempt_at = null, stopped_at = null";
    FAILED(uuid, text, timestamptz, timestamptz, int4) =
        "update billing.auto_recharges
            set failures = failures + 1, next_attempt_at = $4,
                stopped_at = case when failures + 1 >= $5 then $3 end
          where org_id = $1 and unit = $2
         returning failures, stopped_at is not null";
    SUCCEEDED(uuid, text) =
        "update billing.auto_recharges set failures = 0, next_attempt_at = null, stopped_at = null where org_id = $1 and unit = $2";
    FAILURES(uuid, text) = "select failures from billing.auto_recharges where org_id = $1 and unit = $2";
}

/// Automatic recharging of a wallet as it is set, and the payments that it asked for.
#[allow(missing_docs)]
pub struct Recharge {
    pub threshold: i64,
    pub pack: String,
    pub currency: String,
    pub provider: String,
    pub customer: Option<String>,
    pub payment_method: Option<String>,
    pub monthly_ceiling: Option<i64>,
    pub next_attempt_at: Option<Moment>,
    pub is_under_way: bool,
    /// The minor units that it charged this month.
    pub this_month: i64,
    /// The number of payments that it asked for within the last hour.
    pub lately: i64,
}

/// Locks and reads automatic recharging of a wallet, which must be locked; None if it is off or has
/// stopped.
pub fn lock(db: &Db, org_id: Uuid, unit: &str, now: Moment) -> Option<Recharge> {
    let lately = Timestamptz(now.saturating_sub(60 * MINUTE));
    let rows = db.write(&LOCK, args![org_id, unit, Timestamptz(Period::Month.start(now)), lately]);
    rows.first().map(|row| Recharge {
        threshold: row.get(0),
        pack: row.get(1),
        currency: row.get(2),
        provider: row.get(3),
        customer: row.opt(4),
        payment_method: row.opt(5),
        monthly_ceiling: row.opt(6),
        next_attempt_at: row.opt(7),
        is_under_way: row.get(8),
        this_month: row.get(9),
        lately: row.get(10),
    })
}

/// Automatic recharging that is to be set for a wallet.
#[allow(missing_docs)]
pub struct NewRecharge<'a> {
    pub org_id: Uuid,
    pub unit: &'a str,
    pub threshold: i64,
    pub pack: &'a str,
    pub currency: &'a str,
    pub provider: &'a str,
    pub customer: Option<String>,
    pub payment_method: Option<String>,
    pub monthly_ceiling: Option<i64>,
    pub enabled: bool,
}

/// Sets automatic recharging of a wallet, and forgets its failures.
pub fn configure(db: &Db, new: NewRecharge<'_>) {
    db.write(
        &CONFIGURE,
        args![
            new.org_id,
            new.unit,
            new.threshold,
            new.pack,
            new.currency,
            new.provider,
            new.customer,
            new.payment_method,
            new.monthly_ceiling,
            new.enabled,
        ],
    );
}

/// Forgets the failures of a wallet's automatic recharging.
pub fn note_success(db: &Db, org_id: Uuid, unit: &str) {
    db.write(&SUCCEEDED, args![org_id, unit]);
}

/// Notes a failed payment, which postpones the next attempt or stops automatic recharging. Gives
/// the number of failures if it has stopped.
pub fn note_failure(db: &Db, org_id: Uuid, unit: &str, now: Moment) -> Option<i32> {
    let failures = db.write(&FAILURES, args![org_id, unit]).first().map_or(0, |row| row.get::<i32>(0));
    let next = now.saturating_add(retry_delay(failures));
    let rows = db.write(&FAILED, args![org_id, unit, Timestamptz(now), Timestamptz(next), MOST_FAILURES]);
    rows.first().filter(|row| row.get::<bool>(1)).map(|row| row.get(0))
}
