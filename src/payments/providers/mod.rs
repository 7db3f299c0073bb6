//! Payment providers: each parses its own reports into the events of `event`.

pub mod event;
pub mod razorpay;
pub mod signature;
pub mod stripe;
