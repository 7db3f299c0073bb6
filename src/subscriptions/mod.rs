//! Subscriptions of orgs to plans, by SQL functions and by what providers report.

pub mod collected;
pub mod subscribe;
