//! Batches: many consumptions at once, each with an outcome of its own. A single consumption that
//! the fast path cannot decide is a batch of one.

use crate::alerts::sync::sync_caps;
use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::base::units;
use crate::call::to_json;
use crate::catalog::cache::{self, Metric};
use crate::catalog::price::{self, Price};
use crate::ledger::replay::Replay;
use crate::ledger::wallet::{EntryContext, Operation, Request, Wallet};
use crate::ledger::{chain, rows, store};
use crate::limits::caps::Caps;
use crate::pg::jsonb::Jsonb;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db, Row};
use crate::pg::{arguments, clock};
use crate::settlement::periods;
use crate::spending::consumption::{self, Consumption, Item};
use crate::usage::counters::{self, Metered};
use crate::usage::tally::Charge;
use crate::{access, args, contention, posting, statements};
use pgrx::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use uuid::Uuid;

/// The most items of a batch.
const MOST_ITEMS: usize = 10_000;

/// The number of times that a call begins again because another call took one of its keys
/// meanwhile.
const ATTEMPTS: usize = 100;

statements! {
    PARSE(jsonb) =
        "select jsonb_typeof(i), i ->> 'org_id', i ->> 'metric', jsonb_typeof(i -> 'quantity'), i ->> 'quantity',
                i ->> 'idempotency_key', i ->> 'member_id', jsonb_typeof(i -> 'metadata'), (i -> 'metadata')::text,
                case when jsonb_typeof(i) = 'object'
                     then (select min(k) from jsonb_object_keys(i) k where k <> all (array
                           ['org_id', 'metric', 'quantity', 'idempotency_key', 'member_id', 'metadata'])) end
           from jsonb_array_elements($1) i";
    KNOWN_ORGS(uuids) =
        "select k.org_id from unnest($1) k (org_id)
          where exists (select from billing_internal.lanes l where l.org_id = k.org_id)";
}

/// The metric of an item, and its price (None: free).
type Known = (Rc<Metric>, Option<Rc<Price>>);

/// An item with its metric and price, or with the error that neither is known: it may be a repeated
/// call all the same.
struct Priced {
    item: Item,
    known: Result<Known>,
}

impl Priced {
    fn metric(&self) -> Option<&Rc<Metric>> {
        self.known.as_ref().ok().map(|(metric, _)| metric)
    }

    fn price(&self) -> Option<&Price> {
        self.known.as_ref().ok().and_then(|(_, price)| price.as_deref())
    }

    fn unit(&self) -> &str {
        self.price().map_or(units::CREDIT, |price| price.unit.as_str())
    }

    /// Whether its cost, or whether it is allowed, depends on what was used before.
    fn is_counted(&self) -> bool {
        self.known.as_ref().is_ok_and(|(metric, price)| !metric.is_plain(price.as_deref()))
    }
}

/// Everything that the items touch, locked.
struct Locked {
    wallets: BTreeMap<(Uuid, String), Wallet>,
    metered: BTreeMap<(Uuid, String), Metered>,
    caps: Caps,
    replays: HashMap<(Uuid, i64), Replay>,
}

/// Makes one consumption, or gives its refusal. `lane` is the lane of a split wallet that had run
/// dry.
pub fn consume_one(db: &Db, item: Item, lane: Option<i16>) -> Result<Consumption> {
    consume_all(db, &[Ok(item)], lane)?.pop().unwrap_or(Err(Error::corrupt("a batch of one gave no outcome")))
}

/// Makes the consumptions in order; a refused one changes nothing and does not stop the others.
fn consume_all(db: &Db, items: &[Result<Item>], lane: Option<i16>) -> Result<Vec<Result<Consumption>>> {
    for _ in 0..ATTEMPTS {
        if let Some(outcomes) = try_all(db, items, lane)? {
            return Ok(outcomes);
        }
    }
    Err(Error::contended())
}

/// Makes the consumptions once; None, with nothing done, if a call on another lane took a key
/// meanwhile. The next attempt finds that call.
fn try_all(db: &Db, items: &[Result<Item>], lane: Option<i16>) -> Result<Option<Vec<Result<Consumption>>>> {
    cache::require_installed(db)?;
    let now = clock::now();
    let known = known_orgs(db, items.iter().flatten().map(|i| i.org_id).collect());
    let items: Vec<Result<Priced>> =
        items.iter().map(|item| item.clone().map(|item| priced(db, item, &known, now))).collect();
    let mut locked = lock(db, &items, now)?;
    let mut done: HashMap<(Uuid, &str), (&Item, Consumption)> = HashMap::new();
    let outcomes = items
        .iter()
        .map(|item| {
            let priced = item.as_ref().map_err(Clone::clone)?;
            let item = &priced.item;
            let name = item.key.as_ref().map(|key| (item.org_id, key.as_str()));
            if let Some(name) = name {
                if let Some(replay) = locked.replays.get(&(name.0, chain::request_id(name.1))) {
                    return consumption::replayed(replay, item);
                }
                if let Some((earlier, answer)) = done.get(&name) {
                    return if *earlier == item {
                        Ok(Consumption { replayed: true, ..answer.clone() })
                    } else {
                        Err(Error::idempotency_conflict(name.1))
                    };
                }
            }
            let answer = consume(db, &mut locked, priced)?;
            if let Some(name) = name {
                done.insert(name, (item, answer.clone()));
            }
            Ok(answer)
        })
        .collect();
    if let Some(lane) = lane {
        for wallet in locked.wallets.values_mut() {
            contention::merge_idle_lanes(db, wallet)?;
            let credits = items.iter().flatten().map(|item| charge_plain(item.price(), item.item.quantity)).next();
            store::refill(wallet, lane, credits.and_then(Result::ok).unwrap_or(0))?;
        }
    }
    Ok(save(db, locked)?.then_some(outcomes))
}

fn known_orgs(db: &Db, orgs: BTreeSet<Uuid>) -> BTreeSet<Uuid> {
    let orgs: Vec<Uuid> = orgs.into_iter().collect();
    if let [org_id] = orgs.as_slice() {
        return store::org_exists(*org_id).then_some(*org_id).into_iter().collect();
    }
    db.write(&KNOWN_ORGS, args![orgs]).iter().map(|row| row.get(0)).collect()
}

fn priced(db: &Db, item: Item, known: &BTreeSet<Uuid>, now: Moment) -> Priced {
    let known = cache::metric(db, &item.metric).and_then(|metric| {
        // An org that is not stored may still have the default plan.
        if !known.contains(&item.org_id) && cache::default_plan(db)?.0.is_none() {
            return Err(Error::unknown("unknown_org", item.org_id.to_string()));
        }
        let price = cache::price(db, &metric, Some(item.org_id), now)?;
        Ok((metric, price))
    });
    Priced { item, known }
}

fn lock(db: &Db, items: &[Result<Priced>], now: Moment) -> Result<Locked> {
    let valid = || items.iter().flatten().filter(|p| p.known.is_ok());
    let names: BTreeSet<_> = valid().map(|p| (p.item.org_id, p.unit().to_owned())).collect();
    let names: Vec<_> = names.into_iter().collect();
    // The credits of a period count from its start, even if nobody has begun it yet.
    let orgs: BTreeSet<Uuid> = names.iter().map(|(org_id, _)| *org_id).collect();
    periods::begin_due(db, orgs.into_iter().collect())?;
    // An org may have no wallet in the unit of a price, and free usage is noted too: so it gets
    // one.
    let mut lanes = store::lock_all_or_create(db, &names, now)?;
    let now = clock::now();
    // Holds that timed out stop counting in caps only once that is booked.
    if valid().any(|p| p.metric().is_some_and(|m| !m.caps.is_empty())) && lanes.iter().any(|l| l.holds_due <= now) {
        for lane in lanes.iter().filter(|l| l.holds_due <= now) {
            let mut wallet = Wallet::new(lane.clone(), now);
            store::load(db, &mut wallet, &[])?;
            posting::save(db, std::slice::from_mut(&mut wallet), "{}")?;
        }
        lanes = store::lock_all_or_create(db, &names, now)?;
    }
    let counted = || valid().filter(|p| p.is_counted()).filter_map(|p| Some((&p.item, p.metric()?)));
    let wanted: Vec<_> = counted().map(|(item, metric)| (item.org_id, Rc::clone(metric))).collect();
    let metered = counters::lock_metered(db, &wanted, now)?;
    let wanted: Vec<_> = counted().map(|(item, metric)| (item.org_id, Rc::clone(metric), item.member_id)).collect();
    let caps = Caps::lock(db, &wanted, now)?;
    let mut wallets: BTreeMap<_, _> =
        lanes.into_iter().map(|lane| ((lane.org_id, lane.unit.clone()), Wallet::new(lane, now))).collect();
    ensure_spendable(db, items, &mut wallets, &metered)?;
    let mut members: BTreeMap<(Uuid, String), Vec<Uuid>> = BTreeMap::new();
    for priced in valid() {
        if let Some(member) = priced.item.member_id {
            members.entry((priced.item.org_id, priced.unit().to_owned())).or_default().push(member);
        }
    }
    for (name, members) in members {
        if let Some(wallet) = wallets.get_mut(&name) {
            store::load_budgets(db, wallet, members);
        }
    }
    let keyed = items.iter().flatten();
    let requests: Vec<_> =
        keyed.filter_map(|p| p.item.key.as_ref().map(|key| (p.item.org_id, chain::request_id(key)))).collect();
    Ok(Locked { wallets, metered, caps, replays: replays(&requests) })
}

/// The calls that used these keys before.
fn replays(requests: &[(Uuid, i64)]) -> HashMap<(Uuid, i64), Replay> {
    let find =
        |(org_id, request_id): &(Uuid, i64)| Some(((*org_id, *request_id), rows::find_request(*org_id, *request_id)?));
    requests.iter().filter_map(find).collect()
}

/// Reclaims the credit that split wallets need for all items, as long as nobody who holds a lane
/// can wait for this call: later, when members are locked, a consumer that holds a lane may.
fn ensure_spendable(
    db: &Db,
    items: &[Result<Priced>],
    wallets: &mut BTreeMap<(Uuid, String), Wallet>,
    metered: &BTreeMap<(Uuid, String), Metered>,
) -> Result<()> {
    if !wallets.values().any(|wallet| wallet.lane.is_split()) {
        return Ok(());
    }
    let mut metered = metered.clone();
    let mut needed: BTreeMap<(Uuid, String), Vec<(i64, &str)>> = BTreeMap::new();
    for priced in items.iter().flatten() {
        let Ok((metric, price)) = &priced.known else { continue };
        let item = &priced.item;
        let credits = match metered.get_mut(&(item.org_id, item.metric.clone())) {
            // A refused item needs no credit.
            Some(counter) => match counter.charge(metric, item.quantity, price.as_deref()) {
                Ok(charge) if counter.take(charge, price.as_deref()).is_ok() => charge.credits,
                _ => 0,
            },
            None => charge_plain(price.as_deref(), item.quantity).unwrap_or(0),
        };
        needed.entry((item.org_id, priced.unit().to_owned())).or_default().push((credits, &item.metric));
    }
    for (name, parts) in needed {
        if let Some(wallet) = wallets.get_mut(&name).filter(|wallet| wallet.lane.is_split()) {
            // An item that will be refused waits for nobody.
            if let [(credits, metric)] = parts.as_slice() {
                store::ensure_spendable(db, wallet, *credits, Some(metric))?;
                continue;
            }
            if wallet.grants.is_none() {
                store::load(db, wallet, &[])?;
            }
            // This takes as much as there is, so that nothing has to be waited for later.
            let credits = parts.iter().fold(0_i64, |sum, (credits, _)| sum.saturating_add(*credits));
            store::ensure_spendable(db, wallet, credits.min(wallet.spendable(None)), None)?;
        }
    }
    Ok(())
}

fn consume(db: &Db, locked: &mut Locked, priced: &Priced) -> Result<Consumption> {
    let item = &priced.item;
    let (known, price) = priced.known.clone()?;
    let price = price.as_deref();
    let metered = locked.metered.get_mut(&(item.org_id, item.metric.clone()));
    let charge = match &metered {
        Some(metered) => metered.charge(&known, item.quantity, price)?,
        None => Charge { credits: charge_plain(price, item.quantity)?, ..Charge::default() },
    };
    let credits = charge.credits;
    let wallet = locked
        .wallets
        .get_mut(&(item.org_id, priced.unit().to_owned()))
        .ok_or_else(|| Error::insufficient(credits, 0))?;
    let metric = Some(item.metric.as_str());
    store::ensure_spendable(db, wallet, credits, metric)?;
    locked.caps.check(item.org_id, &known, item.member_id, item.quantity)?;
    wallet.check_budget(item.member_id, credits)?;
    let parts = wallet.allocate(credits, metric)?;
    let balance_before = wallet.spendable(metric);
    let mut operation = Operation::new(EntryContext {
        metric: Some(item.metric.clone()),
        quantity: Some(item.quantity),
        member_id: item.member_id,
        metadata: item.metadata.clone(),
        request: item.key.clone().map(|key| Request { key, hash: None }),
        ..EntryContext::default()
    });
    let lane_before = wallet.lane.balance;
    wallet.consume(&mut operation, &parts, credits)?;
    let answer = Consumption {
        operation_id: operation.id(),
        metric: item.metric.clone(),
        quantity: item.quantity,
        included: charge.included,
        credits,
        balance_before,
        balance_after: wallet.spendable(metric),
        replayed: false,
    };
    // An entry that is alone and has the wallet's own balances tells the answer by itself.
    if parts.len() > 1 || answer.balance_before != lane_before || charge.included > 0 {
        wallet.keep_result(&operation, to_json(&answer)?);
    }
    if let Some(metered) = metered {
        metered.take(charge, price)?;
    }
    locked.caps.add(item.org_id, &known, item.member_id, item.quantity);
    Ok(answer)
}

fn charge_plain(price: Option<&Price>, quantity: i64) -> Result<i64> {
    price.map_or(Ok(0), |price| price.charge(0, quantity).map_err(price::too_large))
}

/// Posts everything; false, with nothing written, if a call on another lane took a key meanwhile.
fn save(db: &Db, locked: Locked) -> Result<bool> {
    let mut wallets: Vec<Wallet> = locked.wallets.into_values().collect();
    if !wallets.is_empty() && !posting::save_new(db, &mut wallets, "{}")? {
        return Ok(false);
    }
    let changed: Vec<_> = locked.metered.values().filter(|m| m.changed).map(|m| &m.counter).collect();
    counters::save(&changed);
    locked.caps.save(db);
    sync_caps(db, &locked.caps)?;
    Ok(true)
}

fn parse(db: &Db, items: Jsonb) -> Result<Vec<Result<Item>>> {
    if !items.is_array() {
        return Err(Error::invalid("items", "must be an array"));
    }
    let rows = db.read(&PARSE, args![items]);
    if rows.count() > MOST_ITEMS {
        return Err(Error::invalid("items", "must have at most 10000 items"));
    }
    Ok(rows.iter().map(|row| parse_item(&row)).collect())
}

fn parse_item(row: &Row) -> Result<Item> {
    if row.get::<String>(0) != "object" {
        return Err(Error::invalid("item", "must be an object"));
    }
    if let Some(key) = row.opt::<String>(9) {
        return Err(Error::invalid("item", "has an unknown key").with("key", key));
    }
    let uuid = |name: &str, column| -> Result<Option<Uuid>> {
        row.opt::<String>(column)
            .map(|text| Uuid::parse_str(&text).map_err(|_| Error::invalid(name, "must be a uuid")))
            .transpose()
    };
    let metric: String = arguments::required("metric", row.opt(2))?;
    let quantity = match row.opt::<String>(3).as_deref() {
        None => 1,
        Some("number") => row
            .opt::<String>(4)
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or(Error::invalid("quantity", "must be a whole number"))?,
        Some(_) => return Err(Error::invalid("quantity", "must be a whole number")),
    };
    let quantity = arguments::positive("quantity", Some(quantity))?;
    let metadata = match row.opt::<String>(7).as_deref() {
        None => "{}".to_owned(),
        Some("object") => row.get::<String>(8),
        Some(_) => return Err(Error::invalid("metadata", "must be a JSON object")),
    };
    if metadata.len() > arguments::METADATA_BYTES {
        return Err(arguments::too_long_metadata());
    }
    let member_id = uuid("member_id", 6)?;
    let key: Option<String> = row.opt(5);
    arguments::key(key.as_deref())?;
    Ok(Item { org_id: arguments::required("org_id", uuid("org_id", 1)?)?, key, metric, quantity, member_id, metadata })
}

/// Charges many consumptions in one call, each with an outcome of its own: a refused item changes
/// nothing and does not stop the others.
///
/// `items`: an array of at most 10,000 objects `{"org_id", "metric", "quantity", "idempotency_key",
/// "member_id", "metadata"}`, of which the first two are needed. `item` counts from 1. `status`: ok
/// | replayed | `insufficient_credits` | `cap_exceeded` | invalid; `detail` says why. Errors: 22023
/// when `items` is no array.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn consume_credits_batch(
    items: Option<Jsonb>,
) -> TableIterator<
    'static,
    (
        name!(item, i32),
        name!(status, String),
        name!(operation_id, Option<i64>),
        name!(credits, Option<i64>),
        name!(balance_after, Option<i64>),
        name!(detail, Option<pgrx::JsonB>),
    ),
> {
    let outcomes = or_raise(access::service(|| {
        let items = arguments::required("items", items)?;
        spi::connect(|db| {
            let items = parse(db, items)?;
            consume_all(db, &items, None)
        })
    }));
    TableIterator::new((1..).zip(outcomes).map(|(item, outcome)| match outcome {
        Ok(done) => {
            let status = if done.replayed { "replayed" } else { "ok" };
            (item, status.to_owned(), Some(done.operation_id), Some(done.credits), Some(done.balance_after), None)
        }
        Err(error) => {
            let status = match &error.sqlstate {
                b"PT402" => "insufficient_credits",
                b"PT429" => "cap_exceeded",
                _ => "invalid",
            };
            (item, status.to_owned(), None, None, None, Some(pgrx::JsonB(error.detail_json())))
        }
    }))
}
