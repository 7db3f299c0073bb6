//! The tables: their declarations, their version, and `install()`.

pub mod install;
