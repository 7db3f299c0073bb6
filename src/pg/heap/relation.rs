//! The checks of one open relation, for declared tables and for the parents of partitions.

use crate::pg::heap::shapes::{Column, Shape};
use crate::pg::heap::verdict::{Intent, Mismatch, Verdict, expect};
use crate::pg::spi;
use pgrx::pg_sys;
use std::ffi::CStr;

/// Checks that no extension distributes the table to other servers. Such an extension, as Citus,
/// has a trigger on TRUNCATE, and its rows are not in this heap.
///
/// # Safety
/// `relation` is open and locked.
pub(super) unsafe fn is_of_this_server(relation: pg_sys::Relation) -> Verdict {
    // SAFETY: the caller keeps its promise.
    let triggers = unsafe { (*relation).trigdesc.as_ref() };
    expect(triggers.is_none_or(|t| !t.trig_truncate_after_statement), "a trigger after truncate")
}

/// Checks that neither a rule nor a trigger watches what the table is opened for.
///
/// # Safety
/// `relation` is open and locked.
pub(super) unsafe fn is_unwatched(relation: pg_sys::Relation, intent: Intent) -> Verdict {
    // SAFETY: the caller keeps its promise.
    let (rules, triggers) = unsafe { ((*relation).rd_rules, (*relation).trigdesc.as_ref()) };
    expect(rules.is_null(), "a rule")?;
    let is_watched = triggers.is_some_and(|t| match intent {
        Intent::Read => false,
        Intent::Insert => {
            t.trig_insert_before_row
                || t.trig_insert_after_row
                || t.trig_insert_before_statement
                || t.trig_insert_after_statement
        }
        Intent::Update => {
            t.trig_update_before_row
                || t.trig_update_after_row
                || t.trig_update_before_statement
                || t.trig_update_after_statement
        }
    });
    expect(!is_watched, "a trigger")
}

/// Checks that the columns are as declared, since values are read by their declared types.
///
/// # Safety
/// `relation` is open and locked.
pub(super) unsafe fn columns(relation: pg_sys::Relation, shape: &Shape) -> Verdict {
    // SAFETY: the caller keeps its promise, and the descriptor has that many columns.
    unsafe {
        let descriptor = (*relation).rd_att;
        expect(usize::try_from((*descriptor).natts) == Ok(shape.columns.len()), "its number of columns")?;
        for (number, column) in shape.columns.iter().enumerate() {
            let found = spi::attribute(descriptor, number);
            if !is_as_declared(found, column) {
                return Err(Mismatch::of(format!("the column {}", column.name)));
            }
        }
    }
    Ok(())
}

fn is_as_declared(found: &pg_sys::FormData_pg_attribute, column: &Column) -> bool {
    // SAFETY: a name ends with NUL.
    let name = unsafe { CStr::from_ptr(found.attname.data.as_ptr()) };
    name.to_bytes() == column.name.as_bytes()
        && found.atttypid == column.kind.oid()
        && found.atttypmod == -1
        && found.attcollation == column.kind.collation()
        && found.attnotnull != column.nullable
        && !found.attisdropped
        && found.attgenerated == 0
        && found.attidentity == 0
}
