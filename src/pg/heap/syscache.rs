//! Columns of the system catalogs, read from the caches of the server.

use pgrx::datum::FromDatum;
use pgrx::pg_sys;

/// The text that the server prints for an expression in a catalog; None where it is null.
///
/// # Safety
/// `stored` is a node tree of a catalog, and `relation` has the columns that it refers to.
pub(super) unsafe fn printed(stored: Option<pg_sys::Datum>, relation: pg_sys::Oid) -> Option<String> {
    // SAFETY: the caller keeps its promise.
    stored.and_then(|stored| unsafe {
        let print = pg_sys::F_PG_GET_EXPR_PG_NODE_TREE_OID;
        let text = pg_sys::OidFunctionCall2Coll(print, pg_sys::Oid::INVALID, stored, pg_sys::Datum::from(relation));
        String::from_datum(text, false)
    })
}

/// The value of a column of a row in a cache; None where it is null.
///
/// # Safety
/// `tuple` is a row of that cache.
pub(super) unsafe fn stored(
    cache: pg_sys::SysCacheIdentifier::Type,
    tuple: pg_sys::HeapTuple,
    column: u32,
) -> Option<pg_sys::Datum> {
    let mut is_null = false;
    let column = pg_sys::AttrNumber::try_from(column).ok()?;
    // SAFETY: the caller keeps its promise.
    let value = unsafe { pg_sys::SysCacheGetAttr(cache.cast_signed(), tuple, column, &raw mut is_null) };
    (!is_null).then_some(value)
}
