//! Columns of the server's catalogs, by its caches.

use pgrx::datum::FromDatum;
use pgrx::pg_sys;

/// A text that the server prints of what a catalog has in a column; None where it is null.
///
/// # Safety
/// A row of that cache, and a relation to whose columns it refers.
pub(super) unsafe fn printed(stored: Option<pg_sys::Datum>, relation: pg_sys::Oid) -> Option<String> {
    // SAFETY: the caller's promise.
    stored.and_then(|stored| unsafe {
        let print = pg_sys::F_PG_GET_EXPR_PG_NODE_TREE_OID;
        let text = pg_sys::OidFunctionCall2Coll(print, pg_sys::Oid::INVALID, stored, pg_sys::Datum::from(relation));
        String::from_datum(text, false)
    })
}

/// # Safety
/// A row of that cache.
pub(super) unsafe fn stored(
    cache: pg_sys::SysCacheIdentifier::Type,
    tuple: pg_sys::HeapTuple,
    column: u32,
) -> Option<pg_sys::Datum> {
    let mut is_null = false;
    let column = pg_sys::AttrNumber::try_from(column).ok()?;
    // SAFETY: the caller's promise.
    let value = unsafe { pg_sys::SysCacheGetAttr(cache.cast_signed(), tuple, column, &raw mut is_null) };
    (!is_null).then_some(value)
}
