//! The tables: their version here, and what each of them consists of.

pub mod version;
