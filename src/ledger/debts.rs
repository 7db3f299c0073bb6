//! Unpaid overage: what settlement charged and the wallet could not pay. Whatever credit comes in next pays it first.

use crate::error::Result;
use crate::ledger::wallet::{Facts, Operation, Wallet};
use crate::sql::{At, Db};
use crate::time::{self, Moment};
use crate::{args, statements};
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
                debts.iter().map(|d| At(d.period_start)).collect::<Vec<_>>(),
                debts.iter().map(|d| d.credits).collect::<Vec<_>>(),
            ],
        );
    }
}

/// The source of the entries that charge recorded usage.
pub const SOURCE: &str = "settlement";

/// Burns for unpaid overage as far as the wallet's credit goes, the oldest first. Gives what was paid, and what is still owed.
///
/// The wallet's lane is locked.
pub fn pay(db: &Db, wallet: &mut Wallet) -> Result<(i64, i64)> {
    let rows = db.write(&UNPAID, args![wallet.lane.org_id, &wallet.lane.unit]);
    let mut owed: Vec<(Moment, String, i64)> = rows.iter().map(|row| (row.get(1), row.get(0), row.get(2))).collect();
    owed.sort();
    let (mut paid, mut unpaid) = (0_i64, 0_i64);
    for (period_start, metric, due) in owed {
        if wallet.lots.is_none() {
            crate::ledger::store::load(db, wallet, &[])?;
        }
        let credits = due.min(wallet.spendable(Some(&metric)));
        unpaid = unpaid.saturating_add(due - credits.max(0));
        if credits <= 0 {
            continue;
        }
        let parts = wallet.allocate(credits, Some(&metric))?;
        let mut operation = Operation::new(Facts {
            metric: Some(metric.clone()),
            ..Facts::from_source(SOURCE, Some(time::display(period_start)))
        });
        wallet.consume(&mut operation, &parts, 0)?;
        let (org_id, unit) = (wallet.lane.org_id, wallet.lane.unit.as_str());
        if credits == due {
            db.write(&ALL_PAID, args![org_id, unit, &metric, At(period_start)]);
        } else {
            db.write(&PAID, args![org_id, unit, &metric, At(period_start), credits]);
        }
        paid += credits;
    }
    Ok((paid, unpaid))
}
