//! Attempts at recharging: the purchase that a low balance makes due, and the end of its payment.

use crate::alerts::rules::{Alert, BalanceChange};
use crate::alerts::store::ActiveAlerts;
use crate::alerts::sync::{raise_alert, resolve_alert, sync_balance};
use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::catalog::cache;
use crate::ledger::store as ledger;
use crate::outbox;
use crate::payments::quote::quote;
use crate::payments::request;
use crate::payments::state::Status;
use crate::payments::store::{self as payments, Payment};
use crate::pg::spi::Db;
use crate::recharge::rules::{MOST_FAILURES, RechargeSettings, Verdict, verdict};
use crate::recharge::store;
use serde_json::json;
use uuid::Uuid;

/// Buys the configured pack if a wallet, which must be locked, has less than its threshold.
fn start_if_below(db: &Db, org_id: Uuid, unit: &str, balance: i64, now: Moment) {
    let Some(recharge) = store::lock(db, org_id, unit, now) else { return };
    // A pack that was retired or has lost its price must not fail the consumption that crossed the
    // threshold.
    let Ok(pack) = cache::pack(db, &recharge.pack) else { return };
    let Ok(quote) = quote(db, &pack, &recharge.currency, None) else { return };
    let settings = RechargeSettings {
        threshold: recharge.threshold,
        credit: balance.saturating_add(payments::pending(db, org_id, unit, true)),
        is_under_way: recharge.is_under_way,
        next_attempt_at: recharge.next_attempt_at,
        now,
        ceiling: recharge.monthly_ceiling,
        this_month: recharge.this_month,
        lately: recharge.lately,
        total: quote.total,
    };
    match verdict(&settings) {
        Verdict::Enough | Verdict::Later => {}
        Verdict::Ceiling => {
            let ceiling = settings.ceiling.unwrap_or_default();
            raise_alert(db, org_id, &Alert::new("recharge_ceiling", unit, settings.this_month, ceiling), now);
        }
        Verdict::Due => {
            let provider = recharge.provider.as_str();
            let mut payment = request::of_pack(org_id, &pack, &recharge.currency, quote, "auto_recharge", provider);
            payment.customer = recharge.customer.or_else(|| payments::customer_of(db, org_id, provider));
            payment.payment_method = recharge.payment_method;
            request::request(db, &mut payment, 1);
            payments::insert(db, &payment, None, "{}", now);
            resolve_alert(db, org_id, "recharge_ceiling", unit, now);
        }
    }
}

/// Reads the balance of a wallet, which must be locked, and raises its alerts or starts a purchase.
pub fn check_balance(db: &Db, org_id: Uuid, unit: &str, now: Moment) -> Result<()> {
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
        store::note_success(db, org_id, unit);
        resolve_alert(db, org_id, "recharge_stopped", unit, now);
        // One pack may not be enough, and the threshold may have been crossed again meanwhile.
        return check_balance(db, org_id, unit, now);
    }
    if let Some(failures) = store::note_failure(db, org_id, unit, now) {
        let failures = i64::from(failures);
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
