//! The outcome of handling what a provider reports.

use uuid::Uuid;

/// The outcome of handling one report.
pub enum Handled {
    /// The work that it asks for is done, for that org.
    Processed(Option<Uuid>),
    /// There is nothing to do for it.
    Ignored,
    /// It waits for a person, for that reason.
    Review(&'static str, Option<Uuid>),
}
