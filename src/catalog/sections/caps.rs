//! The section `caps`: the most of a metric or category per day or month, for an org or each of its
//! members.

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment, Period};
use crate::base::words::Word;
use crate::catalog::faults::{Faults, join};
use crate::catalog::section::{Items, Names, Rows, Section};
use crate::catalog::sections::metrics::Metrics;
use crate::pg::spi::{Db, Timestamptz};
use crate::{args, statements, words};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

statements! {
    CAPS() = "select cap, metric, category, per, subject, quantity from billing.caps order by cap";
    SAVE_CAP(text, text, text, text, text, int8, timestamptz) =
        "insert into billing.caps (cap, metric, category, per, subject, quantity, created_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (cap) do update set quantity = $6";
    REMOVE_CAP(text) = "delete from billing.caps where cap = $1";
}

words! {
    /// The time after which a cap begins anew (UTC).
    pub enum CapPeriod {
        /// A day.
        Day = "day",
        /// A calendar month.
        Month = "month",
    }
}

impl CapPeriod {
    /// The start of the period that contains a moment.
    pub fn start(self, at: Moment) -> Moment {
        match self {
            Self::Day => Period::Day.start(at),
            Self::Month => Period::Month.start(at),
        }
    }

    /// The end of the period that contains a moment.
    pub fn end(self, at: Moment) -> Moment {
        match self {
            Self::Day => time::add_days(self.start(at), 1),
            Self::Month => time::add_months(self.start(at), 1),
        }
    }
}

words! {
    /// The subject whose usage a cap bounds.
    pub enum CapSubject {
        /// The whole org.
        Org = "org",
        /// Each of its members, alone.
        Member = "member",
    }
}

/// A cap: the most of a metric or category per day or month, for an org or each of its members.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Cap {
    /// The name, which is made of all other fields but the quantity.
    pub name: String,
    pub metric: Option<String>,
    pub category: Option<String>,
    pub per: CapPeriod,
    pub subject: CapSubject,
    pub quantity: i64,
    /// The place in the document, from 0, for the paths of faults.
    pub position: usize,
}

impl Cap {
    fn parse(faults: &mut Faults, position: usize, value: &Value) -> Option<Self> {
        let path = &format!("caps[{position}]");
        let object = faults.object(path, value)?;
        faults.unknown_keys(path, object, &["metric", "category", "per", "for", "limit"]);
        let metric = faults.text(&join(path, "metric"), object.get("metric"));
        let category = faults.text(&join(path, "category"), object.get("category"));
        if metric.is_some() == category.is_some() {
            faults.add(path, "must name either a metric or a category");
        }
        let Some(per) = object.get("per") else {
            faults.add(&join(path, "per"), "is missing");
            return None;
        };
        let per = faults.choice(&join(path, "per"), Some(per));
        let subject = faults.choice(&join(path, "for"), object.get("for"));
        let quantity = faults.required(&join(path, "limit"), object.get("limit"), 0)?;
        let mut cap = Self { name: String::new(), metric, category, per, subject, quantity, position };
        cap.name = cap.name();
        Some(cap)
    }

    fn name(&self) -> String {
        let what = match (&self.metric, &self.category) {
            (Some(metric), _) => format!("metric {metric}"),
            (_, category) => format!("category {}", category.as_deref().unwrap_or_default()),
        };
        format!("{what} per {} and {}", self.per.name(), self.subject.name())
    }

    fn to_json(&self) -> Value {
        let mut object = Map::new();
        if let Some(metric) = &self.metric {
            object.insert("metric".into(), metric.clone().into());
        }
        if let Some(category) = &self.category {
            object.insert("category".into(), category.clone().into());
        }
        object.insert("per".into(), self.per.name().into());
        if self.subject != CapSubject::Org {
            object.insert("for".into(), self.subject.name().into());
        }
        object.insert("limit".into(), self.quantity.into());
        Value::Object(object)
    }
}

/// The section of caps. They stand in an array, since their names follow from their fields.
pub struct Caps;

impl Section for Caps {
    const NAME: &'static str = "caps";
    const KIND: &'static str = "cap";
    type Item = Cap;
    type Row = Cap;

    fn parse(faults: &mut Faults, value: &Value) -> Option<BTreeMap<String, Cap>> {
        let Some(all) = value.as_array() else {
            faults.add(Self::NAME, "must be an array");
            return None;
        };
        let mut caps = BTreeMap::new();
        for (position, value) in all.iter().enumerate() {
            if let Some(cap) = Cap::parse(faults, position, value)
                && caps.insert(cap.name.clone(), cap).is_some()
            {
                faults.add(&format!("caps[{position}]"), "the same cap stands there twice");
            }
        }
        Some(caps)
    }

    fn check(faults: &mut Faults, wanted: &Items<Self>, _: &Rows<Self>, names: &Names) {
        for cap in wanted.values() {
            if cap.metric.as_ref().is_some_and(|metric| !names.has::<Metrics>(metric)) {
                faults.add(&format!("caps[{}].metric", cap.position), "unknown metric");
            }
        }
    }

    fn to_json(cap: &Cap) -> Value {
        cap.to_json()
    }

    fn current(cap: &Cap, _: Moment) -> Option<Value> {
        Some(cap.to_json())
    }

    fn export(stored: &Rows<Self>, _: Moment) -> Value {
        stored.values().map(Cap::to_json).collect()
    }

    fn load(db: &Db) -> Result<Rows<Self>> {
        let unreadable = || Error::corrupt("a stored cap cannot be read");
        let mut caps = BTreeMap::new();
        for row in db.scan(&CAPS, &[]).iter() {
            let name: String = row.get(0);
            let cap = Cap {
                name: name.clone(),
                metric: row.opt(1),
                category: row.opt(2),
                per: CapPeriod::parse(&row.get::<String>(3)).ok_or_else(unreadable)?,
                subject: CapSubject::parse(&row.get::<String>(4)).ok_or_else(unreadable)?,
                quantity: row.get(5),
                position: 0,
            };
            caps.insert(name, cap);
        }
        Ok(caps)
    }

    fn save(db: &Db, name: &str, cap: &Cap, _: Option<&Cap>, now: Moment) {
        let (metric, category) = (cap.metric.as_deref(), cap.category.as_deref());
        let (per, subject) = (cap.per.name(), cap.subject.name());
        db.write(&SAVE_CAP, args![name, metric, category, per, subject, cap.quantity, Timestamptz(now)]);
    }

    fn retire(db: &Db, name: &str, _: Moment) {
        db.write(&REMOVE_CAP, args![name]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_exported_cap_parses_to_itself() {
        let all = json!([
            {"category": "AI", "per": "month", "limit": 9},
            {"metric": "call", "per": "day", "for": "member", "limit": 0},
        ]);
        let mut faults = Faults::default();
        let caps = Caps::parse(&mut faults, &all).unwrap();
        assert!(faults.is_empty());
        assert_eq!(
            caps.keys().collect::<Vec<_>>(),
            ["category AI per month and org", "metric call per day and member"]
        );
        assert_eq!(Caps::export(&caps, 0), all);
    }

    #[test]
    fn a_cap_of_a_metric_that_will_not_be_there_is_a_fault() {
        let mut faults = Faults::default();
        let caps = Caps::parse(&mut faults, &json!([{"metric": "call", "per": "day", "limit": 1}])).unwrap();
        let mut names = Names::default();
        names.add::<Metrics>(["call".to_owned()].into_iter());
        Caps::check(&mut faults, &caps, &BTreeMap::new(), &names);
        assert!(faults.is_empty());
        Caps::check(&mut faults, &caps, &BTreeMap::new(), &Names::default());
        assert_eq!(faults.or(()), Err(vec![json!({"path": "caps[0].metric", "fault": "unknown metric"})]));
    }
}
