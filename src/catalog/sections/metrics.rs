//! The section `metrics`: what is counted, how, and the list prices.

use crate::base::error::{Error, Result};
use crate::base::time::{Moment, NEG_INFINITY};
use crate::base::words::Word;
use crate::catalog::faults::{Faults, join};
use crate::catalog::price::Price;
use crate::catalog::price_json::{self, WrittenPrice};
use crate::catalog::section::{self, Action, Change, Items, Rows, Section};
use crate::pg::jsonb;
use crate::pg::spi::{Db, Timestamptz};
use crate::{args, statements, words};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

statements! {
    METRICS() =
        "select m.metric, m.unit, m.aggregation, m.category, m.tier, m.retired_at is not null,
                exists (select from billing.org_prices o where o.metric = m.metric),
                exists (select from billing.org_allowances o where o.metric = m.metric), m.unique_by
           from billing.metrics m";
    PRICES() = "select metric, effective_at, price::text from billing.prices order by metric, effective_at";
    COUNTED(text) =
        "select exists (select from billing_internal.unsettled_usage where metric = $1)
             or exists (select from billing_internal.period_usage where metric = $1)";
    SAVE_METRIC(text, text, text, text, text, timestamptz, text) =
        "insert into billing.metrics (metric, unit, aggregation, category, tier, created_at, unique_by)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (metric) do update
            set unit = $2, aggregation = $3, category = $4, tier = $5, unique_by = $7, retired_at = null";
    RETIRE_METRIC(text, timestamptz) = "update billing.metrics set retired_at = $2 where metric = $1";
    SAVE_PRICE(text, timestamptz, jsonb) =
        "insert into billing.prices (metric, effective_at, price) values ($1, $2, $3)
         on conflict (metric, effective_at) do update set price = $3";
}

words! {
    /// The rule by which the events of a period make its quantity.
    ///
    /// SQL spells these words, too, and no compiler names its places: settlement's `TAKE` and
    /// `DAYS`, the views `usage_by_day` and `usage_by_month`, the column's check, the triggers of
    /// metered tables.
    pub enum Aggregation {
        /// The sum of the quantities.
        Sum = "sum",
        /// The highest level that was reported. A period begins with the level that it finds.
        Max = "max",
        /// The newest level that was reported, charged when the period ends.
        Last = "last",
        /// The number of distinct values.
        Unique = "unique",
    }
}

impl Aggregation {
    /// Whether events report levels, which do not add up, instead of quantities.
    pub fn is_gauge(self) -> bool {
        match self {
            Self::Max | Self::Last => true,
            Self::Sum | Self::Unique => false,
        }
    }
}

words! {
    /// The weight of a metric for the product, which decides what happens where a plan says nothing
    /// of a limit.
    pub enum Tier {
        /// A metric that stays open beyond the allowance, unless its plan closes it.
        Core = "core",
        /// A metric that closes at the allowance.
        Premium = "premium",
    }
}

impl Tier {
    /// Whether usage goes on beyond an allowance of which no limit says what follows.
    pub fn stays_open(tier: Option<Self>) -> bool {
        match tier {
            Some(Self::Core) => true,
            Some(Self::Premium) | None => false,
        }
    }
}

/// The versions of a price with the moment from which each holds, in the order of time. None: free.
pub type Versions = Vec<(Moment, Option<Rc<Price>>)>;

/// A metric as the document describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricSpec {
    /// The name of one of the quantity, for people.
    pub unit: Option<String>,
    /// The rule by which events make a quantity.
    pub aggregation: Aggregation,
    /// A free text, such as AI or Storage.
    pub category: Option<String>,
    /// The property of an event whose distinct values are counted; None: its member.
    pub unique_by: Option<String>,
    /// The weight of the metric; None: where plans say nothing of a limit, it closes as a premium
    /// one does.
    pub tier: Option<Tier>,
    /// The price; None: free.
    pub price: Option<Rc<Price>>,
    /// The moment from which the price holds, where the document says so.
    pub effective_at: Option<Moment>,
}

/// A metric as the tables hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricRow {
    /// The metric without its price.
    pub spec: MetricSpec,
    /// All versions of its list price.
    pub versions: Versions,
    /// The terms that some org has of its own for it.
    pub own: Own,
    /// Whether an earlier document dropped it.
    pub retired: bool,
}

/// The kinds of terms that some org has of its own for a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Own {
    /// Whether it is a price.
    pub price: bool,
    /// Whether it is an allowance or limit.
    pub allowance: bool,
}

impl MetricSpec {
    fn parse(faults: &mut Faults, path: &str, value: &Value) -> Option<Self> {
        let object = faults.object(path, value)?;
        faults.unknown_keys(path, object, &["unit", "aggregation", "unique_by", "category", "tier", "price"]);
        let written = object.get("price").filter(|price| !price.is_null());
        let WrittenPrice { price, effective_at } =
            written.map_or_else(WrittenPrice::default, |price| price_json::parse(faults, &join(path, "price"), price));
        let unique_by = faults.text(&join(path, "unique_by"), object.get("unique_by"));
        let aggregation = object.get("aggregation").and_then(Value::as_str).and_then(Aggregation::parse);
        if unique_by.is_some() && aggregation != Some(Aggregation::Unique) {
            faults.add(&join(path, "unique_by"), "goes with the aggregation unique only");
        }
        Some(Self {
            unique_by,
            unit: faults.text(&join(path, "unit"), object.get("unit")),
            aggregation: faults.choice(&join(path, "aggregation"), object.get("aggregation")),
            category: faults.text(&join(path, "category"), object.get("category")),
            tier: object
                .get("tier")
                .filter(|tier| !tier.is_null())
                .map(|tier| faults.choice(&join(path, "tier"), Some(tier))),
            price: price.map(Rc::new),
            effective_at,
        })
    }

    fn to_json(&self) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        };
        put("unit", self.unit.clone().map(Value::from));
        put("aggregation", (self.aggregation != Aggregation::Sum).then(|| self.aggregation.name().into()));
        put("category", self.category.clone().map(Value::from));
        put("unique_by", self.unique_by.clone().map(Value::from));
        put("tier", self.tier.map(|tier| tier.name().into()));
        put("price", self.price.as_ref().map(|price| price_json::to_json(price, self.effective_at)));
        Value::Object(object)
    }
}

impl MetricRow {
    /// The metric with the price in force at a moment. A price that has only a future is shown with
    /// its date.
    fn at(&self, now: Moment) -> MetricSpec {
        let in_force = self.versions.iter().rev().find(|(from, _)| *from <= now);
        let (effective_at, price) = match in_force {
            Some((_, price)) => (None, price.clone()),
            None => self.versions.first().map_or((None, None), |(from, price)| (Some(*from), price.clone())),
        };
        MetricSpec { price, effective_at, ..self.spec.clone() }
    }
}

/// The moment from which the price of a document is stored to hold as it says; None where it does
/// so already.
fn new_price(spec: &MetricSpec, known: Option<&MetricRow>, now: Moment) -> Option<Moment> {
    let Some(known) = known else {
        // The first version of a price holds from the beginning of time.
        return Some(spec.effective_at.unwrap_or(NEG_INFINITY));
    };
    let in_force = known.versions.iter().rev().find(|(from, _)| *from <= now);
    match spec.effective_at {
        Some(at) if at > now => (!known.versions.contains(&(at, spec.price.clone()))).then_some(at),
        wanted => match in_force {
            Some((_, price)) if *price == spec.price => None,
            // A date before the price that holds now would change nothing.
            Some((from, _)) => Some(wanted.filter(|at| at > from).unwrap_or(now)),
            None => Some(wanted.unwrap_or(now)),
        },
    }
}

/// The section of metrics and their list prices.
pub struct Metrics;

impl Section for Metrics {
    const NAME: &'static str = "metrics";
    const KIND: &'static str = "metric";
    type Item = MetricSpec;
    type Row = MetricRow;

    fn parse(faults: &mut Faults, value: &Value) -> Option<BTreeMap<String, MetricSpec>> {
        section::named(faults, Self::NAME, value, |faults, path, _, value| MetricSpec::parse(faults, path, value))
    }

    fn check_use(faults: &mut Faults, db: &Db, wanted: &Items<Self>, stored: &Rows<Self>) {
        for (name, spec) in wanted {
            let counts_otherwise = stored.get(name).is_some_and(|known| known.spec.aggregation != spec.aggregation);
            if counts_otherwise && db.scan(&COUNTED, args![name]).first().is_some_and(|row| row.get(0)) {
                let path = format!("metrics.{name}.aggregation");
                faults.add(&path, "cannot change once something was counted: make another metric");
            }
        }
    }

    fn to_json(spec: &MetricSpec) -> Value {
        spec.to_json()
    }

    fn current(row: &MetricRow, now: Moment) -> Option<Value> {
        (!row.retired).then(|| row.at(now).to_json())
    }

    fn diff(wanted: &Items<Self>, stored: &Rows<Self>, now: Moment) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, spec) in wanted {
            let known = stored.get(name);
            let mut to = spec.to_json();
            let Some(mut from) = known.and_then(|known| Self::current(known, now)) else {
                changes.push(Change::new::<Self>(Action::Create, name, to));
                continue;
            };
            let is_new_price = new_price(spec, known, now).is_some();
            if !is_new_price {
                // An equal price, though perhaps written with the date from which it holds anyway.
                for side in [&mut from, &mut to] {
                    side.as_object_mut().map(|object| object.remove("price"));
                }
            }
            if from != to || is_new_price {
                changes.push(Change::new::<Self>(Action::Update, name, section::differences(&from, &to)));
            }
        }
        changes.extend(section::retired::<Self>(wanted, stored, now));
        changes
    }

    fn load(db: &Db) -> Result<Rows<Self>> {
        let mut versions: HashMap<String, Versions> = HashMap::new();
        for row in db.scan(&PRICES, &[]).iter() {
            let price = price_json::from_column(&row.get::<String>(2))?;
            versions.entry(row.get(0)).or_default().push((row.get(1), price));
        }
        let unreadable = || Error::corrupt("a stored metric cannot be read");
        let mut metrics = BTreeMap::new();
        for row in db.scan(&METRICS, &[]).iter() {
            let name: String = row.get(0);
            let tier = row.opt::<String>(4).map(|tier| Tier::parse(&tier).ok_or_else(unreadable)).transpose()?;
            let metric = MetricRow {
                spec: MetricSpec {
                    unit: row.opt(1),
                    aggregation: Aggregation::parse(&row.get::<String>(2)).ok_or_else(unreadable)?,
                    category: row.opt(3),
                    unique_by: row.opt(8),
                    tier,
                    price: None,
                    effective_at: None,
                },
                versions: versions.remove(&name).unwrap_or_default(),
                own: Own { price: row.get(6), allowance: row.get(7) },
                retired: row.get(5),
            };
            metrics.insert(name, metric);
        }
        Ok(metrics)
    }

    fn save(db: &Db, name: &str, spec: &MetricSpec, stored: Option<&MetricRow>, now: Moment) {
        db.write(
            &SAVE_METRIC,
            args![
                name,
                spec.unit.as_deref(),
                spec.aggregation.name(),
                spec.category.as_deref(),
                spec.tier.map(Tier::name),
                Timestamptz(now),
                spec.unique_by.as_deref(),
            ],
        );
        if let Some(from) = new_price(spec, stored, now) {
            let price = jsonb::from_text(&price_json::to_column(spec.price.as_deref()));
            db.write(&SAVE_PRICE, args![name, Timestamptz(from), price]);
        }
    }

    fn retire(db: &Db, name: &str, now: Moment) {
        db.write(&RETIRE_METRIC, args![name, Timestamptz(now)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metric(value: &Value) -> MetricSpec {
        let mut faults = Faults::default();
        let spec = MetricSpec::parse(&mut faults, "metrics.m", value);
        faults.or(spec.unwrap()).unwrap()
    }

    fn row(spec: &MetricSpec, versions: Versions) -> MetricRow {
        let spec = MetricSpec { price: None, effective_at: None, ..spec.clone() };
        MetricRow { spec, versions, own: Own::default(), retired: false }
    }

    #[test]
    fn an_exported_metric_parses_to_itself() {
        for text in [
            "{}",
            r#"{"price":15,"category":"AI","tier":"premium"}"#,
            r#"{"price":{"credits":1,"per":1000,"unit":"EUR"},"aggregation":"last"}"#,
            r#"{"price":{"steps":[{"up_to":10,"credits":3,"per":2},{"credits":1,"per":1}]},"unit":"byte"}"#,
            r#"{"aggregation":"unique","unique_by":"seat"}"#,
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(metric(&value).to_json(), value);
        }
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let spec = metric(&json!({"price": {"credits": 2, "effective_at": "2030-01-01"}}));
        let at = spec.effective_at.unwrap();
        let wanted = BTreeMap::from([("m".to_owned(), spec.clone())]);
        let diff =
            |stored: &MetricRow, now| Metrics::diff(&wanted, &BTreeMap::from([("m".to_owned(), stored.clone())]), now);
        let stored = row(&spec, vec![(at, spec.price.clone())]);
        assert_eq!(diff(&stored, at - 1), []);
        assert_eq!(new_price(&spec, Some(&stored), at - 1), None);
        // After it was superseded, the same document brings it back from now on.
        let superseded = row(&spec, vec![(at, spec.price.clone()), (at + 5, None)]);
        assert_eq!(diff(&superseded, at + 9)[0].action, Action::Update);
        assert_eq!(new_price(&spec, Some(&superseded), at + 9), Some(at + 9));
    }

    #[test]
    fn the_first_price_holds_from_the_beginning_and_a_later_one_from_now() {
        let (cheap, dear) = (metric(&json!({"price": 1})), metric(&json!({"price": 2})));
        assert_eq!(new_price(&cheap, None, 7), Some(NEG_INFINITY));
        let stored = row(&cheap, vec![(NEG_INFINITY, cheap.price.clone())]);
        assert_eq!(new_price(&dear, Some(&stored), 7), Some(7));
        let wanted = BTreeMap::from([("m".to_owned(), dear)]);
        let stored = BTreeMap::from([("m".to_owned(), stored.clone()), ("n".to_owned(), stored)]);
        let changes = Metrics::diff(&wanted, &stored, 7);
        assert_eq!(
            changes.iter().map(|c| (c.action, &*c.name)).collect::<Vec<_>>(),
            [(Action::Update, "m"), (Action::Retire, "n"),]
        );
        assert_eq!(changes[0].detail, json!({"price": {"from": 1, "to": 2}}));
    }
}
