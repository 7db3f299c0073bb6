//! Money for credit: what a purchase costs, payments and what becomes of them, what providers report.

pub mod event;
pub mod money;
pub mod purchase;
pub mod quote;
pub mod razorpay;
pub mod recharge;
pub mod secrets;
pub mod signature;
pub mod state;
pub mod store;
pub mod stripe;
pub mod subscriptions;
pub mod webhook;
