//! The one door: all movement of credit goes through here.

pub mod audit;
pub mod chain;
pub mod debts;
pub mod lanes;
pub mod recent;
pub mod replay;
pub mod rows;
pub mod spendable;
pub mod store;
pub mod wallet;
