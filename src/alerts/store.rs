//! The statements of alerts.

use crate::alerts::rules::{Alert, RaisedAlert, Thresholds};
use crate::base::time::Moment;
use crate::pg::spi::{Db, Timestamptz};
use crate::schema::alerts::alerts as table;
use crate::schema::{Insertion, Snapshot, Table};
use crate::{args, statements};
use uuid::Uuid;

statements! {
    // The low-balance and recharge thresholds come along, so that one statement tells all that a
    // balance is compared with.
    ACTIVE(uuid) =
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
    LOOK_BELOW(uuid, text, int8) =
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

/// The alerts of an org that are raised and not resolved, and the thresholds of its wallets'
/// balances.
pub struct ActiveAlerts {
    /// The alerts that are raised.
    pub raised: Vec<RaisedAlert>,
    low: Vec<(String, i64)>,
    recharge: Vec<(String, i64)>,
}

impl ActiveAlerts {
    /// Reads the alerts and thresholds of an org.
    pub fn read(db: &Db, org_id: Uuid) -> Self {
        let mut active = Self { raised: Vec::new(), low: Vec::new(), recharge: Vec::new() };
        for row in db.write(&ACTIVE, args![org_id]).iter() {
            match row.opt(3) {
                Some(below) if row.opt::<String>(0).is_some() => active.recharge.push((row.get(1), below)),
                Some(below) => active.low.push((row.get(1), below)),
                None => {
                    let (kind, subject, share) = (row.get(0), row.get(1), row.get::<i32>(2).into());
                    active.raised.push(RaisedAlert { kind, subject, share });
                }
            }
        }
        active
    }

    /// The thresholds of the wallet of a unit.
    pub fn thresholds(&self, unit: &str) -> Thresholds {
        let of_unit =
            |all: &[(String, i64)]| all.iter().find(|(known, _)| known == unit).map_or(0, |(_, below)| *below);
        Thresholds { low: of_unit(&self.low), recharge: of_unit(&self.recharge) }
    }
}

/// Marks alerts as resolved.
pub fn resolve(db: &Db, org_id: Uuid, gone: Vec<RaisedAlert>, now: Moment) {
    let (mut kinds, mut subjects, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for alert in gone {
        kinds.push(alert.kind);
        subjects.push(alert.subject);
        shares.push(alert.share);
    }
    db.write(&RESOLVE, args![org_id, kinds, subjects, shares, Timestamptz(now)]);
}

/// Inserts an alert, unless another transaction just has.
pub fn insert(org_id: Uuid, alert: &Alert, now: Moment) {
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

/// Notes in the row of a wallet, which must be locked, below which balance to look again.
pub fn set_look_below(db: &Db, org_id: Uuid, unit: &str, below: i64) {
    db.write(&LOOK_BELOW, args![org_id, unit, below]);
}

/// A grant that expires soon.
pub struct ExpiringGrant {
    /// The grant.
    pub grant_id: i64,
    /// The credit that it brought.
    pub amount: i64,
    /// The credit that is left of it.
    pub rest: i64,
}

/// The grants that can be spent now and expire within the time after.
pub fn expiring(db: &Db, org_id: Uuid, now: Moment, until: Moment) -> Vec<ExpiringGrant> {
    let rows = db.write(&EXPIRING, args![org_id, Timestamptz(now), Timestamptz(until)]);
    rows.iter().map(|row| ExpiringGrant { grant_id: row.get(0), amount: row.get(1), rest: row.get(2) }).collect()
}

/// Stores when alerts are raised.
pub fn configure(db: &Db, settings: &serde_json::Value) {
    db.write(&CONFIGURE, args![crate::pg::jsonb::from_text(&settings.to_string())]);
}
