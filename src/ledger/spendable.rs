//! What an org can spend now, for those who only read.

use crate::base::error::Result;
use crate::ledger::rows::{self, Lanes};
use crate::ledger::store;
use crate::ledger::wallet::Wallet;
use crate::pg::clock;
use crate::pg::spi::Db;
use crate::schema::Snapshot;
use uuid::Uuid;

/// The wallet as it is at this moment, for reading; None when there is none.
pub fn current(db: &Db, org_id: Uuid, unit: &str, with_lots: bool) -> Result<Option<Wallet>> {
    let Some(lane) = store::read_lane_unlocked(org_id, unit) else { return Ok(None) };
    let mut wallet = Wallet::new(lane, clock::now());
    if with_lots || !wallet.is_fresh() || wallet.lane.is_split() {
        store::load_read_only(db, &mut wallet)?;
    }
    Ok(Some(wallet))
}

/// What the org can spend now, on a metric where one is named.
pub fn spendable(db: &Db, org_id: Uuid, unit: &str, metric: Option<&str>) -> Result<i64> {
    let now = clock::now();
    let lanes = Lanes::to_read();
    if let Some((seen, _)) = rows::read_wallet_snapshot(&lanes, (org_id, unit), Snapshot::Callers, now)
        && now < seen.fast_until
    {
        return Ok(seen.total);
    }
    Ok(current(db, org_id, unit, true)?.map_or(0, |wallet| wallet.spendable(metric)))
}
