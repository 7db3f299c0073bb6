//! The orgs of a user by a table of the app (`configure_membership`).
//!
//! The table belongs to a role that is not a superuser and may change it at any time: put another
//! relation in its place, checks into a domain, functions into an index. So it is known by its oid,
//! must be an ordinary or partitioned table with columns of built-in types, and is read with the
//! rights of its own owner, in an operation that is restricted as the server's maintenance commands
//! are: whatever runs then can do no more than its owner could.

use crate::access::levels::{AsOwner, cluster, role_name};
use crate::base::error::Error;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db, ToSql};
use crate::schema::version;
use crate::{args, statements};
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use uuid::Uuid;

statements! {
    SETTING() = "select value::text from billing_internal.settings where name = 'membership'";
    SET(text) =
        "insert into billing_internal.settings (name, value) values ('membership', $1::jsonb)
         on conflict (name) do update set value = excluded.value";
    UNSET() = "delete from billing_internal.settings where name = 'membership'";
}

// The type of access modes became wider with version 16.
#[cfg(feature = "pg15")]
const ACL_SELECT: pg_sys::AclMode = pg_sys::ACL_SELECT;
#[cfg(not(feature = "pg15"))]
const ACL_SELECT: pg_sys::AclMode = pg_sys::ACL_SELECT as pg_sys::AclMode;

/// The relation of members as the settings keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Membership {
    schema: String,
    table: String,
    /// The owner when it was configured: a table of the same name may be somebody else's.
    owner: String,
    oid: u32,
    /// The database and cluster within which `oid` means something.
    database: u32,
    cluster: String,
    org_column: String,
    user_column: String,
}

/// The reason why the relation cannot be read, for people.
type Fault = String;

/// A table of members that can be read, locked until the end of the transaction.
struct Members {
    oid: pg_sys::Oid,
    owner: pg_sys::Oid,
    user_type: UserType,
    text: CString,
}

/// The type of the column of users; a domain counts as its base type, and its checks are not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UserType {
    Uuid,
    Text,
    Number,
}

impl UserType {
    fn of(base: pg_sys::Oid) -> Option<Self> {
        match base {
            pg_sys::UUIDOID => Some(Self::Uuid),
            pg_sys::TEXTOID | pg_sys::VARCHAROID => Some(Self::Text),
            pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID => Some(Self::Number),
            _ => None,
        }
    }

    fn oid(self) -> pg_sys::Oid {
        match self {
            Self::Uuid => pg_sys::UUIDOID,
            Self::Text => pg_sys::TEXTOID,
            Self::Number => pg_sys::INT8OID,
        }
    }

    /// Reads a subject as a user of that type; None where it cannot be one.
    fn value(self, subject: &str) -> spi::Argument {
        match self {
            Self::Uuid => Uuid::parse_str(subject).ok().and_then(ToSql::to_sql),
            Self::Text => subject.to_sql(),
            Self::Number => subject.parse::<i64>().ok().and_then(ToSql::to_sql),
        }
    }
}

/// The kept plan that looks up members, and the table that it was made for.
struct Plan {
    members: (pg_sys::Oid, pg_sys::Oid, CString),
    plan: pg_sys::SPIPlanPtr,
}

thread_local! {
    static PLAN: RefCell<Option<Plan>> = const { RefCell::new(None) };
    /// Whether the table is being read now: a function that its owner put into it must not come
    /// back here and replace the plan that is running.
    static IS_READING: Cell<bool> = const { Cell::new(false) };
}

/// A guard that marks the table as being read while it lives.
struct Reading;

impl Reading {
    /// Marks the table as being read; None where it is already.
    fn begin() -> Option<Self> {
        (!IS_READING.replace(true)).then(|| Self)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        IS_READING.set(false);
    }
}

impl Membership {
    /// Reads the setting; None where there is none.
    fn load(db: &Db) -> Option<std::result::Result<Self, Fault>> {
        let rows = db.read(&SETTING, args![]);
        let setting = rows.first()?.get::<String>(0);
        Some(serde_json::from_str(&setting).map_err(|_| "the setting cannot be read".to_owned()))
    }

    fn save(&self, db: &Db) {
        db.write(&SET, args![serde_json::to_string(self).expect("plain texts and numbers")]);
    }

    /// Finds the relation by its oid where that means something, else (in a restored database) by
    /// its name, if it belongs to a role of the same name.
    fn find(&self) -> std::result::Result<pg_sys::Oid, Fault> {
        if self.cluster == cluster() && self.database == database() {
            return Ok(pg_sys::Oid::from(self.oid));
        }
        by_name(&self.schema, &self.table).ok_or_else(|| format!("there is no table {}.{}", self.schema, self.table))
    }

    /// Opens and locks the relation if it is as it must be: until the end of the transaction it is
    /// not renamed, dropped or changed.
    fn open(&self) -> std::result::Result<Members, Fault> {
        let oid = self.find()?;
        let is_by_name = self.oid != oid.to_u32();
        let relation = Relation::open(oid).ok_or("the table is gone")?;
        let (org_column, user_column) = (self.org_column.as_str(), self.user_column.as_str());
        let members = relation.members(org_column, user_column)?;
        if is_by_name && role_name(members.owner) != self.owner {
            return Err(format!("{}.{} does not belong to {}", self.schema, self.table, self.owner));
        }
        Ok(members)
    }
}

/// The oid of the current database.
fn database() -> u32 {
    // SAFETY: reads a global.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

fn by_name(schema: &str, table: &str) -> Option<pg_sys::Oid> {
    let (schema, table) = (CString::new(schema).ok()?, CString::new(table).ok()?);
    // SAFETY: look-ups by name.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        pg_sys::get_relname_relid(table.as_ptr(), schema)
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// An open relation, closed when it is dropped.
struct Relation(pg_sys::Relation);

impl Relation {
    fn open(oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: gives null where there is none; the lock stays until the end of the transaction.
        let relation = unsafe { pg_sys::try_relation_open(oid, pg_sys::AccessShareLock.cast_signed()) };
        // `then_some` would build a `Relation` of null before the check, and close it.
        (!relation.is_null()).then(|| Self(relation))
    }

    fn form(&self) -> &pg_sys::FormData_pg_class {
        // SAFETY: an open relation.
        unsafe { &*(*self.0).rd_rel }
    }

    /// The schema and name of the relation. Its name does not change while it is open, but that of
    /// its schema may.
    fn names(&self) -> Option<(String, String)> {
        // SAFETY: an open relation; the schema's name is copied.
        unsafe {
            let schema = pg_sys::get_namespace_name(self.form().relnamespace);
            let text = |name: *const core::ffi::c_char| CStr::from_ptr(name).to_string_lossy().into_owned();
            (!schema.is_null()).then(|| (text(schema), text(self.form().relname.data.as_ptr())))
        }
    }

    /// The built-in type of a column, or the base type of its domain.
    fn base_type(&self, column: &str) -> Option<pg_sys::Oid> {
        let column = CString::new(column).ok()?;
        // SAFETY: looks at the catalogs.
        unsafe {
            let number = pg_sys::get_attnum((*self.0).rd_id, column.as_ptr());
            (number > 0).then(|| pg_sys::getBaseType(pg_sys::get_atttype((*self.0).rd_id, number)))
        }
    }

    fn members(&self, org_column: &str, user_column: &str) -> std::result::Result<Members, Fault> {
        let form = self.form();
        let kind = form.relkind.cast_unsigned();
        if (kind != pg_sys::RELKIND_RELATION && kind != pg_sys::RELKIND_PARTITIONED_TABLE)
            || form.relpersistence.cast_unsigned() == pg_sys::RELPERSISTENCE_TEMP
        {
            return Err("it must be an ordinary or partitioned table".to_owned());
        }
        if self.base_type(org_column) != Some(pg_sys::UUIDOID) {
            return Err(format!("it has no column {org_column} of type uuid"));
        }
        let user_type = self.base_type(user_column).and_then(UserType::of).ok_or_else(|| {
            format!("it has no column {user_column} of type uuid, text, varchar, smallint, integer or bigint")
        })?;
        let (schema, table) = self.names().ok_or("its schema is gone")?;
        // SAFETY: looks up the owner's rights on the open table.
        let is_readable = unsafe {
            pg_sys::pg_class_aclcheck((*self.0).rd_id, form.relowner, ACL_SELECT) == pg_sys::AclResult::ACLCHECK_OK
        };
        if !is_readable || !may_use_schema(form.relnamespace, form.relowner) {
            return Err("its owner may not read it".to_owned());
        }
        let text = format!(
            "select distinct m.{}::pg_catalog.uuid from {}.{} m where m.{} operator(pg_catalog.=) $1",
            quoted(org_column),
            quoted(&schema),
            quoted(&table),
            quoted(user_column)
        );
        let text = CString::new(text).map_err(|_| "its names cannot be read".to_owned())?;
        // SAFETY: an open relation.
        Ok(Members { oid: unsafe { (*self.0).rd_id }, owner: form.relowner, user_type, text })
    }
}

impl Drop for Relation {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened above.
            unsafe { pg_sys::relation_close(self.0, pg_sys::NoLock.cast_signed()) };
        }
    }
}

#[cfg(feature = "pg15")]
fn may_use_schema(schema: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: a look-up in the system caches.
    unsafe { pg_sys::pg_namespace_aclcheck(schema, role, pg_sys::ACL_USAGE) == pg_sys::AclResult::ACLCHECK_OK }
}

#[cfg(not(feature = "pg15"))]
fn may_use_schema(schema: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: a look-up in the system caches.
    unsafe {
        pg_sys::object_aclcheck(pg_sys::NamespaceRelationId, schema, role, pg_sys::ACL_USAGE.into())
            == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// A name as it stands in a statement, always in quotes.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Members {
    /// The orgs of a user, read with the rights of the table's owner.
    fn orgs_of(&self, db: &Db, subject: &str) -> BTreeSet<Uuid> {
        let Some(user) = self.user_type.value(subject) else { return BTreeSet::new() };
        let Some(_reading) = Reading::begin() else { return BTreeSet::new() };
        let _owner = AsOwner::restricted(self.owner);
        // The plan is out of `PLAN` while it runs, and kept again only after it succeeded.
        let plan = self.plan();
        let rows = db.read_plan(plan, &[Some(user)]);
        // A statement finds its relation by name: a schema that was renamed meanwhile would lead it
        // to another table.
        let is_it = is_about(plan, self.oid);
        PLAN.set(Some(Plan { members: (self.oid, self.owner, self.text.clone()), plan }));
        if is_it { rows.iter().filter_map(|row| row.opt(0)).collect() } else { BTreeSet::new() }
    }

    /// The plan that looks up members, made with the rights of the table's owner. The kept one is
    /// taken out of `PLAN`, so that nothing that it runs can free it.
    fn plan(&self) -> pg_sys::SPIPlanPtr {
        if let Some(Plan { members: (oid, owner, text), plan }) = PLAN.take() {
            // SAFETY: a plan that was kept.
            if (oid, owner) == (self.oid, self.owner) && text == self.text && unsafe { pg_sys::SPI_plan_is_valid(plan) }
            {
                return plan;
            }
            // SAFETY: a plan that was kept, and that is not running.
            unsafe { pg_sys::SPI_freeplan(plan) };
        }
        spi::prepare(&self.text, &[self.user_type.oid()])
    }
}

/// Whether a plan reads this relation and nothing else.
fn is_about(plan: pg_sys::SPIPlanPtr, relation: pg_sys::Oid) -> bool {
    // SAFETY: a kept plan of one statement; the lists are the server's.
    unsafe {
        let sources = pg_sys::SPI_plan_get_plan_sources(plan);
        if sources.is_null() || (*sources).length != 1 {
            return false;
        }
        let source = (*(*sources).elements).ptr_value.cast::<pg_sys::CachedPlanSource>();
        let relations = (*source).relationOids;
        !relations.is_null() && (*relations).length == 1 && (*(*relations).elements).oid_value == relation
    }
}

/// The orgs of a user by the table of the app; none where no table is configured or it cannot be
/// read.
pub fn orgs_of(db: &Db, subject: &str) -> BTreeSet<Uuid> {
    let members = Membership::load(db).and_then(|membership| membership.and_then(|m| m.open()).ok());
    members.map(|members| members.orgs_of(db, subject)).unwrap_or_default()
}

/// The reason why the configured relation cannot be read, if there is one.
pub fn fault(db: &Db) -> Option<Fault> {
    Membership::load(db).and_then(|membership| membership.and_then(|m| m.open()).err())
}

/// Finds the configured relation again in a restored database, and stores its new oid.
pub fn anchor(db: &Db) {
    let Some(Ok(mut membership)) = Membership::load(db) else { return };
    let Ok(members) = membership.open() else { return };
    membership.note_identity(&members);
    membership.save(db);
}

impl Membership {
    /// Notes the identity of the table in this database.
    fn note_identity(&mut self, members: &Members) {
        self.oid = members.oid.to_u32();
        self.database = database();
        self.cluster = cluster();
        self.owner = role_name(members.owner);
        if let Some((schema, table)) = Relation::open(members.oid).and_then(|relation| relation.names()) {
            (self.schema, self.table) = (schema, table);
        }
    }
}

/// Names the app's own table of users and orgs, so that members need no orgs in their claims; three
/// nulls take it away.
///
/// `relation` is an ordinary or partitioned table with one row per user and org: `org_column` of
/// type uuid, `user_column` (which the claim `sub` is compared with) of type uuid, text, varchar,
/// smallint, integer or bigint, or domains over these. It is read with the rights of its owner, and
/// followed when it is renamed. When a column goes or gets another type, members see nothing until
/// this is called again. Only for the owner of the extension. Errors: 42501 `no_level`; 22023.
#[pg_extern(
    volatile,
    sql = r#"
create function billing.configure_membership(relation regclass, org_column name, user_column name) returns void
    language c volatile set search_path to pg_catalog, pg_temp
    as 'MODULE_PATHNAME', 'configure_membership_wrapper';"#
)]
fn configure_membership(relation: Option<pg_sys::Oid>, org_column: Option<&CStr>, user_column: Option<&CStr>) {
    or_raise(crate::access::administrator(|| {
        spi::connect(|db| {
            version::require(db)?;
            let (relation, org_column, user_column) = match (relation, org_column, user_column) {
                (None, None, None) => {
                    db.write(&UNSET, args![]);
                    return Ok(());
                }
                (Some(relation), Some(org_column), Some(user_column)) => (relation, org_column, user_column),
                _ => {
                    return Err(Error::invalid(
                        "relation",
                        "relation, org_column and user_column go together, or are all null",
                    ));
                }
            };
            let name = |name: &CStr| name.to_string_lossy().into_owned();
            let mut membership = Membership {
                schema: String::new(),
                table: String::new(),
                owner: String::new(),
                oid: 0,
                database: 0,
                cluster: String::new(),
                org_column: name(org_column),
                user_column: name(user_column),
            };
            let opened = Relation::open(relation).ok_or_else(|| "there is no such table".to_owned());
            let members = opened.and_then(|r| r.members(&membership.org_column, &membership.user_column));
            membership.note_identity(&members.map_err(|fault| Error::invalid("relation", &fault))?);
            membership.save(db);
            Ok(())
        })
    }));
}
