//! Packs of credit for sale, and what a purchase comes to: whole numbers of minor units, rounded in one place.

use crate::base::units;
use crate::base::validity::Validity;
use crate::catalog::document::{Faults, join};
use crate::catalog::plan::{self, Cycle};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// Its name.
    pub name: String,
    /// What it buys; where any amount can be paid, for the price.
    pub credits: i64,
    /// What comes on top.
    pub bonus: i64,
    /// Of the wallet.
    pub unit: String,
    /// Minor units by currency.
    pub price: BTreeMap<String, i64>,
    /// Any amount from this on can be paid, by currency; empty: the price is fixed.
    pub minimum: BTreeMap<String, i64>,
    /// The only metrics that it may be spent on; None: any.
    pub metrics: Option<Vec<String>>,
    /// How long the credit is good; None: for ever.
    pub validity: Option<Validity>,
    /// Bought anew each period; None: once.
    pub recurring: Option<Cycle>,
    /// Of the grant: lower burns first.
    pub priority: i32,
    /// By which ids providers know it.
    pub provider_ids: BTreeMap<String, Vec<String>>,
}

/// A share of the price, and something fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Rate {
    /// Hundredths of a percent.
    pub basis_points: i64,
    pub minor: i64,
}

/// What comes on top of the price in a currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Surcharge {
    pub tax: Rate,
    pub fee: Rate,
}

/// What a purchase comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Quote {
    pub price: i64,
    pub tax: i64,
    pub fee: i64,
    pub total: i64,
    pub credits: i64,
    pub bonus: i64,
}

/// Why there is no quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsold {
    /// Not in that currency.
    Currency,
    /// The price is fixed.
    Fixed,
    /// Less than so much is not taken.
    Minimum(i64),
    /// The sum does not fit, or buys nothing.
    Range,
}

const PRIORITY: i32 = 50;
const PROVIDERS: [&str; 2] = ["stripe", "razorpay"];

impl Rate {
    /// Half a minor unit counts as a whole one.
    fn of(self, price: i64) -> Option<i64> {
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
    /// `{"tax": {"basis_points", "minor"}, "fee": {…}}`
    pub(super) fn parse(faults: &mut Faults, path: &str, currency: &str, value: &Value) -> Option<Self> {
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

    /// From its stored terms.
    pub fn stored(currency: &str, terms: &Value) -> Option<Self> {
        let mut faults = Faults::default();
        Self::parse(&mut faults, currency, currency, terms).filter(|_| faults.is_empty())
    }

    /// As the document writes it.
    pub fn to_json(self) -> Value {
        let mut object = Map::new();
        for (key, rate) in [("tax", self.tax), ("fee", self.fee)] {
            if let Some(value) = rate.to_json() {
                object.insert(key.to_owned(), value);
            }
        }
        Value::Object(object)
    }
}

/// `{"stripe": ["price_…"], "razorpay": ["plan_…"]}`
pub(super) fn parse_provider_ids(
    faults: &mut Faults,
    path: &str,
    value: Option<&Value>,
) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    let Some(object) = value.filter(|v| !v.is_null()).and_then(|v| faults.object(path, v)) else { return all };
    faults.unknown_keys(path, object, &PROVIDERS);
    for (provider, ids) in object {
        let texts: Option<Vec<String>> = ids
            .as_array()
            .map(|ids| ids.iter().map(|id| id.as_str().filter(|id| (1..=200).contains(&id.len())).map(str::to_owned)))
            .and_then(Iterator::collect);
        match texts {
            Some(ids) => drop(all.insert(provider.clone(), ids)),
            None => faults.add(&join(path, provider), "must be an array of ids"),
        }
    }
    all
}

fn amounts(faults: &mut Faults, path: &str, value: Option<&Value>) -> BTreeMap<String, i64> {
    let mut all = BTreeMap::new();
    let Some(object) = value.filter(|v| !v.is_null()).and_then(|v| faults.object(path, v)) else { return all };
    for (currency, amount) in object {
        let path = join(path, currency);
        if !units::is_currency(currency) {
            faults.add(&path, "must be an ISO 4217 currency");
        }
        if let Some(amount) = faults.whole(&path, amount, 1) {
            all.insert(currency.clone(), amount);
        }
    }
    all
}

impl Pack {
    pub(super) fn parse(faults: &mut Faults, path: &str, name: &str, value: &Value) -> Option<Self> {
        let object = faults.object(path, value)?;
        faults.unknown_keys(
            path,
            object,
            &[
                "credits",
                "bonus",
                "unit",
                "price",
                "minimum",
                "metrics",
                "validity",
                "recurring",
                "priority",
                "provider_ids",
            ],
        );
        let credits = match object.get("credits") {
            Some(value) => faults.whole(&join(path, "credits"), value, 1),
            None => {
                faults.add(&join(path, "credits"), "is missing");
                None
            }
        };
        let bonus = object.get("bonus").map_or(Some(0), |value| faults.whole(&join(path, "bonus"), value, 0));
        let price = amounts(faults, &join(path, "price"), object.get("price"));
        if price.is_empty() {
            faults.add(&join(path, "price"), "must name at least one currency");
        }
        let minimum = amounts(faults, &join(path, "minimum"), object.get("minimum"));
        for currency in minimum.keys().filter(|currency| !price.contains_key(*currency)) {
            faults.add(&join(&join(path, "minimum"), currency), "has no price");
        }
        let unit = match object.get("unit").map(|unit| unit.as_str().filter(|u| units::is_unit(u))) {
            None => units::CREDIT.to_owned(),
            Some(Some(unit)) => unit.to_owned(),
            Some(None) => {
                faults.add(&join(path, "unit"), "must be credit or an ISO 4217 currency");
                units::CREDIT.to_owned()
            }
        };
        let validity = match object.get("validity") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let validity = value.as_str().and_then(Validity::parse);
                if validity.is_none() {
                    faults.add(&join(path, "validity"), "must be like 30 days, 6 months or 1 year");
                }
                validity
            }
        };
        let priority = object.get("priority").map_or(Some(PRIORITY), |value| {
            faults.whole(&join(path, "priority"), value, 0).and_then(|n| i32::try_from(n).ok())
        });
        Some(Self {
            name: name.to_owned(),
            metrics: metrics(faults, &join(path, "metrics"), object.get("metrics")),
            recurring: object
                .get("recurring")
                .filter(|value| !value.is_null())
                .map(|value| Cycle::parse(&faults.choice(&join(path, "recurring"), Some(value), &plan::CYCLES))),
            provider_ids: parse_provider_ids(faults, &join(path, "provider_ids"), object.get("provider_ids")),
            credits: credits?,
            bonus: bonus?,
            unit,
            price,
            minimum,
            validity,
            priority: priority?,
        })
    }

    /// From its stored terms.
    pub fn stored(name: &str, terms: &Value) -> Option<Self> {
        let mut faults = Faults::default();
        Self::parse(&mut faults, name, name, terms).filter(|_| faults.is_empty())
    }

    /// As the document writes it, without what is the default.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("credits".to_owned(), self.credits.into());
        object.insert("price".to_owned(), json!(self.price));
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        };
        put("bonus", (self.bonus > 0).then(|| self.bonus.into()));
        put("unit", (self.unit != units::CREDIT).then(|| self.unit.clone().into()));
        put("minimum", (!self.minimum.is_empty()).then(|| json!(self.minimum)));
        put("metrics", self.metrics.as_ref().map(|metrics| json!(metrics)));
        put("validity", self.validity.map(|validity| validity.to_string().into()));
        put("recurring", self.recurring.map(|cycle| cycle.name().into()));
        put("priority", (self.priority != PRIORITY).then(|| self.priority.into()));
        put("provider_ids", (!self.provider_ids.is_empty()).then(|| json!(self.provider_ids)));
        Value::Object(object)
    }

    /// What it comes to in a currency; `amount`: where any can be paid.
    pub fn quote(&self, currency: &str, amount: Option<i64>, surcharge: Surcharge) -> Result<Quote, Unsold> {
        let listed = *self.price.get(currency).ok_or(Unsold::Currency)?;
        let (price, credits, bonus) = match (amount, self.minimum.get(currency)) {
            (None, None) => (listed, self.credits, self.bonus),
            (Some(_), None) => return Err(Unsold::Fixed),
            (None, Some(least)) if listed < *least => return Err(Unsold::Minimum(*least)),
            (Some(amount), Some(least)) if amount < *least => return Err(Unsold::Minimum(*least)),
            (amount, Some(_)) => {
                let price = amount.unwrap_or(listed);
                // Nobody gets a part of a credit for which he did not pay.
                let share = |of: i64| {
                    let part = i128::from(of) * i128::from(price) / i128::from(listed);
                    i64::try_from(part).map_err(|_| Unsold::Range)
                };
                (price, share(self.credits)?, share(self.bonus)?)
            }
        };
        let tax = surcharge.tax.of(price).ok_or(Unsold::Range)?;
        let fee = surcharge.fee.of(price).ok_or(Unsold::Range)?;
        let total = price.checked_add(tax).and_then(|sum| sum.checked_add(fee)).ok_or(Unsold::Range)?;
        if credits == 0 || credits.checked_add(bonus).is_none() {
            return Err(Unsold::Range);
        }
        Ok(Quote { price, tax, fee, total, credits, bonus })
    }
}

fn metrics(faults: &mut Faults, path: &str, value: Option<&Value>) -> Option<Vec<String>> {
    let value = value.filter(|v| !v.is_null())?;
    let texts: Option<Vec<String>> =
        value.as_array().map(|all| all.iter().map(|m| m.as_str().map(str::to_owned))).and_then(Iterator::collect);
    match texts {
        Some(mut texts) if (1..=100).contains(&texts.len()) => {
            texts.sort_unstable();
            texts.dedup();
            Some(texts)
        }
        _ => {
            faults.add(path, "must be an array of 1 to 100 metrics, or null for any");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(value: &Value) -> Pack {
        Pack::parse(&mut Faults::default(), "packs.p", "p", value).unwrap()
    }

    fn india() -> Surcharge {
        let mut faults = Faults::default();
        let value = json!({"tax": {"basis_points": 1800}, "fee": {"basis_points": 240}});
        Surcharge::parse(&mut faults, "", "INR", &value).unwrap()
    }

    #[test]
    fn five_hundred_rupees() {
        let pack = pack(&json!({"credits": 5000, "bonus": 500, "price": {"INR": 50_000}}));
        let quote = pack.quote("INR", None, india()).unwrap();
        assert_eq!(quote, Quote { price: 50_000, tax: 9_000, fee: 1_200, total: 60_200, credits: 5000, bonus: 500 });
        assert_eq!(pack.quote("USD", None, india()), Err(Unsold::Currency));
        assert_eq!(pack.quote("INR", Some(50_000), india()), Err(Unsold::Fixed));
    }

    #[test]
    fn any_amount_from_the_minimum_on() {
        let pack = pack(&json!({"credits": 100, "price": {"INR": 1000}, "minimum": {"INR": 15_000}}));
        let credits = |amount| pack.quote("INR", Some(amount), Surcharge::default()).map(|q| q.credits);
        assert_eq!(credits(15_000), Ok(1500));
        assert_eq!(credits(15_009), Ok(1500));
        assert_eq!(credits(15_010), Ok(1501));
        assert_eq!(credits(14_999), Err(Unsold::Minimum(15_000)));
        assert_eq!(pack.quote("INR", None, india()), Err(Unsold::Minimum(15_000)));
        assert_eq!(credits(i64::MAX).map(|credits| credits > 0), Ok(true));
        assert_eq!(pack.quote("INR", Some(i64::MAX), india()), Err(Unsold::Range));
    }

    #[test]
    fn half_a_minor_unit_counts_as_one() {
        let rate = Rate { basis_points: 50, minor: 0 };
        assert_eq!((rate.of(99), rate.of(100), rate.of(299), rate.of(300)), (Some(0), Some(1), Some(1), Some(2)));
    }

    #[test]
    fn an_exported_pack_parses_to_itself() {
        for value in [
            json!({"credits": 1, "price": {"USD": 1}}),
            json!({"credits": 3000, "bonus": 200, "price": {"INR": 30_000, "USD": 500}, "minimum": {"INR": 15_000},
                   "unit": "EUR", "metrics": ["a", "b"], "validity": "1 year", "recurring": "month", "priority": 10,
                   "provider_ids": {"stripe": ["price_1"]}}),
        ] {
            assert_eq!(pack(&value).to_json(), value);
        }
    }
}
