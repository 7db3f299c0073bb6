//! Indexes that are written with a row.

use crate::pg::heap::syscache::{printed, stored};
use crate::pg::heap::{Table, Value, split};
use pgrx::pg_sys;

/// An index that is written with a row, or looked at for that.
pub(super) struct Written {
    pub(super) relation: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
}

impl Written {
    /// # Safety
    /// The index exists, and its table is locked.
    pub(super) unsafe fn open(id: pg_sys::Oid, lock: pg_sys::LOCKMODE) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let relation = pg_sys::index_open(id, lock);
            Self { relation, info: pg_sys::BuildIndexInfo(relation) }
        }
    }

    /// What a partial index is for.
    pub(super) fn predicate(&self) -> Option<String> {
        let cache = pg_sys::SysCacheIdentifier::INDEXRELID;
        // SAFETY: an open index, and what the catalog says of it.
        unsafe {
            let predicate = stored(cache, (*self.relation).rd_indextuple, pg_sys::Anum_pg_index_indpred);
            printed(predicate, (*(*self.relation).rd_index).indrelid)
        }
    }

    /// All of it is columns.
    pub(super) fn has_no_expressions(&self) -> bool {
        // SAFETY: what describes an open index.
        unsafe { (*self.info).ii_Expressions.is_null() }
    }

    /// By which operators a column of it is compared.
    pub(super) fn operator_class(&self, number: usize) -> Option<pg_sys::Oid> {
        let cache = pg_sys::SysCacheIdentifier::INDEXRELID;
        // SAFETY: an open index, and what the catalog says of it: one for each column.
        unsafe {
            let classes = stored(cache, (*self.relation).rd_indextuple, pg_sys::Anum_pg_index_indclass)?;
            let classes = &*classes.cast_mut_ptr::<pg_sys::oidvector>();
            classes.values.as_slice(usize::try_from(classes.dim1).ok()?).get(number).copied()
        }
    }

    pub(super) fn id(&self) -> pg_sys::Oid {
        // SAFETY: an open index.
        unsafe { (*self.relation).rd_id }
    }

    /// Nothing has to be evaluated for it but whether it is for a row, where it is `partial`. Of other access methods than btree some
    /// are written also where a new version of a row stays on its page.
    pub(super) fn is_simple(&self, partial: Option<&str>) -> bool {
        // SAFETY: an open index and what describes it.
        unsafe {
            let (info, form) = (&*self.info, &*(*self.relation).rd_index);
            (*(*self.relation).rd_rel).relam == pg_sys::BTREE_AM_OID
                && self.has_no_expressions()
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
            if !info.ii_Predicate.is_null() && !table.shape.partial.is_some_and(|partial| (partial.belongs)(row)) {
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

impl Drop for Written {
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
