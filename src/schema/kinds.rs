//! The kinds of columns that declared tables have: how a value of each is taken from a row, and made for one.

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

    /// The value of a column that is not null.
    ///
    /// # Safety
    /// The datum is of that SQL type, and what it points to lives as long as the result.
    unsafe fn read<'a>(datum: pg_sys::Datum) -> Self::Out<'a>;

    /// The value as the server takes it.
    fn write(value: Self::In<'_>) -> Value;
}

/// A kind of column by which rows are looked for.
pub trait KeyKind: Kind {
    /// The comparison by equality.
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
                // SAFETY: the caller's promise.
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
    /// An integer of 64 bits.
    Bigint: i64 => i64, Big;
    /// An array of integers of 64 bits.
    Bigints: Vec<i64> => Vec<i64>;
    /// True or false.
    Boolean: bool => bool;
    /// Bytes.
    Bytea: &'a [u8] => &'a [u8];
    /// A text of the collation "C", which names something.
    Code: &'a str => &'a str, Text;
    /// A day, as the server counts them.
    Date: i32 => i32, Day;
    /// An integer of 32 bits.
    Integer: i32 => i32;
    /// A JSON document.
    Jsonb: json::Jsonb => json::Jsonb;
    /// A moment.
    Moment: time::Moment => time::Moment, Moment;
    /// An integer of 16 bits.
    Smallint: i16 => i16, Small;
    /// A text for people.
    Text: &'a str => &'a str;
    /// A UUID.
    Uuid: uuid::Uuid => uuid::Uuid, Uuid;
}

/// A value of a column as Rust has it.
trait Read {
    /// # Safety
    /// The datum is of an SQL type that is read like this, and what it points to lives as long as the result.
    unsafe fn read(datum: pg_sys::Datum) -> Self;
}

macro_rules! read_owned {
    ($($type:ty)*) => { $(
        impl Read for $type {
            #[inline]
            unsafe fn read(datum: pg_sys::Datum) -> Self {
                // SAFETY: the caller's promise.
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
                // SAFETY: the caller's promise; not null.
                unsafe { <$type>::from_datum(datum, false) }.expect("a column that is not null")
            }
        }
    )* };
}
read_borrowed!(&str &[u8] json::Jsonb);
