//! Shapes: the description of a table whose rows are read and written directly, made from its
//! declaration in `schema`.
//!
//! A table in the database is compared with its shape before a row is touched (`check.rs`), so a
//! table that somebody has altered is used by statements.

use crate::pg::heap::Value;
use pgrx::pg_sys;

/// The description of a table.
pub struct Shape {
    /// The schema of the table.
    pub schema: &'static str,
    /// The name of the table in its schema.
    pub name: &'static str,
    /// All columns, in the order of the table.
    pub columns: &'static [Column],
    /// The unique indexes by which rows are looked up, or by which a duplicate is recognized.
    pub indexes: &'static [&'static Index],
    /// The partial indexes that are allowed where rows are written.
    pub partial: Option<Partial>,
    /// The parent, where the table is a partition.
    pub parent: Option<&'static Shape>,
}

impl Shape {
    /// The shape of a table that is no partition.
    pub const fn new(
        schema: &'static str,
        name: &'static str,
        columns: &'static [Column],
        indexes: &'static [&'static Index],
    ) -> Self {
        assert!(columns.len() <= crate::pg::heap::MOST_COLUMNS && indexes.len() <= MOST_INDEXES, "a table of ours");
        Self { schema, name, columns, indexes, partial: None, parent: None }
    }

    /// Allows partial indexes of that predicate, which get entries for the rows of which `belongs`
    /// says so.
    pub const fn with_partial(mut self, predicate: &'static str, belongs: PartialIndexMembership) -> Self {
        self.partial = Some(Partial { predicate, belongs });
        self
    }

    /// The shape of the partitions of a table, which have its columns and none of its indexes.
    pub const fn partition_of(parent: &'static Self) -> Self {
        let mut partition = Self::new(parent.schema, parent.name, parent.columns, &[]);
        partition.parent = Some(parent);
        partition
    }
}

/// The most indexes of a shape.
pub const MOST_INDEXES: usize = 2;

/// The description of a column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// The name of the column.
    pub name: &'static str,
    /// The type of the column, with its collation.
    pub kind: Type,
    /// Whether the column may be null.
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
    /// A `text` of the collation "C", for names and codes.
    Code,
    Date,
    Integer,
    Jsonb,
    Moment,
    Smallint,
    /// A `text` of the database's collation, for people.
    Text,
    Uuid,
}

impl Type {
    /// The id of the type in the catalogs.
    pub const fn oid(self) -> pg_sys::Oid {
        self.read_from()[0]
    }

    /// The bytes of a value, for comparing two values.
    ///
    /// # Safety
    /// `value` is of this type.
    #[cfg(feature = "compare_ways")]
    pub unsafe fn bytes(self, value: pg_sys::Datum) -> Vec<u8> {
        match self {
            Self::Bigint | Self::Boolean | Self::Date | Self::Integer | Self::Moment | Self::Smallint => {
                value.value().to_ne_bytes().to_vec()
            }
            // SAFETY: the caller keeps its promise.
            Self::Uuid => unsafe { std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), 16).to_vec() },
            // SAFETY: the caller keeps its promise.
            Self::Bigints | Self::Bytea | Self::Code | Self::Jsonb | Self::Text => unsafe {
                pgrx::varlena::varlena_to_byte_slice(pg_sys::pg_detoast_datum(value.cast_mut_ptr())).to_vec()
            },
        }
    }

    /// The ids of the types that are read like this one, its own id first.
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

    /// The collation of the type, which is invalid for types other than text.
    pub const fn collation(self) -> pg_sys::Oid {
        match self {
            Self::Code => pg_sys::C_COLLATION_OID,
            Self::Text => pg_sys::DEFAULT_COLLATION_OID,
            _ => pg_sys::Oid::INVALID,
        }
    }
}

/// The description of a unique index, whatever its name. Its access method is btree, and whatever
/// is not described is the default.
pub struct Index {
    /// The columns of the table that are the key.
    pub columns: &'static [&'static str],
    /// Whether no two rows may have the same key.
    pub is_unique: bool,
    /// The predicate of a partial index, as the server prints it.
    pub predicate: Option<&'static str>,
}

/// A function that tells whether a row with these columns belongs into the partial indexes of its
/// table.
pub type PartialIndexMembership = fn(&[Value]) -> bool;

/// The predicate that partial indexes of a table may have, with the function that evaluates it.
#[derive(Clone, Copy)]
pub struct Partial {
    /// The predicate as the server prints it; see [`Index::predicate`].
    pub predicate: &'static str,
    /// The function that evaluates the predicate for a row that is written.
    pub belongs: PartialIndexMembership,
}
