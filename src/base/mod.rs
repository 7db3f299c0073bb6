//! What everything else is written in: errors, time, units of wallets and lengths of validity, without a server.

pub mod error;
pub mod hash;
pub mod time;
pub mod units;
pub mod validity;
