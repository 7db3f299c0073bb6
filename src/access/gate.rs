//! The way into functions that are written in plpgsql.
//!
//! `billing.freeze_org` and its like have their body in a function of the same name and arguments in the schema
//! `billing_internal`, which runs with the rights of who calls it and so is of no use to anybody but us. What is in `billing` is a
//! gate: it asks for the level of the caller, as functions in Rust do, becomes the owner of the extension, and passes the call on
//! as it came. A gate may stand in `billing_internal` itself (what `settle()` and views call): then its body is called `…_body`.

use crate::access::levels::{self, AsOwner, Levels};
use crate::access::tables;
use crate::base::error::Error;
use crate::pg::raise::or_raise;
use pgrx::{pg_guard, pg_sys};
use std::ffi::{CStr, CString, c_int};

/// Where the bodies are.
const INTERNAL: &CStr = c"billing_internal";

/// What the name of a body ends in whose gate stands beside it.
const BODY: &[u8] = b"_body";

/// Finds the function behind a gate.
///
/// # Safety
/// The function is one of ours.
unsafe fn behind(gate: pg_sys::Oid) -> pg_sys::Oid {
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
            // Nobody else's function is ever called as the owner.
            if body_form.proowner == (*form).proowner {
                found = body_form.oid;
            }
            pg_sys::ReleaseSysCache(body);
        }
        pg_sys::ReleaseSysCache(tuple);
        found
    }
}

/// A call that is passed on, and who made it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Passed {
    call: pg_sys::FunctionCallInfo,
    user: pg_sys::Oid,
    context: c_int,
    caller: pg_sys::Oid,
}

/// Asks for the level of the caller, becomes the owner of the extension, and makes of a call the one behind the gate.
///
/// # Safety
/// The call as the server made it.
#[pg_guard]
unsafe extern "C-unwind" fn open(fcinfo: pg_sys::FunctionCallInfo, needed: Levels, writes: bool) -> Passed {
    or_raise(levels::require(needed));
    // SAFETY: the caller's promise; the copy of the call is as large as the call, and lives as long as the statement's memory.
    unsafe {
        let outer = (*fcinfo).flinfo;
        if (*outer).fn_extra.is_null() {
            let body = behind((*outer).fn_oid);
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
        // A copy: after an error the server may use its own again.
        let call = pg_sys::palloc(size).cast::<pg_sys::FunctionCallInfoBaseData>();
        std::ptr::copy_nonoverlapping(fcinfo.cast::<u8>(), call.cast::<u8>(), size);
        (*call).flinfo = (*outer).fn_extra.cast();
        (*call).isnull = false;
        let owner = AsOwner::begin();
        if writes {
            or_raise(tables::require_sound());
        }
        let before = owner.keep();
        Passed { call, user: before.user, context: before.context, caller: before.caller }
    }
}

/// Passes a call on, with the rights of the extension's owner.
///
/// The function is called as the server itself would, without a guard of ours around it: that would take from its errors what
/// pgrx does not know, which is most of our SQLSTATEs. An error jumps over this frame, where nothing is that would have to be
/// dropped, to the end of a (sub)transaction, which puts the user back.
///
/// # Safety
/// The call as the server made it.
unsafe fn pass_on(fcinfo: pg_sys::FunctionCallInfo, needed: Levels, writes: bool) -> pg_sys::Datum {
    // SAFETY: the caller's promise.
    unsafe {
        let Passed { call, user, context, caller } = open(fcinfo, needed, writes);
        let Some(function) = (*(*call).flinfo).fn_addr else { return pg_sys::Datum::from(0) };
        let result = function(call);
        SetUserIdAndSecContext(user, context);
        levels::put_back(caller);
        (*fcinfo).isnull = (*call).isnull;
        result
    }
}

// As the server declares it, which raises no error.
unsafe extern "C-unwind" {
    fn SetUserIdAndSecContext(user: pg_sys::Oid, context: c_int);
}

static FINFO: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };

/// Tells the server how the gate is called.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_service_gate() -> *const pg_sys::Pg_finfo_record {
    &raw const FINFO
}

/// Tells the server how the gate is called.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_auditor_gate() -> *const pg_sys::Pg_finfo_record {
    &raw const FINFO
}

/// Tells the server how the gate is called.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_webhook_gate() -> *const pg_sys::Pg_finfo_record {
    &raw const FINFO
}

/// The gate of those who deliver reports of payment providers.
///
/// # Safety
/// Called by the server.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn webhook_gate(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as the server made it.
    unsafe { pass_on(fcinfo, Levels::SERVICE | Levels::WEBHOOK, true) }
}

/// The gate of what only services may call.
///
/// # Safety
/// Called by the server.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn service_gate(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as the server made it.
    unsafe { pass_on(fcinfo, Levels::SERVICE, true) }
}

/// The gate of what auditors may call too: functions that only read, and that must be able to say what is wrong.
///
/// # Safety
/// Called by the server.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn auditor_gate(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as the server made it.
    unsafe { pass_on(fcinfo, Levels::SERVICE | Levels::AUDITOR, false) }
}
