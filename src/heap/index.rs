//! Indexes that are written with a row.

use super::{Table, Value, split};
use pgrx::datum::FromDatum;
use pgrx::pg_sys;

/// What partial indexes of a table are for, as the server prints it; and which of the rows to be written are of those.
#[derive(Clone, Copy)]
pub struct Partial(pub &'static str, pub Belongs);

/// Which rows belong into a partial index.
#[derive(Clone, Copy)]
pub enum Belongs {
    /// None of those that are written.
    No,
    /// All of them.
    Yes,
    /// Those with this column.
    Having(usize),
}

impl Belongs {
    pub(super) fn row(self, row: &[Value]) -> bool {
        match self {
            Self::No => false,
            Self::Yes => true,
            Self::Having(column) => row[column - 1].is_some(),
        }
    }
}

/// An index that is open for writing.
pub(super) struct Index {
    relation: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
}

impl Index {
    /// # Safety
    /// The index exists, and its table is locked.
    pub(super) unsafe fn open(id: pg_sys::Oid) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let relation = pg_sys::index_open(id, pg_sys::RowExclusiveLock.cast_signed());
            Self { relation, info: pg_sys::BuildIndexInfo(relation) }
        }
    }

    /// What a partial index is for.
    fn predicate(&self) -> Option<String> {
        let column = pg_sys::AttrNumber::try_from(pg_sys::Anum_pg_index_indpred).unwrap_or_default();
        let cache = pg_sys::SysCacheIdentifier::INDEXRELID.cast_signed();
        let mut is_null = false;
        // SAFETY: an open index, and what the catalog says of it.
        unsafe {
            let tuple = (*self.relation).rd_indextuple;
            let stored = pg_sys::SysCacheGetAttr(cache, tuple, column, &raw mut is_null);
            let table = pg_sys::Datum::from((*(*self.relation).rd_index).indrelid);
            let print = pg_sys::F_PG_GET_EXPR_PG_NODE_TREE_OID;
            (!is_null).then(|| {
                let printed = pg_sys::OidFunctionCall2Coll(print, pg_sys::InvalidOid, stored, table);
                String::from_datum(printed, false).unwrap_or_default()
            })
        }
    }

    pub(super) fn id(&self) -> pg_sys::Oid {
        // SAFETY: an open index.
        unsafe { (*self.relation).rd_id }
    }

    /// Nothing has to be evaluated for it but whether it is for a row, where it is `partial`.
    pub(super) fn is_simple(&self, partial: Option<&str>) -> bool {
        // SAFETY: an open index and what describes it.
        unsafe {
            let (info, form) = (&*self.info, &*(*self.relation).rd_index);
            info.ii_Expressions.is_null()
                && (info.ii_Predicate.is_null() || self.predicate().as_deref() == partial)
                && info.ii_ExclusionOps.is_null()
                && form.indimmediate
        }
    }

    /// Enters a tuple with these columns. `asks`: false, and it does not count, where there is or may be one like it; else the
    /// server raises an error.
    ///
    /// # Safety
    /// A tuple that was inserted into the table, of which this is an index.
    pub(super) unsafe fn insert(&self, table: &Table, tuple: pg_sys::HeapTuple, row: &[Value], asks: bool) -> bool {
        use pg_sys::IndexUniqueCheck::{UNIQUE_CHECK_NO, UNIQUE_CHECK_PARTIAL, UNIQUE_CHECK_YES};
        // SAFETY: the caller's promise; as many values as the index has columns.
        unsafe {
            let info = &*self.info;
            if !info.ii_ReadyForInserts {
                return true;
            }
            if !info.ii_Predicate.is_null() && !table.partial.row(row) {
                return true;
            }
            let columns = usize::try_from(info.ii_NumIndexAttrs).unwrap_or_default();
            let numbers = info.ii_IndexAttrNumbers.iter().take(columns);
            let entry: Vec<Value> = numbers.map(|n| row[usize::try_from(*n - 1).unwrap_or_default()]).collect();
            let (mut values, mut nulls) = split(&entry);
            let check = match info.ii_Unique {
                true if asks => UNIQUE_CHECK_PARTIAL,
                true => UNIQUE_CHECK_YES,
                false => UNIQUE_CHECK_NO,
            };
            let is_new = pg_sys::index_insert(
                self.relation,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
                &raw mut (*tuple).t_self,
                table.relation,
                check,
                false,
                self.info,
            );
            is_new || !asks
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened above; the lock stays until the end of the transaction.
            unsafe {
                pg_sys::index_close(self.relation, pg_sys::NoLock.cast_signed());
                pg_sys::pfree(self.info.cast());
            }
        }
    }
}
