//! The effect of a payment on the wallet: credit comes when the money is there, and goes back with
//! it.

use crate::access::actor;
use crate::base::error::{Error, Result};
use crate::base::words::Word;
use crate::ledger::debts;
use crate::ledger::kind::EntryKind;
use crate::ledger::store as ledger;
use crate::ledger::wallet::{EntryContext, Lane, Operation, Part, Wallet};
use crate::payments::state::Status;
use crate::payments::store::{self as payments, Payment};
use crate::pg::clock;
use crate::pg::spi::Db;
use crate::plans::period::{GRACE, Span};
use crate::posting;
use crate::purchases::{rules, store};
use crate::recharge::attempt::on_payment_finished;
use crate::settlement::periods;
use serde_json::json;
use uuid::Uuid;

/// Adds to a payment for a subscription the plan's grants of the periods that it paid, also those
/// that were made since.
fn note_plan_grants(db: &Db, payment: &mut Payment) {
    let Some((start, end)) = payment.period else { return };
    // A period here may begin earlier than the provider's, by the grace.
    let paid = Span { start: start.saturating_sub(GRACE), end: end.saturating_sub(GRACE) };
    for grant_id in store::plan_grants(db, payment.org_id, payment.payment_id, paid) {
        if !payment.grants.iter().any(|(known, _)| *known == grant_id) {
            payment.grants.push((grant_id, 0));
        }
    }
    if payment.money.status() == Status::Refunded
        && let Some(subscription) = &payment.subscription
    {
        store::reverse_payment(db, payment.org_id, &payment.provider, subscription, Span { start, end });
    }
}

/// Changes a payment under the lock of its wallet, and brings the credit in line with the money.
pub fn change(
    db: &Db,
    org_id: Uuid,
    payment_id: Uuid,
    work: impl FnOnce(&mut Payment) -> Result<()>,
) -> Result<Payment> {
    // The usage of the old period is charged before anything of it expires.
    periods::begin_due(db, vec![org_id])?;
    let unit = payments::unit(db, org_id, payment_id)
        .ok_or_else(|| Error::unknown("unknown_payment", payment_id.to_string()))?;
    let lane = ledger::lock_or_create(db, org_id, &unit, clock::now())?;
    let mut payment = payments::lock(db, org_id, payment_id)?;
    let before = payment.money.status();
    work(&mut payment)?;
    settle(db, lane, &mut payment)?;
    payments::save(db, &payment, clock::now());
    let after = payment.money.status();
    if after != before && matches!(after, Status::Succeeded | Status::Failed) {
        payments::look_for_signals(db, org_id, payment.fingerprint.as_deref());
        if payment.source == "auto_recharge" {
            on_payment_finished(db, &payment, clock::now())?;
        }
    }
    Ok(payment)
}

/// Grants the credit that the money brings and takes back what goes with it. The wallet must be
/// locked.
fn settle(db: &Db, lane: Lane, payment: &mut Payment) -> Result<()> {
    let mut wallet = Wallet::new(lane, clock::now());
    let now = wallet.now();
    if payment.money.paid && payment.paid_at.is_none() {
        payment.paid_at = Some(now);
    }
    let is_back = payment.money.taken_of(i64::MAX) > 0;
    if is_back {
        note_plan_grants(db, payment);
    }
    let known: Vec<i64> = payment.grants.iter().map(|(grant_id, _)| *grant_id).collect();
    let grants_credit = known.is_empty() && payment.credits > 0 && payment.money.status() == Status::Succeeded;
    if !grants_credit && (known.is_empty() || !is_back) {
        return Ok(());
    }
    ledger::load(db, &mut wallet, &known)?;
    if grants_credit {
        grant(&mut wallet, payment)?;
        debts::pay(db, &mut wallet, &[])?;
    }
    take_back(db, &mut wallet, payment)?;
    let metadata = json!({"payment_id": payment.payment_id.to_string()}).to_string();
    posting::save(db, std::slice::from_mut(&mut wallet), &metadata)
}

fn grant(wallet: &mut Wallet, payment: &mut Payment) -> Result<()> {
    let id = payment.payment_id.to_string();
    for (kind, grant) in rules::grants_of(payment, wallet.now()) {
        let mut operation = Operation::new(EntryContext::from_source(kind.name(), Some(id.clone())));
        payment.grants.push((wallet.grant(&mut operation, kind, grant)?, 0));
    }
    Ok(())
}

/// Voids what is left of the grants as far as their money went back, and notes as unrecovered what
/// was spent already.
fn take_back(db: &Db, wallet: &mut Wallet, payment: &mut Payment) -> Result<()> {
    let is_all = payment.money.status() == Status::Refunded;
    let mut missing = 0;
    for (grant_id, taken) in &mut payment.grants {
        ledger::reclaim_lanes(wallet, |away| away.slice.grant_id == *grant_id)?;
        let grant = wallet.find_grant(*grant_id)?;
        let due = payment.money.taken_of(grant.amount) - *taken;
        if due <= 0 || grant.voided {
            continue;
        }
        let credits = due.min(grant.remaining);
        let spent = grant.amount - grant.remaining - grant.written_off;
        // Credit that comes back later, from a hold or a refund, is voided as well.
        grant.voided |= is_all;
        let id = payment.payment_id.to_string();
        // A voided grant needs an entry that says so, even if nothing is left of it.
        let (source, source_id) = if is_all { ("grant", grant_id.to_string()) } else { ("payment", id.clone()) };
        if is_all || credits > 0 {
            let context = EntryContext {
                reason: Some(format!("payment {id} went back")),
                actor: Some(actor()),
                ..EntryContext::from_source(source, Some(source_id))
            };
            let mut operation = Operation::new(context);
            wallet.write_off(&mut operation, EntryKind::Void, Part { grant_id: *grant_id, credits })?;
        }
        *taken += due;
        // Credit that has expired was not spent, so nothing of it is missing.
        missing += (due - credits).min(spent);
    }
    if missing > 0 {
        payment.unrecovered = payment.unrecovered.saturating_add(missing);
        payments::note_signal(
            db,
            payment.org_id,
            "refund_spent",
            40,
            "money went back of which the credit was spent",
            &json!({"payment_id": payment.payment_id.to_string(), "credits": missing}),
        );
    }
    Ok(())
}
