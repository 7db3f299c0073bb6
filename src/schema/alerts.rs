//! The table of alerts.

use crate::schema::table::table;

table! {
    /// Thresholds that were crossed.
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
        /// Alerts by crossing.
        KEY (org_id, kind, subject, share, number);
        /// Of those that hold there is one each.
        OPEN (org_id, kind, subject, share) where "(resolved_at IS NULL)";
    }
    find {
        /// All crossings of the thresholds of a subject.
        of_subject by KEY (org_id, kind, subject);
    }
    partial "(resolved_at IS NULL)" has |row| row.resolved_at().is_none();
}
