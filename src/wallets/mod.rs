//! Wallets as an application manages them: grants, transfers, balances, budgets, expiry, lanes and
//! verification.

pub mod balance;
pub mod budgets;
pub mod expiry;
pub mod grants;
pub mod lane_count;
pub mod rules;
pub mod transfer;
pub mod verify;
