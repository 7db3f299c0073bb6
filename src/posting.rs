//! Posting: the one way in which what the rules decided about wallets is written, with what follows from it.
//!
//! The order is that of the locks: entries, the wallet's rows, caps that timed-out holds give back to, members, reports, alerts.

use crate::alerts::{ActiveAlerts, BalanceChange};
use crate::base::error::Result;
use crate::ledger::recent::{LaneSummary, is_fold_due};
use crate::ledger::store;
use crate::ledger::wallet::{Entry, Wallet};
use crate::limits::caps;
use crate::pg::spi::Db;
use crate::recharge;
use crate::reports::fold;

/// Posts wallets, or refuses where somebody else has taken a key: whoever has it was not there when it was looked up, so it is
/// another request.
pub fn save(db: &Db, wallets: &mut [Wallet], metadata_of_grants: &str) -> Result<()> {
    if save_new(db, wallets, metadata_of_grants)? { Ok(()) } else { Err(store::key_is_taken(wallets)) }
}

/// Posts wallets; false, and nothing is written, where a call that was under way elsewhere has taken a key.
pub fn save_new(db: &Db, wallets: &mut [Wallet], metadata_of_grants: &str) -> Result<bool> {
    let is_new = store::write_entries(wallets)?;
    if is_new {
        for wallet in wallets.iter().flat_map(|wallet| std::iter::once(wallet).chain(&wallet.lanes)) {
            post(db, wallet, metadata_of_grants)?;
        }
    }
    Ok(is_new)
}

/// Saves one wallet or lane whose entries are written, and does what follows.
fn post(db: &Db, wallet: &Wallet, metadata_of_grants: &str) -> Result<()> {
    let lane = &wallet.lane;
    // The calls on other lanes than lane 0 fold only where nobody is in the way.
    let is_due = |first: &Entry| lane.lane > 0 || is_fold_due(first.position.entry_id - 1, lane.last_entry_id);
    let is_folded = wallet.entries.first().is_some_and(is_due);
    let recent = wallet.recent();
    let kept = LaneSummary::to_keep(recent.as_ref(), lane.last_entry_id, is_folded);
    store::save_wallet(db, wallet, kept.as_deref(), metadata_of_grants);
    let expired = wallet.expired_holds.iter().map(|(hold_id, _)| *hold_id).collect();
    caps::give_back(db, lane.org_id, expired, None)?;
    store::save_members(db, wallet);
    if is_folded {
        fold::fold(lane.org_id, &lane.unit, lane.last_entry_id, recent);
    }
    let came_in = wallet.grants.iter().flatten().any(|grant| grant.saved.is_none());
    let balance = wallet.balance();
    if came_in || balance < lane.alert_below {
        let open = ActiveAlerts::of(db, lane.org_id);
        let change = BalanceChange { unit: &lane.unit, balance, base: lane.alert_base, threshold: lane.alert_below };
        recharge::on_balance_change(db, lane.org_id, &open, change, wallet.now())?;
    }
    Ok(())
}
