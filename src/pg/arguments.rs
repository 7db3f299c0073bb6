//! Arguments as callers give them: a NULL where a value is needed is an error, never a silent NULL result.

use crate::base::error::{Error, Result};
use crate::base::units;
use crate::pg::jsonb::Jsonb;
use serde_json::Value;
use uuid::Uuid;

/// Longest idempotency key, in bytes.
pub const KEY_BYTES: usize = 255;
/// Largest metadata, in bytes.
pub const METADATA_BYTES: usize = 65_536;
/// Longest reason, in bytes.
pub const REASON_BYTES: usize = 1000;

/// A value that must be there.
pub fn required<T>(name: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::invalid(name, "must not be null"))
}

/// A uuid that must be there.
pub fn required_uuid(name: &str, value: Option<pgrx::Uuid>) -> Result<Uuid> {
    required(name, value).map(|id| Uuid::from_bytes(*id.as_bytes()))
}

/// A uuid that may be absent.
pub fn optional_uuid(value: Option<pgrx::Uuid>) -> Option<Uuid> {
    value.map(|id| Uuid::from_bytes(*id.as_bytes()))
}

/// A whole number from 1.
pub fn positive(name: &str, value: Option<i64>) -> Result<i64> {
    let value = required(name, value)?;
    if value > 0 { Ok(value) } else { Err(Error::invalid(name, "must be at least 1")) }
}

/// `credit` or a currency.
pub fn unit(value: Option<&str>) -> Result<&str> {
    let unit = required("unit", value)?;
    if units::is_unit(unit) { Ok(unit) } else { Err(Error::invalid("unit", "must be credit or an ISO 4217 currency")) }
}

/// An idempotency key, or none.
pub fn key(value: Option<&str>) -> Result<Option<&str>> {
    match value {
        Some(key) if key.is_empty() || key.len() > KEY_BYTES => {
            Err(Error::invalid("idempotency_key", "must have 1 to 255 bytes"))
        }
        key => Ok(key),
    }
}

/// A text for people that must be there.
pub fn reason(value: Option<&str>) -> Result<String> {
    let reason = required("reason", value)?;
    if reason.trim().is_empty() || reason.len() > REASON_BYTES {
        return Err(Error::invalid("reason", "must have 1 to 1000 bytes"));
    }
    Ok(reason.to_owned())
}

/// An object of bounded size; null counts as the empty one.
pub fn metadata(value: Option<Jsonb>) -> Result<Option<Jsonb>> {
    match value {
        Some(json) if !json.is_object() => Err(Error::invalid("metadata", "must be a JSON object")),
        Some(json) if json.size() > METADATA_BYTES => Err(too_long_metadata()),
        json => Ok(json),
    }
}

/// Metadata that would be kept for ever, in every backup.
pub fn too_long_metadata() -> Error {
    Error::invalid("metadata", "must have at most 65536 bytes").with("most", METADATA_BYTES)
}

/// Its text, as the server prints it.
pub fn metadata_text(value: Option<Jsonb>) -> Result<String> {
    Ok(metadata(value)?.map_or_else(|| "{}".to_owned(), Jsonb::text))
}

/// A JSON document as a value.
pub fn document(argument: &str, value: Jsonb) -> Result<Value> {
    value.value().ok_or_else(|| Error::invalid(argument, "holds a number or a depth that is out of range"))
}
