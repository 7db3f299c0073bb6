//! Spending credit: consumption, batches, reservations and refunds.

pub mod batch;
pub mod consume;
pub mod consumption;
pub mod holds;
pub mod refund;
