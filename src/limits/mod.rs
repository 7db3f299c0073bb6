//! What an org may still do: `check_limit`, and the caps that consumption keeps.

pub mod caps;
mod check;
pub mod cost;
pub mod standing;
mod state;
