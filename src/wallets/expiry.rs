//! Expiry: the rest of expired grants (breakage) and timed-out holds are booked.
//!
//! No balance depends on it, since every read and every burn compares with the clock: it keeps the
//! ledger and the reports current.

use crate::access;
use crate::base::error::{Error, Result};
use crate::catalog::cache;
use crate::contention;
use crate::ledger::lanes;
use crate::ledger::store;
use crate::ledger::wallet::Wallet;
use crate::pg::arguments::required;
use crate::pg::clock;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Timestamptz};
use crate::plans::store as plans;
use crate::posting;
use crate::{args, statements};
use pgrx::prelude::*;
use uuid::Uuid;

const MOST_WALLETS: i32 = 100_000;

statements! {
    // Wallets where credit comes back or goes come first: of the others, only the bound of their
    // holds is old.
    DUE(timestamptz, int4, timestamptz) =
        "select org_id, unit
           from (select org_id, unit, true as has_credit from billing_internal.lanes where fresh_until <= $1 and (lane = 0 or balance > 0)
                 union all
                 select org_id, unit, reserved > 0 from billing_internal.lanes where holds_due <= $1
                 union all
                 select org_id, unit, false from billing_internal.wallet_settings where contended_at < $3) due
          group by org_id, unit
          order by bool_or(has_credit) desc
          limit $2";
}

/// Books expired credit and timed-out holds of at most `max_wallets` wallets, and joins lanes that
/// are idle; gives the number of wallets it looked after.
///
/// Balances are right without it; entries come sooner with it. For pg_cron:
/// `select cron.schedule('* * * * *', 'select billing.book_expiries()')`. Errors: 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn book_expiries(max_wallets: default!(Option<i32>, 500)) -> i64 {
    or_raise(access::service(|| {
        let most = required("max_wallets", max_wallets)?;
        if !(1..=MOST_WALLETS).contains(&most) {
            return Err(Error::invalid("max_wallets", "must be 1 to 100000"));
        }
        let due: Vec<(Uuid, String)> = spi::connect(|db| {
            cache::require_installed(db)?;
            let now = clock::now();
            let rows = db.write(&DUE, args![Timestamptz(now), most, Timestamptz(lanes::idle_since(now))]);
            Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<_>>())
        })?;
        let mut done = 0;
        // Each wallet gets a connection of its own, or the memory of all of them would pile up.
        for (org_id, unit) in &due {
            done += spi::connect(|db| -> Result<i64> {
                if !plans::due(db, vec![*org_id], clock::now())?.is_empty() {
                    // Booking the expiry now would take credit that settlement still needs for the
                    // usage of the old period.
                    return Ok(0);
                }
                // A wallet that somebody works on is skipped rather than waited for: whoever has it
                // books what is due, or the next run does.
                let Some(lane) = store::lock_if_free(*org_id, unit) else { return Ok(0) };
                let mut wallet = Wallet::new(lane, clock::now());
                store::load(db, &mut wallet, &[])?;
                contention::merge_idle_lanes(db, &mut wallet)?;
                posting::save(db, std::slice::from_mut(&mut wallet), "{}")?;
                Ok(1)
            })?;
        }
        Ok(done)
    }))
}
