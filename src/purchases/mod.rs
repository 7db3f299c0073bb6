//! Purchases of packs, and the credit that payments bring and take back.

pub mod money;
pub mod purchase;
