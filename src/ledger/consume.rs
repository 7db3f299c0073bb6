//! `consume_credits`: the common consumption, in two rows.
//!
//! One update of a lane checks, burns from its slice and advances the chain; one insert writes the entry and takes the
//! key: without statements (`heap`). Whatever that update cannot decide alone (the slice is too small, a grant has expired,
//! credit is scoped, an allowance, a cap or steps of a price ask what was used before, a statement is needed…) goes through the
//! rules, as a batch of one.

use crate::access;
use crate::arguments::{self, optional_uuid, positive, required, required_uuid};
use crate::catalog::{self, cache};
use crate::clock;
use crate::error::{Error, Result};
use crate::json::Jsonb;
use crate::ledger::batch::{self, Item};
use crate::ledger::call::Answer;
use crate::ledger::chain::{self, Content, Hash, Position};
use crate::ledger::lanes::{self, Step, Waits};
use crate::ledger::rows::{self, Entries, EntryRow, Lanes};
use crate::ledger::split;
use crate::ledger::store::{self, Replay};
use crate::ledger::wallet::{MemberDelta, Wallet};
use crate::raise::or_raise;
use crate::schema::ledger::lanes as table;
use crate::schema::{Changed, Finder, Insertion, LockPolicy, Snapshot, may_change_rows};
use crate::sql::{self, Db};
use crate::time::{INFINITY, Moment};
use crate::usage::fold;
use crate::usage::recent::{Entry, Recent};
use crate::{alerts, args, receipt, statements, units};
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
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
    UNBURN(uuid, text, int8, int2) =
        "update billing.lanes l
            set balance = balance + $3,
                slice_credits = slice_credits + $3,
                consumed = consumed - $3,
                last_entry_id = last_entry_id - 1,
                head = coalesce((select e.entry_hash from billing.entries e
                                  where e.org_id = $1 and e.entry_id = l.last_entry_id - 1), '')
          where org_id = $1 and unit = $2 and lane = $4";
}

/// How often a split wallet is looked at again before the rules decide.
const LOOKS: usize = 1000;

/// Of how many contended wallets a backend takes notes.
const MOST_HOT: usize = 256;

/// How soon a backend asks again whether a wallet wants more lanes.
const SECOND: Moment = 1_000_000;

/// What a backend remembers of a wallet that many spend from: where to look, never what is there.
#[derive(Clone, Copy)]
struct Hot {
    lanes: i16,
    waits: Waits,
    next_look: Moment,
}

thread_local! {
    static HOT: RefCell<HashMap<(Uuid, String), Hot>> = RefCell::default();
}

impl Hot {
    const COLD: Self = Self { lanes: 1, waits: Waits::NONE, next_look: 0 };

    fn of(asked: &Asked<'_>, unit: &str) -> Self {
        HOT.with_borrow(|hot| {
            let known = if hot.is_empty() { None } else { hot.get(&(asked.org_id, unit.to_owned())).copied() };
            known.unwrap_or(Self::COLD)
        })
    }

    fn keep(self, asked: &Asked<'_>, unit: &str) {
        HOT.with_borrow_mut(|hot| {
            let name = (asked.org_id, unit.to_owned());
            if self.lanes == 1 && self.waits == Waits::NONE {
                hot.remove(&name);
                return;
            }
            if hot.len() >= MOST_HOT {
                hot.clear();
            }
            hot.insert(name, self);
        });
    }

    /// Notes whether a call had to wait, and sees to it that there are lanes enough.
    fn note(mut self, db: &Db, asked: &Asked<'_>, unit: &str, waited: bool) -> Result<()> {
        if self.lanes == 1 && self.waits == Waits::NONE && !waited {
            return Ok(());
        }
        self.waits.note(waited);
        let now = clock::now();
        if self.waits.are_many() && self.next_look <= now {
            (self.waits, self.next_look) = (Waits::NONE, now.saturating_add(SECOND));
            self.lanes = split::tense(db, asked.org_id, unit, self.lanes)?;
        }
        self.keep(asked, unit);
        Ok(())
    }
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
    let stored = found.result.as_deref().and_then(|text| serde_json::from_str::<Kept>(text).ok()).unwrap_or_default();
    Ok(Consumption {
        operation_id: stored.operation_id.unwrap_or(found.operation_id),
        metric: item.metric.clone(),
        quantity: item.quantity,
        included: stored.included.unwrap_or(0),
        credits: stored.credits.unwrap_or(-found.amount),
        balance_before: stored.balance_before.unwrap_or(found.balance_before),
        balance_after: stored.balance_after.unwrap_or(found.balance_after),
        replayed: true,
    })
}

/// What is kept of an answer where its entry alone does not tell it.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    included: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credits: Option<i64>,
    balance_before: Option<i64>,
    balance_after: Option<i64>,
}

/// What the update of a lane gave.
struct Burned {
    lane: i16,
    entry_id: i64,
    /// The lane's.
    balance: i64,
    slice_grant: i64,
    head: Vec<u8>,
    fast_until: Moment,
    /// The wallet's, after it.
    total: i64,
    alert_below: i64,
    alert_base: i64,
    /// Kept with the entry, for a repeated call.
    result: Option<String>,
    waited: bool,
    /// The lane is to be folded.
    is_due: bool,
    /// And what its entries come to, where it knew.
    recent: Option<Recent>,
}

/// What became of it.
enum Burn {
    Done(Burned),
    /// The rules must decide; and see to this lane, where it had run dry.
    Dry(Option<i16>),
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
        Ok(None) => batch::consume_one(db, asked.item(), None),
        // Whatever would be refused now: a call that was made before has its answer.
        Err(error) => replay(asked)?.ok_or(error),
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
    let hot = Hot::of(asked, unit);
    let burned = match burn(asked, (unit, credits, now), hot) {
        Burn::Done(burned) => burned,
        Burn::Dry(lane) => return batch::consume_one(db, asked.item(), lane),
    };
    // The wait for the lock may have outlasted the figures of the row.
    if burned.fast_until != INFINITY && burned.fast_until <= clock::now() {
        db.write(&UNBURN, args![asked.org_id, unit, credits, burned.lane]);
        return batch::consume_one(db, asked.item(), None);
    }
    if !write(asked, unit, credits, now, &burned) {
        db.write(&UNBURN, args![asked.org_id, unit, credits, burned.lane]);
        return replay(asked)?.ok_or_else(Error::contended);
    }
    spend_budget(db, asked, unit, credits, now);
    let (lane, waited) = (burned.lane, burned.waited);
    let (operation_id, total) = (burned.entry_id, burned.total);
    afterwards(db, asked, unit, now, burned)?;
    let hot = if lane == 0 { Hot { lanes: 1, ..hot } } else { Hot { lanes: hot.lanes.max(2), ..Hot::of(asked, unit) } };
    hot.note(db, asked, unit, waited)?;
    Ok(Consumption {
        operation_id,
        metric: asked.metric.to_owned(),
        quantity: asked.quantity,
        included: 0,
        credits,
        balance_before: total + credits,
        balance_after: total,
        replayed: false,
    })
}

/// Reports and alerts. Whoever holds a lane does not wait for the wallet: it is for the next call then.
fn afterwards(db: &Db, asked: &Asked<'_>, unit: &str, now: Moment, burned: Burned) -> Result<()> {
    let is_low = burned.total < burned.alert_below;
    if !burned.is_due && !is_low || burned.lane > 0 && store::lock_if_free(asked.org_id, unit).is_none() {
        return Ok(());
    }
    if burned.is_due {
        fold::fold(asked.org_id, unit, burned.entry_id, burned.recent);
    }
    if is_low {
        let open = alerts::Open::of(db, asked.org_id);
        alerts::balance(db, asked.org_id, &open, (unit, burned.total, burned.alert_base, burned.alert_below), now)?;
    }
    Ok(())
}

fn replay(asked: &Asked<'_>) -> Result<Option<Consumption>> {
    let Some(key) = asked.key else { return Ok(None) };
    store::find_replay(asked.org_id, key)?.map(|found| replayed(&found, &asked.item())).transpose()
}

/// What all of the entry's columns come to but those that its place in the chain gives.
fn content(asked: &Asked<'_>, (unit, credits, now): (&str, i64, Moment), result: Option<&str>) -> Hash {
    chain::content(&Content {
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
        result,
        created_at: now,
        offset: 0,
        terms: None,
    })
}

fn burn(asked: &Asked<'_>, (unit, credits, now): (&str, i64, Moment), hot: Hot) -> Burn {
    if !may_change_rows() {
        return Burn::Dry(None);
    }
    let lanes = Lanes::to_update();
    let mut is_split = hot.lanes > 1;
    // The note may be old: what is there decides.
    for _ in 0..2 {
        if is_split {
            match burn_split(&lanes, asked, (unit, credits, now), hot) {
                Some(burn) => return burn,
                None => is_split = false,
            }
        } else {
            let content = content(asked, (unit, credits, now), None);
            match burn_lane((&lanes, None), asked, (unit, credits, now), (0, LockPolicy::Wait), &content) {
                Tried::Burned(burned) => return Burn::Done(burned),
                Tried::Split => is_split = true,
                Tried::No | Tried::Held => return Burn::Dry(None),
            }
        }
    }
    Burn::Dry(None)
}

/// Burns from one of the lanes of a split wallet; None where it is not split.
fn burn_split(table: &Lanes, asked: &Asked<'_>, (unit, credits, now): (&str, i64, Moment), hot: Hot) -> Option<Burn> {
    // Backends begin with lanes of their own.
    let mine = i16::try_from(sql::backend_id() % i32::from(lanes::MOST)).unwrap_or_default() + 1;
    let mut waited = false;
    for _ in 0..LOOKS {
        let (mut seen, finder) = rows::glance(table, (asked.org_id, unit), Snapshot::Latest, clock::now())?;
        let mut finder = Some(finder);
        if seen.lanes <= 1 {
            Hot { lanes: 1, waits: Waits::NONE, ..hot }.keep(asked, unit);
            return None;
        }
        if seen.lanes != hot.lanes {
            Hot { lanes: seen.lanes, ..Hot::of(asked, unit) }.keep(asked, unit);
        }
        if seen.fast_until <= clock::now() {
            return Some(Burn::Dry(None));
        }
        // A repeated call is told the wallet's figures again, not the lane's.
        let total = seen.total - credits;
        let (balance_before, balance_after) = (Some(seen.total), Some(total));
        let result = asked
            .key
            .and_then(|_| serde_json::to_string(&Kept { balance_before, balance_after, ..Kept::default() }).ok());
        let content = content(asked, (unit, credits, now), result.as_deref());
        // A look at all lanes costs more than an attempt at one: as long as they are only held, it serves.
        loop {
            let (lane, how) = match lanes::step(&seen.view, mine, credits, &seen.held) {
                Step::Wallet(lane) => return Some(Burn::Dry(Some(lane))),
                Step::Burn(lane) => (lane, LockPolicy::SkipLocked),
                Step::Await(lane) => (lane, LockPolicy::JoinQueue),
            };
            waited |= how == LockPolicy::JoinQueue;
            match burn_lane((table, finder.take()), asked, (unit, credits, now), (lane, how), &content) {
                Tried::Burned(burned) => {
                    let (alert_below, alert_base) = (seen.alert_below, seen.alert_base);
                    return Some(Burn::Done(Burned { total, alert_below, alert_base, result, waited, ..burned }));
                }
                // Somebody has taken it since we looked.
                Tried::Held if how == LockPolicy::SkipLocked => seen.held.push(lane),
                // Somebody else was faster, or has waited with us.
                Tried::Held | Tried::No | Tried::Split => break,
            }
        }
    }
    Some(Burn::Dry(None))
}

/// What came of a lane.
enum Tried {
    Burned(Burned),
    /// It has not enough, or time has passed over it.
    No,
    Held,
    /// The wallet has other lanes to burn from.
    Split,
}

/// One update of a lane: checks, burns from its slice, advances the chain, and takes the entry in where it is to be reported.
fn burn_lane<'a>(
    (lanes, seen): (&'a Lanes, Option<Finder<'a, table::Table>>),
    asked: &Asked<'_>,
    (unit, credits, now): (&str, i64, Moment),
    (lane, how): (i16, LockPolicy),
    content: &Hash,
) -> Tried {
    let mut burned = None;
    let mut is_split = false;
    let changed = lanes.update_seen(seen, &table::one(asked.org_id, unit, lane), how, |row| {
        is_split = row.lanes() > 1;
        if is_split {
            return None;
        }
        let (slice, fast_until) = (row.slice_credits(), row.fast_until());
        if slice < credits || fast_until <= clock::now() {
            return None;
        }
        let (before, slice_grant) = (row.balance(), row.slice_grant());
        let (balance, last_entry_id) = (before - credits, row.last_entry_id());
        let entry_id = last_entry_id + 1;
        let is_due = fold::is_due(last_entry_id, entry_id);
        let recent = rows::recent(row).map(|mut recent| {
            recent.add(entry(asked, entry_id, credits, now));
            recent
        });
        let kept = Recent::to_keep(recent.as_ref(), entry_id, is_due);
        let consumed = row.consumed().checked_add(credits)?;
        let head = chain::link(row.head(), content, position(entry_id, before, credits, slice_grant)).to_vec();
        let changed = table::Set::new()
            .last_entry_id(entry_id)
            .balance(balance)
            .slice_credits(slice - credits)
            .consumed(consumed)
            .head(head.as_slice())
            .recent(kept.as_deref());
        burned = Some(Burned {
            lane,
            entry_id,
            balance,
            slice_grant,
            head,
            fast_until,
            total: balance,
            alert_below: row.alert_below(),
            alert_base: row.alert_base(),
            result: None,
            waited: false,
            is_due,
            recent: recent.filter(|_| is_due),
        });
        Some(changed)
    });
    match (changed, burned) {
        (Changed::Yes, Some(burned)) => Tried::Burned(burned),
        (Changed::AfterWaiting, Some(burned)) => Tried::Burned(Burned { waited: true, ..burned }),
        _ if is_split => Tried::Split,
        (Changed::Held, _) => Tried::Held,
        _ => Tried::No,
    }
}

fn entry<'a>(asked: &Asked<'a>, entry_id: i64, credits: i64, created_at: Moment) -> Entry<'a> {
    let (kind, metric, quantity) = ("usage", Some(asked.metric), Some(asked.quantity));
    let (operation_id, amount) = (entry_id, -credits);
    Entry { entry_id, operation_id, kind, metric, source: None, created_at, quantity, amount }
}

/// Of a usage entry. A burn of nothing names no grant.
fn position(entry_id: i64, balance: i64, credits: i64, slice_grant: i64) -> Position {
    let grant_id = (credits != 0).then_some(slice_grant);
    Position { entry_id, balance_before: balance, balance_after: balance - credits, grant_id }
}

/// Writes the entry; false when the key is taken.
fn write(asked: &Asked<'_>, unit: &str, credits: i64, now: Moment, burned: &Burned) -> bool {
    let row = EntryRow {
        org_id: asked.org_id,
        operation_id: burned.entry_id,
        position: position(burned.entry_id, burned.balance + credits, credits, burned.slice_grant),
        amount: -credits,
        created_at: now,
        quantity: Some(asked.quantity),
        request_hash: None,
        member_id: asked.member_id,
        unit,
        kind: "usage",
        metric: Some(asked.metric),
        source: None,
        source_id: None,
        key: asked.key,
        reason: None,
        actor: None,
        metadata: asked.metadata.filter(|metadata| !metadata.is_empty_object()),
        result: burned.result.as_deref(),
        hash: &burned.head,
    };
    // Whoever else uses the key in this wallet waits for lane 0, unless there are others.
    let insertion = if burned.lane == 0 { Insertion::Plain } else { Insertion::Speculative };
    row.insert(&Entries::to_insert(), insertion)
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
    let lane = store::look(asked.org_id, unit).ok_or_else(Error::contended)?;
    let mut wallet = Wallet::new(lane, now);
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
#[pg_extern(volatile)]
fn consume_credits(
    org_id: Option<pgrx::Uuid>,
    metric: Option<&str>,
    quantity: default!(Option<i64>, 1),
    idempotency_key: default!(Option<&str>, "NULL"),
    member_id: default!(Option<pgrx::Uuid>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> Consumption {
    or_raise(access::service(|| {
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
    }))
}
