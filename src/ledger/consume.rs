//! `consume_credits`: the common consumption, in two rows.
//!
//! One update of the lane checks, burns from the slice and advances the chain; one insert writes the entry and takes the
//! key: without statements where that is possible (`heap.rs`), else with one each. Whatever that update cannot decide alone
//! (the slice is too small, a grant has expired, credit is scoped, an allowance, a cap or steps of a price ask what was used
//! before…) goes through the rules, as a batch of one.

use crate::arguments::{self, optional_uuid, positive, required, required_uuid};
use crate::catalog::{self, cache};
use crate::clock;
use crate::error::{Error, Result};
use crate::heap::{Equal, Held, Key, Table, Write};
use crate::json::Jsonb;
use crate::ledger::batch::{self, Item};
use crate::ledger::call::Answer;
use crate::ledger::chain::{self, Content, Hash, Position};
use crate::ledger::store::{self, Replay};
use crate::ledger::wallet::{MemberDelta, Wallet};
use crate::raise::or_raise;
use crate::sql::{self, At, Db, FromSql, ToSql};
use crate::time::{INFINITY, Moment};
use crate::usage::fold;
use crate::{alerts, args, receipt, statements, units};
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
    // As few conditions and expressions as can be: the server prepares each of them anew for every call.
    BURN(uuid, text, int8, bytea, timestamptz) =
        "update billing.lanes
            set last_entry_id = last_entry_id + 1,
                balance = balance - $3,
                slice_credits = slice_credits - $3,
                consumed = consumed + $3,
                head = billing.chain_burn(head, $4, last_entry_id, balance, $3, slice_grant)
          where org_id = $1 and unit = $2 and lane = 0 and slice_credits >= $3 and fast_until > $5
         returning last_entry_id, balance, slice_grant, head, fast_until, alert_below";
    UNBURN(uuid, text, int8) =
        "update billing.lanes l
            set balance = balance + $3,
                slice_credits = slice_credits + $3,
                consumed = consumed - $3,
                last_entry_id = last_entry_id - 1,
                head = coalesce((select e.entry_hash from billing.entries e
                                  where e.org_id = $1 and e.entry_id = l.last_entry_id - 1), '')
          where org_id = $1 and unit = $2 and lane = 0";
    // Without a key there is nothing to conflict with: nulls are distinct.
    WRITE(uuid, int8, int8, int8, timestamptz, int8, int8, uuid, text, text, jsonb, bytea, int8, int8, text) =
        "insert into billing.entries (org_id, operation_id, entry_id, amount, balance_before, balance_after, created_at,
                                      grant_id, quantity, member_id, unit, kind, metric, metadata, entry_hash,
                                      request_id, idempotency_key)
         values ($1, $2, $2, $3, $13, $4, $5, $6, $7, $8, $9, 'usage', $10, $11, $12, $14, $15)
         on conflict (org_id, request_id) do nothing";
}

/// Columns of `lanes`, and how many there are in it and in `entries`.
mod column {
    pub const ORG_ID: i16 = 1;
    pub const SLICE_GRANT: usize = 9;
    pub const LANE: i16 = 10;
    pub const UNIT: i16 = 12;
    pub const FAST_UNTIL: usize = 13;
    pub const LAST_ENTRY_ID: usize = 14;
    pub const BALANCE: usize = 15;
    pub const SLICE_CREDITS: usize = 16;
    pub const CONSUMED: usize = 17;
    pub const HEAD: usize = 18;
    pub const ALERT_BELOW: usize = 19;
    pub const LANES: usize = 19;
    pub const ENTRIES: usize = 23;
}

/// A consumption that was asked for.
struct Asked<'a> {
    org_id: Uuid,
    metric: &'a str,
    quantity: i64,
    key: Option<&'a str>,
    member_id: Option<Uuid>,
    /// None: the empty object.
    metadata: Option<Jsonb>,
    metadata_text: String,
}

impl Asked<'_> {
    fn item(&self) -> Item {
        Item {
            org_id: self.org_id,
            metric: self.metric.to_owned(),
            quantity: self.quantity,
            key: self.key.map(str::to_owned),
            member_id: self.member_id,
            metadata: self.metadata_text.clone(),
        }
    }
}

/// The answer that a repeated consumption gets; an error when the key was used for another request.
pub fn replayed(found: &Replay, item: &Item) -> Result<Consumption> {
    // A consumption leaves no fingerprint: its entry has all its arguments.
    let same = found.key == item.key
        && found.request_hash.is_none()
        && found.kind == "usage"
        && found.metric.as_deref() == Some(item.metric.as_str())
        && found.quantity == Some(item.quantity)
        && found.member_id == item.member_id
        && found.metadata == item.metadata;
    if !same {
        return Err(Error::idempotency_conflict(item.key.as_deref().unwrap_or_default()));
    }
    let stored = found.result.as_deref().and_then(|text| serde_json::from_str::<Consumption>(text).ok());
    let answer = stored.unwrap_or_else(|| Consumption {
        operation_id: found.operation_id,
        metric: item.metric.clone(),
        quantity: item.quantity,
        included: 0,
        credits: -found.amount,
        balance_before: found.balance_before,
        balance_after: found.balance_after,
        replayed: true,
    });
    Ok(Consumption { replayed: true, ..answer })
}

/// What the UPDATE of the lane gave.
struct Burned {
    entry_id: i64,
    balance: i64,
    slice_grant: i64,
    head: Vec<u8>,
    fast_until: Moment,
    alert_below: i64,
}

/// What a consumption costs now.
struct Plan {
    now: Moment,
    unit: String,
    credits: i64,
}

fn consume(asked: &Asked<'_>) -> Result<Consumption> {
    sql::connect(|db| match plan(db, asked) {
        Ok(Some(plan)) => charge(db, asked, &plan),
        Ok(None) => batch::consume_one(db, asked.item()),
        // Whatever would be refused now: a call that was made before has its answer.
        Err(error) => replay(db, asked)?.ok_or(error),
    })
}

/// None where what was used before matters: that is for the rules.
fn plan(db: &Db, asked: &Asked<'_>) -> Result<Option<Plan>> {
    let metric = cache::metric(db, asked.metric)?;
    let now = clock::now();
    let price = cache::price(db, &metric, Some(asked.org_id), now)?;
    if !metric.is_plain(price.as_deref()) {
        return Ok(None);
    }
    let Some(price) = price else {
        return Ok(Some(Plan { now, unit: units::CREDIT.to_owned(), credits: 0 }));
    };
    let credits = price.charge(0, asked.quantity).map_err(catalog::too_large)?;
    Ok(Some(Plan { now, unit: price.unit.clone(), credits }))
}

fn charge(db: &Db, asked: &Asked<'_>, plan: &Plan) -> Result<Consumption> {
    let (now, unit, credits) = (plan.now, plan.unit.as_str(), plan.credits);
    let Some(burned) = burn(db, asked, unit, credits, now) else {
        return batch::consume_one(db, asked.item());
    };
    // The wait for the lock may have outlasted the figures of the row.
    if burned.fast_until != INFINITY && burned.fast_until <= clock::now() {
        db.write(&UNBURN, args![asked.org_id, unit, credits]);
        return batch::consume_one(db, asked.item());
    }
    if !write(db, asked, unit, credits, now, &burned) {
        db.write(&UNBURN, args![asked.org_id, unit, credits]);
        return replay(db, asked)?.ok_or_else(Error::contended);
    }
    spend_budget(db, asked, unit, credits, now);
    if fold::is_due(burned.entry_id - 1, burned.entry_id) {
        fold::fold(db, asked.org_id, burned.entry_id);
    }
    if burned.balance < burned.alert_below {
        alerts::balance(db, asked.org_id, &alerts::Open::of(db, asked.org_id), (unit, burned.balance), now)?;
    }
    Ok(Consumption {
        operation_id: burned.entry_id,
        metric: asked.metric.to_owned(),
        quantity: asked.quantity,
        included: 0,
        credits,
        balance_before: burned.balance + credits,
        balance_after: burned.balance,
        replayed: false,
    })
}

fn replay(db: &Db, asked: &Asked<'_>) -> Result<Option<Consumption>> {
    let Some(key) = asked.key else { return Ok(None) };
    store::find_replay(db, asked.org_id, key)?.map(|found| replayed(&found, &asked.item())).transpose()
}

fn burn(db: &Db, asked: &Asked<'_>, unit: &str, credits: i64, now: Moment) -> Option<Burned> {
    let content: Hash = chain::content(&Content {
        org_id: asked.org_id,
        unit,
        kind: "usage",
        amount: -credits,
        quantity: Some(asked.quantity),
        metric: Some(asked.metric),
        member_id: asked.member_id,
        source: None,
        source_id: None,
        idempotency_key: asked.key,
        request_hash: None,
        reason: None,
        actor: None,
        metadata: &asked.metadata_text,
        result: None,
        created_at: now,
        offset: 0,
        terms: None,
    });
    if let Some(lanes) = Table::open("lanes", column::LANES, Write::Update) {
        return burn_row(&lanes, asked, unit, (credits, now), &content);
    }
    let rows = db.write(&BURN, args![asked.org_id, unit, credits, content.as_slice(), At(now)]);
    rows.first().map(|row| Burned {
        entry_id: row.get(0),
        balance: row.get(1),
        slice_grant: row.get(2),
        head: row.get(3),
        fast_until: row.get(4),
        alert_below: row.get(5),
    })
}

/// What BURN does.
fn burn_row(
    lanes: &Table,
    asked: &Asked<'_>,
    unit: &str,
    (credits, now): (i64, Moment),
    content: &Hash,
) -> Option<Burned> {
    let keys = [
        Key(column::ORG_ID, Equal::Uuid, asked.org_id.to_sql()),
        Key(column::UNIT, Equal::Text, unit.to_sql()),
        Key(column::LANE, Equal::Small, 0_i16.to_sql()),
    ];
    let mut burned = None;
    lanes.update_one("lanes_pkey", &keys, Held::Wait, |row| {
        // SAFETY: a column of 64 bits, by value.
        let number = |column: usize| row[column - 1].map(|datum| unsafe { i64::from_sql(datum) });
        let (slice, fast_until) = (number(column::SLICE_CREDITS)?, number(column::FAST_UNTIL)?);
        if slice < credits || fast_until <= now {
            return None;
        }
        // SAFETY: a column of type bytea.
        let head: Vec<u8> = row[column::HEAD - 1].map(|datum| unsafe { FromSql::from_sql(datum) })?;
        let (before, slice_grant) = (number(column::BALANCE)?, number(column::SLICE_GRANT)?);
        let (balance, entry_id) = (before - credits, number(column::LAST_ENTRY_ID)? + 1);
        let consumed = number(column::CONSUMED)?.checked_add(credits)?;
        let head = chain::link(&head, content, position(entry_id, before, credits, slice_grant)).to_vec();
        let changed = vec![
            (column::LAST_ENTRY_ID, entry_id.to_sql()),
            (column::BALANCE, balance.to_sql()),
            (column::SLICE_CREDITS, (slice - credits).to_sql()),
            (column::CONSUMED, consumed.to_sql()),
            (column::HEAD, head.as_slice().to_sql()),
        ];
        let alert_below = number(column::ALERT_BELOW)?;
        burned = Some(Burned { entry_id, balance, slice_grant, head, fast_until, alert_below });
        Some(changed)
    });
    burned
}

/// Of a usage entry. A burn of nothing names no grant.
fn position(entry_id: i64, balance: i64, credits: i64, slice_grant: i64) -> Position {
    let grant_id = (credits != 0).then_some(slice_grant);
    Position { entry_id, balance_before: balance, balance_after: balance - credits, grant_id }
}

/// What WRITE does; None where a statement has to decide.
fn write_row(
    asked: &Asked<'_>,
    unit: &str,
    (credits, now): (i64, Moment),
    burned: &Burned,
    metadata: Jsonb,
) -> Option<()> {
    let entries = Table::open("entries", column::ENTRIES, Write::Insert)?;
    let row = [
        asked.org_id.to_sql(),
        burned.entry_id.to_sql(),
        burned.entry_id.to_sql(),
        (-credits).to_sql(),
        (burned.balance + credits).to_sql(),
        burned.balance.to_sql(),
        now.to_sql(),
        (credits > 0).then_some(burned.slice_grant).to_sql(),
        asked.quantity.to_sql(),
        None,
        asked.key.map(chain::request_id).to_sql(),
        asked.member_id.to_sql(),
        unit.to_sql(),
        "usage".to_sql(),
        asked.metric.to_sql(),
        None,
        None,
        asked.key.to_sql(),
        None,
        None,
        metadata.to_sql(),
        None,
        burned.head.as_slice().to_sql(),
    ];
    if asked.key.is_none() {
        entries.insert(&row);
        return Some(());
    }
    entries.insert_new("entries_request", &row).then_some(())
}

/// Writes the entry; false when the key is taken.
fn write(db: &Db, asked: &Asked<'_>, unit: &str, credits: i64, now: Moment, burned: &Burned) -> bool {
    let grant = (credits > 0).then_some(burned.slice_grant);
    let metadata = asked.metadata.unwrap_or_else(|| crate::json::from_text("{}"));
    if write_row(asked, unit, (credits, now), burned, metadata).is_some() {
        return true;
    }
    let written = db.write(
        &WRITE,
        args![
            asked.org_id,
            burned.entry_id,
            -credits,
            burned.balance,
            At(now),
            grant,
            asked.quantity,
            asked.member_id,
            unit,
            asked.metric,
            metadata,
            burned.head.as_slice(),
            burned.balance + credits,
            asked.key.map(chain::request_id),
            asked.key,
        ],
    );
    written.count() == 1
}

fn spend_budget(db: &Db, asked: &Asked<'_>, unit: &str, credits: i64, now: Moment) {
    let Some(member_id) = asked.member_id else { return };
    let delta = MemberDelta { consumed: credits, period: credits, active_at: Some(now) };
    if !store::save_member(db, asked.org_id, unit, member_id, &delta, now, true) {
        // The rules say why. What was written so far goes with the error: so it must be raised, not returned.
        or_raise(refusal(db, asked, unit, member_id, credits, now));
    }
}

fn refusal(db: &Db, asked: &Asked<'_>, unit: &str, member_id: Uuid, credits: i64, now: Moment) -> Result<()> {
    let lane = store::lock(db, asked.org_id, unit).ok_or_else(Error::contended)?;
    let mut wallet = Wallet::new(lane, now);
    store::load_budgets(db, &mut wallet, vec![member_id]);
    wallet.check_budget(Some(member_id), credits)?;
    Err(Error::contended())
}

/// The hash of the usage entry that follows `last_entry_id`, for the UPDATE that advances the head of a lane: `chain::link`
/// in SQL. A burn of nothing names no grant.
#[pg_extern(immutable, parallel_safe)]
fn chain_burn(
    previous: &[u8],
    content: &[u8],
    last_entry_id: i64,
    balance: i64,
    credits: i64,
    slice_grant: i64,
) -> Vec<u8> {
    let content = or_raise(Hash::try_from(content).map_err(|_| Error::invalid("content", "must have 32 bytes")));
    chain::link(previous, &content, position(last_entry_id + 1, balance, credits, slice_grant)).to_vec()
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
        consume(&Asked {
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
