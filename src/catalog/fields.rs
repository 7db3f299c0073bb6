//! Fields that several sections of the catalog have: amounts by currency, units and the ids of
//! providers.

use crate::base::units;
use crate::catalog::faults::{Faults, join};
use crate::providers;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Reads the members of an object that may be absent, each with its path and name.
pub fn members<'v>(
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

/// Reads minor units by currency, each from `least`.
pub fn amounts(
    faults: &mut Faults,
    path: &str,
    object: &Map<String, Value>,
    key: &str,
    least: i64,
) -> BTreeMap<String, i64> {
    let mut all = BTreeMap::new();
    for (path, currency, amount) in members(faults, path, object, key) {
        if !units::is_currency(&currency) {
            faults.add(&path, "must be an ISO 4217 currency");
        }
        if let Some(amount) = faults.whole(&path, amount, least) {
            all.insert(currency, amount);
        }
    }
    all
}

/// Reads the unit of a wallet; credits where it is absent.
pub fn unit(faults: &mut Faults, path: &str, value: Option<&Value>) -> String {
    let Some(value) = value else { return units::CREDIT.to_owned() };
    let unit = value.as_str().filter(|unit| units::is_unit(unit));
    unit.map_or_else(
        || {
            faults.add(path, "must be credit or an ISO 4217 currency");
            units::CREDIT.to_owned()
        },
        str::to_owned,
    )
}

/// Reads `{"stripe": ["price_…"], "razorpay": ["plan_…"]}`.
pub fn provider_ids(faults: &mut Faults, path: &str, object: &Map<String, Value>) -> BTreeMap<String, Vec<String>> {
    let path = join(path, "provider_ids");
    let mut all = BTreeMap::new();
    let value = object.get("provider_ids").filter(|v| !v.is_null());
    let Some(object) = value.and_then(|v| faults.object(&path, v)) else { return all };
    faults.unknown_keys(&path, object, &providers::names());
    for (provider, ids) in object {
        let texts: Option<Vec<String>> = ids
            .as_array()
            .map(|ids| ids.iter().map(|id| id.as_str().filter(|id| (1..=200).contains(&id.len())).map(str::to_owned)))
            .and_then(Iterator::collect);
        match texts {
            Some(ids) => drop(all.insert(provider.clone(), ids)),
            None => faults.add(&join(&path, provider), "must be an array of ids"),
        }
    }
    all
}
