//! Who may see which org.
//!
//! EXECUTE decides who may call what (sql/rights.sql). A function that members may call as well also asks whether the
//! org is one of theirs. "Everybody's" is for who may execute verify_ledger(): services, auditors, the owner.

use crate::error::{Error, Result};
use crate::sql::Db;
use crate::{args, statements};
use pgrx::pg_sys;
use std::cell::Cell;
use uuid::Uuid;

statements! {
    IS_MINE(uuid) = "select $1 = any (billing.my_orgs())";
    VERIFY_LEDGER_OID(text) = "select to_regprocedure($1)::oid::int8";
}

/// Refuses an org that the caller may not see.
///
/// The functions run as their owner, so the caller is the role of the session: what SET ROLE chose, which is how `PostgREST`
/// and Supabase switch to the role of a request.
pub fn authorize(db: &Db, org_id: Uuid) -> Result<()> {
    // SAFETY: reads a global.
    let caller = unsafe { pg_sys::GetOuterUserId() };
    if reads_every_org(db, caller) {
        return Ok(());
    }
    let mine = db.read(&IS_MINE, args![org_id]);
    if mine.first().and_then(|row| row.opt(0)) == Some(true) {
        return Ok(());
    }
    Err(Error::not_authorized(&org_id.to_string()))
}

/// Whether the caller sees every org: what he says of one is believed.
pub fn sees_every_org(db: &Db) -> bool {
    // SAFETY: reads a global.
    reads_every_org(db, unsafe { pg_sys::GetOuterUserId() })
}

fn reads_every_org(db: &Db, role: pg_sys::Oid) -> bool {
    // SAFETY: a cached look-up by oid.
    if unsafe { pg_sys::superuser_arg(role) } {
        return true;
    }
    may_execute(verify_ledger(db), role)
}

thread_local! {
    static VERIFY_LEDGER: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::Oid::INVALID) };
}

/// The function's oid, kept until the extension is dropped and made again.
fn verify_ledger(db: &Db) -> pg_sys::Oid {
    let known = VERIFY_LEDGER.get();
    let cache = pg_sys::SysCacheIdentifier::PROCOID.cast_signed();
    let none = pg_sys::Datum::from(0);
    // SAFETY: a look-up in the cache of functions.
    if known != pg_sys::Oid::INVALID && unsafe { pg_sys::SearchSysCacheExists(cache, known.into(), none, none, none) } {
        return known;
    }
    let found = db.read(&VERIFY_LEDGER_OID, args!["billing.verify_ledger(uuid)"]);
    let found = found.first().and_then(|row| row.opt::<i64>(0)).unwrap_or(0);
    let found = pg_sys::Oid::from(u32::try_from(found).unwrap_or(0));
    VERIFY_LEDGER.set(found);
    found
}

#[cfg(any(feature = "pg16", feature = "pg17", feature = "pg18"))]
fn may_execute(function: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in the system caches.
    unsafe {
        pg_sys::object_aclcheck(pg_sys::ProcedureRelationId, function, role, pg_sys::ACL_EXECUTE.into())
            == pg_sys::AclResult::ACLCHECK_OK
    }
}

#[cfg(feature = "pg15")]
fn may_execute(function: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in the system caches.
    unsafe { pg_sys::pg_proc_aclcheck(function, role, pg_sys::ACL_EXECUTE) == pg_sys::AclResult::ACLCHECK_OK }
}

/// Who acts, for the record: the JWT subject where there is one, else the role of the session.
pub fn actor() -> String {
    jwt_subject().unwrap_or_else(|| {
        // SAFETY: gives a palloc'ed name of an existing role.
        unsafe {
            let name = pg_sys::GetUserNameFromId(pg_sys::GetOuterUserId(), true);
            if name.is_null() { String::new() } else { std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned() }
        }
    })
}

fn jwt_subject() -> Option<String> {
    // SAFETY: gives null for a setting that nobody made; the text is copied at once.
    let claims = unsafe {
        let text = pg_sys::GetConfigOption(c"request.jwt.claims".as_ptr(), true, false);
        if text.is_null() {
            return None;
        }
        std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
    };
    let claims: serde_json::Value = serde_json::from_str(&claims).ok()?;
    claims.get("sub")?.as_str().map(|s| s.chars().take(200).collect())
}
