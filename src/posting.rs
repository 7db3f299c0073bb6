//! Posting: the one way in which the decisions about wallets are written, with everything that
//! follows from them.
//!
//! The order is that of the locks: entries, the wallet's rows, caps that timed-out holds give back
//! to, members, reports, alerts.

use crate::alerts::rules::BalanceChange;
use crate::alerts::store::ActiveAlerts;
use crate::base::error::Result;
use crate::ledger::recent::{LaneSummary, is_fold_due};
use crate::ledger::store;
use crate::ledger::wallet::{Entry, Wallet};
use crate::limits::caps;
use crate::pg::spi::Db;
use crate::recharge::attempt::on_balance_change;
use crate::reports::fold;

/// Posts wallets, or refuses if another call has taken a key meanwhile: that call was not there
/// when the key was looked up, so it is another request.
pub fn save(db: &Db, wallets: &mut [Wallet], metadata_of_grants: &str) -> Result<()> {
    if save_new(db, wallets, metadata_of_grants)? { Ok(()) } else { Err(store::key_is_taken(wallets)) }
}

/// Posts wallets. Answers false, with nothing written, if a call on another lane has taken a key
/// meanwhile.
pub fn save_new(db: &Db, wallets: &mut [Wallet], metadata_of_grants: &str) -> Result<bool> {
    let is_new = store::write_entries(wallets)?;
    if is_new {
        for wallet in wallets.iter().flat_map(|wallet| std::iter::once(wallet).chain(&wallet.lanes)) {
            post(db, wallet, metadata_of_grants)?;
        }
    }
    Ok(is_new)
}

/// Saves one wallet or lane whose entries are written, and does what follows from it.
fn post(db: &Db, wallet: &Wallet, metadata_of_grants: &str) -> Result<()> {
    let lane = &wallet.lane;
    // Consumers on other lanes must not wait for the wallet, so they leave folding to whoever has
    // its lock.
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
        let open = ActiveAlerts::read(db, lane.org_id);
        let change = BalanceChange { unit: &lane.unit, balance, base: lane.alert_base, threshold: lane.alert_below };
        on_balance_change(db, lane.org_id, &open, change, wallet.now())?;
    }
    Ok(())
}
