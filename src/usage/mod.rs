//! Usage: what is recorded, how it is counted, and what it was in the past.

pub mod counters;
pub mod events;
pub mod fold;
mod history;
pub mod recent;
pub mod record;
pub mod tail;
pub mod tally;
