//! The facts that a backend has verified about tables and indexes. They are forgotten when the
//! server invalidates a relation that they are about.

use crate::pg::heap::shapes::Shape;
use crate::pg::heap::verdict::{Intent, TableFacts};
use crate::pg::invalidation::{self, Watcher};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::ffi::CString;

thread_local! {
    // The list is short enough to be searched from its beginning.
    static KNOWN: RefCell<Vec<KnownTable>> = RefCell::default();
    // The number of invalidations so far: a fact that was found while one came in may be outdated,
    // and is not kept.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// A table of which the backend knows the id, and perhaps more.
struct KnownTable {
    shape: &'static Shape,
    /// The name under which the table was found.
    name: String,
    id: pg_sys::Oid,
    /// The results of the verification for each intent.
    found: [Verification; 3],
}

/// The result of verifying a table for one intent.
#[derive(Debug, Clone, Copy)]
enum Verification {
    /// The table was not verified since the last invalidation.
    Pending,
    /// The table is as declared.
    AsDeclared(TableFacts),
    /// The table differs, so its rows need statements.
    NeedsStatement,
}

impl Verification {
    fn found(&self) -> Option<&TableFacts> {
        match self {
            Self::AsDeclared(found) => Some(found),
            Self::Pending | Self::NeedsStatement => None,
        }
    }
}

impl KnownTable {
    fn is_of(&self, shape: &'static Shape) -> bool {
        std::ptr::eq(self.shape, shape)
    }

    fn speaks_of(&self, relation: pg_sys::Oid) -> bool {
        self.id == relation || self.found.iter().filter_map(Verification::found).any(|found| found.speaks_of(relation))
    }
}

/// Registers the callbacks that make this backend forget facts which an invalidation concerns. It
/// is called once per backend.
pub fn watch_invalidations() {
    static WATCHER: Watcher = Watcher {
        relation: |relation| forget_where(|facts| relation == pg_sys::Oid::INVALID || facts.speaks_of(relation)),
        // A renamed schema changes which table a name stands for, so nothing that is known by name
        // may stay.
        catalog: |_| forget_where(|_| true),
        catalogs: &[pg_sys::SysCacheIdentifier::NAMESPACEOID],
    };
    invalidation::watch(&WATCHER);
}

fn forget_where(is_meant: impl Fn(&KnownTable) -> bool) {
    CHANGES.set(CHANGES.get().wrapping_add(1));
    // Borrows are short and none spans a call of the server, so an invalidation finds the list
    // free.
    KNOWN.with(|known| {
        let Ok(mut all) = known.try_borrow_mut() else { return };
        let gone: Vec<_> = all.iter().filter(|facts| is_meant(facts)).map(|facts| facts.shape).collect();
        // A partition was verified together with its parent.
        let is_gone = |shape: &'static Shape| gone.iter().any(|known| std::ptr::eq(*known, shape));
        if !gone.is_empty() {
            all.retain(|facts| !is_gone(facts.shape) && !facts.shape.parent.is_some_and(is_gone));
        }
    });
}

/// The id of a table by its name; None where there is no such table.
pub(super) fn relation_id(shape: &'static Shape, name: &str) -> Option<pg_sys::Oid> {
    let is_meant = |facts: &&KnownTable| facts.is_of(shape) && facts.name == name;
    if let Some(id) = KNOWN.with_borrow(|known| known.iter().find(is_meant).map(|facts| facts.id)) {
        return Some(id);
    }
    let text = |name: &str| CString::new(name).expect("a name without NUL");
    let (schema, text) = (text(shape.schema), text(name));
    // SAFETY: both functions only look names up.
    let id = unsafe {
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        pg_sys::get_relname_relid(text.as_ptr(), schema)
    };
    if id == pg_sys::Oid::INVALID {
        return None;
    }
    KNOWN.with_borrow_mut(|known| {
        // Only one partition of a shape is kept, or the list would grow with each month.
        known.retain(|facts| !facts.is_of(shape));
        known.push(KnownTable { shape, name: name.to_owned(), id, found: [Verification::Pending; 3] });
    });
    Some(id)
}

/// Recalls the result of verifying a table, or takes that of `verify`. The result is kept unless
/// its second part says that it does not last, or an invalidation came in meanwhile.
pub(super) fn recall(
    (shape, id): (&'static Shape, pg_sys::Oid),
    intent: Intent,
    verify: impl FnOnce() -> (Option<TableFacts>, bool),
) -> Option<TableFacts> {
    let is_table = |facts: &KnownTable| facts.is_of(shape) && facts.id == id;
    let known = KNOWN.with_borrow(|known| {
        known.iter().find(|f| is_table(f)).map_or(Verification::Pending, |f| f.found[intent as usize])
    });
    match known {
        Verification::AsDeclared(found) => return Some(found),
        Verification::NeedsStatement => return None,
        Verification::Pending => {}
    }
    let before = CHANGES.get();
    let (found, is_lasting) = verify();
    if is_lasting && CHANGES.get() == before {
        KNOWN.with_borrow_mut(|known| {
            if let Some(facts) = known.iter_mut().find(|f| is_table(f)) {
                facts.found[intent as usize] = found.map_or(Verification::NeedsStatement, Verification::AsDeclared);
            }
        });
    }
    found
}
