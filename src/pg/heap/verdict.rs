//! The verdict on a table: whether it is as its shape says, and what was found of it.

use crate::base::time::Moment;
use crate::pg::heap::shapes::MOST_INDEXES;
use pgrx::pg_sys;

/// What a table is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Intent {
    Read,
    Insert,
    Update,
}

/// The rows of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) parent: pg_sys::Oid,
    pub(super) from: Moment,
    /// The first that is not its own.
    pub(super) to: Moment,
}

impl Bounds {
    pub(super) fn hold(self, at: Moment) -> bool {
        self.from <= at && at < self.to
    }
}

/// What was found of a table that is as we know it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// Those of its shape, in the same order.
    pub(super) indexes: [pg_sys::Oid; MOST_INDEXES],
    /// Of a partition: which of the rows are its own.
    pub(super) bounds: Option<Bounds>,
}

impl Found {
    /// Something of it is told by that relation besides the table.
    pub(super) fn speaks_of(&self, relation: pg_sys::Oid) -> bool {
        self.indexes.contains(&relation)
    }
}

/// Why a table takes statements.
pub(super) struct Doubt {
    pub(super) what: String,
    /// For good, until something about it changes.
    pub(super) is_lasting: bool,
}

impl Doubt {
    pub(super) fn of(what: impl Into<String>) -> Self {
        Self { what: what.into(), is_lasting: true }
    }
}

pub(super) type Verdict<T = ()> = Result<T, Doubt>;

/// Fails with that doubt, unless it is so.
pub(super) fn expect(is_so: bool, otherwise: &str) -> Verdict {
    if is_so { Ok(()) } else { Err(Doubt::of(otherwise)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_ends_before_its_upper_bound() {
        let bounds = Bounds { parent: pg_sys::Oid::INVALID, from: 10, to: 20 };
        let held: Vec<_> = [9, 10, 19, 20].into_iter().filter(|at| bounds.hold(*at)).collect();
        assert_eq!(held, [10, 19]);
    }
}
