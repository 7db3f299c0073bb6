//! `jsonb` arguments that stay what they are: no parsing and printing on the way through.

use pgrx::callconv::{Arg, ArgAbi};
use pgrx::datum::{FromDatum, IntoDatum};
use pgrx::pg_sys;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

/// A `jsonb` value as the server holds it, valid for the current call.
#[derive(Debug, Clone, Copy)]
pub struct Jsonb(pg_sys::Datum);

// Layout of JsonbContainer.header, jsonb.h
const COUNT_MASK: u32 = 0x0FFF_FFFF;
const IS_SCALAR: u32 = 0x1000_0000;
const IS_OBJECT: u32 = 0x2000_0000;
const IS_ARRAY: u32 = 0x4000_0000;

impl Jsonb {
    fn header(self) -> u32 {
        // SAFETY: the datum is a jsonb varlena; after detoasting, its first four bytes are the container's header.
        unsafe {
            let plain = pg_sys::pg_detoast_datum(self.0.cast_mut_ptr());
            pgrx::vardata_any(plain).cast::<u32>().read_unaligned()
        }
    }

    /// How many bytes it takes, uncompressed.
    pub fn size(self) -> usize {
        // SAFETY: the datum is a jsonb varlena.
        unsafe {
            let plain = pg_sys::pg_detoast_datum(self.0.cast_mut_ptr());
            pgrx::varlena::varsize_any_exhdr(plain)
        }
    }

    /// `{…}`
    pub fn is_object(self) -> bool {
        self.header() & IS_OBJECT != 0
    }

    /// `{}`
    pub fn is_empty_object(self) -> bool {
        let header = self.header();
        header & IS_OBJECT != 0 && header & COUNT_MASK == 0
    }

    /// The text that the server prints, which is the same for equal values.
    pub fn text(self) -> String {
        if self.is_empty_object() {
            return "{}".to_owned();
        }
        // SAFETY: jsonb_out takes a jsonb and gives a NUL-terminated string.
        unsafe {
            pgrx::direct_function_call::<&CStr>(pg_sys::jsonb_out, &[Some(self.0)])
                .map(|s| s.to_string_lossy().into_owned())
                .unwrap_or_default()
        }
    }

    /// `[…]`
    pub fn is_array(self) -> bool {
        self.header() & (IS_ARRAY | IS_SCALAR) == IS_ARRAY
    }

    /// Parsed; None for numbers and depths beyond what serde_json reads.
    pub fn value(self) -> Option<serde_json::Value> {
        serde_json::from_str(&self.text()).ok()
    }
}

/// A value from text that the server printed, or that serde_json did.
pub fn from_text(text: &str) -> Jsonb {
    let text = std::ffi::CString::new(text).unwrap_or_default();
    // SAFETY: jsonb_in takes a NUL-terminated string and raises an error for what is no JSON.
    let datum =
        unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(pg_sys::Datum::from(text.as_ptr()))]) };
    Jsonb(datum.expect("jsonb_in gives no null"))
}

/// The same for what comes again and again, as a price does: parsed once by a backend.
pub fn from_known_text(text: &str) -> Jsonb {
    const MOST: usize = 64;
    thread_local! {
        static KNOWN: RefCell<HashMap<String, Vec<u8>>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        if !known.contains_key(text) {
            if known.len() >= MOST {
                known.clear();
            }
            let parsed = from_text(text).0.cast_mut_ptr::<pg_sys::varlena>();
            // SAFETY: a varlena that was just made, not compressed nor elsewhere.
            let bytes = unsafe { std::slice::from_raw_parts(parsed.cast::<u8>(), pgrx::varsize_any(parsed)) };
            known.insert(text.to_owned(), bytes.to_vec());
        }
        let bytes = &known[text];
        // SAFETY: a copy of it, aligned as the server wants it.
        unsafe {
            let copy = pg_sys::palloc(bytes.len()).cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
            Jsonb(pg_sys::Datum::from(copy))
        }
    })
}

impl FromDatum for Jsonb {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<Self> {
        (!is_null).then_some(Self(datum))
    }
}

impl IntoDatum for Jsonb {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(self.0)
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

// SAFETY: the datum of a jsonb argument lives as long as the call.
unsafe impl<'fcx> ArgAbi<'fcx> for Jsonb {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the caller has checked that the argument is not null.
        unsafe { arg.unbox_arg_using_from_datum().expect("a null jsonb reached an argument that is not optional") }
    }
}

// SAFETY: it is a jsonb.
unsafe impl SqlTranslatable for Jsonb {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Jsonb);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("jsonb"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> = Ok(ReturnsRef::One(SqlMappingRef::literal("jsonb")));
}
