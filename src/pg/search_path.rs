//! The search path of the extension's statements, whatever path the caller has.
//!
//! Nearly all functions get it from `#[search_path]`: the server sets it before each call and
//! restores the caller's afterwards. That costs up to a tenth of a charge, since the server then
//! goes through all of its settings, and the next statement of the caller has to look up its own
//! path again. So the functions that mostly run no statement at all (`consume_credits`,
//! `reserve_credits`, `capture_credits`, `release_credits`, `get_total_credits`, `check_limit`,
//! `allows`, `record_usage`) are declared without it, and it is set before the first statement that
//! one of them does run.

use pgrx::pg_sys;
use std::ffi::{CStr, c_int};

/// The path, as in `#[search_path]`. Statements name the schema of the extension's own objects, so
/// that an object which somebody else put beside them is never found; temporary tables come last,
/// or they would hide the server's own.
const PATH: &CStr = c"pg_catalog, pg_temp";

/// Whether the path is set to the extension's.
pub fn is_pinned() -> bool {
    // SAFETY: the server's own text of the setting, which lives until the setting changes.
    unsafe { CStr::from_ptr(pg_sys::namespace_search_path) == PATH }
}

/// A guard that keeps the path set while it lives. It must end before the subtransaction in which
/// it began.
pub struct Pinned(c_int);

impl Pinned {
    /// Sets the path, unless it is set already.
    pub fn begin() -> Option<Self> {
        // SAFETY: the calls that the server makes for a function with a SET clause.
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
        // After an error, the end of the (sub)transaction restores the path.
        if !std::thread::panicking() {
            // SAFETY: the level that `begin` opened; levels within it have ended.
            unsafe { pg_sys::AtEOXact_GUC(true, self.0) };
        }
    }
}
