//! Plans: who is on which, what they include, and what begins with each of their periods.

pub mod period;
pub mod store;
