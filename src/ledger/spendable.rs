//! What an org can spend now, for those who only read.

use crate::base::error::Result;
use crate::ledger::rows;
use crate::ledger::store;
use crate::ledger::wallet::Wallet;
use crate::pg::clock;
use crate::pg::heap::{Snapshot, Table, shapes};
use crate::pg::spi::Db;
use uuid::Uuid;

/// The wallet as it is at this moment, for reading; None when there is none.
pub fn current(db: &Db, org_id: Uuid, unit: &str, with_lots: bool) -> Result<Option<Wallet>> {
    let Some(lane) = store::read_lane_unlocked(db, org_id, unit) else { return Ok(None) };
    let mut wallet = Wallet::new(lane, clock::now());
    if with_lots || !wallet.is_fresh() || wallet.lane.is_split() {
        store::load_read_only(db, &mut wallet)?;
    }
    Ok(Some(wallet))
}

/// What the org can spend now, on a metric where one is named.
pub fn spendable(db: &Db, org_id: Uuid, unit: &str, metric: Option<&str>) -> Result<i64> {
    if let Some(lanes) = Table::open_to_read(&shapes::LANES) {
        let now = clock::now();
        match rows::read_wallet_snapshot(&mut lanes.finder(&shapes::LANES_KEY, Snapshot::Callers), org_id, unit, now) {
            Some(seen) if now < seen.fast_until => return Ok(seen.total),
            _ => {}
        }
    }
    Ok(current(db, org_id, unit, true)?.map_or(0, |wallet| wallet.spendable(metric)))
}
