//! The caller of a function: which orgs it may see, and what it may do.
//!
//! `levels` knows the levels of roles. A function that members may call also checks that the org is
//! one of theirs; services, auditors and the owner see every org.

mod claims;
mod gate;
mod levels;
mod membership;
mod tables;
mod turn;

pub use levels::{administrator, auditor, customer, reader, service};
pub use tables::require_sound;

use crate::base::error::{Error, Result};
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db};
use claims::Claims;
use levels::Levels;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::rc::Rc;
use uuid::Uuid;

/// Registers the callbacks that let a backend forget what it knows about roles and tables; once per
/// backend.
pub fn watch_invalidations() {
    levels::watch_invalidations();
    tables::watch_invalidations();
}

/// Refuses an org that the caller may not see.
///
/// The caller is the role that called the function; its orgs come from the claims of the request.
pub fn authorize(db: &Db, org_id: Uuid) -> Result<()> {
    if sees_every_org()? || caller_orgs(db).contains(&org_id) {
        return Ok(());
    }
    Err(Error::not_authorized(&org_id.to_string()))
}

/// Whether the caller sees every org, so that what it says about one is believed.
pub fn sees_every_org() -> Result<bool> {
    Ok(levels::of(levels::caller())?.any(Levels::SERVICE | Levels::AUDITOR))
}

/// The identity of a snapshot: two with the same fields, in one transaction, show the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SnapshotId {
    statement: pg_sys::TimestampTz,
    transaction: pg_sys::LocalTransactionId,
    transactions: (pg_sys::TransactionId, pg_sys::TransactionId, u32, i32),
    command: pg_sys::CommandId,
}

impl SnapshotId {
    /// The identity of the snapshot that the caller's statement reads.
    fn now() -> Option<Self> {
        // SAFETY: the snapshot lives as long as the statement; what describes it is copied.
        unsafe {
            let snapshot = pg_sys::ActiveSnapshotSet().then(|| pg_sys::GetActiveSnapshot())?;
            let seen = &*snapshot;
            Some(Self {
                statement: pg_sys::GetCurrentStatementStartTimestamp(),
                transaction: transaction(),
                transactions: (seen.xmin, seen.xmax, seen.xcnt, seen.subxcnt),
                command: seen.curcid,
            })
        }
    }
}

#[cfg(any(feature = "pg15", feature = "pg16"))]
unsafe fn transaction() -> pg_sys::LocalTransactionId {
    // SAFETY: a backend always has an entry in the process array.
    unsafe { (*pg_sys::MyProc).lxid }
}

#[cfg(any(feature = "pg17", feature = "pg18"))]
unsafe fn transaction() -> pg_sys::LocalTransactionId {
    // SAFETY: a backend always has an entry in the process array.
    unsafe { (*pg_sys::MyProc).vxid.lxid }
}

/// The orgs of a caller, for as long as nothing can have changed about them.
struct CallerOrgs {
    claims: CString,
    snapshot: SnapshotId,
    orgs: Rc<BTreeSet<Uuid>>,
}

thread_local! {
    /// The caller's orgs, for the statement in which they were asked for: a view may ask once per
    /// row.
    static CALLER_ORGS: RefCell<Option<CallerOrgs>> = const { RefCell::new(None) };
}

/// The orgs of the caller, if they were asked for under this snapshot already.
fn remembered(snapshot: Option<SnapshotId>) -> Option<Rc<BTreeSet<Uuid>>> {
    let Some(claims) = claims_of_request() else { return Some(Rc::default()) };
    CALLER_ORGS.with_borrow(|known| {
        let known = known.as_ref().filter(|k| Some(k.snapshot) == snapshot && k.claims.as_c_str() == claims);
        known.map(|k| Rc::clone(&k.orgs))
    })
}

/// The orgs of the caller, by the claims of the request and the app's table of members.
fn caller_orgs(db: &Db) -> Rc<BTreeSet<Uuid>> {
    let snapshot = SnapshotId::now();
    if let Some(orgs) = remembered(snapshot) {
        return orgs;
    }
    let Some(claims) = claims_of_request() else { return Rc::default() };
    // A function that the table of members runs may set the claims anew, which frees this text.
    let claims = claims.to_owned();
    let Claims { subject, mut orgs } = Claims::parse(&claims.to_string_lossy());
    if let Some(subject) = subject {
        orgs.append(&mut membership::orgs_of(db, &subject));
    }
    let orgs = Rc::new(orgs);
    if let Some(snapshot) = snapshot {
        CALLER_ORGS.set(Some(CallerOrgs { claims, snapshot, orgs: Rc::clone(&orgs) }));
    }
    orgs
}

/// Gives the orgs of the caller, for policies: use it in a sub-select, so that it is asked once per
/// statement.
///
/// They are those that the claims of the request name (`org_id`, `app_metadata.org_id`,
/// `app_metadata.org_ids`), and those of the user (the claim `sub`) by the table of
/// `configure_membership`.
#[pg_extern(stable, parallel_restricted)]
fn my_orgs() -> Vec<pgrx::Uuid> {
    // A statement asks once for each table that it reads.
    let orgs = remembered(SnapshotId::now()).unwrap_or_else(|| {
        let _owner = levels::AsOwner::begin();
        spi::connect(caller_orgs)
    });
    orgs.iter().map(|org| pgrx::Uuid::from_bytes(org.into_bytes())).collect()
}

/// Finds the relation of members again in a restored database.
pub fn anchor_membership(db: &Db) {
    membership::anchor(db);
}

/// The claims of the request, if there are any. The text is the server's own, and valid until the
/// setting changes.
fn claims_of_request<'a>() -> Option<&'a CStr> {
    // SAFETY: gives null for a setting that nobody made.
    let claims = unsafe {
        let text = pg_sys::GetConfigOption(c"request.jwt.claims".as_ptr(), true, false);
        if text.is_null() {
            return None;
        }
        CStr::from_ptr(text)
    };
    Some(claims).filter(|claims| !claims.is_empty())
}

/// The name of whoever acts, for the record: the JWT subject if there is one, else the role of the
/// session.
pub fn actor() -> String {
    jwt_subject().unwrap_or_else(|| {
        // SAFETY: reads a global.
        levels::role_name(unsafe { pg_sys::GetOuterUserId() })
    })
}

fn jwt_subject() -> Option<String> {
    let claims: serde_json::Value = serde_json::from_str(&claims_of_request()?.to_string_lossy()).ok()?;
    claims.get("sub")?.as_str().map(|s| s.chars().take(200).collect())
}

/// Gives the number of the database cluster: within one only, an oid means the same role.
#[pg_extern(
    stable,
    sql = r#"
create function billing_internal.cluster() returns text
    language c stable
    as 'MODULE_PATHNAME', 'cluster_wrapper';"#
)]
fn cluster() -> String {
    levels::cluster()
}

/// Refuses a caller who does not own the extension; for functions in plpgsql that give and take
/// levels.
#[pg_extern(
    stable,
    sql = r#"
create function billing_internal.require_administrator() returns void
    language c stable
    as 'MODULE_PATHNAME', 'require_administrator_wrapper';"#
)]
fn require_administrator() {
    or_raise(levels::require_administrator());
}

/// Gives the name of the role that called the function whose body asks: for bodies in plpgsql,
/// which have become the owner.
#[pg_extern(
    stable,
    sql = r#"
create function billing_internal.caller() returns text
    language c stable
    as 'MODULE_PATHNAME', 'caller_wrapper';"#
)]
fn caller() -> String {
    levels::role_name(levels::caller())
}

/// Refuses to go on where something of another role would run with our rights; for the trigger of
/// metered tables.
#[pg_extern(
    volatile,
    sql = r#"
create function billing_internal.require_sound() returns void
    language c volatile
    as 'MODULE_PATHNAME', 'require_sound_now_wrapper';"#
)]
fn require_sound_now() {
    or_raise(require_sound());
}

/// Lets every backend ask anew for the levels of roles.
#[pg_extern(
    volatile,
    sql = r#"
create function billing_internal.forget_levels() returns void
    language c volatile set search_path to pg_catalog, pg_temp
    as 'MODULE_PATHNAME', 'forget_levels_wrapper';"#
)]
fn forget_levels() {
    levels::invalidate();
}

/// Tells what keeps the table of members from being read, if something does; for `status()`.
#[pg_extern(
    stable,
    sql = r#"
create function billing_internal.membership_fault() returns text
    language c stable set search_path to pg_catalog, pg_temp
    as 'MODULE_PATHNAME', 'membership_fault_wrapper';"#
)]
fn membership_fault() -> Option<String> {
    spi::connect(membership::fault)
}
