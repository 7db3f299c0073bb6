//! Rows of our own tables by the server's access methods, where to begin and end a statement costs several times its work.
//!
//! What a statement would do and this does not: checks, defaults, generated columns, and triggers (a table with triggers for
//! what is to be done does not open). Indexes must be without expressions and predicates. Columns are numbered from 1, as in
//! the table's definition; the numbers of a table's columns never change.

use pgrx::pg_sys;
use std::ffi::CString;

/// A value of a column; None is NULL.
pub type Value = Option<pg_sys::Datum>;

/// Columns and their new values; None leaves the row alone.
pub type Change = Option<Vec<(usize, Value)>>;

/// A column that must be equal to a value.
pub struct Key(pub i16, pub Equal, pub Value);

/// By the type of the column.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub enum Equal {
    Uuid,
    /// Of the collation "C".
    Text,
    Moment,
}

impl Equal {
    fn procedure(self) -> pg_sys::RegProcedure {
        match self {
            Self::Uuid => pg_sys::F_UUID_EQ,
            Self::Text => pg_sys::F_TEXTEQ,
            Self::Moment => pg_sys::F_TIMESTAMPTZ_EQ,
        }
        .into()
    }
}

fn relation_id(name: &str) -> pg_sys::Oid {
    let name = CString::new(name).expect("a name without NUL");
    // SAFETY: looks names up.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"billing".as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    }
}

/// Where the place of a row stands, this says that what stands there is a token: `SpecTokenOffsetNumber`.
const SPECULATIVE: u16 = 0xfffe;

/// How often a row that others changed meanwhile is looked for again.
const ATTEMPTS: usize = 4;

/// What came of looking for a row that can be changed.
enum Found {
    Nothing,
    Changed,
    /// Only such as somebody else changed just now.
    Outdated,
}

/// A table that is open for writing, until the end of the transaction.
pub struct Table(pg_sys::Relation);

impl Table {
    /// None where there is no such table, or it has triggers for rows that come or change.
    pub fn open(name: &str) -> Option<Self> {
        let id = relation_id(name);
        if id == pg_sys::InvalidOid {
            return None;
        }
        // SAFETY: the table exists, or the server raises an error.
        let table = unsafe { Self(pg_sys::table_open(id, pg_sys::RowExclusiveLock.cast_signed())) };
        // SAFETY: an open relation.
        let triggers = unsafe { (*table.0).trigdesc.as_ref() };
        let stands_aside = triggers.is_none_or(|t| {
            !(t.trig_insert_before_row
                || t.trig_insert_after_row
                || t.trig_insert_before_statement
                || t.trig_insert_after_statement)
        });
        stands_aside.then_some(table)
    }

    /// Whether it is a partition of another table.
    pub fn is_partition(&self) -> bool {
        // SAFETY: an open relation.
        unsafe { (*(*self.0).rd_rel).relispartition }
    }

    fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: an open relation.
        unsafe { (*self.0).rd_att }
    }

    fn form(&self, row: &[Value]) -> pg_sys::HeapTuple {
        let mut values: Vec<_> = row.iter().map(|v| v.unwrap_or(pg_sys::Datum::from(0))).collect();
        let mut nulls: Vec<_> = row.iter().map(Option::is_none).collect();
        // SAFETY: an open relation; as many values as it has columns, of their types.
        unsafe {
            assert_eq!(usize::try_from((*self.descriptor()).natts).ok(), Some(row.len()), "columns of a row");
            pg_sys::heap_form_tuple(self.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr())
        }
    }

    /// Inserts a row of all columns.
    pub fn insert(&self, row: &[Value]) {
        let tuple = self.form(row);
        // SAFETY: a tuple of this table.
        unsafe {
            pg_sys::CatalogTupleInsert(self.0, tuple);
            pg_sys::heap_freetuple(tuple);
            pg_sys::CommandCounterIncrement();
        }
    }

    /// Inserts a row of all columns, which are those of the table's only index, unless there may be one like it: one that is
    /// there, or is being inserted. Does not wait to learn which: that is for a statement with ON CONFLICT.
    pub fn insert_new(&self, index: &str, row: &[Value]) -> bool {
        let index = relation_id(index);
        if index == pg_sys::InvalidOid {
            return false;
        }
        let tuple = self.form(row);
        let mut values: Vec<_> = row.iter().map(|v| v.unwrap_or(pg_sys::Datum::from(0))).collect();
        let mut nulls: Vec<_> = row.iter().map(Option::is_none).collect();
        // As ON CONFLICT does: a row that turns out to be no news is gone at once, also for those who would wait for us.
        // SAFETY: a tuple of this table, an index of it, and the values of the index's columns.
        unsafe {
            let transaction = pg_sys::GetCurrentTransactionId();
            let token = pg_sys::SpeculativeInsertionLockAcquire(transaction);
            let place = &raw mut (*(*tuple).t_data).t_ctid;
            pgrx::itemptr::item_pointer_set_all(&mut *place, token, SPECULATIVE);
            let options = pg_sys::HEAP_INSERT_SPECULATIVE.cast_signed();
            pg_sys::heap_insert(self.0, tuple, pg_sys::GetCurrentCommandId(true), options, std::ptr::null_mut());
            let lock = pg_sys::RowExclusiveLock.cast_signed();
            let index = pg_sys::index_open(index, lock);
            let is_new = pg_sys::index_insert(
                index,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
                &raw mut (*tuple).t_self,
                self.0,
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_PARTIAL,
                false,
                pg_sys::BuildIndexInfo(index),
            );
            pg_sys::index_close(index, pg_sys::NoLock.cast_signed());
            if is_new {
                pg_sys::heap_finish_speculative(self.0, &raw mut (*tuple).t_self);
            } else {
                pg_sys::heap_abort_speculative(self.0, &raw mut (*tuple).t_self);
            }
            pg_sys::SpeculativeInsertionLockRelease(transaction);
            pg_sys::heap_freetuple(tuple);
            pg_sys::CommandCounterIncrement();
            is_new
        }
    }

    /// Changes the first row with these keys that nobody holds: `change` gets its columns and gives those that change, or leaves
    /// the row alone. False where none was changed. The snapshot is of this moment.
    pub fn update_any_free(&self, index: &str, keys: &[Key], mut change: impl FnMut(&[Value]) -> Change) -> bool {
        let index = relation_id(index);
        if index == pg_sys::InvalidOid {
            return false;
        }
        let mut scan_keys: Vec<pg_sys::ScanKeyData> = Vec::with_capacity(keys.len());
        // SAFETY: an open relation and an index of it.
        unsafe {
            for Key(column, equal, value) in keys {
                let mut key = std::mem::zeroed();
                let strategy = u16::try_from(pg_sys::BTEqualStrategyNumber).unwrap_or_default();
                let value = value.unwrap_or(pg_sys::Datum::from(0));
                pg_sys::ScanKeyInit(&raw mut key, *column, strategy, equal.procedure(), value);
                scan_keys.push(key);
            }
            for _ in 0..ATTEMPTS {
                match self.scan(index, &mut scan_keys, &mut change) {
                    Found::Nothing => return false,
                    Found::Changed => {
                        pg_sys::CommandCounterIncrement();
                        return true;
                    }
                    // Since the snapshot was taken: the next one sees what came of it.
                    Found::Outdated => {}
                }
            }
        }
        false
    }

    /// # Safety
    /// An index of this table, and keys for its columns.
    unsafe fn scan(
        &self,
        index: pg_sys::Oid,
        keys: &mut [pg_sys::ScanKeyData],
        change: &mut impl FnMut(&[Value]) -> Change,
    ) -> Found {
        let mut found = Found::Nothing;
        // SAFETY: the caller's promise; what is begun is ended, and by the end of the transaction on errors.
        unsafe {
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let count = i32::try_from(keys.len()).unwrap_or_default();
            let scan = pg_sys::systable_beginscan(self.0, index, true, snapshot, count, keys.as_mut_ptr());
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                match self.update_if_free(tuple, change) {
                    Found::Nothing => {}
                    other => found = other,
                }
                if matches!(found, Found::Changed) {
                    break;
                }
            }
            pg_sys::systable_endscan(scan);
            pg_sys::UnregisterSnapshot(snapshot);
        }
        found
    }

    /// # Safety
    /// A tuple of this table, with its place.
    unsafe fn update_if_free(&self, tuple: pg_sys::HeapTuple, change: &mut impl FnMut(&[Value]) -> Change) -> Found {
        // SAFETY: the caller's promise; the buffer is released in any case.
        unsafe {
            let mut held = *tuple;
            let mut buffer = pg_sys::InvalidBuffer.cast_signed();
            let mut failure = std::mem::zeroed();
            let status = pg_sys::heap_lock_tuple(
                self.0,
                &raw mut held,
                pg_sys::GetCurrentCommandId(true),
                pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
                pg_sys::LockWaitPolicy::LockWaitSkip,
                false,
                &raw mut buffer,
                &raw mut failure,
            );
            let found = match status {
                pg_sys::TM_Result::TM_Ok if self.update(&raw mut held, change) => Found::Changed,
                pg_sys::TM_Result::TM_Updated => Found::Outdated,
                _ => Found::Nothing,
            };
            pg_sys::ReleaseBuffer(buffer);
            found
        }
    }

    /// # Safety
    /// A tuple of this table that is locked and in a pinned buffer.
    unsafe fn update(&self, tuple: pg_sys::HeapTuple, change: &mut impl FnMut(&[Value]) -> Change) -> bool {
        // SAFETY: the caller's promise; the new tuple has as many columns.
        unsafe {
            let count = usize::try_from((*self.descriptor()).natts).unwrap_or_default();
            let (mut values, mut nulls) = (vec![pg_sys::Datum::from(0); count], vec![true; count]);
            pg_sys::heap_deform_tuple(tuple, self.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr());
            let row: Vec<Value> = values.iter().zip(&nulls).map(|(v, null)| (!null).then_some(*v)).collect();
            let Some(changed) = change(&row) else { return false };
            for (column, value) in changed {
                values[column - 1] = value.unwrap_or(pg_sys::Datum::from(0));
                nulls[column - 1] = value.is_none();
            }
            let new = pg_sys::heap_form_tuple(self.descriptor(), values.as_mut_ptr(), nulls.as_mut_ptr());
            (*new).t_self = (*tuple).t_self;
            pg_sys::CatalogTupleUpdate(self.0, &raw mut (*tuple).t_self, new);
            pg_sys::heap_freetuple(new);
            true
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // An error closes everything by itself.
        if !std::thread::panicking() {
            // SAFETY: opened above; the lock stays until the end of the transaction.
            unsafe {
                pg_sys::table_close(self.0, pg_sys::NoLock.cast_signed());
            }
        }
    }
}
