//! The outcome of handling a provider's report.

use uuid::Uuid;

/// The outcome of handling one report.
pub enum Handled {
    /// The work that the report asks for is done, for that org.
    Processed(Option<Uuid>),
    /// The report asks for nothing.
    Ignored,
    /// The report waits for a person, for that reason.
    Review(&'static str, Option<Uuid>),
}
