//! Whether a table is as its shape says, so that its rows can be read and written as they are.

use crate::pg::heap::Table;
use crate::pg::heap::index::Written;
use crate::pg::heap::partition;
use crate::pg::heap::relation::{columns, is_of_this_server, is_unwatched};
use crate::pg::heap::shapes::{Index, MOST_INDEXES};
use crate::pg::heap::verdict::{Doubt, Found, Intent, Verdict, expect};
use pgrx::pg_sys;

/// Looks at a table that is open; and whether what is found lasts.
pub(super) fn look(table: &Table, name: &str, intent: Intent) -> (Option<Found>, bool) {
    match examine(table, intent) {
        Ok(found) => (Some(found), true),
        Err(Doubt { what, is_lasting }) => {
            let doing = if intent == Intent::Read { "read" } else { "written" };
            pgrx::debug1!("{}.{name} is {doing} by statements: {what}", table.shape.schema);
            (None, is_lasting)
        }
    }
}

fn examine(table: &Table, intent: Intent) -> Verdict<Found> {
    let relation = table.relation;
    // SAFETY: an open relation.
    let form = unsafe { &*(*relation).rd_rel };
    expect(form.relkind == pg_sys::RELKIND_RELATION.cast_signed(), "no ordinary table")?;
    expect(form.relam == pg_sys::HEAP_TABLE_AM_OID, "its access method")?;
    expect(form.relpersistence == pg_sys::RELPERSISTENCE_PERMANENT.cast_signed(), "not permanent")?;
    expect(form.relispartition == table.shape.parent.is_some(), "a partition")?;
    expect(!form.relhassubclass, "tables inherit from it")?;
    expect(!form.relforcerowsecurity, "row security is forced")?;
    // SAFETY: an open relation.
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
    // SAFETY: an open relation.
    let bounds = table.shape.parent.map(|parent| unsafe { partition::look(relation, parent) }).transpose()?;
    Ok(Found { indexes, bounds })
}

fn find(table: &Table, wanted: &Index) -> Verdict<pg_sys::Oid> {
    let indexes = table.indexes();
    // SAFETY: open indexes of an open table.
    let fits = |index: &&Written| unsafe { is_as_wanted(table, index, wanted) };
    let found = indexes.iter().find(fits).ok_or_else(|| Doubt::of(format!("its index on {:?}", wanted.columns)))?;
    // SAFETY: an open index.
    if unsafe { is_too_new(found) } {
        return Err(Doubt { what: "an index that is too new".to_owned(), is_lasting: false });
    }
    Ok(found.id())
}

/// # Safety
/// An open index of a table that is open.
unsafe fn is_as_wanted(table: &Table, index: &Written, wanted: &Index) -> bool {
    // SAFETY: the caller's promise; what is read of a column is there for each of the index.
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

/// # Safety
/// The same, with so many columns.
unsafe fn is_column_as_wanted(table: &Table, index: &Written, wanted: &Index, number: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let relation = index.relation;
        let form = &*(*relation).rd_index;
        let columns = form.indkey.values.as_slice(wanted.columns.len());
        let column = usize::try_from(columns[number] - 1).ok().and_then(|column| table.shape.columns.get(column));
        column.is_some_and(|column| {
            column.name == wanted.columns[number]
                && *(*relation).rd_indcollation.add(number) == column.kind.collation()
                // Neither descending nor nulls first.
                && *(*relation).rd_indoption.add(number) == 0
                && index.operator_class(number)
                    == Some(pg_sys::GetDefaultOpClass(column.kind.oid(), pg_sys::BTREE_AM_OID))
        })
    }
}

/// Older snapshots must not use it, for versions of rows that it does not lead to: what `indcheckxmin` says.
///
/// # Safety
/// An open index.
unsafe fn is_too_new(index: &Written) -> bool {
    // SAFETY: the caller's promise.
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

/// Nothing has to be evaluated, or noted elsewhere, but what is done here.
fn writable(table: &Table, intent: Intent) -> Verdict {
    let relation = table.relation;
    // SAFETY: an open relation.
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

/// No publication refuses that its rows change, as `CheckCmdReplicaIdentity` has it: a statement says why.
///
/// # Safety
/// An open relation.
unsafe fn is_identified(relation: pg_sys::Relation) -> Verdict {
    // SAFETY: the caller's promise.
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
