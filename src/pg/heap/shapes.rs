//! The tables that are read and written without statements, as `install()` makes them.
//!
//! What is in the database is compared with this before a row is touched (`check.rs`): whoever changes a table gets statements.

use super::index::Belongs;
use pgrx::pg_sys;

/// A table.
pub struct Shape {
    /// The schema that it is in.
    pub schema: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// All of them, in order.
    pub columns: &'static [Column],
    /// Those by which rows are looked for, or by which is told whether one is new.
    pub indexes: &'static [&'static Index],
    /// What partial indexes there may be where rows are written.
    pub partial: Option<Partial>,
    /// The table of which it is a partition.
    pub parent: Option<&'static Shape>,
}

impl Shape {
    const fn new(
        schema: &'static str,
        name: &'static str,
        columns: &'static [Column],
        indexes: &'static [&'static Index],
    ) -> Self {
        assert!(columns.len() <= super::MOST_COLUMNS && indexes.len() <= MOST_INDEXES, "a table of ours");
        Self { schema, name, columns, indexes, partial: None, parent: None }
    }

    const fn with_partial(mut self, predicate: &'static str, belongs: Belongs) -> Self {
        self.partial = Some(Partial { predicate, belongs });
        self
    }
}

/// No table of ours is looked through by more.
pub const MOST_INDEXES: usize = 2;

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// As it is called.
    pub name: &'static str,
    /// Its type, and by which collation it is ordered.
    pub kind: Type,
    /// It may be null.
    pub nullable: bool,
}

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Type {
    Bigint,
    Bigints,
    Boolean,
    Bytea,
    /// A text of the collation "C": what names something.
    Code,
    Date,
    Integer,
    Jsonb,
    Moment,
    Smallint,
    /// Of the database's collation.
    Text,
    Uuid,
}

impl Type {
    /// The server's number of it.
    pub const fn oid(self) -> pg_sys::Oid {
        match self {
            Self::Bigint => pg_sys::INT8OID,
            Self::Bigints => pg_sys::INT8ARRAYOID,
            Self::Boolean => pg_sys::BOOLOID,
            Self::Bytea => pg_sys::BYTEAOID,
            Self::Code | Self::Text => pg_sys::TEXTOID,
            Self::Date => pg_sys::DATEOID,
            Self::Integer => pg_sys::INT4OID,
            Self::Jsonb => pg_sys::JSONBOID,
            Self::Moment => pg_sys::TIMESTAMPTZOID,
            Self::Smallint => pg_sys::INT2OID,
            Self::Uuid => pg_sys::UUIDOID,
        }
    }

    /// Of what is no text: none.
    pub const fn collation(self) -> pg_sys::Oid {
        match self {
            Self::Code => pg_sys::C_COLLATION_OID,
            Self::Text => pg_sys::DEFAULT_COLLATION_OID,
            _ => pg_sys::Oid::INVALID,
        }
    }
}

/// An index, whatever its name: the access method is btree, and everything that is not said is as it is by default.
pub struct Index {
    /// Of the table.
    pub columns: &'static [&'static str],
    /// No two rows have the same key.
    pub is_unique: bool,
    /// Of which rows it is, as the server prints it.
    pub predicate: Option<&'static str>,
}

impl Index {
    const fn unique(columns: &'static [&'static str]) -> Self {
        Self { columns, is_unique: true, predicate: None }
    }

    const fn only(mut self, predicate: &'static str) -> Self {
        self.predicate = Some(predicate);
        self
    }
}

/// What partial indexes of a table are for, as the server prints it; and which of the rows to be written are of those.
#[derive(Clone, Copy)]
pub struct Partial {
    /// See [`Index::predicate`].
    pub predicate: &'static str,
    /// Told by whoever writes.
    pub belongs: Belongs,
}

macro_rules! columns {
    ($($name:ident: $kind:ident $($null:ident)?),* $(,)?) => {
        &[$(Column { name: stringify!($name), kind: Type::$kind, nullable: columns!(@ $($null)?) }),*]
    };
    (@) => { false };
    (@ null) => { true };
}

/// Wallets, and the parts of those that are split.
pub static LANES: Shape = Shape::new(
    "billing_internal",
    "lanes",
    columns! {
        org_id: Uuid,
        fresh_until: Moment,
        holds_due: Moment,
        reserved: Bigint,
        locked: Bigint,
        purchased: Bigint,
        scoped: Bigint,
        future: Bigint,
        slice_grant: Bigint,
        lane: Smallint,
        slot: Smallint,
        unit: Code,
        fast_until: Moment,
        last_entry_id: Bigint,
        balance: Bigint,
        slice_credits: Bigint,
        consumed: Bigint,
        head: Bytea,
        alert_below: Bigint,
        lanes: Smallint,
        alert_base: Bigint,
        recent: Bytea null,
    },
    &[&LANES_KEY],
);
/// By wallet and number.
pub static LANES_KEY: Index = Index::unique(&["org_id", "unit", "lane"]);

const REQUESTED: &str = "(request_id IS NOT NULL)";
/// What that speaks of, as columns are counted.
const REQUEST_ID: usize = 8;

/// The entries.
pub static LEDGER: Shape = Shape::new(
    "billing",
    "ledger",
    columns! {
        org_id: Uuid,
        entry_id: Bigint,
        amount: Bigint,
        balance_after: Bigint,
        created_at: Moment,
        grant_id: Bigint null,
        quantity: Bigint null,
        request_id: Bigint null,
        key_uuid: Uuid null,
        member_id: Uuid null,
        operation_id: Bigint null,
        request_hash: Bigint null,
        unit: Code null,
        kind: Code null,
        metric: Code null,
        source: Code null,
        source_id: Code null,
        key_text: Code null,
        reason: Text null,
        actor: Text null,
        metadata: Jsonb null,
        result: Text null,
        entry_hash: Bytea,
    },
    &[&LEDGER_KEY, &LEDGER_REQUEST],
)
.with_partial(REQUESTED, Belongs::Having(REQUEST_ID));
/// By number.
pub static LEDGER_KEY: Index = Index::unique(&["org_id", "entry_id"]);
/// By idempotency key.
pub static LEDGER_REQUEST: Index = Index::unique(&["org_id", "request_id"]).only(REQUESTED);

/// Reservations.
pub static HOLDS: Shape = Shape::new(
    "billing",
    "holds",
    columns! {
        org_id: Uuid,
        hold_id: Bigint,
        credits: Bigint,
        quantity: Bigint null,
        member_id: Uuid null,
        expires_at: Moment null,
        created_at: Moment,
        closed_at: Moment null,
        closed_by: Bigint null,
        parts: Integer,
        unit: Code,
        kind: Text,
        status: Text,
        metric: Code null,
        reason: Text null,
        price: Jsonb null,
        grant_id: Bigint null,
    },
    &[&HOLDS_KEY],
);
/// By number.
pub static HOLDS_KEY: Index = Index::unique(&["org_id", "hold_id"]);

/// What is recorded and not settled.
pub static UNSETTLED_USAGE: Shape = Shape::new(
    "billing_internal",
    "unsettled_usage",
    columns! {
        org_id: Uuid,
        metric: Code,
        period_start: Moment,
        segment: Moment,
        slot: Bigint,
        period_end: Moment,
        quantity: Bigint,
        level: Bigint null,
        level_at: Moment null,
        events: Bigint,
    },
    &[&UNSETTLED_USAGE_KEY],
);
/// By place, and who made the row.
pub static UNSETTLED_USAGE_KEY: Index = Index::unique(&["org_id", "metric", "period_start", "segment", "slot"]);

/// What settlement charged and nobody has paid.
pub static UNPAID_OVERAGE: Shape = Shape::new(
    "billing",
    "unpaid_overage",
    columns! { org_id: Uuid, unit: Code, metric: Code, period_start: Moment, credits: Bigint },
    &[&UNPAID_OVERAGE_KEY],
);
/// By unit, metric and period.
pub static UNPAID_OVERAGE_KEY: Index = Index::unique(&["org_id", "unit", "metric", "period_start"]);

/// Orgs that are frozen.
pub static FREEZES: Shape =
    Shape::new("billing", "freezes", columns! { org_id: Uuid, frozen_at: Moment, reason: Text }, &[&FREEZES_KEY]);
/// By org.
pub static FREEZES_KEY: Index = Index::unique(&["org_id"]);

/// The plans that orgs have and had.
pub static SUBSCRIPTIONS: Shape = Shape::new(
    "billing",
    "subscriptions",
    columns! {
        org_id: Uuid,
        starts_at: Moment,
        ends_at: Moment null,
        anchor: Moment,
        next_period_at: Moment null,
        created_at: Moment,
        plan: Code,
        pending_plan: Code null,
        cancel_at_period_end: Boolean,
        origin: Text,
        grants: Bigints,
        granted: Bigint,
        taken_back: Bigint,
        metadata: Jsonb,
        provider: Code null,
        provider_subscription: Code null,
    },
    &[&SUBSCRIPTIONS_KEY],
);
/// By org and start.
pub static SUBSCRIPTIONS_KEY: Index = Index::unique(&["org_id", "starts_at"]);

/// What providers collect for.
pub static PROVIDER_SUBSCRIPTIONS: Shape = Shape::new(
    "billing",
    "provider_subscriptions",
    columns! {
        org_id: Uuid,
        provider: Code,
        subscription: Code,
        state: Code,
        plan: Code null,
        cancel_at_period_end: Boolean,
        paid_until: Moment null,
        last_report_at: Bigint,
        last_paid_report_at: Bigint,
    },
    &[&PROVIDER_SUBSCRIPTIONS_KEY],
);
/// By provider and its id.
pub static PROVIDER_SUBSCRIPTIONS_KEY: Index = Index::unique(&["org_id", "provider", "subscription"]);

/// The ids of events that were recorded.
pub static USAGE_EVENT_KEYS: Shape = Shape::new(
    "billing_internal",
    "usage_event_keys",
    columns! { org_id: Uuid, event_key: Uuid },
    &[&USAGE_EVENT_KEYS_KEY],
);
/// By id.
pub static USAGE_EVENT_KEYS_KEY: Index = Index::unique(&["org_id", "event_key"]);

/// Events, by the month in which they came.
pub static USAGE_EVENTS: Shape = Shape::new("billing", "usage_events", USAGE_EVENT, &[]);
/// A month of them, whose name has the month besides.
pub static USAGE_EVENTS_OF_MONTH: Shape =
    Shape { parent: Some(&USAGE_EVENTS), ..Shape::new("billing", "usage_events", USAGE_EVENT, &[]) };
const USAGE_EVENT: &[Column] = columns! {
    org_id: Uuid,
    recorded_at: Moment,
    occurred_at: Moment,
    quantity: Bigint,
    member_id: Uuid null,
    metric: Code,
    event_id: Code null,
    properties: Jsonb,
};

/// What is decided of a metric in a period.
pub static PERIOD_USAGE: Shape = Shape::new(
    "billing_internal",
    "period_usage",
    columns! {
        org_id: Uuid,
        metric: Code,
        period_start: Moment,
        quantity: Bigint,
        credits: Bigint,
        overage: Bigint,
        priced: Bigint,
        price_id: Bigint,
        level: Bigint null,
        level_at: Moment null,
        carried: Boolean,
        period_end: Moment,
    },
    &[&PERIOD_USAGE_KEY],
)
// Those with a level take statements.
.with_partial("((level IS NOT NULL) AND (NOT carried))", Belongs::No);
/// By metric and period.
pub static PERIOD_USAGE_KEY: Index = Index::unique(&["org_id", "metric", "period_start"]);

/// Usage by day, as far as it is folded.
pub static USAGE_DAYS: Shape = Shape::new(
    "billing_internal",
    "usage_days",
    columns! {
        org_id: Uuid,
        metric: Code,
        day: Date,
        consumed: Bigint,
        recorded: Bigint,
        credits: Bigint,
        level_at: Moment null,
    },
    &[&USAGE_DAYS_KEY],
);
/// By metric and day.
pub static USAGE_DAYS_KEY: Index = Index::unique(&["org_id", "metric", "day"]);

/// What became of credit by month, as far as it is folded.
pub static CREDIT_MONTHS: Shape = Shape::new(
    "billing_internal",
    "credit_months",
    columns! { org_id: Uuid, unit: Code, month: Date, kind: Code, metric: Code, credits: Bigint },
    &[&CREDIT_MONTHS_KEY],
);
/// By unit, month, kind and metric.
pub static CREDIT_MONTHS_KEY: Index = Index::unique(&["org_id", "unit", "month", "kind", "metric"]);

/// How far lanes are folded.
pub static FOLDED: Shape = Shape::new(
    "billing_internal",
    "fold_positions",
    columns! { org_id: Uuid, slot: Smallint, entry_id: Bigint },
    &[&FOLDED_KEY],
);
/// By lane.
pub static FOLDED_KEY: Index = Index::unique(&["org_id", "slot"]);

const UNRESOLVED: &str = "(resolved_at IS NULL)";

/// Thresholds that were crossed.
pub static ALERTS: Shape = Shape::new(
    "billing",
    "alerts",
    columns! {
        org_id: Uuid,
        kind: Code,
        subject: Code,
        share: Integer,
        raised_at: Moment,
        resolved_at: Moment null,
        value: Bigint,
        threshold: Bigint,
        number: Bigint,
    },
    &[&ALERTS_KEY, &ALERTS_OPEN],
)
// Only those are written without a statement that are raised just now.
.with_partial(UNRESOLVED, Belongs::Yes);
/// By crossing.
pub static ALERTS_KEY: Index = Index::unique(&["org_id", "kind", "subject", "share", "number"]);
/// Of those that hold there is one each.
pub static ALERTS_OPEN: Index = Index::unique(&["org_id", "kind", "subject", "share"]).only(UNRESOLVED);

#[cfg(test)]
impl Shape {
    /// Fails unless the columns are numbered like that, from 1.
    pub fn assert_numbers(&self, numbers: &[(usize, &str)]) {
        for (number, name) in numbers {
            assert_eq!(self.columns[number - 1].name, *name, "column {number} of {}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_of_columns_that_there_are() {
        let all = [
            &LANES,
            &LEDGER,
            &HOLDS,
            &UNSETTLED_USAGE,
            &UNPAID_OVERAGE,
            &FREEZES,
            &SUBSCRIPTIONS,
            &PROVIDER_SUBSCRIPTIONS,
            &USAGE_EVENT_KEYS,
            &PERIOD_USAGE,
            &USAGE_DAYS,
            &CREDIT_MONTHS,
            &FOLDED,
            &ALERTS,
        ];
        for shape in all {
            assert!(!shape.indexes.is_empty());
            for index in shape.indexes {
                for name in index.columns {
                    let column = shape.columns.iter().find(|column| column.name == *name);
                    // Nulls are all different to a unique index.
                    assert!(column.is_some_and(|column| !column.nullable || index.predicate.is_some()), "{name}");
                }
            }
        }
        LEDGER.assert_numbers(&[(REQUEST_ID, "request_id")]);
    }
}
