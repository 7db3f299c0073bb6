//! The record of a call that was made before under the same idempotency key.

use crate::pg::spi::Row;
use uuid::Uuid;

/// The first entry of the operation that took a key.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Replay {
    pub operation_id: i64,
    pub request_hash: Option<i64>,
    pub result: Option<String>,
    pub kind: String,
    pub metric: Option<String>,
    pub quantity: Option<i64>,
    pub amount: i64,
    pub balance_before: i64,
    pub balance_after: i64,
    pub member_id: Option<Uuid>,
    pub metadata: String,
    pub key: Option<String>,
}

impl Replay {
    /// Reads the record from the columns of a statement's row from `at` on: operation, hash,
    /// result, then the other fields in their order.
    pub fn of_row(row: &Row, at: usize) -> Self {
        Self {
            operation_id: row.get(at),
            request_hash: row.opt(at + 1),
            result: row.opt(at + 2),
            kind: row.get(at + 3),
            metric: row.opt(at + 4),
            quantity: row.opt(at + 5),
            amount: row.get(at + 6),
            balance_before: row.get(at + 7),
            balance_after: row.get(at + 8),
            member_id: row.opt(at + 9),
            metadata: row.get(at + 10),
            key: row.opt(at + 11),
        }
    }
}
