//! A consumption: what is asked for, what is answered, and the answer to a repeated call.

use crate::base::error::{Error, Result};
use crate::call::Answer;
use crate::ledger::replay::Replay;
use crate::receipt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

receipt! {
    /// Of a consumption.
    #[derive(Serialize, Deserialize)]
    Consumption as "consumption" {
        operation_id: i64,
        metric: String,
        quantity: i64,
        included: i64,
        credits: i64,
        balance_before: i64,
        balance_after: i64,
        replayed: bool,
    }
}
impl Answer for Consumption {
    fn set_replayed(&mut self) {
        self.replayed = true;
    }
    fn set_operation(&mut self, operation_id: i64) {
        self.operation_id = operation_id;
    }
}

/// A consumption to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Item {
    pub org_id: Uuid,
    pub metric: String,
    pub quantity: i64,
    pub key: Option<String>,
    pub member_id: Option<Uuid>,
    /// As the server prints it.
    pub metadata: String,
}

/// The answer that a repeated consumption gets; an error when the key was used for another request.
pub fn replayed(found: &Replay, item: &Item) -> Result<Consumption> {
    // A consumption leaves no fingerprint: its entry has all its arguments.
    let same = found.key == item.key
        && found.request_hash.is_none()
        && found.kind == "usage"
        && found.metric.as_deref() == Some(item.metric.as_str())
        && found.quantity == Some(item.quantity)
        && found.member_id == item.member_id
        && found.metadata == item.metadata;
    if !same {
        return Err(Error::idempotency_conflict(item.key.as_deref().unwrap_or_default()));
    }
    let stored =
        found.result.as_deref().and_then(|text| serde_json::from_str::<StoredAnswer>(text).ok()).unwrap_or_default();
    Ok(Consumption {
        operation_id: stored.operation_id.unwrap_or(found.operation_id),
        metric: item.metric.clone(),
        quantity: item.quantity,
        included: stored.included.unwrap_or(0),
        credits: stored.credits.unwrap_or(-found.amount),
        balance_before: stored.balance_before.unwrap_or(found.balance_before),
        balance_after: stored.balance_after.unwrap_or(found.balance_after),
        replayed: true,
    })
}

/// The parts of an answer that are kept where its entry alone does not tell them.
#[allow(missing_docs)]
#[derive(Default, Serialize, Deserialize)]
pub struct StoredAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub included: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credits: Option<i64>,
    pub balance_before: Option<i64>,
    pub balance_after: Option<i64>,
}
