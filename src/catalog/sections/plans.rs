//! The section `plans`: what a subscription grants, includes and limits per period.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::base::words::Word;
use crate::catalog::cycle::Cycle;
use crate::catalog::faults::{self, Faults, join};
use crate::catalog::fields::{self, members};
use crate::catalog::section::{self, Items, Names, Retirable, Rows, Section};
use crate::catalog::sections::metrics::Metrics;
use crate::pg::jsonb;
use crate::pg::spi::{Db, Timestamptz};
use crate::{args, statements, words};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

statements! {
    PLANS() = "select plan, terms::text, retired_at is not null from billing.plans";
    SAVE_PLAN(text, jsonb, timestamptz) =
        "insert into billing.plans (plan, terms, created_at) values ($1, $2, $3)
         on conflict (plan) do update set terms = $2, retired_at = null";
    RETIRE_PLAN(text, timestamptz) = "update billing.plans set retired_at = $2 where plan = $1";
}

words! {
    /// The consequence of using more of a metric than the allowance.
    pub enum Limit {
        /// Usage goes on only with credit.
        Hard = "hard",
        /// Usage goes on, and is charged.
        Soft = "soft",
        /// Usage has no allowance that could end.
        Unlimited = "unlimited",
    }
}

words! {
    /// The word for a [`Rollover`].
    enum RolloverWord {
        None = "none",
        All = "all",
        Capped = "capped",
    }
}

/// The fate of a plan's credits that are left at the end of a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollover {
    /// They expire.
    None,
    /// They stay.
    All,
    /// They go on into the next period, but at most so many.
    Capped(i64),
}

/// The credits that a plan grants at the start of each period.
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
    /// The price in minor units by currency.
    pub price: BTreeMap<String, i64>,
    pub credits: Option<Credits>,
    /// The quantity of a metric that is included per period; None: unlimited.
    pub allowances: BTreeMap<String, Option<i64>>,
    pub limits: BTreeMap<String, Limit>,
    /// Whether orgs without a subscription have it.
    pub default: bool,
    /// The ids by which providers know it.
    pub provider_ids: BTreeMap<String, Vec<String>>,
}

impl Plan {
    fn parse(faults: &mut Faults, path: &str, name: &str, value: &Value) -> Option<Self> {
        let object = faults.object(path, value)?;
        faults.unknown_keys(
            path,
            object,
            &["period", "price", "credits", "allowances", "limits", "default", "provider_ids"],
        );
        let mut plan = Self { name: name.to_owned(), ..Self::default() };
        plan.cycle = faults.choice(&join(path, "period"), object.get("period"));
        plan.price = fields::amounts(faults, path, object, "price", 0);
        for (path, metric, value) in members(faults, path, object, "allowances") {
            if value.as_str() == Some("unlimited") {
                plan.allowances.insert(metric, None);
            } else if let Some(allowance) = faults.whole(&path, value, 0) {
                plan.allowances.insert(metric, Some(allowance));
            }
        }
        for (path, metric, value) in members(faults, path, object, "limits") {
            plan.limits.insert(metric, faults.choice(&path, Some(value)));
        }
        plan.credits = match object.get("credits") {
            None | Some(Value::Null) => None,
            Some(value) => parse_credits(faults, &join(path, "credits"), value),
        };
        plan.provider_ids = fields::provider_ids(faults, path, object);
        match object.get("default") {
            None => {}
            Some(Value::Bool(default)) => plan.default = *default,
            Some(_) => faults.add(&join(path, "default"), "must be true or false"),
        }
        Some(plan)
    }

    fn to_json(&self) -> Value {
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
                Rollover::None => RolloverWord::None,
                Rollover::All => RolloverWord::All,
                Rollover::Capped(cap) => {
                    written.insert("cap".into(), cap.into());
                    RolloverWord::Capped
                }
            };
            written.insert("rollover".into(), rollover.name().into());
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

    /// The metrics that it names, some perhaps twice.
    pub fn metrics(&self) -> impl Iterator<Item = &String> {
        self.allowances.keys().chain(self.limits.keys())
    }
}

fn parse_credits(faults: &mut Faults, path: &str, value: &Value) -> Option<Credits> {
    let object = faults.object(path, value)?;
    faults.unknown_keys(path, object, &["amount", "rollover", "cap"]);
    let amount = faults.required(&join(path, "amount"), object.get("amount"), 1);
    let rollover = faults.choice(&join(path, "rollover"), object.get("rollover"));
    let cap = object.get("cap").and_then(|value| faults.whole(&join(path, "cap"), value, 0));
    let rollover = match (rollover, cap) {
        (RolloverWord::Capped, Some(cap)) => Rollover::Capped(cap),
        (RolloverWord::Capped, None) => {
            faults.add(&join(path, "cap"), "is needed with the rollover capped: the most that goes on");
            return None;
        }
        (RolloverWord::None | RolloverWord::All, Some(_)) => {
            faults.add(&join(path, "cap"), "goes with the rollover capped only");
            return None;
        }
        (RolloverWord::All, None) => Rollover::All,
        (RolloverWord::None, None) => Rollover::None,
    };
    Some(Credits { amount: amount?, rollover })
}

/// The section of plans.
pub struct Plans;

impl Section for Plans {
    const NAME: &'static str = "plans";
    const KIND: &'static str = "plan";
    type Item = Plan;
    type Row = Retirable<Plan>;

    fn parse(faults: &mut Faults, value: &Value) -> Option<BTreeMap<String, Plan>> {
        let plans = section::named(faults, Self::NAME, value, Plan::parse)?;
        for second in plans.values().filter(|plan| plan.default).skip(1) {
            faults.add(&format!("plans.{}.default", second.name), "another plan is the default already");
        }
        Some(plans)
    }

    fn check(faults: &mut Faults, wanted: &Items<Self>, stored: &Rows<Self>, names: &Names) {
        for (name, plan) in wanted {
            for (member, metrics) in
                [("allowances", plan.allowances.keys().collect::<Vec<_>>()), ("limits", plan.limits.keys().collect())]
            {
                for metric in metrics.into_iter().filter(|metric| !names.has::<Metrics>(metric)) {
                    faults.add(&format!("plans.{name}.{member}.{metric}"), "unknown metric");
                }
            }
            // The periods of whoever is on the plan would move.
            if stored.get(name).is_some_and(|known| known.item.cycle != plan.cycle) {
                faults.add(&format!("plans.{name}.period"), "cannot change: make another plan");
            }
        }
    }

    fn to_json(plan: &Plan) -> Value {
        plan.to_json()
    }

    fn current(row: &Retirable<Plan>, _: Moment) -> Option<Value> {
        row.current().map(Plan::to_json)
    }

    fn load(db: &Db) -> Result<Rows<Self>> {
        let mut plans = BTreeMap::new();
        for row in db.scan(&PLANS, &[]).iter() {
            let name: String = row.get(0);
            let plan = faults::stored(&row.get::<String>(1), |faults, terms| Plan::parse(faults, &name, &name, terms));
            let item = plan.ok_or(Error::corrupt("a stored plan cannot be read"))?;
            plans.insert(name, Retirable { item, retired: row.get(2) });
        }
        Ok(plans)
    }

    fn save(db: &Db, name: &str, plan: &Plan, _: Option<&Retirable<Plan>>, now: Moment) {
        db.write(&SAVE_PLAN, args![name, jsonb::from_text(&plan.to_json().to_string()), Timestamptz(now)]);
    }

    fn retire(db: &Db, name: &str, now: Moment) {
        db.write(&RETIRE_PLAN, args![name, Timestamptz(now)]);
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
            let plan = faults::stored(text, |faults, terms| Plan::parse(faults, "p", "p", terms)).unwrap();
            assert_eq!(plan.to_json(), serde_json::from_str::<Value>(text).unwrap());
        }
    }

    #[test]
    fn a_plan_keeps_its_period_and_names_metrics_that_there_are() {
        let parse = |text| {
            let value = serde_json::from_str::<Value>(text).unwrap();
            Plans::parse(&mut Faults::default(), &value).unwrap()
        };
        let wanted = parse(r#"{"p": {"period": "week", "allowances": {"a": 1}, "limits": {"b": "soft"}}}"#);
        let row = |item| Retirable { item, retired: true };
        let stored = parse(r#"{"p": {}}"#).into_iter().map(|(name, plan)| (name, row(plan))).collect();
        let mut names = Names::default();
        names.add::<Metrics>(["a".to_owned()].into_iter());
        let mut faults = Faults::default();
        Plans::check(&mut faults, &wanted, &stored, &names);
        let faults = faults.or(()).unwrap_err();
        let paths: Vec<_> = faults.iter().map(|fault| fault["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["plans.p.limits.b", "plans.p.period"]);
    }
}
