//! The setting that switches direct rows off, so that statements read and write everything.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};

static DIRECT_ROWS: GucSetting<bool> = GucSetting::<bool>::new(true);

/// Registers the setting `billing.direct_rows`.
pub fn define_setting() {
    GucRegistry::define_bool_guc(
        c"billing.direct_rows",
        c"Reads and writes single rows of the tables of pg_billing without statements.",
        c"Only a superuser may set it. Off: statements do all of it, which is slower and comes to the same.",
        &DIRECT_ROWS,
        GucContext::Suset,
        GucFlags::default(),
    );
}

pub(super) fn is_on() -> bool {
    DIRECT_ROWS.get()
}
