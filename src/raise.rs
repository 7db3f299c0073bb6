//! The boundary between rules that answer `Result` and the server that wants an error raised.

use crate::error::{Error, Result};
use pgrx::pg_sys;
use std::ffi::CString;

/// Gives the value to the server, or raises the error.
///
/// `ThrowErrorData` rather than pgrx's error report, because `PgSqlErrorCode` is a closed set without our PTnnn codes.
pub fn or_raise<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => raise(&error),
    }
}

fn raise(error: &Error) -> ! {
    let text = |s: &str| CString::new(s).unwrap_or_default().into_raw();
    let mut report = pg_sys::ErrorData {
        elevel: pg_sys::PGERROR.cast_signed(),
        sqlerrcode: encode_sqlstate(*error.sqlstate),
        message: text(error.message),
        detail: text(&error.detail_json().to_string()),
        hint: error.hint.map_or(std::ptr::null_mut(), text),
        ..Default::default()
    };
    // SAFETY: the strings are NUL-terminated and outlive the call, which copies them. It does not return.
    unsafe { pg_sys::ThrowErrorData(&raw mut report) };
    unreachable!("ThrowErrorData with level ERROR does not return")
}

/// Six bits per character, as `MAKE_SQLSTATE` of elog.h packs them.
fn encode_sqlstate(state: [u8; 5]) -> i32 {
    state
        .iter()
        .enumerate()
        .map(|(i, c)| i32::from((c.wrapping_sub(b'0')) & 0x3F) << (6 * i))
        .sum()
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
