//! `consume_credits`: the common consumption, in two rows.
//!
//! One update of a lane checks, burns from its slice and advances the chain; one insert writes the
//! entry and takes the key. Both are made without statements (`heap`). A case that this update
//! cannot decide alone goes through the rules, as a batch of one: the slice is too small, a grant
//! has expired, credit is scoped, an allowance, a cap or steps of a price depend on earlier usage,
//! or a statement is needed.

use crate::alerts::rules::BalanceChange;
use crate::alerts::store::ActiveAlerts;
use crate::base::error::{Error, Result};
use crate::base::hash::Hash;
use crate::base::time::{INFINITY, Moment};
use crate::base::units;
use crate::base::words::Word;
use crate::catalog::{cache, price};
use crate::ledger::chain::{self, Content, Position};
use crate::ledger::kind::EntryKind;
use crate::ledger::lanes::{self, ContentionMeter, Step};
use crate::ledger::recent::{Entry, LaneSummary, is_fold_due};
use crate::ledger::rows::{self, Entries, EntryRow, Lanes};
use crate::ledger::store;
use crate::ledger::wallet::{MemberDelta, Wallet};
use crate::pg::arguments::{self, optional_uuid, positive, required, required_uuid};
use crate::pg::clock;
use crate::pg::jsonb::Jsonb;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db};
use crate::recharge::attempt::on_balance_change;
use crate::reports::fold;
use crate::schema::ledger::lanes as table;
use crate::schema::{Changed, Finder, Insertion, LockPolicy, Snapshot, may_change_rows};
use crate::spending::batch;
use crate::spending::consumption::{Consumption, Item, StoredAnswer, replayed};
use crate::{access, args, contention, statements};
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use uuid::Uuid;

statements! {
    UNBURN(uuid, text, int8, int2) =
        "update billing_internal.lanes l
            set balance = balance + $3,
                slice_credits = slice_credits + $3,
                consumed = consumed - $3,
                last_entry_id = last_entry_id - 1,
                head = coalesce((select e.entry_hash from billing.entries e
                                  where e.org_id = $1 and e.entry_id = l.last_entry_id - 1), '')
          where org_id = $1 and unit = $2 and lane = $4";
}

/// The number of times that a split wallet is looked at before the rules decide.
const LOOKS: usize = 1000;

/// The number of contended wallets of which a backend keeps hints.
const MOST_HINTS: usize = 256;

/// The time after which a backend may ask again whether a wallet needs more lanes.
const SECOND: Moment = 1_000_000;

/// A backend's hint about a wallet that many spend from: it tells where to look, never what is
/// there.
#[derive(Clone, Copy)]
struct ContentionHint {
    lanes: i16,
    waits: ContentionMeter,
    next_look: Moment,
}

thread_local! {
    static HINTS: RefCell<HashMap<(Uuid, String), ContentionHint>> = RefCell::default();
}

impl ContentionHint {
    const UNCONTENDED: Self = Self { lanes: 1, waits: ContentionMeter::NONE, next_look: 0 };

    fn of(request: &ConsumeRequest<'_>, unit: &str) -> Self {
        HINTS.with_borrow(|hint| {
            let known = if hint.is_empty() { None } else { hint.get(&(request.org_id, unit.to_owned())).copied() };
            known.unwrap_or(Self::UNCONTENDED)
        })
    }

    fn keep(self, request: &ConsumeRequest<'_>, unit: &str) {
        HINTS.with_borrow_mut(|hint| {
            let name = (request.org_id, unit.to_owned());
            if self.lanes == 1 && self.waits == ContentionMeter::NONE {
                hint.remove(&name);
                return;
            }
            if hint.len() >= MOST_HINTS {
                hint.clear();
            }
            hint.insert(name, self);
        });
    }

    /// Notes whether a call had to wait, and adds lanes if most calls had to.
    fn note(mut self, db: &Db, request: &ConsumeRequest<'_>, unit: &str, waited: bool) -> Result<()> {
        if self.lanes == 1 && self.waits == ContentionMeter::NONE && !waited {
            return Ok(());
        }
        self.waits.note(waited);
        let now = clock::now();
        if self.waits.is_high() && self.next_look <= now {
            (self.waits, self.next_look) = (ContentionMeter::NONE, now.saturating_add(SECOND));
            self.lanes = contention::add_lanes_if_contended(db, request.org_id, unit, self.lanes)?;
        }
        self.keep(request, unit);
        Ok(())
    }
}

/// The arguments of a consumption.
struct ConsumeRequest<'a> {
    org_id: Uuid,
    metric: &'a str,
    quantity: i64,
    key: Option<&'a str>,
    member_id: Option<Uuid>,
    /// The metadata; None stands for the empty object.
    metadata: Option<Jsonb>,
    metadata_text: String,
}

impl ConsumeRequest<'_> {
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

/// The outcome of a burn from a lane.
struct Burned {
    lane: i16,
    entry_id: i64,
    /// The balance of the lane after the burn.
    balance: i64,
    slice_grant: i64,
    head: Vec<u8>,
    fast_until: Moment,
    /// The balance of the wallet after the burn.
    total: i64,
    alert_below: i64,
    alert_base: i64,
    /// The `StoredAnswer` that the entry keeps for a repeated call.
    result: Option<String>,
    waited: bool,
    /// Whether the lane is due to be folded.
    is_due: bool,
    /// The sums of the lane's unfolded entries, if it has them and is due.
    recent: Option<LaneSummary>,
}

/// The outcome of the fast path.
enum FastPath {
    Done(Burned),
    /// The rules must decide, and refill this lane, if it had run dry.
    NeedsSlowPath(Option<i16>),
}

/// The cost of a consumption at a moment.
struct ChargeQuote {
    now: Moment,
    unit: String,
    credits: i64,
}

fn consume(request: &ConsumeRequest<'_>) -> Result<Consumption> {
    spi::connect(|db| match quote(db, request) {
        Ok(Some(quote)) => charge(db, request, &quote),
        Ok(None) => batch::consume_one(db, request.item(), None),
        // A repeated call gets its answer even if it would be refused now.
        Err(error) => replay(request)?.ok_or(error),
    })
}

/// The cost of the consumption; None if it depends on earlier usage, which the rules have to look
/// at.
fn quote(db: &Db, request: &ConsumeRequest<'_>) -> Result<Option<ChargeQuote>> {
    let metric = cache::metric(db, request.metric)?;
    let now = clock::now();
    let price = cache::price(db, &metric, Some(request.org_id), now)?;
    if !metric.is_plain(price.as_deref()) {
        return Ok(None);
    }
    let Some(price) = price else {
        return Ok(Some(ChargeQuote { now, unit: units::CREDIT.to_owned(), credits: 0 }));
    };
    let credits = price.charge(0, request.quantity).map_err(price::too_large)?;
    Ok(Some(ChargeQuote { now, unit: price.unit.clone(), credits }))
}

fn charge(db: &Db, request: &ConsumeRequest<'_>, quote: &ChargeQuote) -> Result<Consumption> {
    let (now, unit, credits) = (quote.now, quote.unit.as_str(), quote.credits);
    let hint = ContentionHint::of(request, unit);
    let burned = match burn(request, quote, hint) {
        FastPath::Done(burned) => burned,
        FastPath::NeedsSlowPath(lane) => return batch::consume_one(db, request.item(), lane),
    };
    // Waiting for the lock may have outlasted the moment until which the row's figures are right.
    if burned.fast_until != INFINITY && burned.fast_until <= clock::now() {
        db.write(&UNBURN, args![request.org_id, unit, credits, burned.lane]);
        return batch::consume_one(db, request.item(), None);
    }
    if !write(request, unit, credits, now, &burned) {
        db.write(&UNBURN, args![request.org_id, unit, credits, burned.lane]);
        return replay(request)?.ok_or_else(Error::contended);
    }
    spend_budget(db, request, unit, credits, now);
    let (lane, waited) = (burned.lane, burned.waited);
    let (operation_id, total) = (burned.entry_id, burned.total);
    afterwards(db, request, unit, now, burned)?;
    let hint = if lane == 0 {
        ContentionHint { lanes: 1, ..hint }
    } else {
        ContentionHint { lanes: hint.lanes.max(2), ..ContentionHint::of(request, unit) }
    };
    hint.note(db, request, unit, waited)?;
    Ok(Consumption {
        operation_id,
        metric: request.metric.to_owned(),
        quantity: request.quantity,
        included: 0,
        credits,
        balance_before: total + credits,
        balance_after: total,
        replayed: false,
    })
}

/// Folds reports and raises alerts. A caller that holds a lane must not wait for the wallet's lock:
/// where it is not free, this is left to the next call.
fn afterwards(db: &Db, request: &ConsumeRequest<'_>, unit: &str, now: Moment, burned: Burned) -> Result<()> {
    let is_low = burned.total < burned.alert_below;
    if !burned.is_due && !is_low || burned.lane > 0 && store::lock_if_free(request.org_id, unit).is_none() {
        return Ok(());
    }
    if burned.is_due {
        fold::fold(request.org_id, unit, burned.entry_id, burned.recent);
    }
    if is_low {
        let open = ActiveAlerts::read(db, request.org_id);
        let (balance, base, threshold) = (burned.total, burned.alert_base, burned.alert_below);
        on_balance_change(db, request.org_id, &open, BalanceChange { unit, balance, base, threshold }, now)?;
    }
    Ok(())
}

fn replay(request: &ConsumeRequest<'_>) -> Result<Option<Consumption>> {
    let Some(key) = request.key else { return Ok(None) };
    store::find_replay(request.org_id, key)?.map(|found| replayed(&found, &request.item())).transpose()
}

/// The hash of all columns of the entry but those that follow from its place in the chain.
fn content(request: &ConsumeRequest<'_>, quote: &ChargeQuote, result: Option<&str>) -> Hash {
    chain::content(&Content {
        org_id: request.org_id,
        unit: &quote.unit,
        kind: EntryKind::Usage.name(),
        amount: -quote.credits,
        quantity: Some(request.quantity),
        metric: Some(request.metric),
        member_id: request.member_id,
        source: None,
        source_id: None,
        idempotency_key: request.key,
        request_hash: None,
        reason: None,
        actor: None,
        metadata: &request.metadata_text,
        result,
        created_at: quote.now,
        offset: 0,
        terms: None,
    })
}

fn burn(request: &ConsumeRequest<'_>, quote: &ChargeQuote, hint: ContentionHint) -> FastPath {
    if !may_change_rows() {
        return FastPath::NeedsSlowPath(None);
    }
    let lanes = Lanes::to_update();
    let mut is_split = hint.lanes > 1;
    // The hint may be old: the rows decide.
    for _ in 0..2 {
        if is_split {
            match burn_split(&lanes, request, quote, hint) {
                Some(burn) => return burn,
                None => is_split = false,
            }
        } else {
            let content = content(request, quote, None);
            match burn_lane(&lanes, None, request, quote, LaneChoice { lane: 0, how: LockPolicy::Wait }, &content) {
                LaneAttempt::Burned(burned) => return FastPath::Done(burned),
                LaneAttempt::Split => is_split = true,
                LaneAttempt::No | LaneAttempt::Held => return FastPath::NeedsSlowPath(None),
            }
        }
    }
    FastPath::NeedsSlowPath(None)
}

/// Burns from one of the lanes of a split wallet; None if it is not split.
fn burn_split(
    table: &Lanes,
    request: &ConsumeRequest<'_>,
    quote: &ChargeQuote,
    hint: ContentionHint,
) -> Option<FastPath> {
    let (unit, credits) = (quote.unit.as_str(), quote.credits);
    // Backends begin with lanes of their own.
    let mine = i16::try_from(spi::backend_id() % i32::from(lanes::MOST)).unwrap_or_default() + 1;
    let mut waited = false;
    for _ in 0..LOOKS {
        let (mut seen, finder) =
            rows::read_wallet_snapshot(table, (request.org_id, unit), Snapshot::Latest, clock::now())?;
        let mut finder = Some(finder);
        if seen.lanes <= 1 {
            ContentionHint { lanes: 1, waits: ContentionMeter::NONE, ..hint }.keep(request, unit);
            return None;
        }
        if seen.lanes != hint.lanes {
            ContentionHint { lanes: seen.lanes, ..ContentionHint::of(request, unit) }.keep(request, unit);
        }
        if seen.fast_until <= clock::now() {
            return Some(FastPath::NeedsSlowPath(None));
        }
        // A repeated call must get the wallet's balances again, and the entry has only those of its
        // lane.
        let total = seen.total - credits;
        let (balance_before, balance_after) = (Some(seen.total), Some(total));
        let result = request.key.and_then(|_| {
            serde_json::to_string(&StoredAnswer { balance_before, balance_after, ..StoredAnswer::default() }).ok()
        });
        let content = content(request, quote, result.as_deref());
        // Reading all lanes costs more than an attempt at one: as long as lanes are only held, what
        // was read serves.
        loop {
            let (lane, how) = match lanes::step(&seen.view, mine, credits, &seen.held) {
                Step::Wallet(lane) => return Some(FastPath::NeedsSlowPath(Some(lane))),
                Step::Burn(lane) => (lane, LockPolicy::SkipLocked),
                Step::Await(lane) => (lane, LockPolicy::JoinQueue),
            };
            waited |= how == LockPolicy::JoinQueue;
            match burn_lane(table, finder.take(), request, quote, LaneChoice { lane, how }, &content) {
                LaneAttempt::Burned(burned) => {
                    let (alert_below, alert_base) = (seen.alert_below, seen.alert_base);
                    return Some(FastPath::Done(Burned { total, alert_below, alert_base, result, waited, ..burned }));
                }
                // Somebody has taken the lane since it was read.
                LaneAttempt::Held if how == LockPolicy::SkipLocked => seen.held.push(lane),
                // Somebody was faster, or what was read is old after a wait.
                LaneAttempt::Held | LaneAttempt::No | LaneAttempt::Split => break,
            }
        }
    }
    Some(FastPath::NeedsSlowPath(None))
}

/// The lane from which to burn, and what to do if another transaction has it.
#[derive(Clone, Copy)]
struct LaneChoice {
    lane: i16,
    how: LockPolicy,
}

/// The outcome of an attempt at one lane.
enum LaneAttempt {
    Burned(Burned),
    /// The lane has not enough credit, or its figures are out of date.
    No,
    Held,
    /// The wallet has other lanes to burn from.
    Split,
}

/// Makes the one update of a lane: checks, burns from its slice, advances the chain, and counts the
/// entry for the reports.
fn burn_lane<'a>(
    lanes: &'a Lanes,
    seen: Option<Finder<'a, table::Table>>,
    request: &ConsumeRequest<'_>,
    quote: &ChargeQuote,
    choice: LaneChoice,
    content: &Hash,
) -> LaneAttempt {
    let ChargeQuote { now, unit, credits } = quote;
    let (now, credits) = (*now, *credits);
    let LaneChoice { lane, how } = choice;
    let mut burned = None;
    let mut is_split = false;
    let changed = lanes.update_seen(seen, &table::one(request.org_id, unit, lane), how, |row| {
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
        let is_due = is_fold_due(last_entry_id, entry_id);
        let recent = rows::recent(row).map(|mut recent| {
            recent.add(entry(request, entry_id, credits, now));
            recent
        });
        let kept = LaneSummary::to_keep(recent.as_ref(), entry_id, is_due);
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
        (Changed::Yes, Some(burned)) => LaneAttempt::Burned(burned),
        (Changed::AfterWaiting, Some(burned)) => LaneAttempt::Burned(Burned { waited: true, ..burned }),
        _ if is_split => LaneAttempt::Split,
        (Changed::Held, _) => LaneAttempt::Held,
        _ => LaneAttempt::No,
    }
}

fn entry<'a>(request: &ConsumeRequest<'a>, entry_id: i64, credits: i64, created_at: Moment) -> Entry<'a> {
    let (kind, metric, quantity) = (EntryKind::Usage.name(), Some(request.metric), Some(request.quantity));
    let (operation_id, amount) = (entry_id, -credits);
    Entry { entry_id, operation_id, kind, metric, source: None, created_at, quantity, amount }
}

/// The place of a usage entry in its lane. A burn of nothing names no grant.
fn position(entry_id: i64, balance: i64, credits: i64, slice_grant: i64) -> Position {
    let grant_id = (credits != 0).then_some(slice_grant);
    Position { entry_id, balance_before: balance, balance_after: balance - credits, grant_id }
}

/// Writes the entry; false when the key is taken.
fn write(request: &ConsumeRequest<'_>, unit: &str, credits: i64, now: Moment, burned: &Burned) -> bool {
    let row = EntryRow {
        org_id: request.org_id,
        operation_id: burned.entry_id,
        position: position(burned.entry_id, burned.balance + credits, credits, burned.slice_grant),
        amount: -credits,
        created_at: now,
        quantity: Some(request.quantity),
        request_hash: None,
        member_id: request.member_id,
        unit,
        kind: EntryKind::Usage,
        metric: Some(request.metric),
        source: None,
        source_id: None,
        key: request.key,
        reason: None,
        actor: None,
        metadata: request.metadata.filter(|metadata| !metadata.is_empty_object()),
        result: burned.result.as_deref(),
        hash: &burned.head,
    };
    // In a wallet with one lane, a call with the same key waits for lane 0, so the key needs no
    // speculative insertion.
    let insertion = if burned.lane == 0 { Insertion::Plain } else { Insertion::Speculative };
    row.insert(&Entries::to_insert(), insertion)
}

fn spend_budget(db: &Db, request: &ConsumeRequest<'_>, unit: &str, credits: i64, now: Moment) {
    let Some(member_id) = request.member_id else { return };
    let delta = MemberDelta { consumed: credits, period: credits, active_at: Some(now) };
    if !store::save_member(db, request.org_id, unit, member_id, &delta, now, true) {
        // The error is raised, not returned: it must undo the rows that are written already.
        or_raise(refusal(db, request, unit, member_id, credits, now));
    }
}

fn refusal(
    db: &Db,
    request: &ConsumeRequest<'_>,
    unit: &str,
    member_id: Uuid,
    credits: i64,
    now: Moment,
) -> Result<()> {
    let lane = store::read_lane(request.org_id, unit).ok_or_else(Error::contended)?;
    let mut wallet = Wallet::new(lane, now);
    store::load_budgets(db, &mut wallet, vec![member_id]);
    wallet.check_budget(Some(member_id), credits)?;
    Err(Error::contended())
}

/// Charges an org for `quantity` of a metric, in the caller's transaction: counts the usage, prices
/// it, and burns the credit.
///
/// `quantity`: whole units, from 1. `idempotency_key`: 1 to 255 bytes; a repeated call with the
/// same arguments charges nothing and gives the first result, marked `replayed`. `member_id`: who
/// in the org it was for. `metadata`: an object. The result's balances are what the org can spend
/// on that metric. Errors: PT402 `insufficient_credits`, `plan_limit`; PT404 `unknown_org`,
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
        consume(&ConsumeRequest {
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
