//! The path on which the names in our statements are looked for, whatever path the caller has.
//!
//! Nearly all functions have it from `#[search_path]`: the server sets it before each call and takes it back after it. That costs as
//! much as a tenth of a charge, for the server then looks through all of its settings, and the next statement of the caller has to
//! look up its own path again. So the calls that mostly run no statement at all (`consume_credits`, `reserve_credits`,
//! `capture_credits`, `release_credits`, `get_total_credits`, `check_limit`, `allows`, `record_usage`) are without, and it is set before
//! the first statement that one of them does run.

use pgrx::pg_sys;
use std::ffi::{CStr, c_int};

/// As in `#[search_path]`. Our statements name the schema of what is ours, so that nothing is found there that somebody else may have
/// put beside it; temporary tables come last, or they would come before the server's.
const PATH: &CStr = c"pg_catalog, pg_temp";

/// Whether the path has nothing but what is the server's.
pub fn is_pinned() -> bool {
    // SAFETY: the server's own text of the setting, replaced only by what sets it.
    unsafe { CStr::from_ptr(pg_sys::namespace_search_path) == PATH }
}

/// While it lives, the path is pinned. It ends before the subtransaction does in which it began.
pub struct Pinned(c_int);

impl Pinned {
    /// Sets the path, unless it is set already.
    pub fn begin() -> Option<Self> {
        // SAFETY: as the server does it for a function with a SET clause.
        (!is_pinned()).then(|| unsafe {
            let level = pg_sys::NewGUCNestLevel();
            pg_sys::set_config_option(
                c"search_path".as_ptr(),
                PATH.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
            Self(level)
        })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // After an error, the end of the transaction or of the subtransaction takes it back.
        if !std::thread::panicking() {
            // SAFETY: the level that was begun; those that began in it have ended.
            unsafe { pg_sys::AtEOXact_GUC(true, self.0) };
        }
    }
}
