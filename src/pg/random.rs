//! Random bytes.

use pgrx::pg_sys;

/// Random bytes from the server's own source, which nobody can guess.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // SAFETY: writes so many bytes.
    let is_random = unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), N) };
    assert!(is_random, "the server has no random bytes");
    bytes
}
