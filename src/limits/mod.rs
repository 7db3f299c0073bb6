//! Limits: what an org may still use (`check_limit`), and the caps that consumption must keep.

pub mod caps;
mod check;
pub mod cost;
pub mod standing;
mod state;
