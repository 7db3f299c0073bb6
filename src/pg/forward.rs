//! Passing a call on to another function, as the server itself would make it.

use crate::base::error::Error;
use crate::pg::raise::or_raise;
use pgrx::pg_sys;
use std::ffi::{CStr, CString, c_int};

/// The schema in which the bodies are.
const INTERNAL: &CStr = c"billing_internal";

/// The end of a body's name whose gate stands beside it.
const BODY: &[u8] = b"_body";

/// Finds the body behind a gate: the function of the same name and arguments in `billing_internal`.
///
/// # Safety
/// `gate` is the oid of a function of this extension.
unsafe fn body_of(gate: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: look-ups in the system caches; what is found is copied or used before it is released.
    unsafe {
        let none = pg_sys::Datum::from(0);
        let by_oid = pg_sys::SysCacheIdentifier::PROCOID.cast_signed();
        let tuple = pg_sys::SearchSysCache(by_oid, gate.into(), none, none, none);
        assert!(!tuple.is_null(), "the function that was called");
        let form = pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_proc>(tuple);
        let schema = pg_sys::get_namespace_oid(INTERNAL.as_ptr(), true);
        let by_name = pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP.cast_signed();
        let mut name = CStr::from_ptr((*form).proname.data.as_ptr()).to_bytes().to_owned();
        if (*form).pronamespace == schema {
            name.extend_from_slice(BODY);
        }
        let name = CString::new(name).unwrap_or_default();
        let body = pg_sys::SearchSysCache(
            by_name,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(&raw const (*form).proargtypes),
            schema.into(),
            none,
        );
        let mut found = pg_sys::InvalidOid;
        if !body.is_null() {
            let body_form = &*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_proc>(body);
            // Anybody may own a function there if the schema's rights were opened: it must not run
            // as the owner.
            if body_form.proowner == (*form).proowner {
                found = body_form.oid;
            }
            pg_sys::ReleaseSysCache(body);
        }
        pg_sys::ReleaseSysCache(tuple);
        found
    }
}

/// A call that is about to be passed on, and what has to be restored after it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ForwardedCall {
    /// The call of the body.
    pub call: pg_sys::FunctionCallInfo,
    /// The user before the extension's owner.
    pub user: pg_sys::Oid,
    /// The security context of that user.
    pub context: c_int,
    /// The role that had called before.
    pub caller: pg_sys::Oid,
}

/// Makes a call of the body behind a gate from a call of the gate: a copy, because the server may
/// use its own call again after an error.
///
/// # Safety
/// `fcinfo` is the call as the server made it.
pub unsafe fn call_of_body(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::FunctionCallInfo {
    // SAFETY: the caller's promise; the copy of the call is as large as the call, and lives as long
    // as the statement's memory.
    unsafe {
        let outer = (*fcinfo).flinfo;
        if (*outer).fn_extra.is_null() {
            let body = body_of((*outer).fn_oid);
            if body == pg_sys::InvalidOid {
                or_raise::<()>(Err(Error::corrupt("a function of the extension has no body")));
            }
            let info = pg_sys::MemoryContextAllocZero((*outer).fn_mcxt, size_of::<pg_sys::FmgrInfo>());
            let info = info.cast::<pg_sys::FmgrInfo>();
            pg_sys::fmgr_info_cxt(body, info, (*outer).fn_mcxt);
            assert!((*info).fn_addr.is_some(), "a function that was looked up");
            (*info).fn_expr = (*outer).fn_expr;
            (*outer).fn_extra = info.cast();
        }
        let arguments = usize::try_from((*fcinfo).nargs).unwrap_or_default();
        let size = std::mem::offset_of!(pg_sys::FunctionCallInfoBaseData, args)
            + arguments * size_of::<pg_sys::NullableDatum>();
        let call = pg_sys::palloc(size).cast::<pg_sys::FunctionCallInfoBaseData>();
        std::ptr::copy_nonoverlapping(fcinfo.cast::<u8>(), call.cast::<u8>(), size);
        (*call).flinfo = (*outer).fn_extra.cast();
        (*call).isnull = false;
        call
    }
}

// Declared here because pgrx would wrap it in a guard; it raises no error.
unsafe extern "C-unwind" {
    fn SetUserIdAndSecContext(user: pg_sys::Oid, context: c_int);
}

/// Passes a call on to the body, with the rights that `enter` gives it; `leave` takes them back.
///
/// The function is called as the server itself would call it, without a guard of pgrx around it: a
/// guard would replace the SQLSTATEs that pgrx does not know, which are most of ours. An error
/// jumps over this frame, where nothing has to be dropped, to the end of a (sub)transaction, which
/// restores the user.
///
/// # Safety
/// `fcinfo` is the call as the server made it.
pub unsafe fn pass_on(
    fcinfo: pg_sys::FunctionCallInfo,
    enter: unsafe fn(pg_sys::FunctionCallInfo) -> ForwardedCall,
    leave: fn(pg_sys::Oid),
) -> pg_sys::Datum {
    // SAFETY: the caller's promise.
    unsafe {
        let ForwardedCall { call, user, context, caller } = enter(fcinfo);
        let Some(function) = (*(*call).flinfo).fn_addr else { return pg_sys::Datum::from(0) };
        let result = function(call);
        SetUserIdAndSecContext(user, context);
        leave(caller);
        (*fcinfo).isnull = (*call).isnull;
        result
    }
}

/// Declares C functions that pass calls on: `NAME (pg_finfo_NAME) = enter, leave;`.
macro_rules! gates {
    ($($(#[$doc:meta])* $name:ident ($finfo:ident) = $enter:expr, $leave:path;)*) => { $(
        /// Tells the server how the function is called.
        #[unsafe(no_mangle)]
        pub extern "C" fn $finfo() -> *const pgrx::pg_sys::Pg_finfo_record {
            static FINFO: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &raw const FINFO
        }

        $(#[$doc])*
        ///
        /// # Safety
        /// Only the server calls it.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(fcinfo: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
            // SAFETY: the server made the call.
            unsafe { $crate::pg::forward::pass_on(fcinfo, |fcinfo| $enter(fcinfo), $leave) }
        }
    )* };
}
pub(crate) use gates;
