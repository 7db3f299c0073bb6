//! Contention: many transactions that want the same wallet at once. Such a wallet is split into
//! lanes, and merged again when nobody waits any more.

use crate::base::error::Result;
use crate::base::time::Moment;
use crate::ledger::wallet::Wallet;
use crate::ledger::{lanes, store};
use crate::pg::clock;
use crate::pg::spi::{Db, Timestamptz};
use crate::{args, posting, statements};
use uuid::Uuid;

/// The number of lanes that stands for the automatic mode, in which lanes come and go by
/// themselves.
pub const AUTOMATIC: i16 = 0;

/// The age at which the note of a wait is renewed, so that not every wait writes the row.
const MINUTE: Moment = 60 * 1_000_000;

statements! {
    MODE(uuid, text) = "select lanes, contended_at from billing_internal.wallet_settings where org_id = $1 and unit = $2";
    // The note of one backend is enough, so a backend that would have to wait for the row skips it.
    CONTENDED(uuid, text, timestamptz) =
        "update billing_internal.wallet_settings set contended_at = $3
          where (org_id, unit) in (select org_id, unit from billing_internal.wallet_settings
                                    where org_id = $1 and unit = $2 and lanes = 0 for no key update skip locked)";
    CLEAR_CONTENTION(uuid, text) =
        "update billing_internal.wallet_settings set contended_at = null where org_id = $1 and unit = $2 and contended_at is not null";
    NUMBERS(uuid, text) = "select lane from billing_internal.lanes where org_id = $1 and unit = $2";
}

/// The number of lanes that was set for a wallet, and when a consumption last had to wait for it.
fn read_mode(db: &Db, wallet: &Wallet) -> Option<(i16, Option<Moment>)> {
    let rows = db.write(&MODE, args![wallet.lane.org_id, &wallet.lane.unit]);
    rows.first().map(|row| (row.get(0), row.opt(1)))
}

/// Splits a wallet, which must be loaded, into `count` lanes. New lanes are empty, and the credit
/// of those beyond `count` comes back to lane 0, after a wait for their holders.
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

/// Merges the lanes of a wallet in automatic mode, which must be loaded, once nobody has waited for
/// a while. If a lane is held just now, the wallet stays split until the next call.
pub fn merge_idle_lanes(db: &Db, wallet: &mut Wallet) -> Result<()> {
    if !wallet.lane.is_split() || wallet.grants.is_none() {
        return Ok(());
    }
    match read_mode(db, wallet) {
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

/// Doubles the lanes of a wallet in automatic mode, if nobody else holds its lock, and returns
/// their number. `noted` is the number for which the backend measured its waits: if the wallet has
/// another one by now, its waits say nothing, and nothing is done.
pub fn add_lanes_if_contended(db: &Db, org_id: Uuid, unit: &str, noted: i16) -> Result<i16> {
    let Some(lane) = store::lock_if_free(org_id, unit) else { return Ok(noted) };
    let mut wallet = Wallet::new(lane, clock::now());
    let Some((AUTOMATIC, contended_at)) = read_mode(db, &wallet) else { return Ok(wallet.lane.lanes) };
    let now = wallet.now();
    // The save would book a hold that is due, and for that lock members: whoever holds a lane must
    // not wait for those, or two transactions would deadlock.
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

/// Notes that a consumption had to wait for a wallet, so that its lanes stay for a while.
pub fn note_wait(db: &Db, org_id: Uuid, unit: &str, now: Moment) {
    db.write(&CONTENDED, args![org_id, unit, Timestamptz(now)]);
}
