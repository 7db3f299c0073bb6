//! The errors that callers see: a SQLSTATE, a constant ASCII message, and everything variable in a JSON detail.
//!
//! `PTnnn` is `PostgREST`'s convention: it answers with HTTP status nnn. The message travels in an HTTP status line,
//! hence constant and ASCII.

use serde_json::{Map, Value};

/// The outcome of a rule or a statement that may refuse.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal with all that a caller may want to know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    /// Five characters, see the constructors.
    pub sqlstate: [u8; 5],
    /// Machine-readable name, `code` of the detail.
    pub code: &'static str,
    /// Constant, ASCII.
    pub message: &'static str,
    /// Further members of the detail.
    pub detail: Map<String, Value>,
    /// What to do about it.
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

    /// The detail as it is shown: `{"code": …, …}`.
    #[must_use]
    pub fn detail_json(&self) -> Value {
        let mut all = Map::new();
        all.insert("code".to_owned(), self.code.into());
        all.extend(self.detail.clone());
        Value::Object(all)
    }

    /// An argument that cannot be: NULL where a value is needed, zero, negative, too long, overflow…
    pub fn invalid(argument: &str, fault: &str) -> Self {
        Self::new(*b"22023", "invalid_argument", "invalid argument").with("argument", argument).with("fault", fault)
    }

    /// A catalog document or price with faults, each with its path.
    pub fn invalid_catalog(faults: Vec<Value>) -> Self {
        Self::new(*b"22023", "invalid_catalog", "invalid catalog").with("faults", faults)
    }

    /// Not enough credit: what the call needs and what there is.
    pub fn insufficient(required: i64, available: i64) -> Self {
        Self::new(*b"PT402", "insufficient_credits", "insufficient credits")
            .with("required", required)
            .with("available", available)
    }

    /// The plan's allowance is used up, and there is no price at which more could be had.
    pub fn plan_limit(metric: &str, allowance: i64, remaining: i64, quantity: i64) -> Self {
        Self::new(*b"PT402", "plan_limit", "plan limit reached")
            .with("metric", metric)
            .with("allowance", allowance)
            .with("remaining", remaining)
            .with("quantity", quantity)
    }

    /// No such org, metric, hold, operation or grant.
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

    /// A code that does not exist, is used up, expired or voided: which of these is nobody's business, so all say the same.
    pub fn unknown_code() -> Self {
        Self::new(*b"PT404", "unknown_code", "unknown code")
    }

    /// Too many codes were tried in vain.
    pub fn too_many_attempts(retry_at: crate::base::time::Moment) -> Self {
        Self::new(*b"PT429", "too_many_attempts", "too many attempts")
            .with("retry_at", crate::base::time::display(retry_at))
    }

    /// A member has begun too many purchases.
    pub fn too_many_purchases(retry_at: crate::base::time::Moment) -> Self {
        Self::new(*b"PT429", "too_many_purchases", "too many purchases")
            .with("retry_at", crate::base::time::display(retry_at))
            .hint("Finish or leave those that were begun; a service role may begin more.")
    }

    /// The key was used for another request.
    pub fn idempotency_conflict(key: &str) -> Self {
        Self::new(*b"PT409", "idempotency_conflict", "idempotency key was used for another request")
            .with("idempotency_key", key)
            .hint("Give every request a key of its own; repeat a request with exactly the same arguments.")
    }

    /// The hold was captured, released, or has timed out.
    pub fn hold_closed(hold_id: i64, status: &str) -> Self {
        Self::new(*b"PT409", "hold_closed", "hold is closed").with("hold_id", hold_id).with("status", status)
    }

    /// A capture beyond what was reserved, where the caller does not want that.
    pub fn capture_exceeds(reserved: i64, required: i64) -> Self {
        Self::new(*b"PT409", "capture_exceeds", "capture exceeds the hold")
            .with("reserved", reserved)
            .with("required", required)
    }

    /// More than the operation burned, less what went back already.
    pub fn refund_exceeds(requested: i64, refundable: i64) -> Self {
        Self::new(*b"PT409", "refund_exceeds", "refund exceeds what was burned")
            .with("requested", requested)
            .with("refundable", refundable)
    }

    /// A member's budget does not cover it.
    pub fn cap_exceeded(member_id: &str, per: &str, limit: i64, used: i64, required: i64) -> Self {
        Self::new(*b"PT429", "cap_exceeded", "cap exceeded")
            .with("member_id", member_id)
            .with("per", per)
            .with("limit", limit)
            .with("used", used)
            .with("required", required)
    }

    /// A cap of the catalog does not allow it.
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

    /// What a provider reports is not what the payment is about.
    pub fn mismatch(what: &str, expected: &str, reported: &str) -> Self {
        Self::new(*b"PT409", "payment_mismatch", "the report does not fit the payment")
            .with("what", what)
            .with("expected", expected)
            .with("reported", reported)
    }

    /// A payment cannot go from where it is to there.
    pub fn illegal_transition(from: &str, to: &str) -> Self {
        Self::new(*b"PT409", "illegal_transition", "a payment cannot do that").with("from", from).with("to", to)
    }

    /// What was delivered is not signed as it should be.
    pub fn bad_signature(fault: &str) -> Self {
        Self::new(*b"PT401", "invalid_signature", "signature not accepted").with("fault", fault)
    }

    /// The org has no subscription that could be changed or ended.
    pub fn no_subscription(org_id: &str) -> Self {
        Self::new(*b"PT404", "unknown_subscription", "no active subscription").with("org_id", org_id)
    }

    /// The caller may not see or do that.
    pub fn not_authorized(org_id: &str) -> Self {
        Self::new(*b"42501", "not_authorized", "not authorized for this org").with("org_id", org_id)
    }

    /// The caller's role was not given the level that the function needs.
    pub fn no_level(role: &str, needed: &[&str]) -> Self {
        Self::new(*b"42501", "no_level", "this function needs a level that the role was not given")
            .with("role", role)
            .with("needs", needed.to_vec())
            .hint("Run as the owner of the extension: select billing.grant_access('role', 'level'); the right to execute the function is not enough.")
    }

    /// A trigger on a table of ours would run somebody else's function with our rights.
    pub fn foreign_trigger(trigger: &str, table: &str, function: &str, owner: &str) -> Self {
        Self::new(*b"42501", "foreign_trigger", "a trigger of another role hangs on a table of pg_billing")
            .with("trigger", trigger)
            .with("table", table)
            .with("function", function)
            .with("owner", owner)
            .hint("It would run with the rights of the extension. Drop it, and run: select billing.install(); which takes the right to make another.")
    }

    /// A function in our schemas could be called in the place of one of ours, with our rights.
    pub fn foreign_function(function: &str, owner: &str) -> Self {
        Self::new(*b"42501", "foreign_function", "a function of another role stands in a schema of pg_billing")
            .with("function", function)
            .with("owner", owner)
            .hint("It could be called in the place of one of ours. Drop it, and run: select billing.install(); which takes the right to make another.")
    }

    /// The tables are missing, or older or newer than the library.
    pub fn not_installed(tables: i64, library: i64) -> Self {
        Self::new(*b"55000", "not_installed", "the tables of pg_billing do not fit its library")
            .with("tables_version", tables)
            .with("library_version", library)
            .hint("Run: select billing.install();")
    }

    /// Tables are migrated on what is committed now, not on what a transaction saw first.
    pub fn one_snapshot() -> Self {
        Self::new(*b"25001", "wrong_isolation", "the tables of pg_billing are migrated under read committed only")
            .hint("Run: begin isolation level read committed; select billing.install(); commit;")
    }

    /// Texts could not be kept as they are.
    pub fn encoding() -> Self {
        Self::new(*b"0A000", "unsupported_encoding", "pg_billing needs a database with the encoding UTF8")
    }

    /// Somebody else was faster, again and again; a retry of the transaction helps.
    pub fn contended() -> Self {
        Self::new(*b"40001", "contended", "could not serialize access, try again")
    }

    /// Something that the engine never leaves behind: the tables were changed by other hands.
    pub fn corrupt(what: &'static str) -> Self {
        Self::new(*b"XX001", "corrupt_ledger", "the ledger is inconsistent")
            .with("what", what)
            .hint("Run: select * from billing.verify_ledger();")
    }

    /// An index led to a row that does not have what was looked for.
    pub fn corrupt_index(table: &str) -> Self {
        Self::new(*b"XX001", "corrupt_index", "an index does not fit its table")
            .with("table", table)
            .hint("Check the indexes of the table with bt_index_check() of the extension amcheck, then: reindex table.")
    }

    /// A column is not of the type that it was made with.
    pub fn table_changed(column: &str, expected: &str, found: &str) -> Self {
        Self::new(*b"55000", "table_changed", "a table of pg_billing was changed")
            .with("column", column)
            .with("expected", expected)
            .with("found", found)
            .hint("Put the column back as it was: docs/REFERENCE.md names the types.")
    }
}

/// A cap that does not allow what was asked for, as its error tells it.
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
