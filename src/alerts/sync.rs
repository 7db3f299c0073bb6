//! Raising and resolving alerts when the figures that they are about have changed.

use crate::alerts::rules::{self, Alert, BalanceChange, Scope, crossed};
use crate::alerts::store::{self, ActiveAlerts};
use crate::base::error::Result;
use crate::base::time::{self, Moment};
use crate::catalog::cache;
use crate::catalog::sections::caps::CapSubject;
use crate::ledger::wallet::Lane;
use crate::limits::caps::{self, Caps};
use crate::limits::standing::Reader;
use crate::outbox;
use crate::pg::spi::Db;
use crate::plans::period::Timeline;
use uuid::Uuid;

/// Raises the alerts that hold and are not raised yet, and resolves those of the scope that no
/// longer hold.
fn sync(db: &Db, org_id: Uuid, active: &ActiveAlerts, scope: Scope<'_>, holding: &[Alert], now: Moment) {
    let gone = rules::to_resolve(&active.raised, scope, holding);
    if !gone.is_empty() {
        store::resolve(db, org_id, gone, now);
    }
    let new = rules::to_raise(&active.raised, holding);
    if !new.is_empty() && cache::alert_settings(db).is_ok_and(|settings| settings.deliver) {
        for alert in &new {
            outbox::emit(
                db,
                org_id,
                "alert.raised",
                &serde_json::json!({
                    "kind": alert.kind,
                    "subject": alert.subject,
                    "share": alert.share,
                    "value": alert.value,
                    "threshold": alert.threshold,
                }),
            );
        }
    }
    for alert in new {
        store::insert(org_id, alert, now);
    }
}

/// Raises and resolves the alerts of a balance. Answers whether the balance is below the threshold
/// of automatic recharging. The wallet must be locked.
pub fn sync_balance(
    db: &Db,
    org_id: Uuid,
    active: &ActiveAlerts,
    change: BalanceChange<'_>,
    now: Moment,
) -> Result<bool> {
    let thresholds = active.thresholds(change.unit);
    let shares = cache::alert_settings(db)?.shares;
    let found = rules::crossed_by_balance(change, thresholds, &shares);
    let scope = Scope { kinds: &["balance", "low_balance"], subject: Some(change.unit) };
    sync(db, org_id, active, scope, &found.holding, now);
    if found.look_below != change.threshold {
        store::set_look_below(db, org_id, change.unit, found.look_below);
    }
    Ok(change.balance < thresholds.recharge)
}

/// Raises an alert that settlement does not find by itself, unless it is raised already. The wallet
/// must be locked.
pub fn raise_alert(db: &Db, org_id: Uuid, alert: &Alert, now: Moment) {
    let scope = Scope { kinds: &[alert.kind], subject: Some(&alert.subject) };
    sync(db, org_id, &ActiveAlerts::read(db, org_id), scope, std::slice::from_ref(alert), now);
}

/// Resolves an alert that settlement does not find by itself.
pub fn resolve_alert(db: &Db, org_id: Uuid, kind: &str, subject: &str, now: Moment) {
    let scope = Scope { kinds: &[kind], subject: Some(subject) };
    sync(db, org_id, &ActiveAlerts::read(db, org_id), scope, &[], now);
}

/// Raises and resolves the alerts of the caps that consumptions have just used.
pub fn sync_caps(db: &Db, caps: &Caps) -> Result<()> {
    let shares = cache::alert_settings(db)?.shares;
    for (org_id, cap, before, after) in caps.used() {
        let alerts = crossed("cap", &cap.name, after, cap.quantity, &shares);
        if alerts.iter().any(|alert| before < alert.threshold) {
            let scope = Scope { kinds: &["cap"], subject: Some(&cap.name) };
            // An alert that is raised may be left from an earlier day or month: it is resolved
            // first, or the new crossing would raise none.
            let active = ActiveAlerts::read(db, org_id);
            let mut known = crossed("cap", &cap.name, before, cap.quantity, &shares);
            known.retain(|alert| active.raised.iter().any(|raised| raised.is(alert)));
            sync(db, org_id, &active, scope, &known, caps.now());
            sync(db, org_id, &ActiveAlerts::read(db, org_id), scope, &alerts, caps.now());
        }
    }
    Ok(())
}

/// Raises and resolves all alerts of an org but those of its balances, for settlement.
///
/// `wallets` are all wallets of the org, locked.
pub fn sync_org(
    db: &Db,
    org_id: Uuid,
    active: &ActiveAlerts,
    timeline: Timeline,
    wallets: &[Lane],
    now: Moment,
) -> Result<()> {
    let settings = cache::alert_settings(db)?;
    let mut alerts = Vec::new();
    let mut metrics = cache::all_metrics(db)?;
    metrics.retain(|metric| !metric.retired && (metric.planned || metric.own.allowance));
    let reader = Reader::over(db, org_id, now, timeline, &metrics);
    for metric in metrics {
        let standing = reader.standing(&metric)?;
        if let Some(allowance) = standing.terms.allowance {
            alerts.extend(crossed("allowance", &metric.name, standing.used, allowance, &settings.shares));
        }
    }
    for cap in cache::all_caps(db)?.iter().filter(|cap| cap.subject == CapSubject::Org) {
        let used = caps::used(db, org_id, cap, now)?;
        alerts.extend(crossed("cap", &cap.name, used, cap.quantity, &settings.shares));
    }
    let soon = time::add_days(now, settings.expiring_days);
    // Lane 0 of a split wallet does not tell when the slices of the other lanes expire.
    if wallets.iter().any(|wallet| wallet.is_split() || wallet.fresh_until <= soon) {
        let left = store::expiring(db, org_id, now, soon).into_iter().filter(|grant| grant.rest > 0);
        alerts.extend(left.map(|g| Alert::new("expiring", &g.grant_id.to_string(), g.rest, g.amount)));
    }
    let scope = Scope { kinds: &["allowance", "cap", "expiring"], subject: None };
    sync(db, org_id, active, scope, &alerts, now);
    Ok(())
}
