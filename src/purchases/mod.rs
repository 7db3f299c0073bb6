//! Purchases of packs, and the money that pays for them.

pub mod money;
pub mod purchase;
