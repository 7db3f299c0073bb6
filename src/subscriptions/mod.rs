//! Subscriptions of orgs to plans, by functions and by what providers report.

pub mod collected;
pub mod subscribe;
