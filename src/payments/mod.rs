//! Money for credit: what a purchase costs, payments and what becomes of them, what providers report.

pub mod quote;
pub mod report;
pub mod request;
pub mod secrets;
pub mod state;
pub mod store;
