//! Reports of usage: entries folded into days, what is not folded yet, and the functions that answer from both.

pub mod fold;
pub mod history;
pub mod tail;
