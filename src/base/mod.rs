//! Errors, time, units of wallets, lengths of validity and lists of words: the vocabulary of all
//! other modules. Nothing here needs a server.

pub mod error;
pub mod hash;
pub mod time;
pub mod units;
pub mod validity;
pub mod words;
