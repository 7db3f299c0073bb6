//! Alerts: one row per crossing of a threshold, resolved when it no longer holds, and raised again
//! at the next crossing.
//!
//! Settlement looks at all alerts of an org; the consumption that crosses a threshold of a cap or
//! of the balance raises that alert at once.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::catalog::cache;
use crate::catalog::sections::caps::CapSubject;
use crate::ledger::wallet::Lane;
use crate::limits::caps::{self, Caps};
use crate::limits::standing::Reader;
use crate::pg::arguments::required;
use crate::pg::spi::{Db, Rows, Timestamptz};
use crate::plans::period::Timeline;
use crate::schema::alerts::alerts as table;
use crate::schema::{Insertion, Snapshot, Table};
use crate::{args, entry_point, outbox, statements};
use pgrx::prelude::*;
use uuid::Uuid;

statements! {
    // The low-balance and recharge thresholds come along, so that one statement tells all that a
    // balance is compared with.
    OPEN(uuid) =
        "select kind, subject, share, null::int8 from billing.alerts where org_id = $1 and resolved_at is null
         union all
         select null, unit, null, low_balance_threshold from billing_internal.wallet_settings
          where org_id = $1 and low_balance_threshold is not null
         union all
         select 'recharge', unit, null, threshold from billing.auto_recharges
          where org_id = $1 and enabled and stopped_at is null";
    RESOLVE(uuid, texts, texts, int8s, timestamptz) =
        "update billing.alerts a set resolved_at = $5
          where org_id = $1 and resolved_at is null
            and (kind, subject, share) in (select * from unnest($2, $3, $4))";
    ALERT_BELOW(uuid, text, int8) =
        "update billing_internal.lanes set alert_below = $3 where org_id = $1 and unit = $2 and lane = 0 and alert_below <> $3";
    EXPIRING(uuid, timestamptz, timestamptz) =
        "select g.grant_id, g.amount,
                g.remaining + coalesce((select sum(l.slice_credits) from billing_internal.lanes l
                                         where l.org_id = g.org_id and l.unit = g.unit and l.slice_grant = g.grant_id), 0)::int8
           from billing_internal.grants g
          where g.org_id = $1 and g.expires_at > $2 and g.expires_at <= $3 and g.effective_at <= $2 and g.voided_at is null";
    CONFIGURE(jsonb) =
        "insert into billing_internal.settings (name, value) values ('alerts', $1) on conflict (name) do update set value = $1";
}

/// A threshold that is crossed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Alert {
    kind: &'static str,
    subject: String,
    share: i64,
    value: i64,
    threshold: i64,
}

/// The quantity at which a share (in percent) of a limit is used.
fn at_share(limit: i64, share: i64) -> i64 {
    let part = (i128::from(limit) * i128::from(share) + 99) / 100;
    i64::try_from(part).unwrap_or(i64::MAX)
}

/// The alerts of the shares of a limit that are used.
fn crossed(kind: &'static str, subject: &str, used: i64, limit: i64, shares: &[i64]) -> Vec<Alert> {
    let of = |share: &i64| (*share, at_share(limit, *share));
    let crossed = shares.iter().map(of).filter(|(_, threshold)| limit > 0 && used >= *threshold);
    crossed
        .map(|(share, threshold)| Alert { kind, subject: subject.to_owned(), share, value: used, threshold })
        .collect()
}

/// The alerts of a balance, and the balance below which the next one is due. `low` and `recharge`
/// are the thresholds of the wallet's settings, 0 for none.
fn crossed_balance(
    unit: &str,
    balance: i64,
    base: i64,
    (low, recharge): (i64, i64),
    shares: &[i64],
) -> (Vec<Alert>, i64) {
    let mut alerts = crossed("balance", unit, base - balance, base, shares);
    for alert in &mut alerts {
        (alert.value, alert.threshold) = (balance, base - alert.threshold);
    }
    let of_shares = shares.iter().filter(|_| base > 0).map(|share| base - at_share(base, *share) + 1);
    let wanted = [low, recharge].into_iter().filter(|below| *below > 0);
    let below = of_shares.chain(wanted).filter(|below| *below <= balance).max().unwrap_or(0);
    if balance < low {
        let (subject, value) = (unit.to_owned(), balance);
        alerts.push(Alert { kind: "low_balance", subject, share: 0, value, threshold: low });
    }
    (alerts, below)
}

/// The alerts of an org that are raised and not resolved, and the thresholds of its wallets'
/// balances.
pub struct ActiveAlerts {
    raised: Vec<(String, String, i64)>,
    low: Vec<(String, i64)>,
    recharge: Vec<(String, i64)>,
}

impl ActiveAlerts {
    /// Reads the alerts and thresholds of an org.
    pub fn of(db: &Db, org_id: Uuid) -> Self {
        let mut open = Self { raised: Vec::new(), low: Vec::new(), recharge: Vec::new() };
        for row in db.write(&OPEN, args![org_id]).iter() {
            match row.opt(3) {
                Some(below) if row.opt::<String>(0).is_some() => open.recharge.push((row.get(1), below)),
                Some(below) => open.low.push((row.get(1), below)),
                None => open.raised.push((row.get(0), row.get(1), row.get::<i32>(2).into())),
            }
        }
        open
    }

    fn has(&self, alert: &Alert) -> bool {
        self.raised.iter().any(|(kind, subject, share)| {
            (kind.as_str(), subject.as_str(), *share) == (alert.kind, alert.subject.as_str(), alert.share)
        })
    }
}

/// Raises the alerts that are not raised yet, and resolves those of the same kinds (and subject)
/// that no longer hold.
fn sync(
    db: &Db,
    org_id: Uuid,
    (open, kinds, subject): (&ActiveAlerts, &[&str], Option<&str>),
    alerts: &[Alert],
    now: Moment,
) {
    let is_ours = |kind: &str, about: &str| kinds.contains(&kind) && subject.is_none_or(|subject| subject == about);
    let holds = |kind: &str, about: &str, share: i64| {
        alerts.iter().any(|a| (a.kind, a.subject.as_str(), a.share) == (kind, about, share))
    };
    let gone: Vec<_> =
        open.raised.iter().filter(|(k, about, share)| is_ours(k, about) && !holds(k, about, *share)).collect();
    if !gone.is_empty() {
        db.write(
            &RESOLVE,
            args![
                org_id,
                gone.iter().map(|g| g.0.clone()).collect::<Vec<_>>(),
                gone.iter().map(|g| g.1.clone()).collect::<Vec<_>>(),
                gone.iter().map(|g| g.2).collect::<Vec<_>>(),
                Timestamptz(now),
            ],
        );
    }
    let new: Vec<_> = alerts.iter().filter(|alert| !open.has(alert)).collect();
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
        note(org_id, alert, now);
    }
}

/// Writes an alert, unless somebody else just has.
fn note(org_id: Uuid, alert: &Alert, now: Moment) {
    let share = i32::try_from(alert.share).expect("a share in percent");
    let table = Table::<table::Table>::to_insert();
    let mut crossings = 0;
    table.each(&table::of_subject(org_id, alert.kind, &alert.subject), Snapshot::Latest, |row| {
        if row.share() == share {
            crossings = crossings.max(row.number());
        }
        true
    });
    let row = table::New {
        org_id,
        kind: alert.kind,
        subject: &alert.subject,
        share,
        raised_at: now,
        resolved_at: None,
        value: alert.value,
        threshold: alert.threshold,
        number: crossings + 1,
    };
    table.insert_new(&table::OPEN, &row, Insertion::Speculative, || false);
}

/// A change of a wallet's balance, as alerts look at it.
#[derive(Debug, Clone, Copy)]
pub struct BalanceChange<'a> {
    /// The unit of the wallet.
    pub unit: &'a str,
    /// The balance after the change.
    pub balance: i64,
    /// The balance after the wallet's last grant; alerts are raised at shares of it.
    pub base: i64,
    /// The balance below which the next alert is due, as the wallet's row has it.
    pub threshold: i64,
}

/// Raises and resolves the alerts of a balance. Answers whether the balance is below the threshold
/// of automatic recharging. The wallet must be locked.
pub fn balance(db: &Db, org_id: Uuid, open: &ActiveAlerts, change: BalanceChange<'_>, now: Moment) -> Result<bool> {
    let BalanceChange { unit, balance, base, threshold } = change;
    let low = open.low.iter().find(|(of, _)| of == unit).map(|(_, below)| *below);
    let shares = cache::alert_settings(db)?.shares;
    let recharge = open.recharge.iter().find(|(of, _)| of == unit).map_or(0, |(_, below)| *below);
    let (alerts, below) = crossed_balance(unit, balance, base, (low.unwrap_or(0), recharge), &shares);
    sync(db, org_id, (open, &["balance", "low_balance"], Some(unit)), &alerts, now);
    if below != threshold {
        db.write(&ALERT_BELOW, args![org_id, unit, below]);
    }
    Ok(balance < recharge)
}

/// Raises an alert that settlement does not find by itself, unless it is raised already. The wallet
/// must be locked.
pub fn raise(
    db: &Db,
    org_id: Uuid,
    (kind, subject): (&'static str, &str),
    (value, threshold): (i64, i64),
    now: Moment,
) {
    let alert = Alert { kind, subject: subject.to_owned(), share: 0, value, threshold };
    sync(db, org_id, (&ActiveAlerts::of(db, org_id), &[kind], Some(subject)), &[alert], now);
}

/// Resolves an alert that settlement does not find by itself.
pub fn resolve(db: &Db, org_id: Uuid, kind: &str, subject: &str, now: Moment) {
    sync(db, org_id, (&ActiveAlerts::of(db, org_id), &[kind], Some(subject)), &[], now);
}

/// Raises and resolves the alerts of the caps that consumptions have just used.
pub fn caps(db: &Db, caps: &Caps) -> Result<()> {
    let shares = cache::alert_settings(db)?.shares;
    for (org_id, cap, before, after) in caps.used() {
        let alerts = crossed("cap", &cap.name, after, cap.quantity, &shares);
        if alerts.iter().any(|alert| before < alert.threshold) {
            // An alert that is raised may be left from an earlier day or month: it is resolved
            // first, or the new crossing would raise none.
            let open = ActiveAlerts::of(db, org_id);
            let mut known = crossed("cap", &cap.name, before, cap.quantity, &shares);
            known.retain(|alert| open.has(alert));
            sync(db, org_id, (&open, &["cap"], Some(&cap.name)), &known, caps.now());
            sync(db, org_id, (&ActiveAlerts::of(db, org_id), &["cap"], Some(&cap.name)), &alerts, caps.now());
        }
    }
    Ok(())
}

/// Raises and resolves all alerts of an org but those of its balances, for settlement.
///
/// `wallets` are all wallets of the org, locked.
pub fn settle(
    db: &Db,
    org_id: Uuid,
    (open, timeline): (&ActiveAlerts, Timeline),
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
    let soon = crate::base::time::add_days(now, settings.expiring_days);
    // Lane 0 of a split wallet does not tell when the slices of the other lanes expire.
    let may_expire = wallets.iter().any(|wallet| wallet.is_split() || wallet.fresh_until <= soon);
    let expiring = may_expire.then(|| db.write(&EXPIRING, args![org_id, Timestamptz(now), Timestamptz(soon)]));
    for row in expiring.iter().flat_map(Rows::iter) {
        let (grant, amount, rest): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        if rest > 0 {
            let subject = grant.to_string();
            alerts.push(Alert { kind: "expiring", subject, share: 0, value: rest, threshold: amount });
        }
    }
    sync(db, org_id, (open, &["allowance", "cap", "expiring"], None), &alerts, now);
    Ok(())
}

/// Says when alerts are raised: at which percentages of an allowance, cap or balance, and how many
/// days before a grant expires.
///
/// `shares`: 1 to 100 each, at most 20; `expiring_days`: 0 to 366; `deliver`: each alert that is
/// raised also goes into the outbox, topic `alert.raised`. Holds from the next look on. Errors:
/// 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn configure_alerts(
    shares: default!(Option<Vec<Option<i32>>>, "'{50,75,90,100}'"),
    expiring_days: default!(Option<i32>, 7),
    deliver: default!(Option<bool>, false),
) {
    entry_point::service(|db| {
        let shares = required("shares", shares)?;
        let shares: Vec<i32> = shares.into_iter().map(|share| required("shares", share)).collect::<Result<Vec<_>>>()?;
        if shares.len() > 20 || shares.iter().any(|share| !(1..=100).contains(share)) {
            return Err(Error::invalid("shares", "must be at most 20 percentages from 1 to 100"));
        }
        let days = required("expiring_days", expiring_days)?;
        let deliver = required("deliver", deliver)?;
        if !(0..=366).contains(&days) {
            return Err(Error::invalid("expiring_days", "must be 0 to 366"));
        }
        let value = serde_json::json!({"shares": shares, "expiring_days": days, "deliver": deliver});
        db.write(&CONFIGURE, args![crate::pg::jsonb::from_text(&value.to_string())]);
        cache::invalidate(db);
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_crossed_when_it_is_reached() {
        let shares = |used| crossed("cap", "c", used, 10, &[50, 75, 100]).iter().map(|a| a.share).collect::<Vec<_>>();
        assert!(shares(4).is_empty());
        assert_eq!(shares(5), [50]);
        assert_eq!(shares(7), [50]);
        assert_eq!(shares(8), [50, 75]);
        assert_eq!(shares(10), [50, 75, 100]);
        assert_eq!(crossed("cap", "c", 0, 0, &[50]), []);
    }

    #[test]
    fn the_balance_tells_when_to_look_again() {
        let at = |balance| {
            let (alerts, below) = crossed_balance("credit", balance, 100, (20, 0), &[50, 100]);
            (alerts.iter().map(|a| (a.kind, a.share)).collect::<Vec<_>>(), below)
        };
        assert_eq!(at(100), (vec![], 51));
        assert_eq!(at(51), (vec![], 51));
        assert_eq!(at(50), (vec![("balance", 50)], 20));
        assert_eq!(at(19), (vec![("balance", 50), ("low_balance", 0)], 1));
        assert_eq!(at(0), (vec![("balance", 50), ("balance", 100), ("low_balance", 0)], 0));
    }
}
