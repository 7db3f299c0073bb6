//! The catalog document: all sections of it, read with every fault listed, and compared with what
//! is stored.

use crate::base::error::Result;
use crate::base::time::Moment;
use crate::catalog::faults::Faults;
use crate::catalog::section::{Change, Comparison, Names, Section};
use crate::catalog::sections::caps::Caps;
use crate::catalog::sections::metrics::Metrics;
use crate::catalog::sections::packs::Packs;
use crate::catalog::sections::plans::Plans;
use crate::catalog::sections::surcharges::Surcharges;
use crate::pg::spi::Db;
use serde_json::{Map, Value};

/// Declares the document from the list of its sections, each with its own types: what is done to a
/// document is done to each section in the order of the list.
///
/// A list of trait objects would do, but its tables of methods would tie the tests of what is pure
/// to the server.
macro_rules! document {
    ($($name:ident: $section:ty,)+) => {
        /// A document beside the catalog as it is stored. A section that is absent is left alone;
        /// one that is present is complete.
        #[derive(Default)]
        pub struct Document {
            $($name: Comparison<$section>,)+
        }

        impl Document {
            /// Reads a document; all faults as `{"path", "fault"}` where there are any.
            pub fn parse(value: &Value) -> Result<Self, Vec<Value>> {
                let (mut faults, mut document) = (Faults::default(), Self::default());
                if let Some(root) = faults.object("", value) {
                    faults.unknown_keys("", root, &[$(<$section>::NAME),+]);
                    $(document.$name.parse(&mut faults, root);)+
                }
                faults.or(document)
            }

            /// Reads what is stored.
            pub fn load(&mut self, db: &Db) -> Result<()> {
                $(self.$name.load(db)?;)+
                Ok(())
            }

            /// Checks what shows only beside what is stored: missing references, and what cannot
            /// change.
            pub fn check(&self, db: &Db, now: Moment) -> Result<(), Vec<Value>> {
                let (mut faults, mut names) = (Faults::default(), Names::default());
                $(self.$name.add_names(&mut names, now);)+
                $(self.$name.check(&mut faults, &names);)+
                $(self.$name.check_use(&mut faults, db);)+
                faults.or(())
            }

            /// Lists what the document changes.
            pub fn changes(&self, now: Moment) -> Vec<Change> {
                let mut changes = Vec::new();
                $(changes.extend(self.$name.changes(now));)+
                changes
            }

            /// Stores what the document changes.
            pub fn save(&self, db: &Db, now: Moment) {
                $(self.$name.save(db, now);)+
            }

            /// Writes what is stored as a document.
            pub fn export(&self, now: Moment) -> Value {
                let mut sections = Map::new();
                $(sections.insert(<$section>::NAME.to_owned(), self.$name.export(now));)+
                Value::Object(sections)
            }
        }
    };
}

// A section stands after those that it refers to.
document! {
    metrics: Metrics,
    plans: Plans,
    caps: Caps,
    packs: Packs,
    surcharges: Surcharges,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn paths(document: &Value) -> Vec<String> {
        let Err(faults) = Document::parse(document) else { return Vec::new() };
        faults.iter().map(|fault| fault["path"].as_str().unwrap().to_owned()).collect()
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
            "plans": {"p": {"default": true, "period": "age"}, "q": {"default": true}},
            "caps": [{"metric": "a", "per": "day"}],
            "packs": {"p": {"credits": 1}},
            "surcharges": {"usd": {"tax": 1}},
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
                "plans.p.period",
                "plans.q.default",
                "caps[0].limit",
                "packs.p.price",
                "surcharges.usd",
                "surcharges.usd.tax",
            ]
        );
        assert_eq!(paths(&json!([])), [""]);
        assert_eq!(paths(&json!({"metrics": []})), ["metrics"]);
    }

    #[test]
    fn beside_nothing_a_document_creates_what_it_names_in_the_order_of_sections() {
        let document = Document::parse(&json!({
            "packs": {"p": {"credits": 1, "price": {"USD": 1}}},
            "caps": [],
            "metrics": {"b": {}, "a": {"price": 1}},
        }));
        let changes = document.unwrap_or_else(|faults| panic!("{faults:?}")).changes(0);
        let listed: Vec<_> = changes.iter().map(|change| (change.action.name(), change.kind, &*change.name)).collect();
        assert_eq!(listed, [("create", "metric", "a"), ("create", "metric", "b"), ("create", "pack", "p")]);
    }
}
