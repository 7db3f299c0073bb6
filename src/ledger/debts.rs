//! Unpaid overage: what settlement charged and the wallet could not pay. Whatever credit comes in next pays it first.

use crate::error::Result;
use crate::ledger::wallet::{Facts, Operation, Wallet};
use crate::sql::{At, Db};
use crate::time::{self, Moment};
use crate::{args, statements};

statements! {
    UNPAID(uuid, text) =
        "select metric, period_start, unpaid from billing.period_usage
          where org_id = $1 and unpaid > 0 and unit = $2
          order by metric, period_start for update";
    PAID(uuid, text, timestamptz, int8) =
        "update billing.period_usage set unpaid = unpaid - $4 where org_id = $1 and metric = $2 and period_start = $3";
}

/// The source of the entries that charge recorded usage.
pub const SOURCE: &str = "settlement";

/// Burns for unpaid overage as far as the wallet's credit goes, the oldest first. Gives what was paid, and what is still owed.
///
/// The wallet's lane is locked; what is charged when stands in the counters, so that it is charged once.
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
        db.write(&PAID, args![wallet.lane.org_id, &metric, At(period_start), credits]);
        paid += credits;
    }
    Ok((paid, unpaid))
}
