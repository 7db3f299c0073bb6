//! Usage events as callers report them, checked and resolved to the bucket in which they count.

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment, Period};
use crate::catalog::cache::{self, Metric};
use crate::catalog::sections::metrics::Aggregation;
use crate::pg::arguments;
use crate::pg::spi::{Db, Row};
use crate::plans::period::{Span, Timeline};
use crate::plans::store as plans;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

/// The time that an event may lie in the future, since clocks differ.
const CLOCK_TOLERANCE: i64 = 5 * 60 * 1_000_000;

/// The largest quantity of one event, and the largest price of it.
const MOST_QUANTITY: i64 = 1 << 53;

/// An event as it was reported.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Event {
    pub org_id: Uuid,
    pub metric: String,
    pub quantity: i64,
    pub event_id: Option<String>,
    pub occurred_at: Option<Moment>,
    pub member_id: Option<Uuid>,
    /// The properties, as the server prints them.
    pub properties: String,
}

/// The metric, billing period and segment in which an event counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct UsageBucket {
    pub org_id: Uuid,
    pub metric: String,
    pub span: Span,
    /// The start of the stretch with one day and one price.
    pub segment: Moment,
}

/// An event that is checked and can be counted.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct ResolvedEvent {
    pub event: Event,
    pub bucket: UsageBucket,
    pub occurred_at: Moment,
    pub gauge: bool,
    /// The hash of the event's id, if it has one.
    pub key: Option<Uuid>,
    /// The hash of the distinct value that the event reports, for the aggregation unique.
    pub value: Option<Uuid>,
}

/// The first 128 bits of the SHA-256 of a text.
fn short_hash(text: &str) -> Uuid {
    let digest = Sha256::digest(text.as_bytes());
    let mut first = [0; 16];
    first.copy_from_slice(&digest[..16]);
    Uuid::from_bytes(first)
}

/// A resolver of events, which remembers the plans of an org for its next event.
pub struct EventResolver<'a> {
    db: &'a Db,
    now: Moment,
    timelines: BTreeMap<Uuid, Timeline>,
}

impl<'a> EventResolver<'a> {
    /// A resolver for events that are reported at one moment.
    pub fn new(db: &'a Db, now: Moment) -> Self {
        Self { db, now, timelines: BTreeMap::new() }
    }

    /// Checks an event and finds its bucket.
    pub fn resolve(&mut self, event: Event) -> Result<ResolvedEvent> {
        let metric = cache::metric(self.db, &event.metric)?;
        let least = i64::from(!metric.is_gauge());
        if event.quantity < least {
            let fault = if least == 0 { "must not be negative" } else { "must be at least 1" };
            return Err(Error::invalid("quantity", fault));
        }
        let price = cache::price(self.db, &metric, Some(event.org_id), self.now)?;
        let costs = price.map_or(Ok(0), |price| price.total(event.quantity));
        // An event that cannot be priced could never be settled. The limit leaves room for a
        // thousand of the largest events in one sum.
        if event.quantity > MOST_QUANTITY || costs.is_err() || costs.is_ok_and(|credits| credits > MOST_QUANTITY) {
            return Err(Error::invalid("quantity", "must be at most 2^53, and so must be its price")
                .with("most", MOST_QUANTITY));
        }
        if event.event_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > arguments::KEY_BYTES) {
            return Err(Error::invalid("event_id", "must have 1 to 255 bytes"));
        }
        let occurred_at = event.occurred_at.unwrap_or(self.now);
        if occurred_at == time::INFINITY || occurred_at > self.now.saturating_add(CLOCK_TOLERANCE) {
            return Err(Error::invalid("occurred_at", "must not be more than 5 minutes in the future")
                .with("occurred_at", time::display(occurred_at))
                .with("now", time::display(self.now)));
        }
        if occurred_at < 0 {
            return Err(Error::invalid("occurred_at", "must not be before the year 2000"));
        }
        let span = self.timeline(event.org_id)?.period(occurred_at);
        let version = cache::price_since(self.db, &metric, event.org_id, occurred_at);
        let segment = Period::Day.start(occurred_at).max(span.start).max(version);
        let value = match metric.aggregation {
            Aggregation::Unique => Some(short_hash(&distinct_value(&metric, &event)?)),
            Aggregation::Sum | Aggregation::Max | Aggregation::Last => None,
        };
        Ok(ResolvedEvent {
            bucket: UsageBucket { org_id: event.org_id, metric: event.metric.clone(), span, segment },
            occurred_at,
            gauge: metric.is_gauge(),
            key: event.event_id.as_deref().map(short_hash),
            value,
            event,
        })
    }

    fn timeline(&mut self, org_id: Uuid) -> Result<&Timeline> {
        if !self.timelines.contains_key(&org_id) {
            let timeline = plans::timeline(self.db, org_id, true)?;
            self.timelines.insert(org_id, timeline);
        }
        Ok(&self.timelines[&org_id])
    }
}

/// The value of an event of which a metric with the aggregation unique counts each once.
fn distinct_value(metric: &Rc<Metric>, event: &Event) -> Result<String> {
    let Some(name) = &metric.unique_by else {
        return event
            .member_id
            .map(|member| member.to_string())
            .ok_or(Error::invalid("member_id", "is needed: the metric counts distinct members"));
    };
    let properties: serde_json::Value = serde_json::from_str(&event.properties).unwrap_or_default();
    match properties.get(name) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(value) if !value.is_null() => Ok(value.to_string()),
        _ => Err(Error::invalid("properties", "lack the property whose distinct values the metric counts")
            .with("property", name.clone())),
    }
}

/// Reads an event from a row of `record::PARSE`, the statement that takes a batch apart.
pub fn parse(row: &Row) -> Result<Event> {
    if row.get::<String>(0) != "object" {
        return Err(Error::invalid("event", "must be an object"));
    }
    if let Some(key) = row.opt::<String>(10) {
        return Err(Error::invalid("event", "has an unknown key").with("key", key));
    }
    let uuid = |name: &str, column| -> Result<Option<Uuid>> {
        row.opt::<String>(column)
            .map(|text| Uuid::parse_str(&text).map_err(|_| Error::invalid(name, "must be a uuid")))
            .transpose()
    };
    let quantity = match row.opt::<String>(3).as_deref() {
        None => 1,
        Some("number") => row
            .opt::<String>(4)
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or(Error::invalid("quantity", "must be a whole number"))?,
        Some(_) => return Err(Error::invalid("quantity", "must be a whole number")),
    };
    let occurred_at = match row.opt::<String>(6) {
        None => None,
        Some(text) => Some(
            time::parse(&text)
                .ok_or(Error::invalid("occurred_at", "must be a date or a timestamp with time zone (ISO 8601)"))?,
        ),
    };
    let properties = match row.opt::<String>(8).as_deref() {
        None | Some("null") => "{}".to_owned(),
        Some("object") => row.get(9),
        Some(_) => return Err(Error::invalid("properties", "must be a JSON object")),
    };
    Ok(Event {
        org_id: arguments::required("org_id", uuid("org_id", 1)?)?,
        metric: arguments::required("metric", row.opt(2))?,
        quantity,
        event_id: row.opt(5),
        occurred_at,
        member_id: uuid("member_id", 7)?,
        properties,
    })
}
