//! The one door: all movement of credit goes through here.

pub mod audit;
pub mod chain;
pub mod debts;
pub mod expiry;
pub mod grants;
pub mod lanes;
pub mod members;
pub mod recent;
pub mod rows;
pub mod split;
pub mod store;
pub mod totals;
pub mod transfer;
pub mod verify;
pub mod wallet;
