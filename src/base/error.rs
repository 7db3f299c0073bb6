//! The errors that callers see: a SQLSTATE, a constant ASCII message, and everything variable in a
//! JSON detail.
//!
//! `PTnnn` is a convention of `PostgREST`, which answers with HTTP status nnn. The message travels
//! in an HTTP status line, hence constant and ASCII.

use serde_json::{Map, Value};

/// The outcome of a rule or a statement that may refuse.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal with all that a caller may want to know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    /// The five characters of the SQLSTATE; the constructors have them.
    pub sqlstate: [u8; 5],
    /// The name for programs, which is `code` in the detail.
    pub code: &'static str,
    /// The message for people, constant and ASCII.
    pub message: &'static str,
    /// The members of the detail beside the code.
    pub detail: Map<String, Value>,
    /// The way out, for people.
    pub hint: Option<&'static str>,
}

impl Error {
    fn new(sqlstate: [u8; 5], code: &'static str, message: &'static str) -> Self {
        Self { sqlstate, code, message, detail: Map::new(), hint: None }
    }

    /// Adds a member to the detail.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.detail.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    /// Writes the detail as it is shown: `{"code": …, …}`.
    #[must_use]
    pub fn detail_json(&self) -> Value {
        let mut all = Map::new();
        all.insert("code".to_owned(), self.code.into());
        all.extend(self.detail.clone());
        Value::Object(all)
    }

    /// Refuses an argument: NULL where a value is needed, zero, negative, too long, overflow…
    pub fn invalid(argument: &str, fault: &str) -> Self {
        Self::new(*b"22023", "invalid_argument", "invalid argument").with("argument", argument).with("fault", fault)
    }

    /// Refuses a catalog document or a price with its faults, each with its path.
    pub fn invalid_catalog(faults: Vec<Value>) -> Self {
        Self::new(*b"22023", "invalid_catalog", "invalid catalog").with("faults", faults)
    }

    /// Refuses a call that needs more credit than there is.
    pub fn insufficient(required: i64, available: i64) -> Self {
        Self::new(*b"PT402", "insufficient_credits", "insufficient credits")
            .with("required", required)
            .with("available", available)
    }

    /// Refuses usage beyond an allowance, where there is no price at which more could be had.
    pub fn plan_limit(metric: &str, allowance: i64, remaining: i64, quantity: i64) -> Self {
        Self::new(*b"PT402", "plan_limit", "plan limit reached")
            .with("metric", metric)
            .with("allowance", allowance)
            .with("remaining", remaining)
            .with("quantity", quantity)
    }

    /// Refuses the name or id of something that does not exist. A long one is shortened in the
    /// detail.
    pub fn unknown(code: &'static str, id: impl Into<Value>) -> Self {
        let id = match id.into() {
            Value::String(long) if long.len() > 200 => Value::from(long.chars().take(64).collect::<String>()),
            id => id,
        };
        let message = match code {
            "unknown_org" => "unknown org",
            "unknown_metric" => "unknown metric",
            "unknown_hold" => "unknown hold",
            "unknown_operation" => "unknown operation",
            "unknown_grant" => "unknown grant",
            "unknown_plan" => "unknown plan",
            "unknown_pack" => "unknown pack",
            "unknown_payment" => "unknown payment",
            "unknown_event" => "unknown event",
            "unknown_batch" => "unknown batch",
            _ => "not found",
        };
        let name = code.strip_prefix("unknown_").unwrap_or(code);
        Self::new(*b"PT404", code, message).with(name, id)
    }

    /// Refuses a code that does not exist, is used up, expired or voided. The error does not tell
    /// which, so that nobody learns from it which codes there are.
    pub fn unknown_code() -> Self {
        Self::new(*b"PT404", "unknown_code", "unknown code")
    }

    /// Refuses to try a code after too many wrong ones.
    pub fn too_many_attempts(retry_at: crate::base::time::Moment) -> Self {
        Self::new(*b"PT429", "too_many_attempts", "too many attempts")
            .with("retry_at", crate::base::time::display(retry_at))
    }

    /// Refuses a purchase by a member who has begun too many.
    pub fn too_many_purchases(retry_at: crate::base::time::Moment) -> Self {
        Self::new(*b"PT429", "too_many_purchases", "too many purchases")
            .with("retry_at", crate::base::time::display(retry_at))
            .hint("Finish or leave those that were begun; a service role may begin more.")
    }

    /// Refuses an idempotency key that was used for another request.
    pub fn idempotency_conflict(key: &str) -> Self {
        Self::new(*b"PT409", "idempotency_conflict", "idempotency key was used for another request")
            .with("idempotency_key", key)
            .hint("Give every request a key of its own; repeat a request with exactly the same arguments.")
    }

    /// Refuses to use a hold that was captured, released, or has timed out.
    pub fn hold_closed(hold_id: i64, status: &str) -> Self {
        Self::new(*b"PT409", "hold_closed", "hold is closed").with("hold_id", hold_id).with("status", status)
    }

    /// Refuses a capture beyond the reservation, where the caller does not want that.
    pub fn capture_exceeds(reserved: i64, required: i64) -> Self {
        Self::new(*b"PT409", "capture_exceeds", "capture exceeds the hold")
            .with("reserved", reserved)
            .with("required", required)
    }

    /// Refuses a refund of more than an operation burned, less what went back already.
    pub fn refund_exceeds(requested: i64, refundable: i64) -> Self {
        Self::new(*b"PT409", "refund_exceeds", "refund exceeds what was burned")
            .with("requested", requested)
            .with("refundable", refundable)
    }

    /// Refuses usage that the budget of a member does not cover.
    pub fn cap_exceeded(member_id: &str, per: &str, limit: i64, used: i64, required: i64) -> Self {
        Self::new(*b"PT429", "cap_exceeded", "cap exceeded")
            .with("member_id", member_id)
            .with("per", per)
            .with("limit", limit)
            .with("used", used)
            .with("required", required)
    }

    /// Refuses usage that a cap of the catalog does not allow.
    pub fn cap_reached(cap: &CapReached<'_>) -> Self {
        let mut error = Self::new(*b"PT429", "cap_exceeded", "cap exceeded")
            .with("cap", cap.name)
            .with("per", cap.per)
            .with("limit", cap.limit)
            .with("used", cap.used)
            .with("required", cap.required)
            .with("resets_at", crate::base::time::display(cap.resets_at));
        for (name, value) in [("metric", cap.metric), ("category", cap.category)] {
            if let Some(value) = value {
                error = error.with(name, value);
            }
        }
        match cap.member_id {
            Some(member_id) => error.with("member_id", member_id.to_string()),
            None => error,
        }
    }

    /// Refuses a report of a provider that does not fit the payment.
    pub fn mismatch(what: &str, expected: &str, reported: &str) -> Self {
        Self::new(*b"PT409", "payment_mismatch", "the report does not fit the payment")
            .with("what", what)
            .with("expected", expected)
            .with("reported", reported)
    }

    /// Refuses a change of a payment that its state does not allow.
    pub fn illegal_transition(from: &str, to: &str) -> Self {
        Self::new(*b"PT409", "illegal_transition", "a payment cannot do that").with("from", from).with("to", to)
    }

    /// Refuses a delivery whose signature is missing or wrong.
    pub fn bad_signature(fault: &str) -> Self {
        Self::new(*b"PT401", "invalid_signature", "signature not accepted").with("fault", fault)
    }

    /// Refuses to change or end a subscription that the org does not have.
    pub fn no_subscription(org_id: &str) -> Self {
        Self::new(*b"PT404", "unknown_subscription", "no active subscription").with("org_id", org_id)
    }

    /// Refuses a caller that may not see or do this for the org.
    pub fn not_authorized(org_id: &str) -> Self {
        Self::new(*b"42501", "not_authorized", "not authorized for this org").with("org_id", org_id)
    }

    /// Refuses a caller whose role was not given the level that the function needs.
    pub fn no_level(role: &str, needed: &[&str]) -> Self {
        Self::new(*b"42501", "no_level", "this function needs a level that the role was not given")
            .with("role", role)
            .with("needs", needed.to_vec())
            .hint("Run as the owner of the extension: select billing.grant_access('role', 'level'); the right to execute the function is not enough.")
    }

    /// Refuses to work on a table with a trigger that would run somebody else's function with our
    /// rights.
    pub fn foreign_trigger(trigger: &str, table: &str, function: &str, owner: &str) -> Self {
        Self::new(*b"42501", "foreign_trigger", "a trigger of another role hangs on a table of pg_billing")
            .with("trigger", trigger)
            .with("table", table)
            .with("function", function)
            .with("owner", owner)
            .hint("It would run with the rights of the extension. Drop it, and run: select billing.install(); which takes the right to make another.")
    }

    /// Refuses to work beside a function that could be called in the place of one of ours, with our
    /// rights.
    pub fn foreign_function(function: &str, owner: &str) -> Self {
        Self::new(*b"42501", "foreign_function", "a function of another role stands in a schema of pg_billing")
            .with("function", function)
            .with("owner", owner)
            .hint("It could be called in the place of one of ours. Drop it, and run: select billing.install(); which takes the right to make another.")
    }

    /// Refuses to work with tables that are missing, or older or newer than the library.
    pub fn not_installed(tables: i64, library: i64) -> Self {
        Self::new(*b"55000", "not_installed", "the tables of pg_billing do not fit its library")
            .with("tables_version", tables)
            .with("library_version", library)
            .hint("Run: select billing.install();")
    }

    /// Refuses to go on where tables are gone that `install()` had made, such as with their schema.
    pub fn tables_missing(missing: &str) -> Self {
        Self::new(*b"55000", "tables_missing", "some tables of pg_billing are gone").with("tables", missing).hint(
            "Restore them from a backup. To begin with nothing instead: drop extension pg_billing cascade; \
                 drop schema billing, billing_internal cascade; create extension pg_billing; select billing.install();",
        )
    }

    /// Refuses to migrate tables on an old snapshot: what is committed by now must be seen.
    pub fn one_snapshot() -> Self {
        Self::new(*b"25001", "wrong_isolation", "the tables of pg_billing are migrated under read committed only")
            .hint("Run: begin isolation level read committed; select billing.install(); commit;")
    }

    /// Refuses a database whose encoding could not hold every text.
    pub fn encoding() -> Self {
        Self::new(*b"0A000", "unsupported_encoding", "pg_billing needs a database with the encoding UTF8")
    }

    /// Gives up after other transactions were faster again and again. A retry of the transaction
    /// helps.
    pub fn contended() -> Self {
        Self::new(*b"40001", "contended", "could not serialize access, try again")
    }

    /// Reports rows that the engine never leaves behind: somebody else changed the tables.
    pub fn corrupt(what: &'static str) -> Self {
        Self::new(*b"XX001", "corrupt_ledger", "the ledger is inconsistent")
            .with("what", what)
            .hint("Run: select * from billing.verify_ledger();")
    }

    /// Reports an index that led to a row with another key.
    pub fn corrupt_index(table: &str) -> Self {
        Self::new(*b"XX001", "corrupt_index", "an index does not fit its table")
            .with("table", table)
            .hint("Check the indexes of the table with bt_index_check() of the extension amcheck, then: reindex table.")
    }

    /// Reports a column whose type is not the one that it was made with.
    pub fn table_changed(column: &str, expected: &str, found: &str) -> Self {
        Self::new(*b"55000", "table_changed", "a table of pg_billing was changed")
            .with("column", column)
            .with("expected", expected)
            .with("found", found)
            .hint("Put the column back as it was: docs/REFERENCE.md names the types.")
    }
}

/// A cap that does not allow a quantity: the facts that its error tells.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct CapReached<'a> {
    pub name: &'a str,
    pub metric: Option<&'a str>,
    pub category: Option<&'a str>,
    pub per: &'a str,
    pub limit: i64,
    pub used: i64,
    pub required: i64,
    /// The member whose usage is capped, where it is not that of the whole org.
    pub member_id: Option<uuid::Uuid>,
    pub resets_at: crate::base::time::Moment,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detail_leads_with_the_code() {
        let error = Error::insufficient(30, 12);
        assert_eq!(error.detail_json().to_string(), r#"{"available":12,"code":"insufficient_credits","required":30}"#);
        assert!(error.message.is_ascii());
    }
}
