//! The kinds of columns that declared tables have, each with the conversion from a datum and to
//! one.

use crate::base::time;
use crate::pg::heap::shapes::Type;
use crate::pg::heap::{KeyType, Value};
use crate::pg::jsonb as json;
use crate::pg::spi::{FromSql, ToSql};
use pgrx::datum::FromDatum;
use pgrx::pg_sys;

/// A kind of column.
pub trait Kind {
    /// The Rust type of a value that is written.
    type In<'a>;
    /// The Rust type of a value that is read; it may point into the row.
    type Out<'a>;
    /// The SQL type.
    const TYPE: Type;

    /// Reads a value that is not null.
    ///
    /// # Safety
    /// `datum` is of that SQL type, and what it points to lives as long as the result.
    unsafe fn read<'a>(datum: pg_sys::Datum) -> Self::Out<'a>;

    /// Converts a value to a datum.
    fn write(value: Self::In<'_>) -> Value;
}

/// A kind of column that can be part of a key.
pub trait KeyKind: Kind {
    /// The comparison for equality.
    const KEY: KeyType;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $in:ty => $out:ty $(, $key:ident)?;)*) => { $(
        $(#[$doc])*
        pub struct $kind;
        impl Kind for $kind {
            type In<'a> = $in;
            type Out<'a> = $out;
            const TYPE: Type = Type::$kind;

            #[inline]
            unsafe fn read<'a>(datum: pg_sys::Datum) -> Self::Out<'a> {
                // SAFETY: the caller keeps its promise.
                unsafe { <$out as Read>::read(datum) }
            }

            #[inline]
            fn write(value: Self::In<'_>) -> Value {
                value.to_sql()
            }
        }
        $(impl KeyKind for $kind {
            const KEY: KeyType = KeyType::$key;
        })?
    )* };
}

kinds! {
    /// The kind of a `bigint`.
    Bigint: i64 => i64, Big;
    /// The kind of a `bigint[]`.
    Bigints: Vec<i64> => Vec<i64>;
    /// The kind of a `boolean`.
    Boolean: bool => bool;
    /// The kind of a `bytea`.
    Bytea: &'a [u8] => &'a [u8];
    /// The kind of a `text` of the collation "C", for names and codes.
    Code: &'a str => &'a str, Text;
    /// The kind of a `date`, as the server's number of the day.
    Date: i32 => i32, Day;
    /// The kind of an `integer`.
    Integer: i32 => i32;
    /// The kind of a `jsonb`.
    Jsonb: json::Jsonb => json::Jsonb;
    /// The kind of a `timestamptz`.
    Moment: time::Moment => time::Moment, Moment;
    /// The kind of a `smallint`.
    Smallint: i16 => i16, Small;
    /// The kind of a `text` of the database's collation, for people.
    Text: &'a str => &'a str;
    /// The kind of a `uuid`.
    Uuid: uuid::Uuid => uuid::Uuid, Uuid;
}

/// A Rust type that a datum can be read as.
trait Read {
    /// Reads a value that is not null.
    ///
    /// # Safety
    /// `datum` is of an SQL type that is read as this type, and what it points to lives as long as
    /// the result.
    unsafe fn read(datum: pg_sys::Datum) -> Self;
}

macro_rules! read_owned {
    ($($type:ty)*) => { $(
        impl Read for $type {
            #[inline]
            unsafe fn read(datum: pg_sys::Datum) -> Self {
                // SAFETY: the caller keeps its promise.
                unsafe { <$type>::from_sql(datum) }
            }
        }
    )* };
}
read_owned!(i64 i32 i16 bool uuid::Uuid Vec<i64>);

macro_rules! read_borrowed {
    ($($type:ty)*) => { $(
        impl Read for $type {
            #[inline]
            unsafe fn read(datum: pg_sys::Datum) -> Self {
                // SAFETY: the caller keeps its promise, and the value is not null.
                unsafe { <$type>::from_datum(datum, false) }.expect("a column that is not null")
            }
        }
    )* };
}
read_borrowed!(&str &[u8] json::Jsonb);
