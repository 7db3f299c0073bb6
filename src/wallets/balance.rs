//! Balances: what an org can spend, the state of a wallet, and a dry run of a consumption.

use crate::base::error::{Error, Result};
use crate::base::time::INFINITY;
use crate::catalog::cache;
use crate::ledger::spendable::{current, spendable};
use crate::ledger::store;
use crate::ledger::wallet::Wallet;
use crate::limits::cost;
use crate::payments::store as payments;
use crate::pg::arguments::{positive, required, required_uuid, unit};
use crate::pg::clock;
use crate::pg::spi::Db;
use crate::{access, args, entry_point, receipt, statements};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use uuid::Uuid;

receipt! {
    /// The answer of `get_wallet` and `create_wallet`: a wallet with all of its figures.
    WalletStatus as "wallet_status" {
        org_id: Uuid,
        unit: String,
        owner_type: String,
        available: i64,
        reserved: i64,
        locked: i64,
        pending: i64,
        lifetime_purchased: i64,
        lifetime_consumed: i64,
        low_balance_threshold: Option<i64>,
        scoped: i64,
        future: i64,
        created_at: i64,
    }
}

statements! {
    CONSUMED(uuid, text) =
        "select sum(consumed)::int8 from billing_internal.lanes where org_id = $1 and unit = $2";
    SETTINGS(uuid, text) =
        "select owner_type, low_balance_threshold, created_at from billing_internal.wallet_settings where org_id = $1 and unit = $2";
}

/// The figures of a wallet, as [`get_wallet`] answers them. `locked` is for a caller that has just
/// written them.
pub fn wallet_status(db: &Db, org_id: Uuid, unit: &str, locked: bool) -> Result<WalletStatus> {
    let missing = || Error::unknown("unknown_org", org_id.to_string()).with("unit", unit);
    let arguments = args![org_id, unit];
    let settings = if locked { db.write(&SETTINGS, arguments) } else { db.read(&SETTINGS, arguments) };
    let settings = settings.first().ok_or_else(missing)?;
    let wallet = if locked {
        let lane = store::lock(org_id, unit).ok_or_else(missing)?;
        let mut wallet = Wallet::new(lane, clock::now());
        if !wallet.is_fresh() || wallet.lane.is_split() {
            store::load_read_only(db, &mut wallet)?;
        }
        wallet
    } else {
        current(db, org_id, unit, false)?.ok_or_else(missing)?
    };
    let available = wallet.spendable(None);
    let (scoped, future) = wallet.restricted();
    let mut consumed = wallet.lane.consumed;
    if wallet.lane.is_split() {
        let rows = db.query(locked, &CONSUMED, args![org_id, unit]);
        consumed = rows.first().and_then(|row| row.opt(0)).unwrap_or(consumed);
    }
    Ok(WalletStatus {
        org_id,
        unit: unit.to_owned(),
        owner_type: settings.get(0),
        available,
        reserved: wallet.lane.reserved,
        locked: wallet.lane.locked,
        pending: payments::pending(db, org_id, unit, locked),
        lifetime_purchased: wallet.lane.purchased,
        lifetime_consumed: consumed,
        low_balance_threshold: settings.opt(1),
        scoped,
        future,
        created_at: settings.get(2),
    })
}

/// Tells what the org can spend now; with `metric`, on that metric, credit scoped to it included.
///
/// Takes the same time however long the history. An org without a wallet in that unit has 0.
/// Errors: 42501 `not_authorized` for an org that is not the caller's; PT404 `unknown_metric`;
/// 22023.
#[pg_extern(stable)]
fn get_total_credits(
    org_id: Option<pgrx::Uuid>,
    unit: default!(Option<&str>, "'credit'"),
    metric: default!(Option<&str>, "NULL"),
) -> i64 {
    entry_point::reader(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let unit = self::unit(unit)?;
        access::authorize(db, org_id)?;
        if let Some(metric) = metric {
            cache::metric(db, metric)?;
        }
        spendable(db, org_id, unit, metric)
    })
}

/// Gives a wallet as it is now: available, reserved, locked and pending credit, what was ever
/// purchased and consumed, the low-balance threshold.
///
/// `available` is general credit that can be spent now; `scoped` is for some metrics only; `future`
/// is not effective yet.
/// Errors: PT404 `unknown_org` when the org has no wallet in that unit; 42501 `not_authorized`;
/// 22023.
#[pg_extern(stable)]
#[search_path(pg_catalog, pg_temp)]
fn get_wallet(org_id: Option<pgrx::Uuid>, unit: default!(Option<&str>, "'credit'")) -> WalletStatus {
    entry_point::reader(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let unit = self::unit(unit)?;
        access::authorize(db, org_id)?;
        wallet_status(db, org_id, unit, false)
    })
}

/// Tells, as a dry run, which grants a consumption would burn, in order, and what each would have
/// left.
///
/// No row when it costs nothing. Errors: as `consume_credits` would refuse it; 42501
/// `not_authorized`.
#[pg_extern(stable)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn explain_consumption(
    org_id: Option<pgrx::Uuid>,
    metric: Option<&str>,
    quantity: default!(Option<i64>, 1),
) -> TableIterator<
    'static,
    (
        name!(grant_id, i64),
        name!(source, String),
        name!(category, String),
        name!(expires_at, Option<TimestampWithTimeZone>),
        name!(credits, i64),
        name!(remaining_after, i64),
    ),
> {
    let rows = entry_point::reader(|db| {
        let org_id = required_uuid("org_id", org_id)?;
        let metric = required("metric", metric)?;
        let quantity = positive("quantity", quantity)?;
        access::authorize(db, org_id)?;
        let (unit, credits) = cost::cost(db, metric, quantity, Some(org_id), clock::now())?;
        let Some(mut wallet) = current(db, org_id, &unit, true)? else {
            if !store::org_was_known(org_id) {
                return Err(Error::unknown("unknown_org", org_id.to_string()));
            }
            return if credits == 0 { Ok(Vec::new()) } else { Err(Error::insufficient(credits, 0)) };
        };
        let parts = wallet.allocate(credits, Some(metric))?;
        parts
            .into_iter()
            .map(|part| {
                let grant = wallet.find_grant(part.grant_id)?;
                let expires_at = (grant.expires_at != INFINITY)
                    .then(|| TimestampWithTimeZone::try_from(grant.expires_at).ok())
                    .flatten();
                let category = if grant.paid { "paid" } else { "promotional" };
                Ok((
                    part.grant_id,
                    grant.source.clone(),
                    category.to_owned(),
                    expires_at,
                    part.credits,
                    grant.remaining - part.credits,
                ))
            })
            .collect::<Result<Vec<_>>>()
    });
    TableIterator::new(rows)
}
