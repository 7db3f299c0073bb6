//! Settling one org.

use crate::alerts::rules::BalanceChange;
use crate::alerts::store::ActiveAlerts;
use crate::alerts::sync::sync_org;
use crate::base::error::Result;
use crate::base::time::Moment;
use crate::ledger::store as ledger;
use crate::pg::spi::Db;
use crate::receipt;
use crate::recharge::attempt::on_balance_change;
use crate::reports::fold;
use crate::settlement::pay::pay;
use crate::settlement::{charge, periods};
use uuid::Uuid;

receipt! {
    /// The answer of `settle_org`.
    SettlementReceipt as "settlement_receipt" { org_id: Uuid, charged: i64, unpaid: i64, renewed: i64, events: i64 }
}

/// Settles an org as of a moment.
pub fn settle(db: &Db, org_id: Uuid, as_of: Moment) -> Result<SettlementReceipt> {
    let units = charge::units(db, org_id)?;
    let lanes = ledger::lock_org(db, org_id, &units, as_of)?;
    if lanes.is_empty() {
        return Ok(SettlementReceipt { org_id, charged: 0, unpaid: 0, renewed: 0, events: 0 });
    }
    let before: i64 = lanes.iter().fold(0, |sum, lane| lane.consumed.saturating_add(sum));
    let begun = periods::catch_up(db, org_id, as_of)?;
    let charged = charge::charge(db, org_id, as_of.saturating_add(1), as_of)?;
    let unpaid = pay(db, org_id, as_of, charged.debts)?;
    let lanes = ledger::lock_org(db, org_id, &[], as_of)?;
    let open = ActiveAlerts::read(db, org_id);
    for lane in &lanes {
        let (balance, base, threshold) = (ledger::balance(lane), lane.alert_base, lane.alert_below);
        let change = BalanceChange { unit: &lane.unit, balance, base, threshold };
        on_balance_change(db, org_id, &open, change, as_of)?;
    }
    fold::fold_all(org_id);
    sync_org(db, org_id, &open, charged.timeline, &lanes, as_of)?;
    let after: i64 = lanes.iter().fold(0, |sum, lane| lane.consumed.saturating_add(sum));
    Ok(SettlementReceipt {
        org_id,
        charged: after - before,
        unpaid,
        renewed: begun.periods,
        events: begun.events + charged.events,
    })
}
