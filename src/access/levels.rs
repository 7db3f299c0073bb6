//! The levels that `grant_access` gives to roles, and the rights of the owner for those who have
//! one.
//!
//! The right to execute a function is not enough: rights come in many ways (a grant on all routines
//! of a schema that a guide recommends, default privileges), so each function that moves credit,
//! sets secrets or changes terms checks the level of its caller. The caller is the role as which
//! the call is made, which inside a SECURITY DEFINER function of the app is the owner of that
//! function. Functions of the extension are not SECURITY DEFINER themselves, since that would hide
//! the caller: they become the owner of the extension here, once the level is known.

use crate::access::tables;
use crate::base::error::{Error, Result};
use crate::pg::invalidation::{self, Watcher};
use crate::pg::spi;
use crate::schema::version;
use crate::{args, statements};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_int};
use std::ops::BitOr;

/// A set of levels, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Levels(u8);

impl Levels {
    /// The level of customers, who see their own orgs.
    pub const MEMBER: Self = Self(1);
    /// The level of the application's own backend.
    pub const SERVICE: Self = Self(2);
    /// The level of roles that read everything.
    pub const AUDITOR: Self = Self(4);
    /// The level of roles that deliver the signed reports of payment providers.
    pub const WEBHOOK: Self = Self(8);
    /// The level of the owner of the extension and of superusers, which cannot be given.
    const ADMINISTRATOR: Self = Self(16);
    const ALL: Self = Self(31);

    /// Reads the name that `grant_access` takes; an unknown name gives no level.
    fn of_name(name: &str) -> Self {
        match name {
            "member" => Self::MEMBER,
            "service" => Self::SERVICE,
            "auditor" => Self::AUDITOR,
            "webhook" => Self::WEBHOOK,
            _ => Self::default(),
        }
    }

    /// Whether two sets share a level.
    pub fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Lists the names of the levels, for error messages.
    fn names(self) -> Vec<&'static str> {
        [
            (Self::MEMBER, "member"),
            (Self::SERVICE, "service"),
            (Self::AUDITOR, "auditor"),
            (Self::WEBHOOK, "webhook"),
            (Self::ADMINISTRATOR, "owner"),
        ]
        .into_iter()
        .filter_map(|(level, name)| self.any(level).then_some(name))
        .collect()
    }
}

impl BitOr for Levels {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

statements! {
    GIVEN() = "select role_name::text, role_oid::int8, cluster, level from billing.access";
    TABLE() = "select to_regclass('billing.access')::oid::int8";
    OWNER_OF_EXTENSION() = "select extowner::int8 from pg_extension where extname = 'pg_billing'";
}

thread_local! {
    /// The levels of the roles that this backend has asked for; few enough for a linear search.
    static KNOWN: RefCell<Vec<(pg_sys::Oid, Levels)>> = const { RefCell::new(Vec::new()) };
    /// The number of invalidations so far: one that arrives while levels are being read must not be
    /// lost.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    /// The oid of `billing.access`, once it was read; changes of other tables are ignored.
    static ACCESS: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::Oid::INVALID) };
    /// The role that called the function which is running.
    static CALLER: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::Oid::INVALID) };
    /// The owner of the extension's functions, once it was looked up.
    static OWNER: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::Oid::INVALID) };
}

/// Lets a backend forget what it knows of roles when that changes; once per backend.
pub fn watch_invalidations() {
    static WATCHER: Watcher = Watcher {
        relation: table_changed,
        catalog: catalog_changed,
        catalogs: &[
            pg_sys::SysCacheIdentifier::AUTHOID,
            pg_sys::SysCacheIdentifier::AUTHMEMROLEMEM,
            pg_sys::SysCacheIdentifier::NAMESPACEOID,
            pg_sys::SysCacheIdentifier::PROCOID,
        ],
    };
    invalidation::watch(&WATCHER);
}

fn forget() {
    CHANGES.set(CHANGES.get().wrapping_add(1));
    // Every borrow ends before anything that could process an invalidation.
    KNOWN.with(|known| known.try_borrow_mut().map(|mut known| known.clear()).ok());
}

fn table_changed(relation: pg_sys::Oid) {
    if relation == pg_sys::InvalidOid || relation == ACCESS.get() {
        forget();
    }
}

fn catalog_changed(cache: c_int) {
    OWNER.set(pg_sys::InvalidOid);
    // Functions are created and dropped all the time and say nothing about roles.
    if cache != pg_sys::SysCacheIdentifier::PROCOID.cast_signed() {
        forget();
    }
}

/// Tells every backend, at the commit, that levels of roles have changed.
pub fn invalidate() {
    spi::connect(|db| {
        if let Some(table) = db.read(&TABLE, &[]).first().and_then(|row| row.opt::<i64>(0)) {
            // SAFETY: the relation exists.
            unsafe { pg_sys::CacheInvalidateRelcacheByRelid(oid(table)) };
        }
    });
}

fn oid(number: i64) -> pg_sys::Oid {
    pg_sys::Oid::from(u32::try_from(number).unwrap_or(0))
}

/// The identifier of the database cluster: an oid means the same role or relation within one
/// cluster only.
pub fn cluster() -> String {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetSystemIdentifier() }.to_string()
}

/// The levels of a role, including those of the roles that it inherits from.
pub fn of(role: pg_sys::Oid) -> Result<Levels> {
    if let Some((_, levels)) = KNOWN.with_borrow(|known| known.iter().find(|(known, _)| *known == role).copied()) {
        return Ok(levels);
    }
    loop {
        let before = CHANGES.get();
        // SAFETY: a cached look-up by oid.
        let levels = if unsafe { pg_sys::superuser_arg(role) } { Levels::ALL } else { load(role)? };
        if CHANGES.get() == before {
            KNOWN.with_borrow_mut(|known| known.push((role, levels)));
            return Ok(levels);
        }
    }
}

fn load(role: pg_sys::Oid) -> Result<Levels> {
    let _owner = AsOwner::begin();
    let cluster = cluster();
    spi::connect(|db| {
        version::require(db)?;
        if let Some(table) = db.read(&TABLE, &[]).first().and_then(|row| row.opt::<i64>(0)) {
            ACCESS.set(oid(table));
        }
        let mut levels = Levels::default();
        // A level that was revoked must not hold on in a transaction that began before.
        let rows = spi::on_newest_snapshot(|| db.read(&GIVEN, args![]));
        for row in rows.iter() {
            let given = match row.opt::<i64>(1) {
                Some(number) if row.opt::<String>(2).as_ref() == Some(&cluster) => oid(number),
                // The row was restored from a dump of another cluster: until install() runs, only
                // the name is known.
                _ => by_name(&row.get::<String>(0)),
            };
            // SAFETY: look-ups in the system caches.
            if given != pg_sys::InvalidOid && unsafe { pg_sys::has_privs_of_role(role, given) } {
                levels = levels | Levels::of_name(&row.get::<String>(3));
            }
        }
        Ok(levels)
    })
}

fn by_name(name: &str) -> pg_sys::Oid {
    // SAFETY: a look-up in the system caches.
    CString::new(name).map_or(pg_sys::InvalidOid, |name| unsafe { pg_sys::get_role_oid(name.as_ptr(), true) })
}

/// The role that is running now: before a function of the extension has become the owner, its
/// caller.
fn current_user() -> pg_sys::Oid {
    // SAFETY: reads a global.
    unsafe { pg_sys::GetUserId() }
}

/// The role that called the function which is running.
///
/// In a SECURITY DEFINER function of the app that is its owner, and while the server maintains a
/// table, the owner of the table.
pub fn caller() -> pg_sys::Oid {
    CALLER.get()
}

/// Refuses a caller that has none of these levels.
pub fn require(needed: Levels) -> Result<()> {
    let caller = current_user();
    if of(caller)?.any(needed) {
        return Ok(());
    }
    Err(Error::no_level(&role_name(caller), &needed.names()))
}

/// Refuses a caller that does not own the extension.
pub fn require_administrator() -> Result<()> {
    // SAFETY: look-ups in the system caches.
    if unsafe { pg_sys::has_privs_of_role(current_user(), owner()) } {
        return Ok(());
    }
    Err(Error::no_level(&role_name(current_user()), &Levels::ADMINISTRATOR.names()))
}

/// The name of a role, empty where there is no such role.
pub fn role_name(role: pg_sys::Oid) -> String {
    // SAFETY: gives a palloc'ed name, or null where there is no such role.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() { String::new() } else { std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned() }
    }
}

/// A guard that does the work with the rights of the extension's owner, as a SECURITY DEFINER
/// function would, until it is dropped.
///
/// An error that unwinds past it ends with the (sub)transaction, which restores the user by itself.
pub struct AsOwner {
    /// The user to restore.
    pub user: pg_sys::Oid,
    /// The security context to restore.
    pub context: c_int,
    /// The caller to restore.
    pub caller: pg_sys::Oid,
}

impl AsOwner {
    /// Becomes the owner of the extension, and notes the current user as the caller.
    pub fn begin() -> Self {
        let owner = owner();
        let before = Self::become_user(owner, pg_sys::SECURITY_LOCAL_USERID_CHANGE);
        CALLER.set(before.user);
        before
    }

    /// Becomes another role in a security-restricted operation: nothing that runs meanwhile can
    /// exceed the rights of that role.
    pub fn restricted(user: pg_sys::Oid) -> Self {
        let flags = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
        Self::become_user(user, flags | pg_sys::SECURITY_NOFORCE_RLS)
    }

    /// Gives up the guard without restoring the user, which the caller of this then has to do.
    pub fn keep(self) -> std::mem::ManuallyDrop<Self> {
        std::mem::ManuallyDrop::new(self)
    }

    fn become_user(user: pg_sys::Oid, flags: u32) -> Self {
        let mut before = Self { user: pg_sys::InvalidOid, context: 0, caller: caller() };
        // SAFETY: the user is restored when the guard is dropped.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&raw mut before.user, &raw mut before.context);
            pg_sys::SetUserIdAndSecContext(user, before.context | flags.cast_signed());
        }
        before
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        CALLER.set(self.caller);
        // SAFETY: sets what was read when the guard began.
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) };
    }
}

/// Restores the noted caller after a function that became the owner has ended.
pub fn restore_caller(caller: pg_sys::Oid) {
    CALLER.set(caller);
}

/// The owner of the extension's functions, whose rights a SECURITY DEFINER function would have.
pub fn owner() -> pg_sys::Oid {
    let known = OWNER.get();
    if known != pg_sys::InvalidOid {
        return known;
    }
    let found = look_up_owner();
    assert!(found != pg_sys::InvalidOid, "the extension is gone");
    OWNER.set(found);
    found
}

fn look_up_owner() -> pg_sys::Oid {
    spi::connect(|db| db.read(&OWNER_OF_EXTENSION, args![]).first().map_or(pg_sys::InvalidOid, |row| oid(row.get(0))))
}

fn run_as_owner<T>(needed: Levels, work: impl FnOnce() -> Result<T>) -> Result<T> {
    require(needed)?;
    let _owner = AsOwner::begin();
    work()
}

/// Runs work that any level but webhooks may ask for; members only for their own orgs, which `work`
/// has to check.
pub fn reader<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    run_as_owner(Levels::MEMBER | Levels::SERVICE | Levels::AUDITOR, work)
}

/// Runs work that only services may ask for, with the rights of the extension's owner.
pub fn service<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    run_as_owner(Levels::SERVICE, || tables::require_sound().and_then(|()| work()))
}

/// Runs work that services and auditors may ask for.
pub fn auditor<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    run_as_owner(Levels::SERVICE | Levels::AUDITOR, work)
}

/// Runs work that services may ask for, and members for their own orgs, which `work` has to check.
pub fn customer<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    run_as_owner(Levels::SERVICE | Levels::MEMBER, || tables::require_sound().and_then(|()| work()))
}

/// Runs work that only the owner of the extension may ask for.
pub fn administrator<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    require_administrator()?;
    let _owner = AsOwner::begin();
    tables::require_sound()?;
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_a_name_and_is_found_by_it() {
        for level in [Levels::MEMBER, Levels::SERVICE, Levels::AUDITOR, Levels::WEBHOOK] {
            assert_eq!(Levels::of_name(level.names()[0]), level);
        }
        assert_eq!(Levels::of_name("owner"), Levels::default(), "that is nobody's to give");
        assert_eq!((Levels::SERVICE | Levels::AUDITOR).names(), ["service", "auditor"]);
        assert!(!Levels::default().any(Levels::ALL));
    }
}
