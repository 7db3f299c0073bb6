//! Plans and caps as the catalog document describes them.

use crate::base::time::Moment;
use crate::base::units;
use crate::catalog::document::{Faults, join};
use crate::catalog::pack;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Length of a plan's period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Cycle {
    Day,
    Week,
    #[default]
    Month,
    Year,
}

/// Their names, the default first.
pub const CYCLES: [&str; 4] = ["month", "day", "week", "year"];

impl Cycle {
    /// From its name.
    pub fn parse(name: &str) -> Self {
        match name {
            "day" => Self::Day,
            "week" => Self::Week,
            "year" => Self::Year,
            _ => Self::Month,
        }
    }

    /// Its name in the document.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }

    /// Start of the n-th period from the anchor, the first being 0.
    pub fn boundary(self, anchor: Moment, n: i64) -> Moment {
        match self {
            Self::Day => crate::base::time::add_days(anchor, n),
            Self::Week => crate::base::time::add_days(anchor, n.saturating_mul(7)),
            Self::Month => crate::base::time::add_months(anchor, n),
            Self::Year => crate::base::time::add_months(anchor, n.saturating_mul(12)),
        }
    }

    /// Which period a moment falls into.
    pub fn index(self, anchor: Moment, at: Moment) -> i64 {
        const DAY: i64 = 86_400_000_000;
        // A first guess that is at most one too high or too low, whatever the lengths of months.
        let days = at.saturating_sub(anchor).div_euclid(DAY);
        let mut n = match self {
            Self::Day => days,
            Self::Week => days.div_euclid(7),
            Self::Month => crate::base::time::months_between(anchor, at),
            Self::Year => crate::base::time::months_between(anchor, at).div_euclid(12),
        };
        while self.boundary(anchor, n) > at {
            n -= 1;
        }
        while self.boundary(anchor, n + 1) <= at {
            n += 1;
        }
        n
    }
}

/// What happens beyond the allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Only with credit.
    Hard,
    /// Goes on, and is charged.
    Soft,
    /// There is no beyond.
    Unlimited,
}

const LIMITS: [&str; 3] = ["hard", "soft", "unlimited"];

impl Limit {
    /// From its name in the document.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "hard" => Some(Self::Hard),
            "soft" => Some(Self::Soft),
            "unlimited" => Some(Self::Unlimited),
            _ => None,
        }
    }

    /// Its name in the document.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Soft => "soft",
            Self::Unlimited => "unlimited",
        }
    }
}

/// What becomes of a plan's credits that are left at the end of a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollover {
    /// They expire.
    None,
    /// They stay.
    All,
    /// At most so many go on into the next period.
    Capped(i64),
}

/// Credits that a plan grants at the start of each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Credits {
    pub amount: i64,
    pub rollover: Rollover,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Plan {
    pub name: String,
    pub cycle: Cycle,
    /// Minor units by currency.
    pub price: BTreeMap<String, i64>,
    pub credits: Option<Credits>,
    /// Included per period; None: unlimited.
    pub allowances: BTreeMap<String, Option<i64>>,
    pub limits: BTreeMap<String, Limit>,
    /// Of orgs without a subscription.
    pub default: bool,
    /// By which ids providers know it.
    pub provider_ids: BTreeMap<String, Vec<String>>,
}

impl Plan {
    pub(super) fn parse(faults: &mut Faults, path: &str, name: &str, value: &Value) -> Option<Self> {
        let object = faults.object(path, value)?;
        faults.unknown_keys(
            path,
            object,
            &["period", "price", "credits", "allowances", "limits", "default", "provider_ids"],
        );
        let mut plan = Self { name: name.to_owned(), ..Self::default() };
        plan.cycle = Cycle::parse(&faults.choice(&join(path, "period"), object.get("period"), &CYCLES));
        for (path, currency, value) in members(faults, path, object, "price") {
            if !units::is_currency(&currency) {
                faults.add(&path, "must be an ISO 4217 currency");
            }
            if let Some(amount) = faults.whole(&path, value, 0) {
                plan.price.insert(currency, amount);
            }
        }
        for (path, metric, value) in members(faults, path, object, "allowances") {
            if value.as_str() == Some("unlimited") {
                plan.allowances.insert(metric, None);
            } else if let Some(allowance) = faults.whole(&path, value, 0) {
                plan.allowances.insert(metric, Some(allowance));
            }
        }
        for (path, metric, value) in members(faults, path, object, "limits") {
            if let Some(limit) = Limit::parse(&faults.choice(&path, Some(value), &LIMITS)) {
                plan.limits.insert(metric, limit);
            }
        }
        plan.credits = match object.get("credits") {
            None | Some(Value::Null) => None,
            Some(value) => parse_credits(faults, &join(path, "credits"), value),
        };
        plan.provider_ids = pack::parse_provider_ids(faults, &join(path, "provider_ids"), object.get("provider_ids"));
        match object.get("default") {
            None => {}
            Some(Value::Bool(default)) => plan.default = *default,
            Some(_) => faults.add(&join(path, "default"), "must be true or false"),
        }
        Some(plan)
    }

    /// From its stored terms.
    pub fn stored(name: &str, terms: &Value) -> Option<Self> {
        let mut faults = Faults::default();
        Self::parse(&mut faults, name, name, terms).filter(|_| faults.is_empty())
    }

    /// As the document writes it, without what is the default.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        if self.cycle != Cycle::default() {
            object.insert("period".into(), self.cycle.name().into());
        }
        if !self.price.is_empty() {
            object.insert("price".into(), json!(self.price));
        }
        if let Some(credits) = self.credits {
            let mut written = Map::from_iter([("amount".to_owned(), credits.amount.into())]);
            let rollover = match credits.rollover {
                Rollover::None => "none",
                Rollover::All => "all",
                Rollover::Capped(cap) => {
                    written.insert("cap".into(), cap.into());
                    "capped"
                }
            };
            written.insert("rollover".into(), rollover.into());
            object.insert("credits".into(), Value::Object(written));
        }
        if !self.allowances.is_empty() {
            let all = self.allowances.iter().map(|(metric, allowance)| {
                (metric.clone(), allowance.map_or_else(|| Value::from("unlimited"), Value::from))
            });
            object.insert("allowances".into(), Value::Object(all.collect()));
        }
        if !self.provider_ids.is_empty() {
            object.insert("provider_ids".into(), json!(self.provider_ids));
        }
        if !self.limits.is_empty() {
            let all = self.limits.iter().map(|(metric, limit)| (metric.clone(), limit.name().into()));
            object.insert("limits".into(), Value::Object(all.collect()));
        }
        if self.default {
            object.insert("default".into(), true.into());
        }
        Value::Object(object)
    }

    /// The metrics that it names.
    pub fn metrics(&self) -> impl Iterator<Item = &String> {
        self.allowances.keys().chain(self.limits.keys())
    }
}

fn members<'v>(
    faults: &mut Faults,
    path: &str,
    object: &'v Map<String, Value>,
    key: &str,
) -> Vec<(String, String, &'v Value)> {
    let path = join(path, key);
    match object.get(key) {
        None | Some(Value::Null) => Vec::new(),
        Some(value) => faults
            .object(&path, value)
            .map(|all| all.iter().map(|(name, value)| (join(&path, name), name.clone(), value)).collect())
            .unwrap_or_default(),
    }
}

fn parse_credits(faults: &mut Faults, path: &str, value: &Value) -> Option<Credits> {
    let object = faults.object(path, value)?;
    faults.unknown_keys(path, object, &["amount", "rollover", "cap"]);
    let amount = match object.get("amount") {
        Some(value) => faults.whole(&join(path, "amount"), value, 1),
        None => {
            faults.add(&join(path, "amount"), "is missing");
            None
        }
    };
    let rollover = faults.choice(&join(path, "rollover"), object.get("rollover"), &["none", "all", "capped"]);
    let cap = object.get("cap").and_then(|value| faults.whole(&join(path, "cap"), value, 0));
    let rollover = match (rollover.as_str(), cap) {
        ("capped", Some(cap)) => Rollover::Capped(cap),
        ("capped", None) => {
            faults.add(&join(path, "cap"), "is needed with the rollover capped: the most that goes on");
            return None;
        }
        (_, Some(_)) => {
            faults.add(&join(path, "cap"), "goes with the rollover capped only");
            return None;
        }
        ("all", None) => Rollover::All,
        _ => Rollover::None,
    };
    Some(Credits { amount: amount?, rollover })
}

/// Most of a metric or category per day or month, for an org or each of its members.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Cap {
    /// Made of the other fields but the quantity: see [`Cap::name`].
    pub name: String,
    pub metric: Option<String>,
    pub category: Option<String>,
    /// day | month
    pub per: String,
    /// org | member
    pub subject: String,
    pub quantity: i64,
    /// Where it stands in the document, from 0.
    pub position: usize,
}

impl Cap {
    pub(super) fn parse(faults: &mut Faults, position: usize, value: &Value) -> Option<Self> {
        let path = &format!("caps[{position}]");
        let object = faults.object(path, value)?;
        faults.unknown_keys(path, object, &["metric", "category", "per", "for", "limit"]);
        let metric = faults.text(&join(path, "metric"), object.get("metric"));
        let category = faults.text(&join(path, "category"), object.get("category"));
        if metric.is_some() == category.is_some() {
            faults.add(path, "must name either a metric or a category");
        }
        let per = match object.get("per") {
            None => {
                faults.add(&join(path, "per"), "is missing");
                return None;
            }
            per => faults.choice(&join(path, "per"), per, &["day", "month"]),
        };
        let subject = faults.choice(&join(path, "for"), object.get("for"), &["org", "member"]);
        let quantity = match object.get("limit") {
            None => {
                faults.add(&join(path, "limit"), "is missing");
                return None;
            }
            Some(value) => faults.whole(&join(path, "limit"), value, 0)?,
        };
        let mut cap = Self { name: String::new(), metric, category, per, subject, quantity, position };
        cap.name = cap.name();
        Some(cap)
    }

    fn name(&self) -> String {
        let what = match (&self.metric, &self.category) {
            (Some(metric), _) => format!("metric {metric}"),
            (_, category) => format!("category {}", category.as_deref().unwrap_or_default()),
        };
        format!("{what} per {} and {}", self.per, self.subject)
    }

    /// As the document writes it.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        if let Some(metric) = &self.metric {
            object.insert("metric".into(), metric.clone().into());
        }
        if let Some(category) = &self.category {
            object.insert("category".into(), category.clone().into());
        }
        object.insert("per".into(), self.per.clone().into());
        if self.subject != "org" {
            object.insert("for".into(), self.subject.clone().into());
        }
        object.insert("limit".into(), self.quantity.into());
        Value::Object(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_written_as_it_is_read() {
        for text in [
            "{}",
            r#"{"allowances":{"a":5,"b":"unlimited"},"limits":{"a":"hard","c":"soft"},"price":{"USD":1400}}"#,
            r#"{"credits":{"amount":1000,"rollover":"none"},"default":true,"period":"year"}"#,
            r#"{"credits":{"amount":1000,"cap":500,"rollover":"capped"}}"#,
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(Plan::stored("p", &value).unwrap().to_json(), value);
        }
    }

    #[test]
    fn periods_of_days_and_weeks() {
        let monday = crate::base::time::parse("2027-06-07").unwrap();
        assert_eq!(Cycle::Week.boundary(monday, 2), crate::base::time::parse("2027-06-21").unwrap());
        assert_eq!(Cycle::Week.index(monday, crate::base::time::parse("2027-06-20").unwrap()), 1);
        assert_eq!(Cycle::Day.index(monday, crate::base::time::parse("2027-06-06").unwrap()), -1);
    }
}
