//! Automatic recharging: a pack is bought when a wallet runs low.
//!
//! There is one payment at a time; after a failure the next attempt comes later each time, and
//! after the last one none. A worker makes the payment, which is asked for through the outbox.

use crate::access;
use crate::alerts::rules::{Alert, BalanceChange};
use crate::alerts::store::ActiveAlerts;
use crate::alerts::sync::{raise_alert, resolve_alert, sync_balance};
use crate::base::error::{Error, Result};
use crate::base::time::{Moment, Period};
use crate::catalog::cache;
use crate::entry_point;
use crate::ledger::store as ledger;
use crate::outbox;
use crate::payments::quote::quote;
use crate::payments::request;
use crate::payments::state::Status;
use crate::payments::store::{self, Payment};
use crate::pg::arguments::{positive, required, required_uuid};
use crate::pg::clock;
use crate::pg::spi::{Db, Timestamptz};
use crate::{args, receipt, statements};
use pgrx::prelude::*;
use serde_json::json;
use uuid::Uuid;

receipt! {
    /// The answer of `configure_auto_recharge`: automatic recharging as it is set.
    RechargeStatus as "auto_recharge" {
        org_id: Uuid,
        unit: String,
        enabled: bool,
        threshold: i64,
        pack: String,
        currency: String,
        monthly_ceiling: Option<i64>,
        failures: i32,
        stopped_at: Option<i64>,
    }
}

statements! {
    // One statement tells what is set, what is under way or was paid this month, and how many
    // payments were asked for lately.
    READ(uuid, text, timestamptz, timestamptz) =
        "select r.threshold, r.pack, r.currency, r.provider, r.customer, r.payment_method, r.monthly_ceiling, r.failures,
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

/// The number of failures after which automatic recharging stops.
const MOST_FAILURES: i32 = 4;
/// The number of payments within an hour after which it waits: whatever was set, a card is not
/// charged without end.
const MOST_AN_HOUR: i64 = 3;
/// The highest threshold that a member may set, in packs.
const MOST_PACKS: i64 = 10;
const MINUTE: i64 = 60_000_000;

/// The time after a failure in which nothing is tried: an hour, then four, then sixteen.
fn retry_delay(failures: i32) -> i64 {
    let exponent = u32::try_from(failures.clamp(0, 6)).unwrap_or_default();
    60 * MINUTE * 4_i64.pow(exponent)
}

/// The decision whether a purchase is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Enough,
    Later,
    Ceiling,
    Due,
}

/// The facts that decide whether a purchase is due.
#[derive(Debug, Clone, Copy)]
struct RechargeSettings {
    threshold: i64,
    /// The credit of the wallet, spendable and pending together.
    credit: i64,
    is_under_way: bool,
    next_attempt_at: Option<Moment>,
    now: Moment,
    ceiling: Option<i64>,
    this_month: i64,
    /// The number of payments that automatic recharging asked for within the last hour.
    lately: i64,
    total: i64,
}

fn verdict(settings: &RechargeSettings) -> Verdict {
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

/// Buys the configured pack if a wallet, which must be locked, has less than its threshold.
fn start_if_below(db: &Db, org_id: Uuid, unit: &str, balance: i64, now: Moment) {
    let lately = Timestamptz(now.saturating_sub(60 * MINUTE));
    let rows = db.write(&READ, args![org_id, unit, Timestamptz(Period::Month.start(now)), lately]);
    let Some(row) = rows.first() else { return };
    // A pack that was retired or has lost its price must not fail the consumption that crossed the
    // threshold.
    let (name, currency): (String, String) = (row.get(1), row.get(2));
    let Ok(pack) = cache::pack(db, &name) else { return };
    let Ok(quote) = quote(db, &pack, &currency, None) else { return };
    let settings = RechargeSettings {
        threshold: row.get(0),
        credit: balance.saturating_add(store::pending(db, org_id, unit, true)),
        is_under_way: row.get(9),
        next_attempt_at: row.opt(8),
        now,
        ceiling: row.opt(6),
        this_month: row.get(10),
        lately: row.get(11),
        total: quote.total,
    };
    match verdict(&settings) {
        Verdict::Enough | Verdict::Later => {}
        Verdict::Ceiling => {
            let ceiling = settings.ceiling.unwrap_or_default();
            raise_alert(db, org_id, &Alert::new("recharge_ceiling", unit, settings.this_month, ceiling), now);
        }
        Verdict::Due => {
            let provider: String = row.get(3);
            let mut payment = request::of_pack(org_id, &pack, &currency, quote, "auto_recharge", &provider);
            let customer: Option<String> = row.opt(4);
            payment.customer = customer.or_else(|| store::customer_of(db, org_id, &provider));
            payment.payment_method = row.opt(5);
            request::request(db, &mut payment, 1);
            store::insert(db, &payment, None, "{}", now);
            resolve_alert(db, org_id, "recharge_ceiling", unit, now);
        }
    }
}

/// Reads the balance of a wallet, which must be locked, and raises its alerts or starts a purchase.
fn check_balance(db: &Db, org_id: Uuid, unit: &str, now: Moment) -> Result<()> {
    let lane = ledger::lock(org_id, unit).ok_or(Error::corrupt("a wallet that was locked is gone"))?;
    let (balance, base, threshold) = (ledger::balance(&lane), lane.alert_base, lane.alert_below);
    let change = BalanceChange { unit, balance, base, threshold };
    on_balance_change(db, org_id, &ActiveAlerts::read(db, org_id), change, now)
}

/// Raises the alerts of a balance that has changed, and starts the purchase that it makes due. The
/// wallet must be locked.
pub fn on_balance_change(
    db: &Db,
    org_id: Uuid,
    open: &ActiveAlerts,
    change: BalanceChange<'_>,
    now: Moment,
) -> Result<()> {
    if sync_balance(db, org_id, open, change, now)? {
        start_if_below(db, org_id, change.unit, change.balance, now);
    }
    Ok(())
}

/// Handles the end of a payment that automatic recharging asked for: a success resets its failures,
/// a failure postpones or stops it.
pub fn on_payment_finished(db: &Db, payment: &Payment, now: Moment) -> Result<()> {
    let (org_id, unit) = (payment.org_id, payment.unit.as_str());
    if payment.money.status() == Status::Succeeded {
        db.write(&SUCCEEDED, args![org_id, unit]);
        resolve_alert(db, org_id, "recharge_stopped", unit, now);
        // One pack may not be enough, and the threshold may have been crossed again meanwhile.
        return check_balance(db, org_id, unit, now);
    }
    let failures = db.write(&FAILURES, args![org_id, unit]).first().map_or(0, |row| row.get::<i32>(0));
    let next = now.saturating_add(retry_delay(failures));
    let rows = db.write(&FAILED, args![org_id, unit, Timestamptz(now), Timestamptz(next), MOST_FAILURES]);
    if let Some(row) = rows.first()
        && row.get::<bool>(1)
    {
        let failures = i64::from(row.get::<i32>(0));
        raise_alert(db, org_id, &Alert::new("recharge_stopped", unit, failures, MOST_FAILURES.into()), now);
        outbox::emit(
            db,
            org_id,
            "recharge.stopped",
            &json!({"unit": unit, "failures": failures, "failure": payment.failure}),
        );
    }
    Ok(())
}

/// Checks the limits for members: the setting charges a card again and again, so a ceiling is
/// needed, and the threshold must suit the pack.
fn check_member_limits(ceiling: Option<i64>, threshold: i64, credits: i64) -> Result<()> {
    if ceiling.is_none() {
        return Err(Error::invalid("monthly_ceiling", "must be given by a member"));
    }
    let most = credits.saturating_mul(MOST_PACKS);
    if threshold > most {
        return Err(Error::invalid("threshold", "must be at most ten times what the pack brings").with("most", most));
    }
    Ok(())
}

/// Lets a pack be bought whenever the credit that can be spent, and that is on its way, is together
/// below a threshold.
///
/// `threshold`: in the unit of the pack's wallet. `monthly_ceiling`: minor units that it may charge
/// in a calendar month (UTC), null for none, which is not for members; nor is a `threshold` of more
/// than ten packs. At most three payments are asked for within an hour. `customer`,
/// `payment_method`: the provider's ids of what is to be charged; without a customer, the one that
/// is linked to the org. Members may name a linked one only. Setting it again starts it again after
/// failures. Errors: PT404 `unknown_pack`; 42501; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments)]
fn configure_auto_recharge(
    org_id: Option<pgrx::Uuid>,
    threshold: Option<i64>,
    pack: Option<&str>,
    currency: Option<&str>,
    monthly_ceiling: default!(Option<i64>, "NULL"),
    provider: default!(Option<&str>, "'stripe'"),
    customer: default!(Option<&str>, "NULL"),
    payment_method: default!(Option<&str>, "NULL"),
    enabled: default!(Option<bool>, true),
) -> RechargeStatus {
    entry_point::customer(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let threshold = positive("threshold", threshold)?;
        let name = required("pack", pack)?;
        let currency = required("currency", currency)?;
        let ceiling = monthly_ceiling.map(|ceiling| positive("monthly_ceiling", Some(ceiling))).transpose()?;
        let provider = request::provider(provider)?;
        let customer = request::provider_id("customer", customer)?;
        let payment_method = request::provider_id("payment_method", payment_method)?;
        let enabled = required("enabled", enabled)?;
        access::authorize(db, org_id)?;
        request::check_customer(db, org_id, provider, customer.as_deref())?;
        let pack = cache::pack(db, name)?;
        let quote = quote(db, &pack, currency, None)?;
        if ceiling.is_some_and(|ceiling| ceiling < quote.total) {
            return Err(Error::invalid("monthly_ceiling", "does not suffice for one pack").with("total", quote.total));
        }
        if !access::sees_every_org()? {
            check_member_limits(ceiling, threshold, quote.credits.saturating_add(quote.bonus))?;
        }
        let now = clock::now();
        ledger::lock_or_create(db, org_id, &pack.unit, now)?;
        db.write(
            &CONFIGURE,
            args![org_id, &pack.unit, threshold, name, currency, provider, customer, payment_method, ceiling, enabled],
        );
        for kind in ["recharge_stopped", "recharge_ceiling"] {
            resolve_alert(db, org_id, kind, &pack.unit, now);
        }
        // Usually the consumption that crosses the threshold starts the purchase; but the threshold
        // may be crossed already.
        check_balance(db, org_id, &pack.unit, now)?;
        Ok(RechargeStatus {
            org_id,
            unit: pack.unit.clone(),
            enabled,
            threshold,
            pack: name.to_owned(),
            currency: currency.to_owned(),
            monthly_ceiling: ceiling,
            failures: 0,
            stopped_at: None,
        })
    })
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
