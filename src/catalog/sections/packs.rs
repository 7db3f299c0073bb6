//! The section `packs`: credit for sale, and what a purchase comes to, in whole minor units that
//! are rounded in one place.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::base::units;
use crate::base::validity::Validity;
use crate::base::words::Word;
use crate::catalog::cycle::Cycle;
use crate::catalog::faults::{self, Faults, join};
use crate::catalog::fields;
use crate::catalog::section::{self, Items, Names, Retirable, Rows, Section};
use crate::catalog::sections::metrics::Metrics;
use crate::catalog::sections::surcharges::Surcharge;
use crate::pg::jsonb;
use crate::pg::spi::{Db, Timestamptz};
use crate::{args, statements};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

statements! {
    PACKS() = "select pack, terms::text, retired_at is not null from billing.packs";
    SAVE_PACK(text, jsonb, timestamptz) =
        "insert into billing.packs (pack, terms, created_at) values ($1, $2, $3)
         on conflict (pack) do update set terms = $2, retired_at = null";
    RETIRE_PACK(text, timestamptz) = "update billing.packs set retired_at = $2 where pack = $1";
}

/// The priority of a pack's grant where the document does not say.
const DEFAULT_PRIORITY: i32 = 50;

/// A pack.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Pack {
    pub name: String,
    /// The credits that it buys; where any amount can be paid, those for the price.
    pub credits: i64,
    /// The credits on top of those.
    pub bonus: i64,
    /// The unit of the wallet that gets them.
    pub unit: String,
    /// The price in minor units by currency.
    pub price: BTreeMap<String, i64>,
    /// The least of any amount that can be paid, by currency; empty: the price is fixed.
    pub minimum: BTreeMap<String, i64>,
    /// The only metrics that it may be spent on; None: any.
    pub metrics: Option<Vec<String>>,
    /// The time for which the credit is good; None: for ever.
    pub validity: Option<Validity>,
    /// The time after which it is bought anew; None: it is bought once.
    pub recurring: Option<Cycle>,
    /// The priority of the grant: a lower one is spent first.
    pub priority: i32,
    /// The ids by which providers know it.
    pub provider_ids: BTreeMap<String, Vec<String>>,
}

/// The price of a purchase with all that comes on top of it, and what it buys.
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

/// The reason for which there is no quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuoteError {
    /// The pack has no price in the currency.
    Currency,
    /// The price of the pack is fixed.
    Fixed,
    /// The amount is below this minimum.
    Minimum(i64),
    /// The sum does not fit 63 bits, or buys nothing.
    Range,
}

impl Pack {
    fn parse(faults: &mut Faults, path: &str, name: &str, value: &Value) -> Option<Self> {
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
        let credits = faults.required(&join(path, "credits"), object.get("credits"), 1);
        let bonus = object.get("bonus").map_or(Some(0), |value| faults.whole(&join(path, "bonus"), value, 0));
        let price = fields::amounts(faults, path, object, "price", 1);
        if price.is_empty() {
            faults.add(&join(path, "price"), "must name at least one currency");
        }
        let minimum = fields::amounts(faults, path, object, "minimum", 1);
        for currency in minimum.keys().filter(|currency| !price.contains_key(*currency)) {
            faults.add(&join(&join(path, "minimum"), currency), "has no price");
        }
        let unit = fields::unit(faults, &join(path, "unit"), object.get("unit"));
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
        let priority = object.get("priority").map_or(Some(DEFAULT_PRIORITY), |value| {
            faults.whole(&join(path, "priority"), value, 0).and_then(|n| i32::try_from(n).ok())
        });
        Some(Self {
            name: name.to_owned(),
            metrics: metrics(faults, &join(path, "metrics"), object.get("metrics")),
            recurring: object
                .get("recurring")
                .filter(|value| !value.is_null())
                .map(|value| faults.choice(&join(path, "recurring"), Some(value))),
            provider_ids: fields::provider_ids(faults, path, object),
            credits: credits?,
            bonus: bonus?,
            unit,
            price,
            minimum,
            validity,
            priority: priority?,
        })
    }

    fn to_json(&self) -> Value {
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
        put("priority", (self.priority != DEFAULT_PRIORITY).then(|| self.priority.into()));
        put("provider_ids", (!self.provider_ids.is_empty()).then(|| json!(self.provider_ids)));
        Value::Object(object)
    }

    /// Quotes a purchase in a currency. `amount`: the minor units that are paid, for packs that
    /// have a minimum.
    pub fn quote(&self, currency: &str, amount: Option<i64>, surcharge: Surcharge) -> Result<Quote, QuoteError> {
        let listed = *self.price.get(currency).ok_or(QuoteError::Currency)?;
        let (price, credits, bonus) = match (amount, self.minimum.get(currency)) {
            (None, None) => (listed, self.credits, self.bonus),
            (Some(_), None) => return Err(QuoteError::Fixed),
            (None, Some(least)) if listed < *least => return Err(QuoteError::Minimum(*least)),
            (Some(amount), Some(least)) if amount < *least => return Err(QuoteError::Minimum(*least)),
            (amount, Some(_)) => {
                let price = amount.unwrap_or(listed);
                // Rounded down: nobody gets a credit that was paid only in part.
                let share = |of: i64| {
                    let part = i128::from(of) * i128::from(price) / i128::from(listed);
                    i64::try_from(part).map_err(|_| QuoteError::Range)
                };
                (price, share(self.credits)?, share(self.bonus)?)
            }
        };
        let tax = surcharge.tax.of(price).ok_or(QuoteError::Range)?;
        let fee = surcharge.fee.of(price).ok_or(QuoteError::Range)?;
        let total = price.checked_add(tax).and_then(|sum| sum.checked_add(fee)).ok_or(QuoteError::Range)?;
        if credits == 0 || credits.checked_add(bonus).is_none() {
            return Err(QuoteError::Range);
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

/// The section of packs.
pub struct Packs;

impl Section for Packs {
    const NAME: &'static str = "packs";
    const KIND: &'static str = "pack";
    type Item = Pack;
    type Row = Retirable<Pack>;

    fn parse(faults: &mut Faults, value: &Value) -> Option<BTreeMap<String, Pack>> {
        section::named(faults, Self::NAME, value, Pack::parse)
    }

    fn check(faults: &mut Faults, wanted: &Items<Self>, _: &Rows<Self>, names: &Names) {
        for (name, pack) in wanted {
            for metric in pack.metrics.iter().flatten().filter(|metric| !names.has::<Metrics>(metric)) {
                faults.add(&format!("packs.{name}.metrics"), &format!("unknown metric {metric}"));
            }
        }
    }

    fn to_json(pack: &Pack) -> Value {
        pack.to_json()
    }

    fn current(row: &Retirable<Pack>, _: Moment) -> Option<Value> {
        row.current().map(Pack::to_json)
    }

    fn load(db: &Db) -> Result<Rows<Self>> {
        let mut packs = BTreeMap::new();
        for row in db.scan(&PACKS, &[]).iter() {
            let name: String = row.get(0);
            let pack = faults::stored(&row.get::<String>(1), |faults, terms| Pack::parse(faults, &name, &name, terms));
            let item = pack.ok_or(Error::corrupt("a stored pack cannot be read"))?;
            packs.insert(name, Retirable { item, retired: row.get(2) });
        }
        Ok(packs)
    }

    fn save(db: &Db, name: &str, pack: &Pack, _: Option<&Retirable<Pack>>, now: Moment) {
        db.write(&SAVE_PACK, args![name, jsonb::from_text(&pack.to_json().to_string()), Timestamptz(now)]);
    }

    fn retire(db: &Db, name: &str, now: Moment) {
        db.write(&RETIRE_PACK, args![name, Timestamptz(now)]);
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
        assert_eq!(pack.quote("USD", None, india()), Err(QuoteError::Currency));
        assert_eq!(pack.quote("INR", Some(50_000), india()), Err(QuoteError::Fixed));
    }

    #[test]
    fn any_amount_from_the_minimum_on() {
        let pack = pack(&json!({"credits": 100, "price": {"INR": 1000}, "minimum": {"INR": 15_000}}));
        let credits = |amount| pack.quote("INR", Some(amount), Surcharge::default()).map(|q| q.credits);
        assert_eq!(credits(15_000), Ok(1500));
        assert_eq!(credits(15_009), Ok(1500));
        assert_eq!(credits(15_010), Ok(1501));
        assert_eq!(credits(14_999), Err(QuoteError::Minimum(15_000)));
        assert_eq!(pack.quote("INR", None, india()), Err(QuoteError::Minimum(15_000)));
        assert_eq!(credits(i64::MAX).map(|credits| credits > 0), Ok(true));
        assert_eq!(pack.quote("INR", Some(i64::MAX), india()), Err(QuoteError::Range));
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
