//! `set_wallet_lanes()`: splitting a wallet into lanes and joining them again, by hand.

use crate::base::error::Error;
use crate::contention;
use crate::entry_point;
use crate::ledger::lanes;
use crate::ledger::store;
use crate::ledger::wallet::Wallet;
use crate::pg::arguments::{required, required_uuid, unit};
use crate::pg::clock;
use crate::posting;
use crate::{args, statements};
use pgrx::prelude::*;

statements! {
    SET_MODE(uuid, text, int2) =
        "update billing_internal.wallet_settings set lanes = $3, contended_at = null where org_id = $1 and unit = $2";
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
    entry_point::service(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let lanes = i16::try_from(required("lanes", lanes)?).ok().filter(|n| (0..=lanes::MOST).contains(n));
        let lanes = lanes.ok_or(Error::invalid("lanes", "must be 0 to 64"))?;
        let unit = self::unit(unit)?;
        let lane = store::lock(org_id, unit);
        let lane = lane.ok_or_else(|| Error::unknown("unknown_org", org_id.to_string()).with("unit", unit))?;
        let mut wallet = Wallet::new(lane, clock::now());
        store::load(db, &mut wallet, &[])?;
        // Automatic: with those that there are.
        if lanes != contention::AUTOMATIC {
            contention::split(db, &mut wallet, lanes)?;
        }
        posting::save(db, std::slice::from_mut(&mut wallet), "{}")?;
        db.write(&SET_MODE, args![org_id, unit, lanes]);
        if lanes == contention::AUTOMATIC && wallet.lane.is_split() {
            contention::note_wait(db, org_id, unit, wallet.now());
        }
        Ok(())
    });
}
