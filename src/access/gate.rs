//! The gates of functions that are written in plpgsql.
//!
//! A function like `billing.freeze_org` has its body in a function of the same name and arguments
//! in the schema `billing_internal`, which runs with the rights of its caller and so is of no use
//! to anybody but the extension. The function in `billing` is a gate: it checks the level of the
//! caller, as functions in Rust do, becomes the owner of the extension, and passes the call on with
//! its arguments unchanged. A gate may stand in `billing_internal` itself, where `settle()` and
//! views call it: then its body is called `…_body`.

use crate::access::levels::{self, AsOwner, Levels};
use crate::access::tables;
use crate::pg::forward::{ForwardedCall, call_of_body, gates};
use crate::pg::raise::or_raise;
use pgrx::{pg_guard, pg_sys};

/// Checks the caller's level, becomes the owner of the extension, and turns the call into one of
/// the body behind the gate.
///
/// # Safety
/// `fcinfo` is the call as the server made it.
#[pg_guard]
unsafe extern "C-unwind" fn enter(fcinfo: pg_sys::FunctionCallInfo, needed: Levels, writes: bool) -> ForwardedCall {
    or_raise(levels::require(needed));
    // SAFETY: the caller's promise.
    let call = unsafe { call_of_body(fcinfo) };
    let owner = AsOwner::begin();
    if writes {
        or_raise(tables::require_sound());
    }
    let before = owner.keep();
    ForwardedCall { call, user: before.user, context: before.context, caller: before.caller }
}

gates! {
    /// The gate of functions that deliver reports of payment providers.
    webhook_gate (pg_finfo_webhook_gate) =
        |fcinfo| enter(fcinfo, Levels::SERVICE | Levels::WEBHOOK, true), levels::restore_caller;
    /// The gate of functions that only services may call.
    service_gate (pg_finfo_service_gate) = |fcinfo| enter(fcinfo, Levels::SERVICE, true), levels::restore_caller;
    /// The gate of functions that auditors may call too: they only read, and they must be able to
    /// report what is wrong, so they run even where `require_sound` would refuse.
    auditor_gate (pg_finfo_auditor_gate) =
        |fcinfo| enter(fcinfo, Levels::SERVICE | Levels::AUDITOR, false), levels::restore_caller;
}
