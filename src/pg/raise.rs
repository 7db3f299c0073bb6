//! The boundary between rules that answer `Result` and the server that wants an error raised.

use crate::base::error::{Error, Result};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::PgSqlErrorCode;
use std::cell::{Cell, UnsafeCell};

/// Gives the value to the server, or raises the error.
///
/// pgrx reports errors with a `PgSqlErrorCode`, a closed set without our PTnnn codes, and turns every other code that comes
/// by into XX000. So the code is put into the report by a callback, in the moment when the server finishes it.
pub fn or_raise<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => raise(&error),
    }
}

unsafe extern "C-unwind" {
    // pgrx does not bind it. elog.h: sets the SQLSTATE of the report in progress.
    fn errcode(sqlstate: core::ffi::c_int) -> core::ffi::c_int;
}

thread_local! {
    // What the next error of ours is to carry: set right before it is raised.
    static SQLSTATE: Cell<i32> = const { Cell::new(0) };
    // The server resets its stack of callbacks once the error is reported, so one for the backend's life suffices.
    static CALLBACK: UnsafeCell<pg_sys::ErrorContextCallback> = const {
        UnsafeCell::new(pg_sys::ErrorContextCallback {
            previous: std::ptr::null_mut(),
            callback: Some(set_sqlstate),
            arg: std::ptr::null_mut(),
        })
    };
}

fn raise(error: &Error) -> ! {
    SQLSTATE.set(encode_sqlstate(error.sqlstate));
    CALLBACK.with(|callback| {
        let callback = callback.get();
        // SAFETY: a backend has one thread, and the callback lives as long as it.
        unsafe {
            if pg_sys::error_context_stack != callback {
                (*callback).previous = pg_sys::error_context_stack;
                pg_sys::error_context_stack = callback;
            }
        }
    });
    let mut report = ErrorReport::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.message, "pg_billing")
        .set_detail(error.detail_json().to_string());
    if let Some(hint) = error.hint {
        report = report.set_hint(hint);
    }
    std::panic::panic_any(report)
}

unsafe extern "C-unwind" fn set_sqlstate(_: *mut core::ffi::c_void) {
    // SAFETY: the server calls this while it finishes the report, where errcode() may be called.
    unsafe { errcode(SQLSTATE.get()) };
}

/// Six bits per character, as `MAKE_SQLSTATE` of elog.h packs them.
fn encode_sqlstate(state: [u8; 5]) -> i32 {
    state.iter().enumerate().map(|(i, c)| i32::from((c.wrapping_sub(b'0')) & 0x3F) << (6 * i)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstate_is_packed_like_the_server_does() {
        // ERRCODE_INVALID_PARAMETER_VALUE and ERRCODE_INSUFFICIENT_PRIVILEGE of errcodes.h
        assert_eq!(encode_sqlstate(*b"22023"), 50_856_066);
        assert_eq!(encode_sqlstate(*b"42501"), 16_797_828);
    }
}
