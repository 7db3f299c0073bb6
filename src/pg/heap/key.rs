//! Keys: the conditions on columns by which rows are looked up.

use crate::pg::heap::Value;
use crate::pg::heap::tid_cache::KeyHash;
use pgrx::datum::FromDatum;
use pgrx::{pg_sys, varlena};

/// A condition on a column, which is counted from 1: it compares with the value as the type of the
/// key says.
#[derive(Clone, Copy)]
pub struct Key(pub i16, pub KeyType, pub Value);

/// The type of a key's column, and how it is compared: for equality, unless the name says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum KeyType {
    /// A `uuid` that is equal.
    Uuid,
    /// A `text` of the collation "C" that is equal.
    Text,
    /// A `timestamptz` that is equal.
    Moment,
    /// A `smallint` that is equal.
    Small,
    /// A `bigint` that is equal.
    Big,
    /// A `bigint` that is greater.
    BigAbove,
    /// A `date` that is equal.
    Day,
    /// A `date` that is equal or later.
    DayFrom,
}

impl Key {
    /// Tells whether a row with these columns has the key. It is asked of every row that is found,
    /// so a remembered place or a corrupt index cannot lead to the wrong row.
    ///
    /// # Safety
    /// `row` has the columns of a table in which this column is of that type.
    pub(super) unsafe fn is_of(&self, row: &[Value]) -> bool {
        let Some((value, column)) = self.2.zip(row[usize::try_from(self.0 - 1).unwrap_or_default()]) else {
            return false;
        };
        // SAFETY: the caller keeps its promise.
        unsafe {
            match self.1 {
                KeyType::Uuid => uuid(value) == uuid(column),
                KeyType::Text => match (text(value), text(column)) {
                    (Some(value), Some(column)) => value == column,
                    // The text is compressed or stored out of line, so its bytes are not here.
                    _ => String::from_datum(value, false) == String::from_datum(column, false),
                },
                KeyType::Small => self.1.fits(number::<i16>(value), number::<i16>(column)),
                KeyType::Day | KeyType::DayFrom => self.1.fits(number::<i32>(value), number::<i32>(column)),
                KeyType::Big | KeyType::BigAbove | KeyType::Moment => {
                    self.1.fits(number::<i64>(value), number::<i64>(column))
                }
            }
        }
    }

    /// The number of the row queue for the row with these keys.
    pub(super) fn queue(keys: &[Self]) -> u32 {
        Self::hash(pg_sys::Oid::INVALID, keys).map_or(0, KeyHash::queue)
    }

    /// The hash under which the place of the row with these keys of an index is remembered; None
    /// where the keys name no single row.
    pub(super) fn hash(index: pg_sys::Oid, keys: &[Self]) -> Option<KeyHash> {
        let mut hash = KeyHash::new(index.to_u32().into());
        for Self(_, is, value) in keys {
            let value = (*value)?;
            // SAFETY: each value is of the type of its key.
            unsafe {
                hash = match is {
                    KeyType::Uuid => hash.and_bytes(uuid(value)),
                    KeyType::Text => hash.and_bytes(text(value)?),
                    KeyType::Small | KeyType::Big | KeyType::Moment => hash.and(value.value() as u64),
                    KeyType::BigAbove | KeyType::Day | KeyType::DayFrom => return None,
                };
            }
        }
        Some(hash)
    }
}

/// The bytes of a UUID.
///
/// # Safety
/// `value` is a `uuid`.
unsafe fn uuid<'a>(value: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: the caller keeps its promise.
    unsafe { std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), 16) }
}

/// The bytes of a text; None where it is compressed or stored out of line.
///
/// # Safety
/// `value` is a `text`.
unsafe fn text<'a>(value: pg_sys::Datum) -> Option<&'a [u8]> {
    let value = value.cast_mut_ptr();
    // SAFETY: the caller keeps its promise.
    unsafe {
        let is_plain = !varlena::varatt_is_4b_c(value) && !varlena::varatt_is_1b_e(value);
        is_plain.then(|| varlena::varlena_to_byte_slice(value))
    }
}

/// The number in a datum.
///
/// # Safety
/// `value` is of the SQL type that `T` stands for.
unsafe fn number<T: FromDatum + Into<i64>>(value: pg_sys::Datum) -> Option<i64> {
    // SAFETY: the caller keeps its promise.
    unsafe { T::from_datum(value, false) }.map(Into::into)
}

impl KeyType {
    /// Tells whether the value of a column fulfills the condition of the key.
    fn fits(self, key: Option<i64>, column: Option<i64>) -> bool {
        key.zip(column).is_some_and(|(key, column)| match self {
            Self::BigAbove => column > key,
            Self::DayFrom => column >= key,
            Self::Uuid | Self::Text | Self::Moment | Self::Small | Self::Big | Self::Day => column == key,
        })
    }

    /// The comparison operator in the text of a statement.
    pub fn operator(self) -> &'static str {
        match self {
            Self::BigAbove => ">",
            Self::DayFrom => ">=",
            Self::Uuid | Self::Text | Self::Moment | Self::Small | Self::Big | Self::Day => "=",
        }
    }

    pub(super) fn procedure(self) -> pg_sys::RegProcedure {
        match self {
            Self::Uuid => pg_sys::F_UUID_EQ,
            Self::Text => pg_sys::F_TEXTEQ,
            Self::Moment => pg_sys::F_TIMESTAMPTZ_EQ,
            Self::Small => pg_sys::F_INT2EQ,
            Self::Big => pg_sys::F_INT8EQ,
            Self::BigAbove => pg_sys::F_INT8GT,
            Self::Day => pg_sys::F_DATE_EQ,
            Self::DayFrom => pg_sys::F_DATE_GE,
        }
        .into()
    }

    pub(super) fn strategy(self) -> u16 {
        let strategy = match self {
            Self::BigAbove => pg_sys::BTGreaterStrategyNumber,
            Self::DayFrom => pg_sys::BTGreaterEqualStrategyNumber,
            _ => pg_sys::BTEqualStrategyNumber,
        };
        u16::try_from(strategy).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_what_is_looked_for_or_beyond_it() {
        let of = |is: KeyType| [-8, -7, -6].map(|column| is.fits(Some(-7), Some(column)));
        for is in [KeyType::Small, KeyType::Big, KeyType::Moment, KeyType::Day] {
            assert_eq!(of(is), [false, true, false]);
        }
        assert_eq!(of(KeyType::BigAbove), [false, false, true]);
        assert_eq!(of(KeyType::DayFrom), [false, true, true]);
    }
}
