//! Spending credit: consumption, batches, reservations and refunds.

pub mod batch;
pub mod consume;
pub mod holds;
pub mod refund;
