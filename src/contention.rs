//! Contention: wallets that many spend from at once are split into lanes, and joined again when nobody waits any more.

use crate::base::error::Result;
use crate::base::time::Moment;
use crate::ledger::lanes;
use crate::ledger::store;
use crate::ledger::wallet::Wallet;
use crate::pg::clock;
use crate::pg::spi::{Db, Timestamptz};
use crate::posting;
use crate::{args, statements};
use uuid::Uuid;

/// The number of lanes that an application asks for where they are to come and go by themselves.
pub const AUTOMATIC: i16 = 0;

/// How long the note of a wait holds.
const MINUTE: Moment = 60 * 1_000_000;

statements! {
    MODE(uuid, text) = "select lanes, contended_at from billing_internal.wallet_settings where org_id = $1 and unit = $2";
    // Nobody waits for the note, and one is enough.
    CONTENDED(uuid, text, timestamptz) =
        "update billing_internal.wallet_settings set contended_at = $3
          where (org_id, unit) in (select org_id, unit from billing_internal.wallet_settings
                                    where org_id = $1 and unit = $2 and lanes = 0 for no key update skip locked)";
    CLEAR_CONTENTION(uuid, text) =
        "update billing_internal.wallet_settings set contended_at = null where org_id = $1 and unit = $2 and contended_at is not null";
    NUMBERS(uuid, text) = "select lane from billing_internal.lanes where org_id = $1 and unit = $2";
}

/// What was asked for a wallet, and when somebody last had to wait.
fn mode(db: &Db, wallet: &Wallet) -> Option<(i16, Option<Moment>)> {
    let rows = db.write(&MODE, args![wallet.lane.org_id, &wallet.lane.unit]);
    rows.first().map(|row| (row.get(0), row.opt(1)))
}

/// Splits a wallet into so many lanes, of which those that were not there are empty; what lanes hold that are used no more comes
/// back, whoever holds them. The wallet must be loaded.
pub fn split(db: &Db, wallet: &mut Wallet, count: i16) -> Result<()> {
    let last = if count > 1 { count } else { 0 };
    store::reclaim_lanes(wallet, |away| away.lane > last)?;
    let rows = db.write(&NUMBERS, args![wallet.lane.org_id, &wallet.lane.unit]);
    let known: Vec<i16> = rows.iter().map(|row| row.get(0)).collect();
    for number in (1..=last).filter(|number| !known.contains(number)) {
        store::create_lane(db, &wallet.lane, number)?;
    }
    wallet.lane.lanes = count;
    Ok(())
}

/// Joins the lanes of a wallet that manages them by itself, once nobody has waited for a while. Lanes that are held just now
/// leave it for the next time. The wallet must be loaded.
pub fn merge_idle_lanes(db: &Db, wallet: &mut Wallet) -> Result<()> {
    if !wallet.lane.is_split() || wallet.grants.is_none() {
        return Ok(());
    }
    match mode(db, wallet) {
        Some((AUTOMATIC, contended_at)) if lanes::is_idle(contended_at, wallet.now()) => {
            if store::reclaim_free_lanes(wallet)? {
                split(db, wallet, 1)?;
                db.write(&CLEAR_CONTENTION, args![wallet.lane.org_id, &wallet.lane.unit]);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Gives a wallet more lanes for whose consumers it takes too long, where it manages them by itself and nobody has its lock but
/// us. A backend's note is of so many lanes; gives how many there are now.
pub fn add_lanes_if_contended(db: &Db, org_id: Uuid, unit: &str, noted: i16) -> Result<i16> {
    let Some(lane) = store::lock_if_free(org_id, unit) else { return Ok(noted) };
    let mut wallet = Wallet::new(lane, clock::now());
    let Some((AUTOMATIC, contended_at)) = mode(db, &wallet) else { return Ok(wallet.lane.lanes) };
    let now = wallet.now();
    // Whoever holds a lane waits for no other lane, nor for members.
    if wallet.lane.holds_due <= now {
        return Ok(wallet.lane.lanes);
    }
    if contended_at.is_none_or(|at| now - at > MINUTE) {
        db.write(&CONTENDED, args![org_id, unit, Timestamptz(now)]);
    }
    let wanted = lanes::more(noted);
    if wallet.lane.lanes == noted && wanted > noted {
        store::load(db, &mut wallet, &[])?;
        split(db, &mut wallet, wanted)?;
        posting::save(db, std::slice::from_mut(&mut wallet), "{}")?;
    }
    Ok(wallet.lane.lanes)
}

/// Notes that somebody had to wait for a wallet, so that its lanes stay for a while.
pub fn note_wait(db: &Db, org_id: Uuid, unit: &str, now: Moment) {
    db.write(&CONTENDED, args![org_id, unit, Timestamptz(now)]);
}
