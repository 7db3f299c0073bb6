//! What is known of a call that was made before under the same idempotency key.

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
