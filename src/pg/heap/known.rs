//! What a backend knows of tables and indexes, until the server says that something about them changes.

use crate::pg::heap::shapes::Shape;
use crate::pg::heap::verdict::{Found, Intent};
use crate::pg::invalidation::{self, Watcher};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::ffi::CString;

thread_local! {
    // Few enough to be looked through.
    static KNOWN: RefCell<Vec<Facts>> = RefCell::default();
    // Counts what the server says: what is found meanwhile is not kept.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// What is known of a table.
struct Facts {
    shape: &'static Shape,
    /// Under which it was found.
    name: String,
    id: pg_sys::Oid,
    /// By intent.
    found: [Look; 3],
}

/// What came of looking at a table.
#[derive(Debug, Clone, Copy)]
enum Look {
    /// Nobody has.
    None,
    AsKnown(Found),
    NeedsStatement,
}

impl Look {
    fn found(&self) -> Option<&Found> {
        match self {
            Self::AsKnown(found) => Some(found),
            Self::None | Self::NeedsStatement => None,
        }
    }
}

impl Facts {
    fn is_of(&self, shape: &'static Shape) -> bool {
        std::ptr::eq(self.shape, shape)
    }

    fn speaks_of(&self, relation: pg_sys::Oid) -> bool {
        self.id == relation || self.found.iter().filter_map(Look::found).any(|found| found.speaks_of(relation))
    }
}

/// Lets a backend forget what it knows of tables when that changes; once per backend.
pub fn watch_invalidations() {
    static WATCHER: Watcher = Watcher {
        relation: |relation| forget_where(|facts| relation == pg_sys::Oid::INVALID || facts.speaks_of(relation)),
        // Under a schema that was renamed, or took the name of another, all tables are others.
        catalog: |_| forget_where(|_| true),
        catalogs: &[pg_sys::SysCacheIdentifier::NAMESPACEOID],
    };
    invalidation::watch(&WATCHER);
}

fn forget_where(is_it: impl Fn(&Facts) -> bool) {
    CHANGES.set(CHANGES.get().wrapping_add(1));
    // Borrows are short and take no invalidation inside.
    KNOWN.with(|known| {
        let Ok(mut all) = known.try_borrow_mut() else { return };
        let gone: Vec<_> = all.iter().filter(|facts| is_it(facts)).map(|facts| facts.shape).collect();
        // What is known of a partition is known of its parent as well.
        let is_gone = |shape: &'static Shape| gone.iter().any(|known| std::ptr::eq(*known, shape));
        if !gone.is_empty() {
            all.retain(|facts| !is_gone(facts.shape) && !facts.shape.parent.is_some_and(is_gone));
        }
    });
}

/// A table by its name; None where there is none.
pub(super) fn relation_id(shape: &'static Shape, name: &str) -> Option<pg_sys::Oid> {
    let is_it = |facts: &&Facts| facts.is_of(shape) && facts.name == name;
    if let Some(id) = KNOWN.with_borrow(|known| known.iter().find(is_it).map(|facts| facts.id)) {
        return Some(id);
    }
    let text = |name: &str| CString::new(name).expect("a name without NUL");
    let (schema, text) = (text(shape.schema), text(name));
    // SAFETY: looks names up.
    let id = unsafe {
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        pg_sys::get_relname_relid(text.as_ptr(), schema)
    };
    if id == pg_sys::Oid::INVALID {
        return None;
    }
    KNOWN.with_borrow_mut(|known| {
        // Of the partitions, one at a time.
        known.retain(|facts| !facts.is_of(shape));
        known.push(Facts { shape, name: name.to_owned(), id, found: [Look::None; 3] });
    });
    Some(id)
}

/// What is known of a table, or what `look` finds: to be kept, unless the second says that it will not last.
pub(super) fn recall(
    (shape, id): (&'static Shape, pg_sys::Oid),
    intent: Intent,
    look: impl FnOnce() -> (Option<Found>, bool),
) -> Option<Found> {
    let of = |facts: &Facts| facts.is_of(shape) && facts.id == id;
    let known =
        KNOWN.with_borrow(|known| known.iter().find(|f| of(f)).map_or(Look::None, |f| f.found[intent as usize]));
    match known {
        Look::AsKnown(found) => return Some(found),
        Look::NeedsStatement => return None,
        Look::None => {}
    }
    let before = CHANGES.get();
    let (found, is_lasting) = look();
    if is_lasting && CHANGES.get() == before {
        KNOWN.with_borrow_mut(|known| {
            if let Some(facts) = known.iter_mut().find(|f| of(f)) {
                facts.found[intent as usize] = found.map_or(Look::NeedsStatement, Look::AsKnown);
            }
        });
    }
    found
}
