//! The section `surcharges`: taxes and fees on top of the price of a pack, by currency.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::base::units;
use crate::catalog::faults::{self, Faults, join};
use crate::catalog::section::{self, Rows, Section};
use crate::pg::jsonb;
use crate::pg::spi::Db;
use crate::{args, statements};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

statements! {
    SURCHARGES() = "select currency, terms::text from billing.surcharges";
    SAVE_SURCHARGE(text, jsonb) =
        "insert into billing.surcharges (currency, terms) values ($1, $2) on conflict (currency) do update set terms = $2";
    REMOVE_SURCHARGE(text) = "delete from billing.surcharges where currency = $1";
}

/// A share of a price, and a fixed amount on top of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Rate {
    /// The share in hundredths of a percent.
    pub basis_points: i64,
    /// The fixed amount in minor units.
    pub minor: i64,
}

/// The tax and the fee on top of a price in a currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Surcharge {
    pub tax: Rate,
    pub fee: Rate,
}

impl Rate {
    /// The rate of a price, rounded to a minor unit: half of one counts as a whole one. None where
    /// it does not fit.
    pub fn of(self, price: i64) -> Option<i64> {
        let share = (i128::from(price) * i128::from(self.basis_points) + 5_000) / 10_000;
        i64::try_from(share + i128::from(self.minor)).ok()
    }

    fn parse(faults: &mut Faults, path: &str, value: Option<&Value>) -> Self {
        let Some(value) = value.filter(|v| !v.is_null()) else { return Self::default() };
        let Some(object) = faults.object(path, value) else { return Self::default() };
        faults.unknown_keys(path, object, &["basis_points", "minor"]);
        let mut number = |key| object.get(key).and_then(|v| faults.whole(&join(path, key), v, 0)).unwrap_or(0);
        Self { basis_points: number("basis_points"), minor: number("minor") }
    }

    fn to_json(self) -> Option<Value> {
        let mut object = Map::new();
        for (key, part) in [("basis_points", self.basis_points), ("minor", self.minor)] {
            if part > 0 {
                object.insert(key.to_owned(), part.into());
            }
        }
        (!object.is_empty()).then_some(Value::Object(object))
    }
}

impl Surcharge {
    /// Reads `{"tax": {"basis_points", "minor"}, "fee": {…}}`.
    pub fn parse(faults: &mut Faults, path: &str, currency: &str, value: &Value) -> Option<Self> {
        if !units::is_currency(currency) {
            faults.add(path, "must be an ISO 4217 currency");
        }
        let object = faults.object(path, value)?;
        faults.unknown_keys(path, object, &["tax", "fee"]);
        Some(Self {
            tax: Rate::parse(faults, &join(path, "tax"), object.get("tax")),
            fee: Rate::parse(faults, &join(path, "fee"), object.get("fee")),
        })
    }

    fn to_json(self) -> Value {
        let mut object = Map::new();
        for (key, rate) in [("tax", self.tax), ("fee", self.fee)] {
            if let Some(value) = rate.to_json() {
                object.insert(key.to_owned(), value);
            }
        }
        Value::Object(object)
    }
}

/// The section of surcharges, whose items are named by their currency.
pub struct Surcharges;

impl Section for Surcharges {
    const NAME: &'static str = "surcharges";
    const KIND: &'static str = "surcharge";
    type Item = Surcharge;
    type Row = Surcharge;

    fn parse(faults: &mut Faults, value: &Value) -> Option<BTreeMap<String, Surcharge>> {
        section::named(faults, Self::NAME, value, Surcharge::parse)
    }

    fn to_json(surcharge: &Surcharge) -> Value {
        surcharge.to_json()
    }

    fn current(surcharge: &Surcharge, _: Moment) -> Option<Value> {
        Some(surcharge.to_json())
    }

    fn load(db: &Db) -> Result<Rows<Self>> {
        let mut surcharges = BTreeMap::new();
        for row in db.scan(&SURCHARGES, &[]).iter() {
            let currency: String = row.get(0);
            let surcharge = faults::stored(&row.get::<String>(1), |faults, terms| {
                Surcharge::parse(faults, &currency, &currency, terms)
            });
            surcharges.insert(currency, surcharge.ok_or(Error::corrupt("a stored pack cannot be read"))?);
        }
        Ok(surcharges)
    }

    fn save(db: &Db, currency: &str, surcharge: &Surcharge, _: Option<&Surcharge>, _: Moment) {
        db.write(&SAVE_SURCHARGE, args![currency, jsonb::from_text(&surcharge.to_json().to_string())]);
    }

    fn retire(db: &Db, currency: &str, _: Moment) {
        db.write(&REMOVE_SURCHARGE, args![currency]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn half_a_minor_unit_counts_as_one() {
        let rate = Rate { basis_points: 50, minor: 0 };
        assert_eq!((rate.of(99), rate.of(100), rate.of(299), rate.of(300)), (Some(0), Some(1), Some(1), Some(2)));
    }

    #[test]
    fn an_exported_surcharge_parses_to_itself() {
        for value in [json!({}), json!({"tax": {"basis_points": 1800}, "fee": {"basis_points": 240, "minor": 30}})] {
            let mut faults = Faults::default();
            assert_eq!(Surcharge::parse(&mut faults, "", "INR", &value).unwrap().to_json(), value);
            assert!(faults.is_empty());
        }
    }
}
