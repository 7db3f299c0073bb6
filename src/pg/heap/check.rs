//! The check whether a table in the database is as its shape declares it. Only then can its rows be
//! read and written without statements: a value of another type would be read as garbage.

use crate::pg::heap::Table;
use crate::pg::heap::index::OpenIndex;
use crate::pg::heap::partition;
use crate::pg::heap::relation::{columns, is_of_this_server, is_unwatched};
use crate::pg::heap::shapes::{Index, MOST_INDEXES};
use crate::pg::heap::verdict::{Intent, Mismatch, TableFacts, Verdict, expect};
use pgrx::pg_sys;

/// Verifies a table that is open. The second value says whether the result lasts until the server
/// reports a change of the table.
pub(super) fn verify(table: &Table, name: &str, intent: Intent) -> (Option<TableFacts>, bool) {
    match examine(table, intent) {
        Ok(found) => (Some(found), true),
        Err(Mismatch { what, is_lasting }) => {
            let doing = if intent == Intent::Read { "read" } else { "written" };
            pgrx::debug1!("{}.{name} is {doing} by statements: {what}", table.shape.schema);
            (None, is_lasting)
        }
    }
}

fn examine(table: &Table, intent: Intent) -> Verdict<TableFacts> {
    let relation = table.relation;
    // SAFETY: the relation is open.
    let form = unsafe { &*(*relation).rd_rel };
    expect(form.relkind == pg_sys::RELKIND_RELATION.cast_signed(), "no ordinary table")?;
    expect(form.relam == pg_sys::HEAP_TABLE_AM_OID, "its access method")?;
    expect(form.relpersistence == pg_sys::RELPERSISTENCE_PERMANENT.cast_signed(), "not permanent")?;
    expect(form.relispartition == table.shape.parent.is_some(), "a partition")?;
    expect(!form.relhassubclass, "tables inherit from it")?;
    expect(!form.relforcerowsecurity, "row security is forced")?;
    // SAFETY: the relation is open.
    unsafe {
        columns(relation, table.shape)?;
        is_of_this_server(relation)?;
    }
    let mut indexes = [pg_sys::Oid::INVALID; MOST_INDEXES];
    for (id, wanted) in indexes.iter_mut().zip(table.shape.indexes) {
        *id = find(table, wanted)?;
    }
    if intent != Intent::Read {
        writable(table, intent)?;
    }
    // SAFETY: the relation is open.
    let bounds = table.shape.parent.map(|parent| unsafe { partition::verify(relation, parent) }).transpose()?;
    Ok(TableFacts { indexes, bounds })
}

fn find(table: &Table, wanted: &Index) -> Verdict<pg_sys::Oid> {
    let indexes = table.indexes();
    // SAFETY: the table and its indexes are open.
    let fits = |index: &&OpenIndex| unsafe { is_as_wanted(table, index, wanted) };
    let found = indexes.iter().find(fits).ok_or_else(|| Mismatch::of(format!("its index on {:?}", wanted.columns)))?;
    // SAFETY: the index is open.
    if unsafe { is_too_new(found) } {
        return Err(Mismatch { what: "an index that is too new".to_owned(), is_lasting: false });
    }
    Ok(found.id())
}

/// Compares an index with the declared one.
///
/// # Safety
/// `index` is an open index of `table`.
unsafe fn is_as_wanted(table: &Table, index: &OpenIndex, wanted: &Index) -> bool {
    // SAFETY: the caller keeps its promise; the catalog has an entry for each column of the index.
    unsafe {
        let relation = index.relation;
        let form = &*(*relation).rd_index;
        let is_plain = form.indrelid == (*table.relation).rd_id
            && (*(*relation).rd_rel).relam == pg_sys::BTREE_AM_OID
            && form.indisunique == wanted.is_unique
            && !form.indnullsnotdistinct
            && !form.indisexclusion
            && form.indimmediate
            && form.indisvalid
            && form.indisready
            && form.indislive
            && usize::try_from(form.indnatts) == Ok(wanted.columns.len())
            && form.indnkeyatts == form.indnatts
            && index.has_no_expressions()
            && index.predicate().as_deref() == wanted.predicate;
        is_plain && (0..wanted.columns.len()).all(|number| is_column_as_wanted(table, index, wanted, number))
    }
}

/// Compares one column of an index with the declared one.
///
/// # Safety
/// `index` is an open index of `table` with as many columns as `wanted`.
unsafe fn is_column_as_wanted(table: &Table, index: &OpenIndex, wanted: &Index, number: usize) -> bool {
    // SAFETY: the caller keeps its promise.
    unsafe {
        let relation = index.relation;
        let form = &*(*relation).rd_index;
        let columns = form.indkey.values.as_slice(wanted.columns.len());
        let column = usize::try_from(columns[number] - 1).ok().and_then(|column| table.shape.columns.get(column));
        column.is_some_and(|column| {
            column.name == wanted.columns[number]
                && *(*relation).rd_indcollation.add(number) == column.kind.collation()
                // The order must be ascending with nulls last, or the scan would end before the
                // row.
                && *(*relation).rd_indoption.add(number) == 0
                && index.operator_class(number)
                    == Some(pg_sys::GetDefaultOpClass(column.kind.oid(), pg_sys::BTREE_AM_OID))
        })
    }
}

/// Tells whether snapshots of this backend can be older than the index. Those must not use it,
/// since it does not lead to the versions that they see (`indcheckxmin`).
///
/// # Safety
/// The index is open.
unsafe fn is_too_new(index: &OpenIndex) -> bool {
    // SAFETY: the caller keeps its promise.
    unsafe {
        let relation = index.relation;
        if !(*(*relation).rd_index).indcheckxmin {
            return false;
        }
        let header = &*(*(*relation).rd_indextuple).t_data;
        let frozen = pg_sys::HEAP_XMIN_COMMITTED | pg_sys::HEAP_XMIN_INVALID;
        let is_frozen = u32::from(header.t_infomask) & frozen == frozen;
        !is_frozen && !pg_sys::TransactionIdPrecedes(header.t_choice.t_heap.t_xmin, pg_sys::TransactionXmin)
    }
}

/// Checks that a write needs nothing but the tuple and its index entries: no check, rule, trigger
/// or other index has to be evaluated.
fn writable(table: &Table, intent: Intent) -> Verdict {
    let relation = table.relation;
    // SAFETY: the relation is open.
    unsafe {
        let checks = (*(*relation).rd_att).constr.as_ref();
        expect(checks.is_none_or(|c| c.num_check == 0), "a check")?;
        is_unwatched(relation, intent)?;
        if intent == Intent::Update {
            is_identified(relation)?;
        }
    }
    let partial = table.shape.partial.map(|partial| partial.predicate);
    expect(table.indexes().iter().all(|index| index.is_simple(partial)), "an index")
}

/// Checks that no publication forbids updates of the table, as `CheckCmdReplicaIdentity` does.
/// Where one does, the statement that is taken instead raises the server's own error.
///
/// # Safety
/// The relation is open and locked.
unsafe fn is_identified(relation: pg_sys::Relation) -> Verdict {
    // SAFETY: the caller keeps its promise.
    unsafe {
        let mut published: pg_sys::PublicationDesc = std::mem::zeroed();
        pg_sys::RelationBuildPublicationDesc(relation, &raw mut published);
        expect(published.rf_valid_for_update && published.cols_valid_for_update, "what is published of it")?;
        #[cfg(feature = "pg18")]
        expect(published.gencols_valid_for_update, "what is published of it")?;
        let is_named = || {
            (*(*relation).rd_rel).relreplident == pg_sys::REPLICA_IDENTITY_FULL.cast_signed()
                || pg_sys::RelationGetReplicaIndex(relation) != pg_sys::Oid::INVALID
        };
        expect(!published.pubactions.pubupdate || is_named(), "its replica identity")
    }
}
