//! Grants: credit that comes in, is voided, or is corrected.

use crate::access::{self, actor};
use crate::base::error::Error;
use crate::base::time::{INFINITY, Moment, NEG_INFINITY};
use crate::call::{Answer, Call};
use crate::catalog::cache;
use crate::ledger::kind::EntryKind;
use crate::ledger::wallet::{EntryContext, Grant, Part};
use crate::ledger::{debts, store};
use crate::pg::arguments::{positive, reason, required, required_uuid, unit};
use crate::pg::clock;
use crate::pg::jsonb::Jsonb;
use crate::pg::raise::or_raise;
use crate::wallets::balance::{WalletStatus, wallet_status};
use crate::wallets::rules;
use crate::{args, entry_point, receipt, statements};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};

receipt! {
    /// The answer of `grant_credits` and `adjust_credits`.
    #[derive(Serialize, Deserialize)]
    GrantReceipt as "grant_receipt" { grant_id: Option<i64>, amount: i64, balance_after: i64, replayed: bool }
}
receipt! {
    /// The answer of `void_grant`.
    #[derive(Serialize, Deserialize)]
    VoidReceipt as "void_receipt" { voided: i64, already_spent: i64, balance_after: i64, replayed: bool }
}
impl Answer for GrantReceipt {
    fn set_replayed(&mut self) {
        self.replayed = true;
    }
}
impl Answer for VoidReceipt {
    fn set_replayed(&mut self) {
        self.replayed = true;
    }
}

statements! {
    SAVE_SETTINGS(uuid, text, text, int8) =
        "update billing_internal.wallet_settings
            set owner_type = coalesce($3, owner_type), low_balance_threshold = coalesce($4, low_balance_threshold)
          where org_id = $1 and unit = $2";
    UNIT_OF_GRANT(uuid, int8) = "select unit from billing_internal.grants where org_id = $1 and grant_id = $2";
}

/// Makes a wallet, or changes who owns it and when it counts as low.
///
/// `owner_type`: user | community | organization (at first). `low_balance_threshold`: in the
/// wallet's unit, 0 for never. Null leaves as it is. A grant makes the wallet by itself; call this
/// for another owner or a threshold. Errors: 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn create_wallet(
    org_id: Option<pgrx::Uuid>,
    unit: default!(Option<&str>, "'credit'"),
    owner_type: default!(Option<&str>, "NULL"),
    low_balance_threshold: default!(Option<i64>, "NULL"),
) -> WalletStatus {
    entry_point::service(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let unit = self::unit(unit)?;
        if owner_type.is_some_and(|known| !["user", "community", "organization"].contains(&known)) {
            return Err(Error::invalid("owner_type", "must be user, community or organization"));
        }
        if low_balance_threshold.is_some_and(|t| t < 0) {
            return Err(Error::invalid("low_balance_threshold", "must not be negative"));
        }
        store::lock_or_create(db, org_id, unit, clock::now())?;
        db.write(&SAVE_SETTINGS, args![org_id, unit, owner_type, low_balance_threshold]);
        wallet_status(db, org_id, unit, true)
    })
}

/// Grants credit, and makes the wallet when it is the first.
///
/// `amount`: whole units, from 1. `source`: purchase | plan | bonus | `gift_card` | voucher |
/// refund | adjustment | transfer. `category`: paid | promotional, by default paid for purchase,
/// transfer and refund. `metrics`: the only metrics it may be spent on, null for any. `priority`:
/// lower burns first. `expires_at`: null for never. `cost_minor` and `currency`: what was paid for
/// it. Errors: 22023; PT404 `unknown_metric`; PT409 `idempotency_conflict`.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments)]
fn grant_credits(
    org_id: Option<pgrx::Uuid>,
    amount: Option<i64>,
    source: default!(Option<&str>, "'bonus'"),
    category: default!(Option<&str>, "NULL"),
    unit: default!(Option<&str>, "'credit'"),
    metrics: default!(Option<Vec<Option<String>>>, "NULL"),
    priority: default!(Option<i32>, 50),
    effective_at: default!(Option<TimestampWithTimeZone>, "NULL"),
    expires_at: default!(Option<TimestampWithTimeZone>, "NULL"),
    cost_minor: default!(Option<i64>, 0),
    currency: default!(Option<&str>, "NULL"),
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> GrantReceipt {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let amount = positive("amount", amount)?;
        let source = required("source", source)?;
        let kind = rules::kind_of(source)?;
        let paid = rules::is_paid(category, kind)?;
        let unit = self::unit(unit)?;
        let metrics = rules::scope(metrics)?;
        let priority = required("priority", priority)?;
        let effective_at = effective_at.map(Moment::from);
        let expires_at = expires_at.map(Moment::from);
        if effective_at == Some(INFINITY) {
            return Err(Error::invalid("effective_at", "must be finite"));
        }
        let cost_minor = required("cost_minor", cost_minor)?;
        rules::check_cost(cost_minor, currency)?;
        let text = serde_json::json!([
            amount,
            source,
            paid,
            unit,
            metrics,
            priority,
            effective_at,
            expires_at,
            cost_minor,
            currency
        ]);
        let call = Call::new(org_id, "grant_credits", &[Some(&text.to_string())], idempotency_key, metadata)?;
        call.run(
            |db, now| store::lock_or_create(db, org_id, unit, now),
            |db, wallet| {
                for metric in metrics.iter().flatten() {
                    cache::metric(db, metric)?;
                }
                let now = wallet.now();
                let effective_at = effective_at.filter(|at| *at != NEG_INFINITY).unwrap_or(now);
                let expires_at = expires_at.unwrap_or(INFINITY);
                if expires_at <= effective_at || expires_at <= now {
                    return Err(Error::invalid("expires_at", "must be after effective_at and in the future"));
                }
                store::load(db, wallet, &[])?;
                let grant = Grant {
                    priority,
                    paid,
                    cost_minor,
                    currency: currency.map(str::to_owned),
                    effective_at,
                    expires_at,
                    metrics: metrics.clone(),
                    ..Grant::new(amount, kind, now)
                };
                let mut operation = call.operation(EntryContext::from_source(source, None));
                let grant_id = wallet.grant(&mut operation, kind, grant)?;
                debts::pay(db, wallet, &[])?;
                let scope = metrics.as_ref().and_then(|m| m.first()).map(String::as_str);
                let receipt = GrantReceipt {
                    grant_id: Some(grant_id),
                    amount,
                    balance_after: wallet.spendable(scope),
                    replayed: false,
                };
                Ok((operation, receipt))
            },
        )
    }))
}

/// Takes back what is left of a grant (a clawback) and reports what was already spent or is
/// reserved.
///
/// Credit of the grant that comes back later, from a hold or a refund, is voided at once. Errors:
/// PT404 `unknown_grant`; 22023; PT409 `idempotency_conflict`.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn void_grant(
    org_id: Option<pgrx::Uuid>,
    grant_id: Option<i64>,
    reason: Option<&str>,
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> VoidReceipt {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let grant_id = required("grant_id", grant_id)?;
        let reason = self::reason(reason)?;
        let arguments = [Some(grant_id.to_string()), Some(reason.clone())];
        let arguments: Vec<_> = arguments.iter().map(Option::as_deref).collect();
        let call = Call::new(org_id, "void_grant", &arguments, idempotency_key, metadata)?;
        call.run(
            |db, _| {
                let unit = db.write(&UNIT_OF_GRANT, args![org_id, grant_id]).first().map(|row| row.get::<String>(0));
                let Some(unit) = unit else {
                    store::require_org(org_id)?;
                    return Err(Error::unknown("unknown_grant", grant_id));
                };
                store::lock(org_id, &unit).ok_or(Error::corrupt("a grant without a wallet"))
            },
            |db, wallet| {
                store::load(db, wallet, &[grant_id])?;
                store::reclaim_lanes(wallet, |away| away.slice.grant_id == grant_id)?;
                let grant = wallet.find_grant(grant_id)?;
                let voided = grant.remaining;
                let already_spent = grant.amount - grant.remaining - grant.written_off;
                let scope = grant.metrics.as_ref().and_then(|m| m.first()).cloned();
                grant.voided = true;
                let context = EntryContext {
                    reason: Some(reason),
                    actor: Some(actor()),
                    ..EntryContext::from_source("grant", Some(grant_id.to_string()))
                };
                let mut operation = call.operation(context);
                wallet.write_off(&mut operation, EntryKind::Void, Part { grant_id, credits: voided })?;
                let receipt = VoidReceipt {
                    voided,
                    already_spent,
                    balance_after: wallet.spendable(scope.as_deref()),
                    replayed: false,
                };
                Ok((operation, receipt))
            },
        )
    }))
}

/// Corrects a balance by hand, up or down, with a reason; who did it is recorded.
///
/// Up: a grant of source adjustment that never expires. Down: burns general credit in burn order.
/// Errors: 22023; PT402 `insufficient_credits`; PT404 `unknown_org`; PT409 `idempotency_conflict`.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn adjust_credits(
    org_id: Option<pgrx::Uuid>,
    amount: Option<i64>,
    reason: Option<&str>,
    unit: default!(Option<&str>, "'credit'"),
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> GrantReceipt {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let amount = required("amount", amount)?;
        let needed = amount.checked_neg().filter(|_| amount != 0);
        let needed = needed.ok_or(Error::invalid("amount", "must not be zero or beyond 63 bits"))?;
        let reason = self::reason(reason)?;
        let unit = self::unit(unit)?;
        let text = amount.to_string();
        let call =
            Call::new(org_id, "adjust_credits", &[Some(&text), Some(&reason), Some(unit)], idempotency_key, metadata)?;
        call.run(
            |db, now| {
                store::require_org(org_id)?;
                if amount > 0 {
                    store::lock_or_create(db, org_id, unit, now)
                } else {
                    store::lock_known(db, org_id, unit, needed, now)
                }
            },
            |db, wallet| {
                store::load(db, wallet, &[])?;
                let context = EntryContext {
                    reason: Some(reason.clone()),
                    actor: Some(actor()),
                    ..EntryContext::from_source("adjustment", None)
                };
                let mut operation = call.operation(context);
                let grant_id = if amount > 0 {
                    let grant = Grant::new(amount, EntryKind::Adjustment, wallet.now());
                    let grant_id = wallet.grant(&mut operation, EntryKind::Adjustment, grant)?;
                    debts::pay(db, wallet, &[])?;
                    Some(grant_id)
                } else {
                    store::ensure_spendable(db, wallet, needed, None)?;
                    let parts = wallet.allocate(needed, None)?;
                    wallet.take(&mut operation, EntryKind::Adjustment, &parts)?;
                    None
                };
                let receipt = GrantReceipt { grant_id, amount, balance_after: wallet.spendable(None), replayed: false };
                Ok((operation, receipt))
            },
        )
    }))
}
