//! Work for the world outside (sql/extension/outbox.sql).

use crate::pg::spi::Db;
use crate::{args, statements};
use serde_json::Value;
use uuid::Uuid;

statements! {
    EMIT(uuid, text, jsonb) = "select billing_internal.emit_event($1, $2, $3)";
}

/// Puts work there; whoever waits for it is told at the commit.
pub fn emit(db: &Db, org_id: Uuid, topic: &str, payload: &Value) {
    db.write(&EMIT, args![org_id, topic, crate::pg::jsonb::from_text(&payload.to_string())]);
}
