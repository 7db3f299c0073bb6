//! The credit that an org can spend now, for functions that only read.

use crate::base::error::Result;
use crate::ledger::rows;
use crate::ledger::store;
use crate::ledger::wallet::Wallet;
use crate::pg::clock;
use crate::pg::heap::{Snapshot, Table, shapes};
use crate::pg::spi::Db;
use uuid::Uuid;

/// The wallet at this moment, for reading; None if there is none. With `with_grants`, its grants
/// are loaded in any case.
pub fn current(db: &Db, org_id: Uuid, unit: &str, with_grants: bool) -> Result<Option<Wallet>> {
    let Some(lane) = store::read_lane_unlocked(db, org_id, unit) else { return Ok(None) };
    let mut wallet = Wallet::new(lane, clock::now());
    if with_grants || !wallet.is_fresh() || wallet.lane.is_split() {
        store::load_read_only(db, &mut wallet)?;
    }
    Ok(Some(wallet))
}

/// The credit that the org can spend now; with `metric`, on that metric.
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
