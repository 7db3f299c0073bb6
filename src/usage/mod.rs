//! Usage: events that are recorded, the counters that they count in, and the tallies by which they
//! are charged.

pub mod counters;
pub mod events;
pub mod record;
pub mod tally;
