//! The table of alerts.

use crate::schema::table::table;

table! {
    /// The alerts: thresholds that were crossed.
    alerts in billing {
        org_id: Uuid,
        kind: Code,
        subject: Code,
        share: Integer,
        raised_at: Moment,
        resolved_at: Moment null,
        value: Bigint,
        threshold: Bigint,
        number: Bigint,
    }
    indexes {
        /// The index of all alerts; a threshold that is crossed again gets the next number.
        KEY (org_id, kind, subject, share, number);
        /// The index of the alerts that hold, at most one for each threshold.
        OPEN (org_id, kind, subject, share) where "(resolved_at IS NULL)";
    }
    find {
        /// Finds all alerts about a subject.
        of_subject by KEY (org_id, kind, subject);
    }
    partial "(resolved_at IS NULL)" has |row| row.resolved_at().is_none();
}
