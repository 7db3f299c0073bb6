//! `record_usage`, which records an event and adds it to its bucket without a wait for other
//! writers.
//!
//! The event itself is evidence; what counts is a row of `unsettled_usage`. A writer takes any row
//! of the bucket that nobody holds, or makes one, so rows are few and writers do not wait for each
//! other. The exceptions are the same event, and the same new value of a metric that counts
//! distinct ones, when two report it at the same instant.

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment};
use crate::catalog::cache;
use crate::pg::arguments::{optional_uuid, required, required_uuid};
use crate::pg::clock;
use crate::pg::jsonb::Jsonb;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db, Timestamptz};
use crate::schema::usage::{unsettled_usage, usage_event_keys, usage_events};
use crate::schema::{Changed, Insertion, LockPolicy, Table, may_change_rows};
use crate::usage::events::{self, Event, EventResolver, ResolvedEvent, UsageBucket};
use crate::{access, args, entry_point, receipt, statements};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The most events of a batch.
const MOST_EVENTS: usize = 100_000;

receipt! {
    /// The answer to a batch of events.
    UsageReceipt as "usage_receipt" { accepted: i64, duplicates: i64 }
}

statements! {
    PARSE(jsonb) =
        "select jsonb_typeof(i), i ->> 'org_id', i ->> 'metric', jsonb_typeof(i -> 'quantity'), i ->> 'quantity',
                i ->> 'event_id', i ->> 'occurred_at', i ->> 'member_id', jsonb_typeof(i -> 'properties'),
                (i -> 'properties')::text,
                case when jsonb_typeof(i) = 'object'
                     then (select min(k) from jsonb_object_keys(i) k where k <> all (array
                           ['org_id', 'metric', 'quantity', 'event_id', 'occurred_at', 'member_id', 'properties'])) end
           from jsonb_array_elements($1) i";
    NEW_KEYS(uuids, uuids) =
        "insert into billing_internal.usage_event_keys (org_id, event_key)
         select * from unnest($1, $2) order by 1, 2 on conflict do nothing returning org_id, event_key";
    NEW_EVENTS(uuids, timestamptz, timestamptzs, int8s, uuids, texts, texts, texts) =
        "insert into billing.usage_events (org_id, recorded_at, occurred_at, quantity, member_id, metric, event_id, properties)
         select org_id, $2, occurred_at, quantity, member_id, metric, event_id, properties::jsonb
           from unnest($1, $3, $4, $5, $6, $7, $8) e (org_id, occurred_at, quantity, member_id, metric, event_id, properties)";
    NEW_VALUES(uuids, texts, timestamptzs, uuids) =
        "insert into billing_internal.usage_uniques (org_id, metric, period_start, value_key)
         select * from unnest($1, $2, $3, $4) order by 1, 2, 3, 4
         on conflict do nothing returning org_id, metric, period_start, value_key";
    // The slot is the transaction's number, so no other transaction makes a row with it. A
    // statement reads nothing for that, so a transaction with a single snapshot gets no
    // serialization failure.
    ADD_TO_OWN_ROW(uuid, text, timestamptz, timestamptz, int8, int8, int8, timestamptz, timestamptz, int8, boolean) =
        "insert into billing_internal.unsettled_usage as u
                (org_id, metric, period_start, segment, quantity, events, level, level_at, period_end, slot)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         on conflict (org_id, metric, period_start, segment, slot) do update
            set quantity = case when $11 then greatest(u.quantity, $5) else u.quantity + $5 end,
                events = u.events + $6,
                level = case when $8 >= u.level_at then $7 else u.level end, level_at = greatest(u.level_at, $8)";
}

/// The usage that is to be added to a bucket.
#[derive(Default)]
struct BucketDelta {
    quantity: i64,
    events: i64,
    level: Option<(i64, Moment)>,
}

impl BucketDelta {
    fn add(&mut self, resolved: &ResolvedEvent, is_new: bool) -> Result<()> {
        self.events += 1;
        let quantity = resolved.event.quantity;
        if resolved.gauge {
            self.quantity = self.quantity.max(quantity);
            if self.level.is_none_or(|(_, at)| resolved.occurred_at >= at) {
                self.level = Some((quantity, resolved.occurred_at));
            }
            return Ok(());
        }
        // Each distinct value counts once in its period.
        let quantity = if resolved.value.is_some() { i64::from(is_new) } else { quantity };
        let sum = self.quantity.checked_add(quantity);
        self.quantity = sum.ok_or_else(too_much)?;
        Ok(())
    }
}

fn record(db: &Db, event: Event) -> Result<bool> {
    cache::require_installed(db)?;
    let now = clock::now();
    let resolved = EventResolver::new(db, now).resolve(event)?;
    let event = &resolved.event;
    if let Some(key) = resolved.key
        && !is_new_key(event.org_id, key)
    {
        return Ok(false);
    }
    let mut delta = BucketDelta::default();
    let is_new = resolved.value.is_some() && !new_values(db, std::slice::from_ref(&resolved)).is_empty();
    delta.add(&resolved, is_new)?;
    insert_event(&resolved, now);
    add_to_bucket(db, &resolved.bucket, &delta)?;
    Ok(true)
}

/// Tells whether the event was not recorded before, after a wait for a transaction that is
/// recording it.
fn is_new_key(org_id: Uuid, event_key: Uuid) -> bool {
    let keys = Table::<usage_event_keys::Table>::to_insert();
    let row = usage_event_keys::New { org_id, event_key };
    keys.insert_new(&usage_event_keys::KEY, &row, Insertion::Speculative, || false)
}

/// Inserts the event into the partition of its month of arrival.
fn insert_event(resolved: &ResolvedEvent, now: Moment) {
    let event = &resolved.event;
    let month = time::display(now)[..7].replace('-', "_");
    let partition = Table::<usage_events::Table>::partition_to_insert(&format!("usage_events_{month}"), now);
    partition.insert(&usage_events::New {
        org_id: event.org_id,
        recorded_at: now,
        occurred_at: resolved.occurred_at,
        quantity: event.quantity,
        member_id: event.member_id,
        metric: &event.metric,
        event_id: event.event_id.as_deref(),
        properties: crate::pg::jsonb::from_text(&event.properties),
    });
}

/// The new values of a bucket's row with a delta added; None where the sum would not fit.
fn with_delta(row: unsettled_usage::Row<'_>, delta: &BucketDelta) -> Option<unsettled_usage::Set> {
    let new = unsettled_usage::Set::new().events(row.events() + delta.events);
    let Some((level, at)) = delta.level else { return Some(new.quantity(row.quantity().checked_add(delta.quantity)?)) };
    let new = new.quantity(row.quantity().max(delta.quantity));
    let is_newest = row.level_at().is_none_or(|known| at >= known);
    Some(if is_newest { new.level(Some(level)).level_at(Some(at)) } else { new })
}

fn too_much() -> Error {
    Error::invalid("quantity", "the sum would not fit 63 bits")
}

/// Adds to a row of the bucket that nobody holds; false where there is none, or none that this
/// transaction may change directly.
fn add_to_free(bucket: &UsageBucket, delta: &BucketDelta) -> Result<bool> {
    if !may_change_rows() {
        return Ok(false);
    }
    let of_bucket = unsettled_usage::of_bucket(bucket.org_id, &bucket.metric, bucket.span.start, bucket.segment);
    let mut fits = true;
    let table = Table::<unsettled_usage::Table>::to_update();
    let found = table.update(&of_bucket, LockPolicy::SkipLocked, |row| {
        let new = with_delta(row, delta);
        fits = new.is_some();
        new
    });
    if fits { Ok(found == Changed::Yes) } else { Err(too_much()) }
}

/// Adds to a row of the bucket that nobody holds, or else to the row of this transaction.
fn add_to_bucket(db: &Db, bucket: &UsageBucket, delta: &BucketDelta) -> Result<()> {
    if !add_to_free(bucket, delta)? {
        let (level, level_at) = (delta.level.map(|l| l.0), delta.level.map(|l| Timestamptz(l.1)));
        db.write(
            &ADD_TO_OWN_ROW,
            args![
                bucket.org_id,
                &bucket.metric,
                Timestamptz(bucket.span.start),
                Timestamptz(bucket.segment),
                delta.quantity,
                delta.events,
                level,
                level_at,
                Timestamptz(bucket.span.end),
                spi::transaction_number(),
                delta.level.is_some()
            ],
        );
    }
    Ok(())
}

type DistinctValue = (Uuid, String, Moment, Uuid);

/// The values that are new in their period; those are inserted.
fn new_values(db: &Db, resolved: &[ResolvedEvent]) -> BTreeSet<DistinctValue> {
    let of = |e: &ResolvedEvent| Some((e.bucket.org_id, e.bucket.metric.clone(), e.bucket.span.start, e.value?));
    let all: BTreeSet<DistinctValue> = resolved.iter().filter_map(of).collect();
    if all.is_empty() {
        return all;
    }
    let rows = db.write(
        &NEW_VALUES,
        args![
            all.iter().map(|v| v.0).collect::<Vec<_>>(),
            all.iter().map(|v| v.1.clone()).collect::<Vec<_>>(),
            all.iter().map(|v| Timestamptz(v.2)).collect::<Vec<_>>(),
            all.iter().map(|v| v.3).collect::<Vec<_>>(),
        ],
    );
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

fn record_all(db: &Db, events: Vec<Event>) -> Result<UsageReceipt> {
    let now = clock::now();
    let mut finder = EventResolver::new(db, now);
    let count_all = events.len();
    let mut resolved = Vec::with_capacity(count_all);
    for (item, event) in (1_i64..).zip(events) {
        resolved.push(finder.resolve(event).map_err(|error| error.with("item", item))?);
    }
    let resolved = without_duplicates(db, resolved);
    let new = new_values(db, &resolved);
    let mut counted: BTreeSet<DistinctValue> = BTreeSet::new();
    let mut deltas: BTreeMap<UsageBucket, BucketDelta> = BTreeMap::new();
    for e in &resolved {
        let value = e.value.map(|v| (e.bucket.org_id, e.bucket.metric.clone(), e.bucket.span.start, v));
        let is_new = value.is_some_and(|v| new.contains(&v) && counted.insert(v));
        deltas.entry(e.bucket.clone()).or_default().add(e, is_new)?;
    }
    db.write(
        &NEW_EVENTS,
        args![
            resolved.iter().map(|e| e.event.org_id).collect::<Vec<_>>(),
            Timestamptz(now),
            resolved.iter().map(|e| Timestamptz(e.occurred_at)).collect::<Vec<_>>(),
            resolved.iter().map(|e| e.event.quantity).collect::<Vec<_>>(),
            resolved.iter().map(|e| e.event.member_id).collect::<Vec<_>>(),
            resolved.iter().map(|e| e.event.metric.clone()).collect::<Vec<_>>(),
            resolved.iter().map(|e| e.event.event_id.clone()).collect::<Vec<_>>(),
            resolved.iter().map(|e| e.event.properties.clone()).collect::<Vec<_>>(),
        ],
    );
    for (bucket, delta) in &deltas {
        add_to_bucket(db, bucket, delta)?;
    }
    let accepted = i64::try_from(resolved.len()).unwrap_or(i64::MAX);
    Ok(UsageReceipt { accepted, duplicates: i64::try_from(count_all).unwrap_or(i64::MAX) - accepted })
}

/// The events whose id was not recorded before, each id once.
fn without_duplicates(db: &Db, resolved: Vec<ResolvedEvent>) -> Vec<ResolvedEvent> {
    let keys: BTreeSet<_> = resolved.iter().filter_map(|e| Some((e.event.org_id, e.key?))).collect();
    let mut new: BTreeSet<(Uuid, Uuid)> = if keys.is_empty() {
        BTreeSet::new()
    } else {
        let (orgs, keys): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
        db.write(&NEW_KEYS, args![orgs, keys]).iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    resolved.into_iter().filter(|e| e.key.is_none_or(|key| new.remove(&(e.event.org_id, key)))).collect()
}

/// Records that an org used `quantity` of a metric, to be charged by settlement; false for an event
/// that was recorded before.
///
/// `event_id`: 1 to 255 bytes; an event of an org counts once, however late it is repeated.
/// `occurred_at`: null for now; it counts in the period in which it occurred, also when that was
/// settled; at most 5 minutes in the future. `quantity`: from 1, or the level (from 0) for a metric
/// that reports levels (max, last). `properties`: an object. Writers never wait for one another.
/// Errors: PT404 `unknown_metric`; 22023.
#[pg_extern(volatile)]
fn record_usage(
    org_id: Option<pgrx::Uuid>,
    metric: Option<&str>,
    quantity: default!(Option<i64>, 1),
    event_id: default!(Option<&str>, "NULL"),
    occurred_at: default!(Option<TimestampWithTimeZone>, "NULL"),
    member_id: default!(Option<pgrx::Uuid>, "NULL"),
    properties: default!(Option<Jsonb>, "'{}'"),
) -> bool {
    or_raise(access::service(|| {
        if properties.is_some_and(|json| !json.is_object()) {
            return Err(Error::invalid("properties", "must be a JSON object"));
        }
        let event = Event {
            org_id: required_uuid("org_id", org_id)?,
            metric: required("metric", metric)?.to_owned(),
            quantity: required("quantity", quantity)?,
            event_id: event_id.map(str::to_owned),
            occurred_at: occurred_at.map(Moment::from),
            member_id: optional_uuid(member_id),
            properties: properties.map_or_else(|| "{}".to_owned(), Jsonb::text),
        };
        spi::connect(|db| record(db, event))
    }))
}

/// Records many events in one call: all of them, or none.
///
/// `events`: an array of at most 100,000 objects `{"org_id", "metric", "quantity", "event_id",
/// "occurred_at", "member_id", "properties"}`, of which the first two are needed. Duplicates are
/// counted and left out. Errors: as `record_usage`, with the number of the faulty event (from 1) as
/// `item` in the detail; nothing is recorded then.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn record_usage_batch(events: Option<Jsonb>) -> UsageReceipt {
    entry_point::service(|db| {
        let events = required("events", events)?;
        if !events.is_array() {
            return Err(Error::invalid("events", "must be an array"));
        }
        let rows = db.read(&PARSE, args![events]);
        if rows.count() > MOST_EVENTS {
            return Err(Error::invalid("events", "must have at most 100000 events"));
        }
        let parsed = (1_i64..).zip(rows.iter());
        let parsed = parsed.map(|(item, row)| events::parse(&row).map_err(|error| error.with("item", item)));
        let parsed = parsed.collect::<Result<Vec<_>>>()?;
        record_all(db, parsed)
    })
}
