//! The verdict on a table: whether it is as declared, and what was found of it, or else the reason
//! why its rows need statements.

use crate::base::time::Moment;
use crate::pg::heap::shapes::MOST_INDEXES;
use pgrx::pg_sys;

/// The purpose for which a table is opened. A stricter purpose needs more checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Intent {
    Read,
    Insert,
    Update,
}

/// The parent of a partition and the bounds of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The id of the parent.
    pub(super) parent: pg_sys::Oid,
    /// The first moment of the partition's rows.
    pub(super) from: Moment,
    /// The first moment after the partition's rows.
    pub(super) to: Moment,
}

impl Bounds {
    /// Tells whether rows of that moment belong into the partition.
    pub(super) fn hold(self, at: Moment) -> bool {
        self.from <= at && at < self.to
    }
}

/// The facts about a table that is as declared.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableFacts {
    /// The ids of the indexes of the shape, in the same order.
    pub(super) indexes: [pg_sys::Oid; MOST_INDEXES],
    /// The bounds, where the table is a partition.
    pub(super) bounds: Option<Bounds>,
}

impl TableFacts {
    /// Tells whether an invalidation of that relation concerns these facts, besides one of the
    /// table itself.
    pub(super) fn speaks_of(&self, relation: pg_sys::Oid) -> bool {
        self.indexes.contains(&relation)
    }
}

/// The reason why the rows of a table need statements.
pub(super) struct Mismatch {
    /// The difference, for the debug log.
    pub(super) what: String,
    /// Whether the reason lasts until the server reports a change of the table.
    pub(super) is_lasting: bool,
}

impl Mismatch {
    /// A lasting reason.
    pub(super) fn of(what: impl Into<String>) -> Self {
        Self { what: what.into(), is_lasting: true }
    }
}

/// The result of a check.
pub(super) type Verdict<T = ()> = Result<T, Mismatch>;

/// Fails with the reason `otherwise` where the condition does not hold.
pub(super) fn expect(holds: bool, otherwise: &str) -> Verdict {
    if holds { Ok(()) } else { Err(Mismatch::of(otherwise)) }
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
