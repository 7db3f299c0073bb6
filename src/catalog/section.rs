//! The shape of a section of the catalog: what its file in `sections` provides, and what a document
//! does with any of them.

use crate::base::error::Result;
use crate::base::time::Moment;
use crate::catalog::faults::{Faults, join};
use crate::pg::spi::Db;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A section of the catalog document, such as `metrics`. Its file has all that is peculiar to it.
pub trait Section: Sized + 'static {
    /// The key of the section in the document.
    const NAME: &'static str;
    /// The word for one of its items in the list of changes.
    const KIND: &'static str;
    /// An item as a document describes it.
    type Item;
    /// An item as the tables hold it.
    type Row;

    /// Reads the section of a document; see [`named`].
    fn parse(faults: &mut Faults, value: &Value) -> Option<BTreeMap<String, Self::Item>>;

    /// Notes what refers to something that will not be there, or cannot change once it is stored.
    fn check(_faults: &mut Faults, _wanted: &Items<Self>, _stored: &Rows<Self>, _names: &Names) {}

    /// Notes what cannot change because it is in use, where only the tables tell that.
    fn check_use(_faults: &mut Faults, _db: &Db, _wanted: &Items<Self>, _stored: &Rows<Self>) {}

    /// Writes an item as documents do, without what is the default.
    fn to_json(item: &Self::Item) -> Value;

    /// Writes a stored item as documents do, with what is in force at a moment; None for a retired
    /// one.
    fn current(row: &Self::Row, now: Moment) -> Option<Value>;

    /// Lists what a document changes, in the order of names; what it does not name is retired last.
    fn diff(wanted: &Items<Self>, stored: &Rows<Self>, now: Moment) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, item) in wanted {
            let (from, to) = (stored.get(name).and_then(|row| Self::current(row, now)), Self::to_json(item));
            match from {
                None => changes.push(Change::new::<Self>(Action::Create, name, to)),
                Some(from) if from != to => {
                    changes.push(Change::new::<Self>(Action::Update, name, differences(&from, &to)));
                }
                Some(_) => {}
            }
        }
        changes.extend(retired::<Self>(wanted, stored, now));
        changes
    }

    /// Writes the section of an exported document.
    fn export(stored: &Rows<Self>, now: Moment) -> Value {
        let current = stored.iter().filter_map(|(name, row)| Some((name.clone(), Self::current(row, now)?)));
        Value::Object(current.collect())
    }

    /// Reads all rows, retired ones too.
    fn load(db: &Db) -> Result<Rows<Self>>;

    /// Stores an item that a document creates or changes; `stored` is its row as it was before.
    fn save(db: &Db, name: &str, item: &Self::Item, stored: Option<&Self::Row>, now: Moment);

    /// Retires or removes an item that a document does not name.
    fn retire(db: &Db, name: &str, now: Moment);
}

/// The items of a section by name, as a document describes them.
pub type Items<S> = BTreeMap<String, <S as Section>::Item>;

/// The rows of a section by name.
pub type Rows<S> = BTreeMap<String, <S as Section>::Row>;

/// An item of a section whose items are kept for their users when a document drops them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retirable<T> {
    /// The item as the last document that named it described it.
    pub item: T,
    /// Whether a later document dropped it.
    pub retired: bool,
}

impl<T> Retirable<T> {
    /// The item, unless it is retired.
    pub fn current(&self) -> Option<&T> {
        (!self.retired).then_some(&self.item)
    }
}

/// Reads a section that is an object of items by name.
pub fn named<T>(
    faults: &mut Faults,
    section: &str,
    value: &Value,
    parse: impl Fn(&mut Faults, &str, &str, &Value) -> Option<T>,
) -> Option<BTreeMap<String, T>> {
    let all = faults.object(section, value)?;
    let mut parsed = BTreeMap::new();
    for (name, value) in all {
        let path = join(section, name);
        if name.is_empty() || name.len() > 63 {
            faults.add(&path, "a name must have 1 to 63 bytes");
        }
        if let Some(item) = parse(faults, &path, name, value) {
            parsed.insert(name.clone(), item);
        }
    }
    Some(parsed)
}

/// The names that each section will have once a document is applied.
#[derive(Debug, Default)]
pub struct Names(BTreeMap<&'static str, BTreeSet<String>>);

impl Names {
    /// Whether a section will have an item of this name.
    pub fn has<S: Section>(&self, name: &str) -> bool {
        self.0.get(S::NAME).is_some_and(|names| names.contains(name))
    }

    /// Adds the names of a section.
    pub fn add<S: Section>(&mut self, names: impl Iterator<Item = String>) {
        self.0.entry(S::NAME).or_default().extend(names);
    }
}

/// An action on an item of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    Create,
    Update,
    Retire,
}

impl Action {
    /// The word for it in the list of changes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Retire => "retire",
        }
    }
}

/// A change of one item by a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The action on the item.
    pub action: Action,
    /// The kind of the item, as its section calls it.
    pub kind: &'static str,
    /// The name of the item; the currency of a surcharge.
    pub name: String,
    /// The item as it becomes or was; per changed key, both.
    pub detail: Value,
}

impl Change {
    /// Makes a change of an item of a section.
    pub fn new<S: Section>(action: Action, name: &str, detail: Value) -> Self {
        Self { action, kind: S::KIND, name: name.to_owned(), detail }
    }
}

/// Lists the stored items that a document does not name.
pub fn retired<S: Section>(wanted: &Items<S>, stored: &Rows<S>, now: Moment) -> Vec<Change> {
    let dropped = stored.iter().filter(|(name, _)| !wanted.contains_key(*name));
    let current = dropped.filter_map(|(name, row)| Some((name, S::current(row, now)?)));
    current.map(|(name, from)| Change::new::<S>(Action::Retire, name, from)).collect()
}

/// Lists the keys of two objects that differ, each with its two values.
pub fn differences(from: &Value, to: &Value) -> Value {
    let empty = Map::new();
    let (from, to) = (from.as_object().unwrap_or(&empty), to.as_object().unwrap_or(&empty));
    let mut all = Map::new();
    for key in from.keys().chain(to.keys()) {
        if from.get(key) != to.get(key) {
            all.insert(key.clone(), json!({"from": from.get(key), "to": to.get(key)}));
        }
    }
    Value::Object(all)
}

/// A section as a document wants it, beside the section as it is stored.
pub struct Comparison<S: Section> {
    /// The items that the document names; None: the document does not have the section, which is
    /// left alone.
    wanted: Option<Items<S>>,
    stored: Rows<S>,
}

impl<S: Section> Default for Comparison<S> {
    fn default() -> Self {
        Self { wanted: None, stored: BTreeMap::new() }
    }
}

impl<S: Section> Comparison<S> {
    /// Reads what a document wants.
    pub fn parse(&mut self, faults: &mut Faults, document: &Map<String, Value>) {
        self.wanted = document.get(S::NAME).and_then(|value| S::parse(faults, value));
    }

    /// Reads what is stored.
    pub fn load(&mut self, db: &Db) -> Result<()> {
        self.stored = S::load(db)?;
        Ok(())
    }

    /// Adds the names that the section will have.
    pub fn add_names(&self, names: &mut Names, now: Moment) {
        match &self.wanted {
            Some(wanted) => names.add::<S>(wanted.keys().cloned()),
            None => {
                let current = self.stored.iter().filter(|(_, row)| S::current(row, now).is_some());
                names.add::<S>(current.map(|(name, _)| name.clone()));
            }
        }
    }

    /// Notes what refers to something that will not be there, or cannot change once it is stored.
    pub fn check(&self, faults: &mut Faults, names: &Names) {
        if let Some(wanted) = &self.wanted {
            S::check(faults, wanted, &self.stored, names);
        }
    }

    /// Notes what cannot change because it is in use.
    pub fn check_use(&self, faults: &mut Faults, db: &Db) {
        if let Some(wanted) = &self.wanted {
            S::check_use(faults, db, wanted, &self.stored);
        }
    }

    /// Lists what the document changes.
    pub fn changes(&self, now: Moment) -> Vec<Change> {
        self.wanted.as_ref().map_or_else(Vec::new, |wanted| S::diff(wanted, &self.stored, now))
    }

    /// Stores what the document changes.
    pub fn save(&self, db: &Db, now: Moment) {
        for Change { name, .. } in self.changes(now) {
            match self.wanted.as_ref().and_then(|wanted| wanted.get(&name)) {
                Some(item) => S::save(db, &name, item, self.stored.get(&name), now),
                None => S::retire(db, &name, now),
            }
        }
    }

    /// Writes what is stored as a document does.
    pub fn export(&self, now: Moment) -> Value {
        S::export(&self.stored, now)
    }
}
