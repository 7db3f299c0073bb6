//! Billing time: the wall clock, or the test clock of a superuser.

use crate::base::error::Error;
use crate::base::time::Moment;
use crate::pg::raise::or_raise;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::prelude::*;
use std::ffi::{CStr, CString};

static TEST_CLOCK: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// Registers `billing.test_clock`.
pub fn define_setting() {
    // SAFETY: the hook is guarded and only reads its argument.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"billing.test_clock",
            c"Billing time for tests: a timestamp with time zone that replaces the wall clock.",
            c"Only a superuser may set it. Empty: the wall clock.",
            &TEST_CLOCK,
            GucContext::Suset,
            GucFlags::default(),
            Some(check_test_clock),
            None,
            None,
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_test_clock(
    value: *mut *mut core::ffi::c_char,
    _extra: *mut *mut core::ffi::c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the server passes a pointer to a string or to null.
    let text = unsafe { *value };
    if text.is_null() {
        return true;
    }
    // SAFETY: as above; NUL-terminated.
    let text = unsafe { CStr::from_ptr(text) };
    if !text.is_empty() {
        parse(text);
    }
    true
}

/// Parses a timestamp, or raises the server's own error.
fn parse(text: &CStr) -> Moment {
    // SAFETY: timestamptz_in takes a C string, an oid and a typmod.
    let parsed = unsafe {
        pgrx::direct_function_call::<i64>(
            pg_sys::timestamptz_in,
            &[Some(pg_sys::Datum::from(text.as_ptr())), Some(pg_sys::Datum::from(0)), Some(pg_sys::Datum::from(-1))],
        )
    };
    match parsed {
        Some(at) if at != i64::MAX && at != i64::MIN => at,
        _ => or_raise(Err(Error::invalid("billing.test_clock", "must be a finite timestamp"))),
    }
}

/// Billing time at this very moment. It is not the start of the transaction, so it is right after a
/// wait for a lock.
pub fn now() -> Moment {
    match TEST_CLOCK.get() {
        // The text is parsed at each use: without an offset it means the time zone that the session
        // has now.
        Some(text) if !text.is_empty() => parse(&text),
        // SAFETY: reads the clock.
        _ => unsafe { pg_sys::GetCurrentTimestamp() },
    }
}

/// Gives billing time: the wall clock at the moment of the call, or `billing.test_clock` where a
/// superuser has set it.
#[pg_extern(volatile)]
fn clock() -> TimestampWithTimeZone {
    // A moment that the server or its parser gave is in range.
    TimestampWithTimeZone::try_from(now()).unwrap_or_else(|_| TimestampWithTimeZone::positive_infinity())
}
