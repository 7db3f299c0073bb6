//! Payments: what a purchase costs, the states of a payment, its rows, and the secrets of
//! providers.

pub mod quote;
pub mod report;
pub mod request;
pub mod secrets;
pub mod state;
pub mod store;
