//! The catalog document: parsing with every fault listed, and what applying it would change.

use crate::base::time::{Moment, NEG_INFINITY};
use crate::base::units;
use crate::catalog::pack::{Pack, Surcharge};
use crate::catalog::plan::{Cap, Plan};
use crate::catalog::price::{Price, Step};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A metric as the document describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricSpec {
    /// What one of the quantity is, for people.
    pub unit: Option<String>,
    /// sum | max | last | unique
    pub aggregation: String,
    /// Free text, such as AI or Storage.
    pub category: Option<String>,
    /// For the aggregation unique: whose distinct values are counted.
    pub unique_by: Option<String>,
    /// core | premium
    pub tier: Option<String>,
    /// None: free.
    pub price: Option<Price>,
    /// From when the price holds, where the document says so.
    pub effective_at: Option<Moment>,
}

/// A whole document. A section that is absent is left alone; one that is present is complete.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    /// By name.
    pub metrics: Option<BTreeMap<String, MetricSpec>>,
    /// By name.
    pub plans: Option<BTreeMap<String, Plan>>,
    /// By name.
    pub caps: Option<BTreeMap<String, Cap>>,
    /// By name.
    pub packs: Option<BTreeMap<String, Pack>>,
    /// By currency.
    pub surcharges: Option<BTreeMap<String, Surcharge>>,
}

/// Collects faults with their paths.
#[derive(Default)]
pub(super) struct Faults(Vec<Value>);

impl Faults {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, path: &str, fault: &str) {
        self.0.push(json!({"path": path, "fault": fault}));
    }

    pub(super) fn unknown_keys(&mut self, path: &str, object: &Map<String, Value>, known: &[&str]) {
        for key in object.keys().filter(|k| !known.contains(&k.as_str())) {
            self.add(&join(path, key), "unknown key");
        }
    }

    pub(super) fn object<'v>(&mut self, path: &str, value: &'v Value) -> Option<&'v Map<String, Value>> {
        let object = value.as_object();
        if object.is_none() {
            self.add(path, "must be an object");
        }
        object
    }

    pub(super) fn text(&mut self, path: &str, value: Option<&Value>) -> Option<String> {
        match value {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if !text.is_empty() && text.len() <= 200 => Some(text.clone()),
            Some(_) => {
                self.add(path, "must be a text of 1 to 200 bytes");
                None
            }
        }
    }

    pub(super) fn choice(&mut self, path: &str, value: Option<&Value>, choices: &[&str]) -> String {
        match value {
            None => {}
            Some(Value::String(text)) if choices.contains(&text.as_str()) => return text.clone(),
            Some(_) => self.add(path, &format!("must be one of {}", choices.join(", "))),
        }
        choices[0].to_owned()
    }

    /// A whole number from `least`, or a fault and None.
    pub(super) fn whole(&mut self, path: &str, value: &Value, least: i64) -> Option<i64> {
        let number = value.as_i64().filter(|n| *n >= least);
        if number.is_none() {
            self.add(path, &format!("must be a whole number from {least} to 9223372036854775807"));
        }
        number
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl Document {
    /// Parses and checks; on failure, all faults as `{"path", "fault"}`.
    pub fn parse(value: &Value) -> Result<Self, Vec<Value>> {
        let mut faults = Faults::default();
        let mut document = Self::default();
        if let Some(root) = faults.object("", value) {
            faults.unknown_keys("", root, &["metrics", "plans", "caps", "packs", "surcharges"]);
            document.metrics =
                section(&mut faults, root, "metrics", |faults, path, _, value| parse_metric(faults, path, value));
            document.plans = section(&mut faults, root, "plans", Plan::parse);
            if let Some(plans) = &document.plans {
                for second in plans.values().filter(|p| p.default).skip(1) {
                    let path = format!("plans.{}.default", second.name);
                    faults.add(&path, "another plan is the default already");
                }
            }
            document.caps = parse_caps(&mut faults, root.get("caps"));
            document.packs = section(&mut faults, root, "packs", Pack::parse);
            document.surcharges = section(&mut faults, root, "surcharges", Surcharge::parse);
        }
        if faults.0.is_empty() { Ok(document) } else { Err(faults.0) }
    }

    /// Faults of what names something else: `metrics` and `plans` are what the catalog has now.
    pub fn check_references(
        &self,
        metrics: &BTreeMap<String, Current>,
        plans: &BTreeMap<String, CurrentPlan>,
    ) -> Vec<Value> {
        let mut faults = Faults::default();
        let known: BTreeSet<&String> = match &self.metrics {
            Some(wanted) => wanted.keys().collect(),
            None => metrics.iter().filter(|(_, m)| !m.retired).map(|(name, _)| name).collect(),
        };
        for (name, plan) in self.plans.iter().flatten() {
            for (section, named) in
                [("allowances", plan.allowances.keys().collect::<Vec<_>>()), ("limits", plan.limits.keys().collect())]
            {
                for metric in named.into_iter().filter(|m| !known.contains(m)) {
                    faults.add(&format!("plans.{name}.{section}.{metric}"), "unknown metric");
                }
            }
            // The periods of whoever is on the plan would move.
            if plans.get(name).is_some_and(|p| p.plan.cycle != plan.cycle) {
                faults.add(&format!("plans.{name}.period"), "cannot change: make another plan");
            }
        }
        for (name, pack) in self.packs.iter().flatten() {
            for metric in pack.metrics.iter().flatten().filter(|m| !known.contains(m)) {
                faults.add(&format!("packs.{name}.metrics"), &format!("unknown metric {metric}"));
            }
        }
        for cap in self.caps.iter().flat_map(BTreeMap::values) {
            if cap.metric.as_ref().is_some_and(|m| !known.contains(m)) {
                faults.add(&format!("caps[{}].metric", cap.position), "unknown metric");
            }
        }
        faults.0
    }
}

fn section<T>(
    faults: &mut Faults,
    root: &Map<String, Value>,
    name: &str,
    mut parse: impl FnMut(&mut Faults, &str, &str, &Value) -> Option<T>,
) -> Option<BTreeMap<String, T>> {
    let all = faults.object(name, root.get(name)?)?;
    let mut parsed = BTreeMap::new();
    for (key, value) in all {
        let path = join(name, key);
        if key.is_empty() || key.len() > 63 {
            faults.add(&path, "a name must have 1 to 63 bytes");
        }
        if let Some(item) = parse(faults, &path, key, value) {
            parsed.insert(key.clone(), item);
        }
    }
    Some(parsed)
}

fn parse_caps(faults: &mut Faults, section: Option<&Value>) -> Option<BTreeMap<String, Cap>> {
    let Some(all) = section?.as_array() else {
        faults.add("caps", "must be an array");
        return None;
    };
    let mut caps = BTreeMap::new();
    for (i, value) in all.iter().enumerate() {
        let path = format!("caps[{i}]");
        if let Some(cap) = Cap::parse(faults, i, value)
            && caps.insert(cap.name.clone(), cap).is_some()
        {
            faults.add(&path, "the same cap stands there twice");
        }
    }
    Some(caps)
}

fn parse_metric(faults: &mut Faults, path: &str, value: &Value) -> Option<MetricSpec> {
    let object = faults.object(path, value)?;
    faults.unknown_keys(path, object, &["unit", "aggregation", "unique_by", "category", "tier", "price"]);
    let (price, effective_at) = match object.get("price") {
        None | Some(Value::Null) => (None, None),
        Some(value) => parse_price_at(faults, &join(path, "price"), value),
    };
    let unique_by = faults.text(&join(path, "unique_by"), object.get("unique_by"));
    if unique_by.is_some() && object.get("aggregation").and_then(Value::as_str) != Some("unique") {
        faults.add(&join(path, "unique_by"), "goes with the aggregation unique only");
    }
    Some(MetricSpec {
        unique_by,
        unit: faults.text(&join(path, "unit"), object.get("unit")),
        aggregation: faults.choice(
            &join(path, "aggregation"),
            object.get("aggregation"),
            &["sum", "max", "last", "unique"],
        ),
        category: faults.text(&join(path, "category"), object.get("category")),
        tier: object
            .get("tier")
            .filter(|tier| !tier.is_null())
            .map(|tier| faults.choice(&join(path, "tier"), Some(tier), &["core", "premium"])),
        price,
        effective_at,
    })
}

/// A price on its own, as `set_org_price` takes it.
pub fn parse_price(value: &Value) -> Result<(Option<Price>, Option<Moment>), Vec<Value>> {
    let mut faults = Faults::default();
    let parsed = parse_price_at(&mut faults, "price", value);
    if faults.0.is_empty() { Ok(parsed) } else { Err(faults.0) }
}

/// `15`, `{"credits": 1, "per": 1000}` or `{"steps": […]}`, the objects with `unit` and `effective_at`.
fn parse_price_at(faults: &mut Faults, path: &str, value: &Value) -> (Option<Price>, Option<Moment>) {
    let mut unit = units::CREDIT.to_owned();
    let mut effective_at = None;
    let steps = match value {
        Value::Object(object) => {
            faults.unknown_keys(path, object, &["credits", "per", "steps", "unit", "effective_at"]);
            if let Some(value) = object.get("unit") {
                match value.as_str().filter(|u| units::is_unit(u)) {
                    Some(known) => known.clone_into(&mut unit),
                    None => faults.add(&join(path, "unit"), "must be credit or an ISO 4217 currency"),
                }
            }
            if let Some(value) = object.get("effective_at") {
                effective_at = value.as_str().and_then(crate::base::time::parse);
                if effective_at.is_none() {
                    faults.add(&join(path, "effective_at"), "must be a date or a timestamp with time zone (ISO 8601)");
                }
            }
            match (object.get("steps"), object.get("credits")) {
                (Some(Value::Array(all)), None) if !object.contains_key("per") => all
                    .iter()
                    .enumerate()
                    .map(|(i, step)| parse_step(faults, &format!("{path}.steps[{i}]"), step))
                    .collect::<Vec<_>>()
                    .into_iter()
                    .collect::<Option<Vec<_>>>(),
                (None, Some(_)) => {
                    let mut flat = object.clone();
                    flat.retain(|key, _| key == "credits" || key == "per");
                    parse_step(faults, path, &Value::Object(flat)).map(|step| vec![step])
                }
                _ => {
                    faults.add(path, "must have either credits (and per) or an array of steps");
                    None
                }
            }
        }
        Value::Number(_) => faults.whole(path, value, 0).map(|credits| vec![Step { up_to: None, credits, per: 1 }]),
        _ => {
            faults.add(path, "must be a whole number or an object");
            None
        }
    };
    let price = steps.and_then(|steps| {
        let single = steps.len() == 1;
        Price::new(unit, steps)
            .map_err(|(index, fault)| {
                let place = if single { path.to_owned() } else { format!("{path}.steps[{index}]") };
                faults.add(&place, fault);
            })
            .ok()
    });
    (price, effective_at)
}

fn parse_step(faults: &mut Faults, path: &str, value: &Value) -> Option<Step> {
    let object = faults.object(path, value)?;
    faults.unknown_keys(path, object, &["up_to", "credits", "per"]);
    let mut number = |key: &str, least, default: Option<i64>| match object.get(key) {
        None if default.is_some() => default,
        None => {
            faults.add(&join(path, key), "is missing");
            None
        }
        Some(value) => faults.whole(&join(path, key), value, least),
    };
    let credits = number("credits", 0, None);
    let per = number("per", 1, Some(1));
    let up_to = match object.get("up_to") {
        None | Some(Value::Null) => None,
        Some(_) => Some(number("up_to", 1, None)?),
    };
    Some(Step { up_to, credits: credits?, per: per? })
}

/// The shortest form that parses to the same price: a number, one block, or steps.
pub fn price_to_json(price: &Price, effective_at: Option<Moment>) -> Value {
    let mut object = Map::new();
    match price.steps.as_slice() {
        [only] if only.per == 1 && price.unit == units::CREDIT && effective_at.is_none() => {
            return only.credits.into();
        }
        [only] => {
            object.insert("credits".into(), only.credits.into());
            object.insert("per".into(), only.per.into());
        }
        steps => {
            object.insert("steps".into(), json!(steps));
        }
    }
    if price.unit != units::CREDIT {
        object.insert("unit".into(), price.unit.clone().into());
    }
    if let Some(at) = effective_at {
        object.insert("effective_at".into(), crate::base::time::display(at).into());
    }
    Value::Object(object)
}

impl MetricSpec {
    /// As the document writes it, without what is the default.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        };
        put("unit", self.unit.clone().map(Value::from));
        put("aggregation", (self.aggregation != "sum").then(|| self.aggregation.clone().into()));
        put("category", self.category.clone().map(Value::from));
        put("unique_by", self.unique_by.clone().map(Value::from));
        put("tier", self.tier.clone().map(Value::from));
        put("price", self.price.as_ref().map(|p| price_to_json(p, self.effective_at)));
        Value::Object(object)
    }
}

/// What applying a document does.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// create | update | retire
    pub action: &'static str,
    /// metric | plan | cap | pack | surcharge
    pub kind: &'static str,
    /// Its name; the currency of a surcharge.
    pub name: String,
    /// What it becomes, or per changed key what it was and becomes.
    pub detail: Value,
    /// From when a new version of a metric's price is to hold; None: no new version.
    pub new_price: Option<Moment>,
}

impl Change {
    fn new(action: &'static str, kind: &'static str, name: &str, detail: Value) -> Self {
        Self { action, kind, name: name.to_owned(), detail, new_price: None }
    }
}

/// What the catalog holds of a plan now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentPlan {
    /// Its terms.
    pub plan: Plan,
    /// Dropped by an earlier document.
    pub retired: bool,
}

/// What the catalog holds of a metric now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// As the document would have it, with the price in force.
    pub spec: MetricSpec,
    /// All versions of the price.
    pub versions: Vec<(Moment, Option<Price>)>,
    /// Dropped by an earlier document.
    pub retired: bool,
}

/// From when the price of a document must be stored to hold as it says; None when it does so already.
fn new_price(spec: &MetricSpec, known: Option<&Current>, now: Moment) -> Option<Moment> {
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

/// Compares the metrics of a document with the catalog.
pub fn diff_metrics(
    wanted: &BTreeMap<String, MetricSpec>,
    current: &BTreeMap<String, Current>,
    now: Moment,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, spec) in wanted {
        let known = current.get(name);
        let new_price = new_price(spec, known, now);
        let change = |action, detail| Change { new_price, ..Change::new(action, "metric", name, detail) };
        match known {
            Some(known) if !known.retired => {
                let mut from = known.spec.to_json();
                let mut to = spec.to_json();
                if new_price.is_none() {
                    // The same price, though perhaps written with the date from which it holds anyway.
                    for side in [&mut from, &mut to] {
                        side.as_object_mut().map(|o| o.remove("price"));
                    }
                }
                if from != to || new_price.is_some() {
                    changes.push(change("update", differences(&from, &to)));
                }
            }
            _ => changes.push(change("create", spec.to_json())),
        }
    }
    for (name, known) in current {
        if !known.retired && !wanted.contains_key(name) {
            changes.push(Change::new("retire", "metric", name, known.spec.to_json()));
        }
    }
    changes
}

/// Compares the plans of a document with the catalog.
pub fn diff_plans(wanted: &BTreeMap<String, Plan>, current: &BTreeMap<String, CurrentPlan>) -> Vec<Change> {
    let known = |name: &String| current.get(name).filter(|c| !c.retired).map(|c| c.plan.to_json());
    let wanted = wanted.iter().map(|(name, plan)| (name, plan.to_json())).collect();
    diff_simple("plan", &wanted, known, current.keys())
}

/// Compares the packs of a document with the catalog.
pub fn diff_packs(wanted: &BTreeMap<String, Pack>, current: &BTreeMap<String, Pack>) -> Vec<Change> {
    let wanted = wanted.iter().map(|(name, pack)| (name, pack.to_json())).collect();
    diff_simple("pack", &wanted, |name| current.get(name).map(Pack::to_json), current.keys())
}

/// Compares the surcharges of a document with the catalog.
pub fn diff_surcharges(wanted: &BTreeMap<String, Surcharge>, current: &BTreeMap<String, Surcharge>) -> Vec<Change> {
    let wanted = wanted.iter().map(|(name, surcharge)| (name, surcharge.to_json())).collect();
    diff_simple("surcharge", &wanted, |name| current.get(name).map(|s| s.to_json()), current.keys())
}

/// Compares the caps of a document with the catalog.
pub fn diff_caps(wanted: &BTreeMap<String, Cap>, current: &BTreeMap<String, Cap>) -> Vec<Change> {
    let wanted = wanted.iter().map(|(name, cap)| (name, cap.to_json())).collect();
    diff_simple("cap", &wanted, |name| current.get(name).map(Cap::to_json), current.keys())
}

fn diff_simple<'a>(
    kind: &'static str,
    wanted: &BTreeMap<&'a String, Value>,
    known: impl Fn(&String) -> Option<Value>,
    names: impl Iterator<Item = &'a String>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, to) in wanted {
        match known(name) {
            None => changes.push(Change::new("create", kind, name, to.clone())),
            Some(from) if from != *to => changes.push(Change::new("update", kind, name, differences(&from, to))),
            Some(_) => {}
        }
    }
    for name in names.filter(|name| !wanted.contains_key(name)) {
        if let Some(from) = known(name) {
            changes.push(Change::new("retire", kind, name, from));
        }
    }
    changes
}

fn differences(from: &Value, to: &Value) -> Value {
    let empty = Map::new();
    let (from, to) = (from.as_object().unwrap_or(&empty), to.as_object().unwrap_or(&empty));
    let mut all = Map::new();
    for key in from.keys().chain(to.keys()) {
        if from.get(key) != to.get(key) {
            all.insert(key.clone(), json!({"from": from.get(key), "to": to.get(key)}));
        }
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(document: &Value) -> Vec<String> {
        Document::parse(document).unwrap_err().iter().map(|f| f["path"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_fault_is_listed_with_its_path() {
        let document = json!({
            "metrics": {
                "a": {"price": -1},
                "b": {"price": {"steps": [{"up_to": 5, "credits": 1.5, "per": 1}, {"per": 0}]}, "colour": "red"},
                "c": {"aggregation": "avg", "tier": "gold", "price": {"credits": 1, "unit": "XXZ"}},
                "d": 7,
            },
            "planz": {},
        });
        assert_eq!(
            paths(&document),
            [
                "planz",
                "metrics.a.price",
                "metrics.b.colour",
                "metrics.b.price.steps[0].credits",
                "metrics.b.price.steps[1].credits",
                "metrics.b.price.steps[1].per",
                "metrics.c.price.unit",
                "metrics.c.aggregation",
                "metrics.c.tier",
                "metrics.d",
            ]
        );
        assert_eq!(paths(&json!([])), [""]);
    }

    #[test]
    fn an_exported_metric_parses_to_itself() {
        for text in [
            r#"{"metrics":{"m":{}}}"#,
            r#"{"metrics":{"m":{"price":15,"category":"AI","tier":"premium"}}}"#,
            r#"{"metrics":{"m":{"price":{"credits":1,"per":1000,"unit":"EUR"},"aggregation":"last"}}}"#,
            r#"{"metrics":{"m":{"price":{"steps":[{"up_to":10,"credits":3,"per":2},{"credits":1,"per":1}]},"unit":"byte"}}}"#,
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            let document = Document::parse(&value).unwrap();
            assert_eq!(document.metrics.unwrap()["m"].to_json(), value["metrics"]["m"]);
        }
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let value = json!({"metrics": {"m": {"price": {"credits": 2, "effective_at": "2030-01-01"}}}});
        let spec = Document::parse(&value).unwrap().metrics.unwrap().remove("m").unwrap();
        let at = spec.effective_at.unwrap();
        let current = Current {
            spec: MetricSpec { price: None, effective_at: None, ..spec.clone() },
            versions: vec![(at, spec.price.clone())],
            retired: false,
        };
        let wanted = BTreeMap::from([("m".to_owned(), spec.clone())]);
        assert_eq!(diff_metrics(&wanted, &BTreeMap::from([("m".to_owned(), current.clone())]), at - 1), []);
        // After it was superseded, the same document brings it back from now on.
        let superseded = Current { versions: vec![(at, spec.price.clone()), (at + 5, None)], ..current };
        let changes = diff_metrics(&wanted, &BTreeMap::from([("m".to_owned(), superseded)]), at + 9);
        assert_eq!(changes[0].new_price, Some(at + 9));
    }
}
