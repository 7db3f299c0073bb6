//! Partitions: the check that a table is one of the declared parent, and the bounds of its rows.

use crate::base::time::Moment;
use crate::pg::heap::known;
use crate::pg::heap::relation::{columns, is_of_this_server, is_unwatched};
use crate::pg::heap::shapes::Shape;
use crate::pg::heap::syscache::stored;
use crate::pg::heap::verdict::{Bounds, Intent, Mismatch, Verdict, expect};
use pgrx::datum::FromDatum;
use pgrx::pg_sys;
use std::ffi::c_void;

/// The partition key of a declared parent, as the server prints it.
const BY_ARRIVAL: &str = "RANGE (recorded_at)";

/// Verifies that a table is a partition of that parent, which is locked, and finds its bounds.
///
/// # Safety
/// `relation` is open and locked.
pub(super) unsafe fn verify(relation: pg_sys::Relation, parent: &'static Shape) -> Verdict<Bounds> {
    let id = known::relation_id(parent, parent.name).ok_or_else(|| Mismatch::of("no parent"))?;
    // SAFETY: the caller keeps its promise; the parent is closed again, and its lock stays.
    unsafe {
        let table = pg_sys::try_table_open(id, pg_sys::RowExclusiveLock.cast_signed());
        expect(!table.is_null(), "no parent")?;
        let verdict = examine(table, parent, (*relation).rd_id);
        pg_sys::table_close(table, pg_sys::NoLock.cast_signed());
        verdict?;
        let (from, to) = range((*relation).rd_id).ok_or_else(|| Mismatch::of("its bounds"))?;
        Ok(Bounds { parent: id, from, to })
    }
}

/// Verifies the parent of a partition.
///
/// # Safety
/// `parent` is open and locked.
unsafe fn examine(parent: pg_sys::Relation, shape: &Shape, partition: pg_sys::Oid) -> Verdict {
    // SAFETY: the caller keeps its promise.
    unsafe {
        let form = &*(*parent).rd_rel;
        expect(form.relkind == pg_sys::RELKIND_PARTITIONED_TABLE.cast_signed(), "its parent is not partitioned")?;
        expect(!form.relispartition && !form.relforcerowsecurity, "its parent")?;
        columns(parent, shape)?;
        is_of_this_server(parent)?;
        is_unwatched(parent, Intent::Insert)?;
        let text = pg_sys::OidFunctionCall1Coll(
            pg_sys::Oid::from(pg_sys::F_PG_GET_PARTKEYDEF),
            pg_sys::Oid::INVALID,
            pg_sys::Datum::from((*parent).rd_id),
        );
        expect(String::from_datum(text, false).as_deref() == Some(BY_ARRIVAL), "by what its parent is partitioned")?;
        let all = &*pg_sys::RelationGetPartitionDesc(parent, true);
        let count = usize::try_from(all.nparts).unwrap_or_default();
        let is_among = count > 0 && std::slice::from_raw_parts(all.oids, count).contains(&partition);
        // A partition that is being detached belongs to the parent for some snapshots only.
        expect(is_among && !all.detached_exist, "a partition of another table")
    }
}

/// The bounds of a partition by one moment each; None where they are anything else.
///
/// # Safety
/// The relation is locked.
unsafe fn range(partition: pg_sys::Oid) -> Option<(Moment, Moment)> {
    let cache = pg_sys::SysCacheIdentifier::RELOID;
    // SAFETY: the tuple is the partition's row of `pg_class`, whose bound is the text of a node.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache.cast_signed(), pg_sys::Datum::from(partition));
        if tuple.is_null() {
            return None;
        }
        let text = stored(cache, tuple, pg_sys::Anum_pg_class_relpartbound);
        let text = text.map(|text| pg_sys::text_to_cstring(pg_sys::pg_detoast_datum(text.cast_mut_ptr()).cast()));
        pg_sys::ReleaseSysCache(tuple);
        let node = pg_sys::stringToNode(text?).cast::<pg_sys::PartitionBoundSpec>();
        let bounds = node.as_ref().filter(|node| node.type_ == pg_sys::NodeTag::T_PartitionBoundSpec)?;
        if bounds.is_default {
            return None;
        }
        Some((edge(bounds.lowerdatums)?, edge(bounds.upperdatums)?))
    }
}

/// A bound of a partition as a moment; None where it is anything else.
///
/// # Safety
/// `datums` is a list of nodes of a bound by range.
unsafe fn edge(datums: *mut pg_sys::List) -> Option<Moment> {
    // SAFETY: the caller keeps its promise.
    unsafe {
        let list = datums.as_ref().filter(|list| list.length == 1)?;
        let datum = &*(*list.elements).ptr_value.cast::<pg_sys::PartitionRangeDatum>();
        match datum.kind {
            pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_MINVALUE => Some(Moment::MIN),
            pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_MAXVALUE => Some(Moment::MAX),
            _ => {
                let value = datum.value.cast::<c_void>().cast::<pg_sys::Const>().as_ref()?;
                let is_moment = value.xpr.type_ == pg_sys::NodeTag::T_Const
                    && value.consttype == pg_sys::TIMESTAMPTZOID
                    && !value.constisnull;
                if is_moment { Moment::from_datum(value.constvalue, false) } else { None }
            }
        }
    }
}
