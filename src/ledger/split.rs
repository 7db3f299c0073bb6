//! `set_wallet_lanes()`: splitting a wallet into lanes and joining them again, by hand or as contention comes and goes.

use crate::access;
use crate::arguments::{required, required_uuid, unit};
use crate::catalog::cache;
use crate::clock;
use crate::error::{Error, Result};
use crate::ledger::lanes;
use crate::ledger::store;
use crate::ledger::wallet::Wallet;
use crate::raise::or_raise;
use crate::sql::{self, Db, Timestamptz};
use crate::time::Moment;
use crate::{args, statements};
use pgrx::prelude::*;
use uuid::Uuid;

/// As an application asks for lanes that come and go by themselves.
const AUTOMATIC: i16 = 0;

/// How long the note of a wait holds.
const MINUTE: Moment = 60 * 1_000_000;

statements! {
    MODE(uuid, text) = "select lanes, contended_at from billing.wallet_settings where org_id = $1 and unit = $2";
    SET_MODE(uuid, text, int2) =
        "update billing.wallet_settings set lanes = $3, contended_at = null where org_id = $1 and unit = $2";
    // Nobody waits for the note, and one is enough.
    CONTENDED(uuid, text, timestamptz) =
        "update billing.wallet_settings set contended_at = $3
          where (org_id, unit) in (select org_id, unit from billing.wallet_settings
                                    where org_id = $1 and unit = $2 and lanes = 0 for no key update skip locked)";
    CALM(uuid, text) =
        "update billing.wallet_settings set contended_at = null where org_id = $1 and unit = $2 and contended_at is not null";
    NUMBERS(uuid, text) = "select lane from billing.lanes where org_id = $1 and unit = $2";
}

/// What was asked for a wallet, and when somebody last had to wait.
fn mode(db: &Db, wallet: &Wallet) -> Option<(i16, Option<Moment>)> {
    let rows = db.write(&MODE, args![wallet.lane.org_id, &wallet.lane.unit]);
    rows.first().map(|row| (row.get(0), row.opt(1)))
}

/// Splits a wallet into so many lanes, of which those that were not there are empty; what lanes hold that are used no more comes
/// back, whoever holds them. The wallet must be loaded.
fn split(db: &Db, wallet: &mut Wallet, count: i16) -> Result<()> {
    let last = if count > 1 { count } else { 0 };
    store::gather_all(wallet, |away| away.lane > last)?;
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
pub fn relax(db: &Db, wallet: &mut Wallet) -> Result<()> {
    if !wallet.lane.is_split() || wallet.lots.is_none() {
        return Ok(());
    }
    match mode(db, wallet) {
        Some((AUTOMATIC, contended_at)) if lanes::is_idle(contended_at, wallet.now()) => {
            if store::gather_free(wallet)? {
                split(db, wallet, 1)?;
                db.write(&CALM, args![wallet.lane.org_id, &wallet.lane.unit]);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Gives a wallet more lanes for whose consumers it takes too long, where it manages them by itself and nobody has its lock but
/// us. A backend's note is of so many lanes; gives how many there are now.
pub fn tense(db: &Db, org_id: Uuid, unit: &str, noted: i16) -> Result<i16> {
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
        store::save(db, std::slice::from_mut(&mut wallet), "{}")?;
    }
    Ok(wallet.lane.lanes)
}

/// Splits a wallet that many spend from at once into lanes, so that they need not wait for each other; or joins them again.
///
/// `lanes`: 1 (one balance, as every wallet begins) to 64; 0: automatic, more when consumptions wait for each other, and one
/// when nobody did for ten minutes. Any time, under load too: it waits for transactions that are spending from lanes to be
/// joined. Consumption refuses only what all lanes together do not cover. Entries of a split wallet show the balance of their
/// lane; what calls answer is the wallet's. Errors: PT404 `unknown_org`, when the org has no wallet in that unit; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn set_wallet_lanes(org_id: Option<pgrx::Uuid>, lanes: Option<i32>, unit: default!(Option<&str>, "'credit'")) {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let lanes = i16::try_from(required("lanes", lanes)?).ok().filter(|n| (0..=lanes::MOST).contains(n));
        let lanes = lanes.ok_or(Error::invalid("lanes", "must be 0 to 64"))?;
        let unit = self::unit(unit)?;
        sql::connect(|db| {
            cache::require_installed(db)?;
            let lane = store::lock(org_id, unit);
            let lane = lane.ok_or_else(|| Error::unknown("unknown_org", org_id.to_string()).with("unit", unit))?;
            let mut wallet = Wallet::new(lane, clock::now());
            store::load(db, &mut wallet, &[])?;
            // Automatic: with those that there are.
            if lanes != AUTOMATIC {
                split(db, &mut wallet, lanes)?;
            }
            store::save(db, std::slice::from_mut(&mut wallet), "{}")?;
            db.write(&SET_MODE, args![org_id, unit, lanes]);
            if lanes == AUTOMATIC && wallet.lane.is_split() {
                db.write(&CONTENDED, args![org_id, unit, Timestamptz(wallet.now())]);
            }
            Ok(())
        })
    }));
}
