//! Composite results, built straight from the row type of the function that returns them.

use pgrx::pg_sys;

/// Defines a receipt: a Rust struct, its SQL composite type of the same columns in the same order,
/// and the conversion.
#[macro_export]
macro_rules! receipt {
    ($(#[$doc:meta])* $name:ident as $sql:literal { $($field:ident : $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $type),* }

        // SAFETY: the type of that name has these columns (sql/extension/types.sql); regression
        // tests read every one of them.
        unsafe impl pgrx::callconv::BoxRet for $name {
            unsafe fn box_into<'fcx>(self, fcinfo: &mut pgrx::callconv::FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
                let columns = [$($crate::pg::spi::ToSql::to_sql(self.$field)),*];
                // SAFETY: called for the function that declares this composite as its result.
                unsafe {
                    let datum = $crate::pg::receipt::form(fcinfo, &columns);
                    fcinfo.return_raw_datum(datum)
                }
            }
        }

        // SAFETY: a composite type of the extension's script.
        unsafe impl pgrx::pgrx_sql_entity_graph::metadata::SqlTranslatable for $name {
            const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!($name);
            const TYPE_ORIGIN: pgrx::pgrx_sql_entity_graph::metadata::TypeOrigin =
                pgrx::pgrx_sql_entity_graph::metadata::TypeOrigin::External;
            const ARGUMENT_SQL: std::result::Result<
                pgrx::pgrx_sql_entity_graph::metadata::SqlMappingRef,
                pgrx::pgrx_sql_entity_graph::metadata::ArgumentError,
            > = Ok(pgrx::pgrx_sql_entity_graph::metadata::SqlMappingRef::literal($sql));
            const RETURN_SQL: std::result::Result<
                pgrx::pgrx_sql_entity_graph::metadata::ReturnsRef,
                pgrx::pgrx_sql_entity_graph::metadata::ReturnsError,
            > = Ok(pgrx::pgrx_sql_entity_graph::metadata::ReturnsRef::One(
                pgrx::pgrx_sql_entity_graph::metadata::SqlMappingRef::literal($sql),
            ));
        }
    };
}

/// Forms a row of the composite type that the called function returns.
///
/// # Safety
/// The function's declared result must be a composite with columns of these types.
pub unsafe fn form(fcinfo: &mut pgrx::callconv::FcInfo<'_>, columns: &[Option<pg_sys::Datum>]) -> pg_sys::Datum {
    let mut values: Vec<pg_sys::Datum> = columns.iter().map(|c| c.unwrap_or_else(|| 0.into())).collect();
    let mut nulls: Vec<bool> = columns.iter().map(Option::is_none).collect();
    // SAFETY: fcinfo is that of the current call; the tuple is copied out as a datum before the
    // descriptor is released.
    unsafe {
        let raw = fcinfo.as_mut_ptr();
        let row_type = pg_sys::get_func_rettype((*(*raw).flinfo).fn_oid);
        let descriptor = pg_sys::lookup_rowtype_tupdesc(row_type, -1);
        assert_eq!((*descriptor).natts.cast_unsigned() as usize, values.len(), "columns of a composite result");
        let tuple = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        let datum = pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data);
        if (*descriptor).tdrefcount >= 0 {
            pg_sys::DecrTupleDescRefCount(descriptor);
        }
        datum
    }
}
