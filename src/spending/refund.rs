//! Refunds: credit goes back to the very grants that it was burned from.

use crate::access;
use crate::base::error::{Error, Result};
use crate::base::time::Period;
use crate::call::{Answer, Call};
use crate::ledger::store::{self, PostedEntry};
use crate::ledger::wallet::{EntryContext, Part, split};
use crate::pg::arguments::{positive, required, required_uuid};
use crate::pg::jsonb::Jsonb;
use crate::pg::raise::or_raise;
use crate::pg::spi::Db;
use crate::{args, receipt, statements};
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

receipt! {
    /// Of a refund.
    #[derive(Serialize, Deserialize)]
    RefundReceipt as "refund_receipt" { operation_id: i64, credits: i64, balance_after: i64, replayed: bool }
}
impl Answer for RefundReceipt {
    fn set_replayed(&mut self) {
        self.replayed = true;
    }
    fn set_operation(&mut self, operation_id: i64) {
        self.operation_id = operation_id;
    }
}

statements! {
    REFUNDED(uuid, int8) =
        "select grant_id, credits from billing_internal.refunds where org_id = $1 and operation_id = $2";
    NOTE(uuid, int8, int8, int8) =
        "insert into billing_internal.refunds as r (org_id, operation_id, grant_id, credits) values ($1, $2, $3, $4)
         on conflict (org_id, operation_id, grant_id) do update set credits = r.credits + $4";
}

/// What each grant can still get back, in the recorded order. The lane must be locked.
fn refundable(db: &Db, org_id: Uuid, operation_id: i64, burned: &[PostedEntry]) -> Vec<Part> {
    let mut refunded: BTreeMap<i64, i64> =
        db.write(&REFUNDED, args![org_id, operation_id]).iter().map(|row| (row.get(0), row.get(1))).collect();
    burned
        .iter()
        .filter_map(|e| e.grant_id.map(|grant_id| Part { grant_id, credits: e.credits }))
        .map(|part| {
            let back = refunded.get_mut(&part.grant_id).map_or(0, |left| {
                let back = part.credits.min(*left);
                *left -= back;
                back
            });
            Part { credits: part.credits - back, ..part }
        })
        .filter(|part| part.credits > 0)
        .collect()
}

/// Refunds a consumption or capture, whole or in part, to the very grants that it burned, in the recorded order.
///
/// `credits`: null for all that was not refunded yet. What goes back to a grant that has expired or was voided meanwhile expires
/// or is voided at once. The usage stays counted. Errors: PT404 `unknown_operation`; PT409 `refund_exceeds`,
/// `idempotency_conflict`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn refund_credits(
    org_id: Option<pgrx::Uuid>,
    operation_id: Option<i64>,
    credits: default!(Option<i64>, "NULL"),
    reason: default!(Option<&str>, "NULL"),
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> RefundReceipt {
    or_raise(access::service(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let operation_id = required("operation_id", operation_id)?;
        let credits = credits.map(|c| positive("credits", Some(c))).transpose()?;
        let reason = reason.map(|r| crate::pg::arguments::reason(Some(r))).transpose()?;
        let arguments = [operation_id.to_string(), format!("{credits:?}"), format!("{reason:?}")];
        let arguments: Vec<_> = arguments.iter().map(|a| Some(a.as_str())).collect();
        let call = Call::new(org_id, "refund_credits", &arguments, idempotency_key, metadata)?;
        let burned_by = |db: &Db| -> Result<Vec<PostedEntry>> {
            let all = store::past_operation(db, org_id, operation_id);
            let burned: Vec<PostedEntry> = all.into_iter().filter(|e| e.kind == "usage").collect();
            if burned.is_empty() {
                store::require_org(org_id)?;
                return Err(Error::unknown("unknown_operation", operation_id));
            }
            Ok(burned)
        };
        call.run(
            |db, _| {
                let burned = burned_by(db)?;
                store::lock(org_id, &burned[0].unit).ok_or(Error::corrupt("an entry without a wallet"))
            },
            |db, wallet| {
                let burned = burned_by(db)?;
                let open = refundable(db, org_id, operation_id, &burned);
                let total: i64 = open.iter().map(|p| p.credits).sum();
                let credits = credits.unwrap_or(total);
                if credits > total || total == 0 {
                    return Err(Error::refund_exceeds(credits, total));
                }
                let (parts, _) = split(&open, credits);
                let named: Vec<i64> = parts.iter().map(|p| p.grant_id).collect();
                store::load(db, wallet, &named)?;
                let usage = &burned[0];
                let mut operation = call.operation(EntryContext {
                    metric: usage.metric.clone(),
                    member_id: usage.member_id,
                    reason: reason.clone(),
                    actor: Some(crate::access::actor()),
                    ..EntryContext::from_source("operation", Some(operation_id.to_string()))
                });
                wallet.give_back(&mut operation, "refund", &parts)?;
                for part in &parts {
                    db.write(&NOTE, args![org_id, operation_id, part.grant_id, part.credits]);
                }
                wallet.lane.consumed -= credits;
                store::load_budgets(db, wallet, usage.member_id.into_iter().collect());
                let period = usage.member_id.and_then(|m| wallet.budgets.get(&m)).map(|b| b.per);
                let start = period.unwrap_or(Period::Total).start(wallet.now());
                let counted = if usage.created_at >= start { credits } else { 0 };
                wallet.note_member(usage.member_id, -credits, -counted, None);
                wallet.write_off_dead_grants()?;
                let balance_after = wallet.spendable(usage.metric.as_deref());
                Ok((operation, RefundReceipt { operation_id: 0, credits, balance_after, replayed: false }))
            },
        )
    }))
}
