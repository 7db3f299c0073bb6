//! Paying what an org owes from its wallets, which must be locked.

use crate::base::error::Result;
use crate::base::time::Moment;
use crate::ledger::debts::{self, Debt};
use crate::ledger::store as ledger;
use crate::ledger::wallet::Wallet;
use crate::pg::spi::Db;
use crate::{contention, posting};
use uuid::Uuid;

/// Burns debts, old and new ones, as far as the wallets go, and books expired credit; gives what
/// is still owed.
pub fn pay(db: &Db, org_id: Uuid, now: Moment, mut debts: Vec<Debt>) -> Result<i64> {
    let mut unpaid: i64 = 0;
    for lane in ledger::lock_org(db, org_id, &[], now)? {
        let mut wallet = Wallet::new(lane, now);
        if !wallet.is_fresh() || wallet.lane.is_split() {
            ledger::load(db, &mut wallet, &[])?;
        }
        contention::merge_idle_lanes(db, &mut wallet)?;
        let (mine, others) = debts.into_iter().partition(|debt: &Debt| debt.unit == wallet.lane.unit);
        debts = others;
        let (_, left) = debts::pay(db, &mut wallet, &mine)?;
        unpaid = unpaid.saturating_add(left);
        posting::save(db, std::slice::from_mut(&mut wallet), "{}")?;
    }
    // These debts are in a unit in which the org has no wallet.
    unpaid = debts.iter().fold(unpaid, |sum, debt| sum.saturating_add(debt.credits));
    debts::owe(db, org_id, &debts);
    Ok(unpaid)
}
