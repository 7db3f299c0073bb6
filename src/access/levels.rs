//! What roles may do: the levels that `grant_access` gave them.
//!
//! The right to execute a function is not enough for it: rights come by many ways (a grant on all routines of a schema that a
//! guide recommends, default privileges), so each function that moves credit, sets secrets or changes terms asks for the level
//! of who calls it. That is the role as which the call is made, which in a SECURITY DEFINER function of the app is that
//! function's owner: so these functions are not SECURITY DEFINER themselves, which would hide it, but become the owner of the
//! extension in here, once the level is known.

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

/// A set of levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Levels(u8);

impl Levels {
    /// Customers, who see their own orgs.
    pub const MEMBER: Self = Self(1);
    /// The application's own backend.
    pub const SERVICE: Self = Self(2);
    /// Who reads everything.
    pub const AUDITOR: Self = Self(4);
    /// Who delivers the signed reports of payment providers.
    pub const WEBHOOK: Self = Self(8);
    /// The owner of the extension, and superusers.
    const ADMINISTRATOR: Self = Self(16);
    const ALL: Self = Self(31);

    /// Reads the name that `grant_access` takes.
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

    /// Names the levels for people.
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
    /// The levels of roles as far as this backend asked; few enough to be looked through.
    static KNOWN: RefCell<Vec<(pg_sys::Oid, Levels)>> = const { RefCell::new(Vec::new()) };
    /// Counts what was told of changes: one that comes while levels are being read must not be lost.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    /// The table of levels, once it was read.
    static ACCESS: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::Oid::INVALID) };
    /// The role as which the function that runs just now was called.
    static CALLER: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::Oid::INVALID) };
    /// The owner of our functions, once it was looked up.
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
    // Borrows are short and take no invalidation inside.
    KNOWN.with(|known| known.try_borrow_mut().map(|mut known| known.clear()).ok());
}

fn table_changed(relation: pg_sys::Oid) {
    if relation == pg_sys::InvalidOid || relation == ACCESS.get() {
        forget();
    }
}

fn catalog_changed(cache: c_int) {
    OWNER.set(pg_sys::InvalidOid);
    // Functions come and go all the time; they say nothing of roles.
    if cache != pg_sys::SysCacheIdentifier::PROCOID.cast_signed() {
        forget();
    }
}

/// Tells every backend, with the commit, that roles were given other levels.
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

/// The number of the database cluster: roles and relations are the same by their oid within one only.
pub fn cluster() -> String {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetSystemIdentifier() }.to_string()
}

/// The levels of a role, those of the roles that it inherits from among them.
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
        // What counts is what holds now, whatever the caller's transaction saw at its beginning.
        let rows = spi::on_newest_snapshot(|| db.read(&GIVEN, args![]));
        for row in rows.iter() {
            let given = match row.opt::<i64>(1) {
                Some(number) if row.opt::<String>(2).as_ref() == Some(&cluster) => oid(number),
                // Restored from a dump of another cluster: until install() runs, the name is all that is known.
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

/// The role that is running just now: before a function of ours has become the owner, the one as which it was called.
fn current_user() -> pg_sys::Oid {
    // SAFETY: reads a global.
    unsafe { pg_sys::GetUserId() }
}

/// The role as which the function that runs just now was called: in the app's own SECURITY DEFINER function its owner, and the
/// owner of a table while the server maintains it.
pub fn caller() -> pg_sys::Oid {
    CALLER.get()
}

/// Refuses a caller who has none of these levels.
pub fn require(needed: Levels) -> Result<()> {
    let caller = current_user();
    if of(caller)?.any(needed) {
        return Ok(());
    }
    Err(Error::no_level(&role_name(caller), &needed.names()))
}

/// Refuses a caller who does not own the extension.
pub fn require_administrator() -> Result<()> {
    // SAFETY: look-ups in the system caches.
    if unsafe { pg_sys::has_privs_of_role(current_user(), owner()) } {
        return Ok(());
    }
    Err(Error::no_level(&role_name(current_user()), &Levels::ADMINISTRATOR.names()))
}

/// The name of a role.
pub fn role_name(role: pg_sys::Oid) -> String {
    // SAFETY: gives a palloc'ed name, or null where there is no such role.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() { String::new() } else { std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned() }
    }
}

/// While it lives, the work is done with the rights of the extension's owner, as in a SECURITY DEFINER function. An error that
/// unwinds past it ends with the (sub)transaction, which puts the user back by itself.
pub struct AsOwner {
    /// The user before.
    pub user: pg_sys::Oid,
    /// The kind of operation before.
    pub context: c_int,
    /// The role that had called before.
    pub caller: pg_sys::Oid,
}

impl AsOwner {
    /// Becomes the owner, for whoever calls.
    pub fn begin() -> Self {
        let owner = owner();
        let before = Self::become_user(owner, pg_sys::SECURITY_LOCAL_USERID_CHANGE);
        CALLER.set(before.user);
        before
    }

    /// Becomes another role, whose rights nothing that runs meanwhile can exceed.
    pub fn restricted(user: pg_sys::Oid) -> Self {
        let flags = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
        Self::become_user(user, flags | pg_sys::SECURITY_NOFORCE_RLS)
    }

    /// Leaves it to somebody else to put the user back.
    pub fn keep(self) -> std::mem::ManuallyDrop<Self> {
        std::mem::ManuallyDrop::new(self)
    }

    fn become_user(user: pg_sys::Oid, flags: u32) -> Self {
        let mut before = Self { user: pg_sys::InvalidOid, context: 0, caller: caller() };
        // SAFETY: put back when it is dropped.
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
        // SAFETY: as it was.
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) };
    }
}

/// Notes again who had called, after a function that became the owner has ended.
pub fn put_back(caller: pg_sys::Oid) {
    CALLER.set(caller);
}

/// The owner of the extension's functions: whose rights a SECURITY DEFINER function would have.
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

fn with<T>(needed: Levels, work: impl FnOnce() -> Result<T>) -> Result<T> {
    require(needed)?;
    let _owner = AsOwner::begin();
    work()
}

/// Does what who has any of the levels may, each for its own orgs: the work asks whose they are.
pub fn reader<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    with(Levels::MEMBER | Levels::SERVICE | Levels::AUDITOR, work)
}

/// Does what only services may, with the rights of the extension's owner.
pub fn service<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    with(Levels::SERVICE, || tables::require_sound().and_then(|()| work()))
}

/// Does what services and auditors may.
pub fn auditor<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    with(Levels::SERVICE | Levels::AUDITOR, work)
}

/// Does what a customer may for its own orgs, and services for all.
pub fn customer<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    with(Levels::SERVICE | Levels::MEMBER, || tables::require_sound().and_then(|()| work()))
}

/// Does what only the owner of the extension may.
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
