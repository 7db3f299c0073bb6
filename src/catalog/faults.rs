//! Faults of a catalog document: each field is read by a method that notes what is wrong with it,
//! and where.

use crate::base::words::Word;
use serde_json::{Map, Value, json};

/// The faults that were found so far, in the order of the document.
#[derive(Default)]
pub struct Faults(Vec<Value>);

impl Faults {
    /// Whether nothing was wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, or all faults as `{"path", "fault"}` where there are any.
    pub fn or<T>(self, value: T) -> Result<T, Vec<Value>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }

    /// Notes a fault.
    pub fn add(&mut self, path: &str, fault: &str) {
        self.0.push(json!({"path": path, "fault": fault}));
    }

    /// Notes every key of an object that is not one of the known ones.
    pub fn unknown_keys(&mut self, path: &str, object: &Map<String, Value>, known: &[&str]) {
        for key in object.keys().filter(|k| !known.contains(&k.as_str())) {
            self.add(&join(path, key), "unknown key");
        }
    }

    /// Reads an object.
    pub fn object<'v>(&mut self, path: &str, value: &'v Value) -> Option<&'v Map<String, Value>> {
        let object = value.as_object();
        if object.is_none() {
            self.add(path, "must be an object");
        }
        object
    }

    /// Reads a text that may be absent.
    pub fn text(&mut self, path: &str, value: Option<&Value>) -> Option<String> {
        match value {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if !text.is_empty() && text.len() <= 200 => Some(text.clone()),
            Some(_) => {
                self.add(path, "must be a text of 1 to 200 bytes");
                None
            }
        }
    }

    /// Reads a word of a list; the first word of the list where the value is absent or faulty.
    pub fn choice<W: Word>(&mut self, path: &str, value: Option<&Value>) -> W {
        let Some(value) = value else { return W::ALL[0] };
        value.as_str().and_then(W::parse).unwrap_or_else(|| {
            let names: Vec<_> = W::ALL.iter().map(|word| word.name()).collect();
            self.add(path, &format!("must be one of {}", names.join(", ")));
            W::ALL[0]
        })
    }

    /// Reads a whole number from `least`.
    pub fn whole(&mut self, path: &str, value: &Value, least: i64) -> Option<i64> {
        let number = value.as_i64().filter(|n| *n >= least);
        if number.is_none() {
            self.add(path, &format!("must be a whole number from {least} to 9223372036854775807"));
        }
        number
    }

    /// Reads a whole number from `least` that must be there.
    pub fn required(&mut self, path: &str, value: Option<&Value>, least: i64) -> Option<i64> {
        let Some(value) = value else {
            self.add(path, "is missing");
            return None;
        };
        self.whole(path, value, least)
    }
}

/// The path of a member of an object.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Reads terms that were stored as JSON; None where they have any fault, because only checked terms
/// are stored.
pub fn stored<T>(terms: &str, parse: impl FnOnce(&mut Faults, &Value) -> Option<T>) -> Option<T> {
    let terms = serde_json::from_str(terms).ok()?;
    let mut faults = Faults::default();
    parse(&mut faults, &terms).filter(|_| faults.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_its_path_and_does_not_stop_the_reader() {
        let mut faults = Faults::default();
        assert_eq!(faults.whole("a.b", &json!(-1), 0), None);
        assert_eq!(faults.required("a.c", None, 0), None);
        assert_eq!(faults.text("a.d", Some(&json!(""))), None);
        assert_eq!(faults.whole("a.e", &json!(7), 0), Some(7));
        let all = faults.or(()).unwrap_err();
        assert_eq!(all.iter().map(|fault| fault["path"].as_str().unwrap()).collect::<Vec<_>>(), ["a.b", "a.c", "a.d"]);
    }
}
