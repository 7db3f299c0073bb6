//! Payment providers, without a server: how each signs its reports, and what its reports say.
//!
//! A provider is one file that implements [`Provider`], and its line in [`ALL`].

pub mod event;
mod razorpay;
pub mod signature;
mod stripe;

use event::{Event, Unreadable};
use signature::Fault;

/// A payment provider whose webhooks are understood.
pub trait Provider: Sync {
    /// The name by which SQL functions and the catalog know the provider.
    fn name(&self) -> &'static str;

    /// Checks the signature of a payload by any of the secrets; `now` is in Unix seconds.
    fn verify(&self, payload: &[u8], signature: &str, secrets: &[Vec<u8>], now: i64) -> Result<(), Fault>;

    /// Reads the event that a payload reports.
    fn parse(&self, payload: &str) -> Result<Event, Unreadable>;

    /// Whether the id of an event stands in a header beside the payload, and not in the payload.
    fn has_event_id_in_header(&self) -> bool;

    /// Whether the customer of a payment was named by a holder of the secret key, and not by the
    /// payer's browser.
    fn vouches_for_customer(&self) -> bool;
}

/// All providers whose webhooks are understood.
pub static ALL: &[&dyn Provider] = &[&stripe::Stripe, &razorpay::Razorpay];

/// The provider of that name.
pub fn find(name: &str) -> Option<&'static dyn Provider> {
    ALL.iter().copied().find(|provider| provider.name() == name)
}

/// The names of all providers, for error messages.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|provider| provider.name()).collect()
}
