//! The tables of recorded usage, of what is decided of it, and of the reports.

use crate::schema::table::table;

table! {
    /// What is recorded and not settled.
    unsettled_usage in billing_internal {
        org_id: Uuid,
        metric: Code,
        period_start: Moment,
        segment: Moment,
        slot: Bigint,
        period_end: Moment,
        quantity: Bigint,
        level: Bigint null,
        level_at: Moment null,
        events: Bigint,
    }
    indexes {
        /// Rows by place, and by who made them.
        KEY (org_id, metric, period_start, segment, slot);
    }
    find {
        /// All rows of a place.
        of_place by KEY (org_id, metric, period_start, segment);
        /// All rows of a metric in a period.
        of_period by KEY (org_id, metric, period_start);
        /// All rows of an org.
        of_org by KEY (org_id);
    }
}

table! {
    /// The ids of events that were recorded.
    usage_event_keys in billing_internal { org_id: Uuid, event_key: Uuid }
    indexes {
        /// Ids by org.
        KEY (org_id, event_key);
    }
}

table! {
    /// Events, in partitions by the month in which they came.
    usage_events in billing in partitions {
        org_id: Uuid,
        recorded_at: Moment,
        occurred_at: Moment,
        quantity: Bigint,
        member_id: Uuid null,
        metric: Code,
        event_id: Code null,
        properties: Jsonb,
    }
}

table! {
    /// What is decided of a metric in a period.
    period_usage in billing_internal {
        org_id: Uuid,
        metric: Code,
        period_start: Moment,
        quantity: Bigint,
        credits: Bigint,
        overage: Bigint,
        priced: Bigint,
        price_id: Bigint,
        level: Bigint null,
        level_at: Moment null,
        carried: Boolean,
        period_end: Moment,
    }
    indexes {
        /// Counters by metric and period.
        KEY (org_id, metric, period_start);
    }
    find {
        /// The counter of a metric in a period.
        one by KEY (org_id, metric, period_start);
    }
    partial "((level IS NOT NULL) AND (NOT carried))" has |row| row.level().is_some() && !row.carried();
}

table! {
    /// Usage by day, as far as it is folded.
    usage_days in billing_internal {
        org_id: Uuid,
        metric: Code,
        day: Date,
        consumed: Bigint,
        recorded: Bigint,
        credits: Bigint,
        level_at: Moment null,
    }
    indexes {
        /// Days by metric.
        KEY (org_id, metric, day);
    }
    find {
        /// A day of a metric.
        one by KEY (org_id, metric, day);
        /// The days of a metric from one on.
        since by KEY (org_id, metric, day from);
    }
}

table! {
    /// What became of credit by month, as far as it is folded.
    credit_months in billing_internal {
        org_id: Uuid,
        unit: Code,
        month: Date,
        kind: Code,
        metric: Code,
        credits: Bigint,
    }
    indexes {
        /// Months by unit, kind and metric.
        KEY (org_id, unit, month, kind, metric);
    }
    find {
        /// A month of a unit, kind and metric.
        one by KEY (org_id, unit, month, kind, metric);
    }
}

table! {
    /// How far lanes are folded.
    fold_positions in billing_internal { org_id: Uuid, slot: Smallint, entry_id: Bigint }
    indexes {
        /// By lane.
        KEY (org_id, slot);
    }
    find {
        /// The last folded entry of a lane.
        of_lane by KEY (org_id, slot);
    }
}
