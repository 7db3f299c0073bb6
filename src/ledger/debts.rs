//! Unpaid overage: what settlement charged and the wallet could not pay. Whatever credit comes in next pays it first.

use crate::base::error::Result;
use crate::base::time::{self, Moment};
use crate::ledger::wallet::{EntryContext, Operation, Wallet};
use crate::pg::spi::{Db, Timestamptz};
use crate::{args, statements};
use std::collections::BTreeMap;
use uuid::Uuid;

statements! {
    UNPAID(uuid, text) =
        "select metric, period_start, credits from billing.unpaid_overage
          where org_id = $1 and unit = $2 order by metric, period_start for update";
    PAID(uuid, text, text, timestamptz, int8) =
        "update billing.unpaid_overage set credits = credits - $5
          where org_id = $1 and unit = $2 and metric = $3 and period_start = $4";
    ALL_PAID(uuid, text, text, timestamptz) =
        "delete from billing.unpaid_overage where org_id = $1 and unit = $2 and metric = $3 and period_start = $4";
    OWE(uuid, texts, texts, timestamptzs, int8s) =
        "insert into billing.unpaid_overage as u (org_id, unit, metric, period_start, credits)
         select $1, k.unit, k.metric, k.period_start, sum(k.credits)
           from unnest($2, $3, $4, $5) k (unit, metric, period_start, credits)
          group by 2, 3, 4 order by 2, 3, 4
         on conflict (org_id, unit, metric, period_start) do update set credits = u.credits + excluded.credits";
}

/// Overage that was charged and is to be paid.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Debt {
    pub unit: String,
    pub metric: String,
    pub period_start: Moment,
    pub credits: i64,
}

/// Notes debts of an org, whose wallets are locked.
pub fn owe(db: &Db, org_id: Uuid, debts: &[Debt]) {
    if !debts.is_empty() {
        db.write(
            &OWE,
            args![
                org_id,
                debts.iter().map(|d| d.unit.clone()).collect::<Vec<_>>(),
                debts.iter().map(|d| d.metric.clone()).collect::<Vec<_>>(),
                debts.iter().map(|d| Timestamptz(d.period_start)).collect::<Vec<_>>(),
                debts.iter().map(|d| d.credits).collect::<Vec<_>>(),
            ],
        );
    }
}

/// The source of the entries that charge recorded usage.
pub const SOURCE: &str = "settlement";

/// What is owed for one metric and period.
#[derive(Default)]
struct Owed {
    /// Stands in the table.
    noted: i64,
    /// Was charged just now.
    new: i64,
}

/// Burns for unpaid overage, `new` debts of the wallet among it, as far as the wallet's credit goes, the oldest first. Gives
/// what was paid, and what is still owed.
///
/// The wallet's lane is locked.
pub fn pay(db: &Db, wallet: &mut Wallet, new: &[Debt]) -> Result<(i64, i64)> {
    let (org_id, unit) = (wallet.lane.org_id, wallet.lane.unit.clone());
    let mut owed: BTreeMap<(Moment, String), Owed> = BTreeMap::new();
    for row in db.write(&UNPAID, args![org_id, &unit]).iter() {
        owed.insert((row.get(1), row.get(0)), Owed { noted: row.get(2), new: 0 });
    }
    for debt in new {
        let place = owed.entry((debt.period_start, debt.metric.clone())).or_default();
        place.new = place.new.saturating_add(debt.credits);
    }
    let (mut paid, mut unpaid, mut rest) = (0_i64, 0_i64, Vec::new());
    for ((period_start, metric), due) in owed {
        if wallet.grants.is_none() {
            crate::ledger::store::load(db, wallet, &[])?;
        }
        let owed = due.noted.saturating_add(due.new);
        crate::ledger::store::ensure_spendable(db, wallet, owed.min(wallet.spendable(Some(&metric))), Some(&metric))?;
        let credits = owed.min(wallet.at_hand(Some(&metric))).max(0);
        if credits > 0 {
            let parts = wallet.allocate(credits, Some(&metric))?;
            let mut operation = Operation::new(EntryContext {
                metric: Some(metric.clone()),
                ..EntryContext::from_source(SOURCE, Some(time::display(period_start)))
            });
            wallet.consume(&mut operation, &parts, 0)?;
        }
        paid += credits;
        let of_noted = credits.min(due.noted);
        let left = due.new - (credits - of_noted);
        unpaid = unpaid.saturating_add(due.noted - of_noted).saturating_add(left);
        if of_noted > 0 && of_noted == due.noted {
            db.write(&ALL_PAID, args![org_id, &unit, &metric, Timestamptz(period_start)]);
        } else if of_noted > 0 {
            db.write(&PAID, args![org_id, &unit, &metric, Timestamptz(period_start), of_noted]);
        }
        if left > 0 {
            rest.push(Debt { unit: unit.clone(), metric, period_start, credits: left });
        }
    }
    owe(db, org_id, &rest);
    Ok((paid, unpaid))
}
