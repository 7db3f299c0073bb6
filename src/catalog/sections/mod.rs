//! The sections of the catalog, a file each. `catalog::document` lists them.

pub mod caps;
pub mod metrics;
pub mod packs;
pub mod plans;
pub mod surcharges;
