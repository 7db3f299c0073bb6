//! Usage: what is recorded, how it is counted, and what it was in the past.

pub mod counters;
pub mod events;
pub mod record;
pub mod tally;
