//! Reports of usage: entries folded into days, the entries that are not folded yet, and the
//! functions that answer from both.

pub mod fold;
pub mod history;
pub mod tail;
