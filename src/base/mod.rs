//! Vocabulary of all other modules: errors, time, units of wallets and lengths of validity. Nothing here needs a server.

pub mod error;
pub mod hash;
pub mod time;
pub mod units;
pub mod validity;
pub mod words;
