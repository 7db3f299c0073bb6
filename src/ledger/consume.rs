//! `consume_credits`: the common consumption, in two statements.
//!
//! One UPDATE of the lane checks, burns from the slice and advances the chain; one INSERT writes the entry and takes the
//! key. Whatever that UPDATE cannot decide alone (the slice is too small, a grant has expired, credit is scoped…) goes
//! through the rules, as a batch of one.

use crate::arguments::{self, optional_uuid, positive, required, required_uuid};
use crate::catalog::{self, cache};
use crate::clock;
use crate::error::{Error, Result};
use crate::json::Jsonb;
use crate::ledger::batch::{self, Item};
use crate::ledger::call::Answer;
use crate::ledger::chain::{self, Content, Hash};
use crate::ledger::store::{self, Replay};
use crate::raise::or_raise;
use crate::sql::{self, At, Db};
use crate::time::{Moment, NEVER_YET, Period};
use crate::{args, receipt, statements, units};
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

receipt! {
    /// Of a consumption.
    #[derive(Serialize, Deserialize)]
    Consumption as "consumption" {
        operation_id: i64,
        metric: String,
        quantity: i64,
        included: i64,
        credits: i64,
        balance_before: i64,
        balance_after: i64,
        replayed: bool,
    }
}
impl Answer for Consumption {
    fn set_replayed(&mut self) {
        self.replayed = true;
    }
    fn set_operation(&mut self, operation_id: i64) {
        self.operation_id = operation_id;
    }
}

statements! {
    // The hash must agree with chain::link. `scoped = 0 and future = 0` makes the balance of the row the spendable total.
    BURN(uuid, text, int8, bytea, timestamptz) =
        "update billing.lanes
            set balance = balance - $3,
                slice_credits = slice_credits - $3,
                consumed = consumed + $3,
                last_entry_id = last_entry_id + 1,
                head = sha256(head || $4 || int8send(last_entry_id + 1) || int8send(balance) || int8send(balance - $3)
                              || int8send(case when $3 = 0 then 0 else slice_grant end))
          where org_id = $1 and unit = $2 and lane = 0
            and slice_credits >= $3 and fresh_until > $5 and scoped = 0 and future = 0
         returning last_entry_id, balance, slice_grant, head, fresh_until";
    UNBURN(uuid, text, int8) =
        "update billing.lanes l
            set balance = balance + $3,
                slice_credits = slice_credits + $3,
                consumed = consumed - $3,
                last_entry_id = last_entry_id - 1,
                head = coalesce((select e.entry_hash from billing.entries e
                                  where e.org_id = $1 and e.entry_id = l.last_entry_id - 1), '')
          where org_id = $1 and unit = $2 and lane = 0";
    WRITE(uuid, int8, int8, int8, timestamptz, int8, int8, uuid, text, text, jsonb, bytea) =
        "insert into billing.entries (org_id, operation_id, entry_id, amount, balance_before, balance_after, created_at,
                                      grant_id, quantity, member_id, unit, kind, metric, metadata, entry_hash)
         values ($1, $2, $2, - $3, $4 + $3, $4, $5, $6, $7, $8, $9, 'usage', $10, $11, $12)";
    WRITE_KEYED(uuid, int8, int8, int8, timestamptz, int8, int8, uuid, text, text, jsonb, bytea, int8, text) =
        "insert into billing.entries (org_id, operation_id, entry_id, amount, balance_before, balance_after, created_at,
                                      grant_id, quantity, member_id, unit, kind, metric, metadata, entry_hash,
                                      request_hash, idempotency_key)
         values ($1, $2, $2, - $3, $4 + $3, $4, $5, $6, $7, $8, $9, 'usage', $10, $11, $12, $13, $14)
         on conflict (org_id, hashtextextended(idempotency_key, 0), hashtextextended(idempotency_key, 1))
            where idempotency_key is not null do nothing";
    COUNT(uuid, text, timestamptz, int8) =
        "insert into billing.period_usage as u (org_id, metric, period_start, quantity) values ($1, $2, $3, $4)
         on conflict (org_id, metric, period_start) do update set quantity = u.quantity + $4
          where u.quantity <= 9223372036854775807 - $4
         returning quantity";
    CHARGED(uuid, text, timestamptz, int8) =
        "update billing.period_usage set credits = credits + $4
          where org_id = $1 and metric = $2 and period_start = $3";
    UNCOUNT(uuid, text, timestamptz, int8) =
        "update billing.period_usage set quantity = quantity - $4
          where org_id = $1 and metric = $2 and period_start = $3";
    SPEND_BUDGET(uuid, text, uuid, int8, timestamptz, timestamptz, timestamptz, timestamptz) =
        "insert into billing.member_usage as m
                (org_id, unit, member_id, consumed, period_consumed, period_start, last_activity_at)
         values ($1, $2, $3, $4, $4, '-infinity', $5)
         on conflict (org_id, unit, member_id) do update
            set consumed = m.consumed + $4,
                period_consumed = $4 + case when m.period_start =
                    case m.budget_per when 'day' then $6 when 'month' then $7 else $8 end
                    then m.period_consumed else 0 end,
                period_start = case m.budget_per when 'day' then $6 when 'month' then $7 else $8 end,
                last_activity_at = $5
          where m.budget is null or $4 = 0
             or $4 + case when m.period_start = case m.budget_per when 'day' then $6 when 'month' then $7 else $8 end
                     then m.period_consumed else 0 end <= m.budget
         returning true";
}

/// A consumption that was asked for.
struct Request<'a> {
    org_id: Uuid,
    metric: &'a str,
    quantity: i64,
    key: Option<&'a str>,
    member_id: Option<Uuid>,
    /// None: the empty object.
    metadata: Option<Jsonb>,
    metadata_text: String,
}

impl Request<'_> {
    fn fingerprint(&self) -> i64 {
        fingerprint(self.metric, self.quantity, self.member_id, &self.metadata_text)
    }
}

/// Fingerprint of a consumption, single or in a batch.
pub fn fingerprint(metric: &str, quantity: i64, member_id: Option<Uuid>, metadata: &str) -> i64 {
    let member = member_id.map(|m| m.to_string());
    chain::fingerprint(
        "consume_credits",
        &[Some(metric), Some(&quantity.to_string()), member.as_deref(), Some(metadata)],
    )
}

/// The answer that a repeated call gets.
pub fn replayed(found: Replay) -> Result<Consumption> {
    let stored = found.result.as_deref().and_then(|text| serde_json::from_str::<Consumption>(text).ok());
    let mut answer = match (stored, found.metric, found.quantity) {
        (Some(stored), _, _) => stored,
        (None, Some(metric), Some(quantity)) => Consumption {
            operation_id: found.operation_id,
            metric,
            quantity,
            included: 0,
            credits: -found.amount,
            balance_before: found.balance_before,
            balance_after: found.balance_after,
            replayed: true,
        },
        _ => return Err(Error::corrupt("a consumption without metric and quantity")),
    };
    answer.replayed = true;
    Ok(answer)
}

/// What the UPDATE of the lane gave.
struct Burned {
    entry_id: i64,
    balance: i64,
    slice_grant: i64,
    head: Vec<u8>,
    fresh_until: Moment,
}

fn consume(request: &Request<'_>) -> Result<Consumption> {
    sql::connect(|db| {
        let metric = cache::metric(db, request.metric)?;
        let now = clock::now();
        let price = cache::price(db, &metric, Some(request.org_id), now)?;
        let unit = price.as_ref().map_or(units::CREDIT, |p| p.unit.as_str());
        let period = At(Period::Month.start(now));
        // Counting first takes the lock of the counter, so that the price follows from what was used before.
        let counted = price.as_ref().is_some_and(|p| !p.is_linear());
        let credits = match &price {
            None => 0,
            Some(price) if counted => {
                store::require_org(db, request.org_id)?;
                let rows = db.write(&COUNT, args![request.org_id, request.metric, period, request.quantity]);
                let after: i64 =
                    rows.first().map(|row| row.get(0)).ok_or(catalog::too_large(catalog::price::Overflow))?;
                price.charge(after - request.quantity, request.quantity).map_err(catalog::too_large)?
            }
            Some(price) => price.charge(0, request.quantity).map_err(catalog::too_large)?,
        };
        let uncount = || {
            if counted {
                db.write(&UNCOUNT, args![request.org_id, request.metric, period, request.quantity]);
            }
        };
        let Some(burned) = burn(db, request, unit, credits, now) else {
            uncount();
            return batch::consume_one(db, slow_item(request));
        };
        // The wait for the lock may have outlasted the figures of the row.
        if burned.fresh_until <= clock::now() {
            db.write(&UNBURN, args![request.org_id, unit, credits]);
            uncount();
            return batch::consume_one(db, slow_item(request));
        }
        if !write(db, request, unit, credits, now, &burned) {
            db.write(&UNBURN, args![request.org_id, unit, credits]);
            uncount();
            let asked = request.key.map(|key| (key.to_owned(), request.fingerprint()));
            let found = store::find_replay(db, request.org_id, asked.as_ref())?;
            return replayed(found.ok_or_else(Error::contended)?);
        }
        if counted && credits > 0 {
            db.write(&CHARGED, args![request.org_id, request.metric, period, credits]);
        }
        spend_budget(db, request, unit, credits, now)?;
        Ok(Consumption {
            operation_id: burned.entry_id,
            metric: request.metric.to_owned(),
            quantity: request.quantity,
            included: 0,
            credits,
            balance_before: burned.balance + credits,
            balance_after: burned.balance,
            replayed: false,
        })
    })
}

fn slow_item(request: &Request<'_>) -> Item {
    Item {
        org_id: request.org_id,
        metric: request.metric.to_owned(),
        quantity: request.quantity,
        request: request.key.map(|key| (key.to_owned(), request.fingerprint())),
        member_id: request.member_id,
        metadata: request.metadata_text.clone(),
    }
}

fn burn(db: &Db, request: &Request<'_>, unit: &str, credits: i64, now: Moment) -> Option<Burned> {
    let content: Hash = chain::content(&Content {
        org_id: request.org_id,
        unit,
        kind: "usage",
        amount: -credits,
        quantity: Some(request.quantity),
        metric: Some(request.metric),
        member_id: request.member_id,
        source: None,
        source_id: None,
        idempotency_key: request.key,
        request_hash: request.key.map(|_| request.fingerprint()),
        reason: None,
        actor: None,
        metadata: &request.metadata_text,
        result: None,
        created_at: now,
        offset: 0,
    });
    let rows = db.write(&BURN, args![request.org_id, unit, credits, content.as_slice(), At(now)]);
    rows.first().map(|row| Burned {
        entry_id: row.get(0),
        balance: row.get(1),
        slice_grant: row.get(2),
        head: row.get(3),
        fresh_until: row.get(4),
    })
}

/// Writes the entry; false when the key is taken.
fn write(db: &Db, request: &Request<'_>, unit: &str, credits: i64, now: Moment, burned: &Burned) -> bool {
    let grant = (credits > 0).then_some(burned.slice_grant);
    let metadata = request.metadata.unwrap_or_else(|| crate::json::from_text("{}"));
    match request.key {
        None => {
            db.write(
                &WRITE,
                args![
                    request.org_id,
                    burned.entry_id,
                    credits,
                    burned.balance,
                    At(now),
                    grant,
                    request.quantity,
                    request.member_id,
                    unit,
                    request.metric,
                    metadata,
                    burned.head.as_slice(),
                ],
            );
            true
        }
        Some(key) => {
            let rows = db.write(
                &WRITE_KEYED,
                args![
                    request.org_id,
                    burned.entry_id,
                    credits,
                    burned.balance,
                    At(now),
                    grant,
                    request.quantity,
                    request.member_id,
                    unit,
                    request.metric,
                    metadata,
                    burned.head.as_slice(),
                    request.fingerprint(),
                    key,
                ],
            );
            rows.count() == 1
        }
    }
}

fn spend_budget(db: &Db, request: &Request<'_>, unit: &str, credits: i64, now: Moment) -> Result<()> {
    let Some(member_id) = request.member_id else { return Ok(()) };
    let (day, month) = (At(Period::Day.start(now)), At(Period::Month.start(now)));
    let rows =
        db.write(&SPEND_BUDGET, args![request.org_id, unit, member_id, credits, At(now), day, month, At(NEVER_YET)]);
    if rows.count() == 1 {
        return Ok(());
    }
    // Refused: the rules say why. What was written so far goes with the error.
    let lane = store::lock(db, request.org_id, unit).ok_or_else(Error::contended)?;
    let mut wallet = crate::ledger::wallet::Wallet::new(lane, now);
    store::load_budgets(db, &mut wallet, vec![member_id]);
    wallet.check_budget(Some(member_id), credits)?;
    Err(Error::contended())
}

/// Charges an org for `quantity` of a metric, in the caller's transaction: counts the usage, prices it, and burns the credit.
///
/// `quantity`: whole units, from 1. `idempotency_key`: 1 to 255 bytes; a repeated call with the same arguments charges
/// nothing and gives the first result, marked `replayed`. `member_id`: who in the org it was for. `metadata`: an object. The
/// result's balances are what the org can spend on that metric. Errors: PT402 `insufficient_credits`; PT404 `unknown_org`,
/// `unknown_metric`; PT409 `idempotency_conflict`; PT429 `cap_exceeded`; 22023.
#[pg_extern(volatile, security_definer)]
#[search_path(pg_catalog, billing, pg_temp)]
fn consume_credits(
    org_id: Option<pgrx::Uuid>,
    metric: Option<&str>,
    quantity: default!(Option<i64>, 1),
    idempotency_key: default!(Option<&str>, "NULL"),
    member_id: default!(Option<pgrx::Uuid>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> Consumption {
    or_raise((|| {
        let metadata = arguments::metadata(metadata)?;
        consume(&Request {
            org_id: required_uuid("org_id", org_id)?,
            metric: required("metric", metric)?,
            quantity: positive("quantity", quantity)?,
            key: arguments::key(idempotency_key)?,
            member_id: optional_uuid(member_id),
            metadata,
            metadata_text: metadata.map_or_else(|| "{}".to_owned(), Jsonb::text),
        })
    })())
}
