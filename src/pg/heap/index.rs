//! Indexes that are open, and the entries that they get for a new tuple.

use crate::pg::heap::syscache::{printed, stored};
use crate::pg::heap::{Table, Value, split};
use pgrx::pg_sys;

/// An index of a table that is open, with what the server needs to insert entries.
pub(super) struct OpenIndex {
    pub(super) relation: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
}

impl OpenIndex {
    /// Opens an index.
    ///
    /// # Safety
    /// The index exists, and its table is locked.
    pub(super) unsafe fn open(id: pg_sys::Oid, lock: pg_sys::LOCKMODE) -> Self {
        // SAFETY: the caller keeps its promise.
        unsafe {
            let relation = pg_sys::index_open(id, lock);
            Self { relation, info: pg_sys::BuildIndexInfo(relation) }
        }
    }

    /// The predicate of a partial index, as the server prints it.
    pub(super) fn predicate(&self) -> Option<String> {
        let cache = pg_sys::SysCacheIdentifier::INDEXRELID;
        // SAFETY: the index is open, and the tuple is its row of `pg_index`.
        unsafe {
            let predicate = stored(cache, (*self.relation).rd_indextuple, pg_sys::Anum_pg_index_indpred);
            printed(predicate, (*(*self.relation).rd_index).indrelid)
        }
    }

    /// Tells whether all parts of the key are plain columns.
    pub(super) fn has_no_expressions(&self) -> bool {
        // SAFETY: the information was built for this index.
        unsafe { (*self.info).ii_Expressions.is_null() }
    }

    /// The operator class by which a column of the index is compared.
    pub(super) fn operator_class(&self, number: usize) -> Option<pg_sys::Oid> {
        let cache = pg_sys::SysCacheIdentifier::INDEXRELID;
        // SAFETY: the index is open, and the tuple is its row of `pg_index`, with a class for each
        // column.
        unsafe {
            let classes = stored(cache, (*self.relation).rd_indextuple, pg_sys::Anum_pg_index_indclass)?;
            let classes = &*classes.cast_mut_ptr::<pg_sys::oidvector>();
            classes.values.as_slice(usize::try_from(classes.dim1).ok()?).get(number).copied()
        }
    }

    pub(super) fn id(&self) -> pg_sys::Oid {
        // SAFETY: the index is open.
        unsafe { (*self.relation).rd_id }
    }

    /// Tells whether an entry needs no evaluation but that of the known predicate `partial`. Only
    /// btree will do: some other access methods, as BRIN, need entries also for heap-only tuples.
    pub(super) fn is_simple(&self, partial: Option<&str>) -> bool {
        // SAFETY: the index is open, and the information was built for it.
        unsafe {
            let (info, form) = (&*self.info, &*(*self.relation).rd_index);
            (*(*self.relation).rd_rel).relam == pg_sys::BTREE_AM_OID
                && self.has_no_expressions()
                && (info.ii_Predicate.is_null() || self.predicate().as_deref() == partial)
                && info.ii_ExclusionOps.is_null()
                && form.indimmediate
        }
    }

    /// Inserts the entry of a tuple with these columns. With `asks` a possible duplicate gives
    /// false, and the entry does not count; without it the server raises an error.
    ///
    /// # Safety
    /// `tuple` was inserted into `table`, of which this is an index.
    pub(super) unsafe fn insert(&self, table: &Table, tuple: pg_sys::HeapTuple, row: &[Value], asks: bool) -> bool {
        use pg_sys::IndexUniqueCheck::{UNIQUE_CHECK_NO, UNIQUE_CHECK_PARTIAL, UNIQUE_CHECK_YES};
        // SAFETY: the caller keeps its promise, and the entry has a value for each column of the
        // index.
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

impl Drop for OpenIndex {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the index was opened by `open`; its lock stays until the end of the
            // transaction.
            unsafe {
                pg_sys::index_close(self.relation, pg_sys::NoLock.cast_signed());
                pg_sys::pfree(self.info.cast());
            }
        }
    }
}
