//! Transfers: credit that moves from one org's wallet to another's.

use crate::base::error::{Error, Result};
use crate::call::{Answer, Call, to_json};
use crate::catalog::cache;
use crate::ledger::kind::EntryKind;
use crate::ledger::wallet::{EntryContext, Operation, Wallet};
use crate::ledger::{debts, store};
use crate::pg::arguments::{self, positive, required_uuid, unit};
use crate::pg::jsonb::Jsonb;
use crate::pg::raise::or_raise;
use crate::pg::{clock, spi};
use crate::settlement::periods;
use crate::wallets::rules;
use crate::{access, posting, receipt};
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

receipt! {
    /// The answer of `transfer_credits`.
    #[derive(Serialize, Deserialize)]
    TransferReceipt as "transfer_receipt" {
        operation_id: i64,
        amount: i64,
        from_balance: i64,
        to_balance: i64,
        replayed: bool,
    }
}
impl Answer for TransferReceipt {
    fn set_replayed(&mut self) {
        self.replayed = true;
    }
}

fn transfer(call: &Call, to_org: Uuid, amount: i64, unit: &str) -> Result<TransferReceipt> {
    let from_org = call.org_id;
    spi::connect(|db| {
        cache::require_installed(db)?;
        if !store::org_exists(from_org) {
            return Err(Error::unknown("unknown_org", from_org.to_string()));
        }
        periods::begin_due(db, vec![from_org, to_org])?;
        // Both wallets are locked in the common order, or two transfers could wait for each other
        // in a circle. A giver without a wallet in that unit gets one, which the refusal takes
        // back.
        let names = [(from_org, unit.to_owned()), (to_org, unit.to_owned())];
        let lanes = store::lock_all_or_create(db, &names, clock::now())?;
        if let Some(answer) = call.replay()? {
            return Ok(answer);
        }
        let now = clock::now();
        let mut wallets: Vec<Wallet> = lanes.into_iter().map(|lane| Wallet::new(lane, now)).collect();
        let place = |wallets: &[Wallet], org: Uuid| wallets.iter().position(|w| w.lane.org_id == org);
        let from = place(&wallets, from_org).ok_or(Error::insufficient(amount, 0))?;
        let to = place(&wallets, to_org).ok_or_else(Error::contended)?;
        for wallet in &mut wallets {
            store::load(db, wallet, &[])?;
        }
        store::ensure_spendable(db, &mut wallets[from], amount, None)?;
        let parts = wallets[from].allocate(amount, None)?;
        let mut arriving = Vec::new();
        for part in &parts {
            arriving.push(rules::received(wallets[from].find_grant(part.grant_id)?, *part, now));
        }
        let mut leaving = call.operation(EntryContext::from_source("transfer", Some(to_org.to_string())));
        wallets[from].take(&mut leaving, EntryKind::Transfer, &parts)?;
        let mut arrival = Operation::new(EntryContext {
            metadata: call.metadata.clone(),
            ..EntryContext::from_source("transfer", Some(from_org.to_string()))
        });
        for grant in arriving {
            wallets[to].grant(&mut arrival, EntryKind::Transfer, grant)?;
        }
        debts::pay(db, &mut wallets[to], &[])?;
        let answer = TransferReceipt {
            operation_id: leaving.id(),
            amount,
            from_balance: wallets[from].spendable(None),
            to_balance: wallets[to].spendable(None),
            replayed: false,
        };
        wallets[from].keep_result(&leaving, to_json(&answer)?);
        posting::save(db, &mut wallets, &call.metadata)?;
        Ok(answer)
    })
}

/// Moves general credit to another org's wallet of the same unit, which it makes when there is
/// none.
///
/// Burns in burn order; the receiver's grants keep category, priority, expiry and their share of
/// the cost. `amount`: from 1.
/// Errors: PT402 `insufficient_credits`; PT404 `unknown_org` for the giving org; PT409
/// `idempotency_conflict`; 22023, also for a transfer to itself.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn transfer_credits(
    from_org: Option<pgrx::Uuid>,
    to_org: Option<pgrx::Uuid>,
    amount: Option<i64>,
    unit: default!(Option<&str>, "'credit'"),
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> TransferReceipt {
    or_raise(access::service(|| {
        let from_org = required_uuid("from_org", from_org)?;
        let to_org = required_uuid("to_org", to_org)?;
        let amount = positive("amount", amount)?;
        let unit = self::unit(unit)?;
        if from_org == to_org {
            return Err(Error::invalid("to_org", "must be another org"));
        }
        let arguments = [to_org.to_string(), amount.to_string(), unit.to_owned()];
        let arguments: Vec<_> = arguments.iter().map(|a| Some(a.as_str())).collect();
        let key = arguments::key(idempotency_key)?;
        let call = Call::new(from_org, "transfer_credits", &arguments, key, metadata)?;
        transfer(&call, to_org, amount, unit)
    }))
}
