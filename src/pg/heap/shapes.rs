//! How tables are described whose rows are read and written without statements: what their declarations (`schema`) come to.
//!
//! What is in the database is compared with this before a row is touched (`check.rs`): whoever changes a table gets statements.

use crate::pg::heap::Value;
use pgrx::pg_sys;

/// A table.
pub struct Shape {
    /// The schema that it is in.
    pub schema: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// All of them, in order.
    pub columns: &'static [Column],
    /// Those by which rows are looked for, or by which is told whether one is new.
    pub indexes: &'static [&'static Index],
    /// What partial indexes there may be where rows are written.
    pub partial: Option<Partial>,
    /// The table of which it is a partition.
    pub parent: Option<&'static Shape>,
}

impl Shape {
    /// A table that is no partition.
    pub const fn new(
        schema: &'static str,
        name: &'static str,
        columns: &'static [Column],
        indexes: &'static [&'static Index],
    ) -> Self {
        assert!(columns.len() <= crate::pg::heap::MOST_COLUMNS && indexes.len() <= MOST_INDEXES, "a table of ours");
        Self { schema, name, columns, indexes, partial: None, parent: None }
    }

    /// The same with partial indexes, into which rows belong of which `belongs` says so.
    pub const fn with_partial(mut self, predicate: &'static str, belongs: PartialIndexMembership) -> Self {
        self.partial = Some(Partial { predicate, belongs });
        self
    }

    /// A partition of a table, which has its columns and no indexes.
    pub const fn partition_of(parent: &'static Self) -> Self {
        let mut partition = Self::new(parent.schema, parent.name, parent.columns, &[]);
        partition.parent = Some(parent);
        partition
    }
}

/// No table of ours is looked through by more.
pub const MOST_INDEXES: usize = 2;

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// As it is called.
    pub name: &'static str,
    /// Its type, and by which collation it is ordered.
    pub kind: Type,
    /// It may be null.
    pub nullable: bool,
}

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Type {
    Bigint,
    Bigints,
    Boolean,
    Bytea,
    /// A text of the collation "C": what names something.
    Code,
    Date,
    Integer,
    Jsonb,
    Moment,
    Smallint,
    /// Of the database's collation.
    Text,
    Uuid,
}

impl Type {
    /// The server's number of it.
    pub const fn oid(self) -> pg_sys::Oid {
        self.read_from()[0]
    }

    /// What a value says, for comparing two.
    ///
    /// # Safety
    /// A value of that type.
    #[cfg(feature = "compare_ways")]
    pub unsafe fn bytes(self, value: pg_sys::Datum) -> Vec<u8> {
        match self {
            Self::Bigint | Self::Boolean | Self::Date | Self::Integer | Self::Moment | Self::Smallint => {
                value.value().to_ne_bytes().to_vec()
            }
            // SAFETY: the caller's promise.
            Self::Uuid => unsafe { std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), 16).to_vec() },
            // SAFETY: the caller's promise.
            Self::Bigints | Self::Bytea | Self::Code | Self::Jsonb | Self::Text => unsafe {
                pgrx::varlena::varlena_to_byte_slice(pg_sys::pg_detoast_datum(value.cast_mut_ptr())).to_vec()
            },
        }
    }

    /// The types that are read like this one, itself the first.
    pub const fn read_from(self) -> &'static [pg_sys::Oid] {
        match self {
            Self::Code | Self::Text => &[pg_sys::TEXTOID, pg_sys::VARCHAROID],
            Self::Bigint => &[pg_sys::INT8OID],
            Self::Bigints => &[pg_sys::INT8ARRAYOID],
            Self::Boolean => &[pg_sys::BOOLOID],
            Self::Bytea => &[pg_sys::BYTEAOID],
            Self::Date => &[pg_sys::DATEOID],
            Self::Integer => &[pg_sys::INT4OID],
            Self::Jsonb => &[pg_sys::JSONBOID],
            Self::Moment => &[pg_sys::TIMESTAMPTZOID],
            Self::Smallint => &[pg_sys::INT2OID],
            Self::Uuid => &[pg_sys::UUIDOID],
        }
    }

    /// Of what is no text: none.
    pub const fn collation(self) -> pg_sys::Oid {
        match self {
            Self::Code => pg_sys::C_COLLATION_OID,
            Self::Text => pg_sys::DEFAULT_COLLATION_OID,
            _ => pg_sys::Oid::INVALID,
        }
    }
}

/// An index, whatever its name: the access method is btree, and everything that is not said is as it is by default.
pub struct Index {
    /// Of the table.
    pub columns: &'static [&'static str],
    /// No two rows have the same key.
    pub is_unique: bool,
    /// Of which rows it is, as the server prints it.
    pub predicate: Option<&'static str>,
}

/// Whether a row of a table, with these columns, belongs into its partial indexes.
pub type PartialIndexMembership = fn(&[Value]) -> bool;

/// What partial indexes of a table are for, as the server prints it; and which of the rows to be written are of those.
#[derive(Clone, Copy)]
pub struct Partial {
    /// See [`Index::predicate`].
    pub predicate: &'static str,
    /// Which rows those are.
    pub belongs: PartialIndexMembership,
}
