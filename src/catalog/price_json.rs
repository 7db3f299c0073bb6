//! Prices as documents and tables write them.

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment};
use crate::base::units;
use crate::catalog::faults::{Faults, join};
use crate::catalog::fields;
use crate::catalog::price::{Price, Step};
use serde_json::{Map, Value, json};
use std::rc::Rc;

/// A price as a document writes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WrittenPrice {
    /// The price; None: free, or faulty.
    pub price: Option<Price>,
    /// The moment from which it holds, where the document says so.
    pub effective_at: Option<Moment>,
}

/// Reads a price that stands alone, as `set_org_price` takes it; all faults where there are any.
pub fn parse_alone(value: &Value) -> Result<WrittenPrice, Vec<Value>> {
    let mut faults = Faults::default();
    let parsed = parse(&mut faults, "price", value);
    faults.or(parsed)
}

/// Reads `15`, `{"credits": 1, "per": 1000}` or `{"steps": […]}`, the objects with `unit` and
/// `effective_at`.
pub fn parse(faults: &mut Faults, path: &str, value: &Value) -> WrittenPrice {
    let mut unit = units::CREDIT.to_owned();
    let mut effective_at = None;
    let steps = match value {
        Value::Object(object) => {
            faults.unknown_keys(path, object, &["credits", "per", "steps", "unit", "effective_at"]);
            unit = fields::unit(faults, &join(path, "unit"), object.get("unit"));
            if let Some(value) = object.get("effective_at") {
                effective_at = value.as_str().and_then(time::parse);
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
    WrittenPrice { price, effective_at }
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

/// Writes the shortest form that is read as the same price: a number, one block, or steps.
pub fn to_json(price: &Price, effective_at: Option<Moment>) -> Value {
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
        object.insert("effective_at".into(), time::display(at).into());
    }
    Value::Object(object)
}

/// Reads a price from the text of a table's column; None: free.
pub fn from_column(text: &str) -> Result<Option<Rc<Price>>> {
    let price: Option<Price> =
        serde_json::from_str(text).map_err(|_| Error::corrupt("a stored price cannot be read"))?;
    Ok(price.map(Rc::new))
}

/// Writes a price for a table's column; None: free.
pub fn to_column(price: Option<&Price>) -> String {
    serde_json::to_string(&price).unwrap_or_else(|_| "null".to_owned())
}
