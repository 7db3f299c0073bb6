//! The tables of recorded usage, of the usage that is decided, and of the reports.

use crate::schema::table::table;

table! {
    /// The unsettled usage: what is recorded and waits for settlement.
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
        /// The index of rows by usage bucket, and by the transaction that made them.
        KEY (org_id, metric, period_start, segment, slot);
    }
    find {
        /// Finds all rows of a usage bucket.
        of_bucket by KEY (org_id, metric, period_start, segment);
        /// Finds all rows of a metric in a period.
        of_period by KEY (org_id, metric, period_start);
        /// Finds all rows of an org.
        of_org by KEY (org_id);
    }
}

table! {
    /// The hashes of the ids of recorded events, by which a repeated event is recognized.
    usage_event_keys in billing_internal { org_id: Uuid, event_key: Uuid }
    indexes {
        /// The index of the hashes by org.
        KEY (org_id, event_key);
    }
}

table! {
    /// The recorded events, in partitions by the month of their arrival.
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
    /// The counters: the usage of a metric in a billing period that is decided.
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
        /// The index of counters by metric and period.
        KEY (org_id, metric, period_start);
    }
    find {
        /// Finds the counter of a metric in a period.
        one by KEY (org_id, metric, period_start);
    }
    partial "((level IS NOT NULL) AND (NOT carried))" has |row| row.level().is_some() && !row.carried();
}

table! {
    /// The usage by day, as far as it is folded.
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
        /// The index of days by metric.
        KEY (org_id, metric, day);
    }
    find {
        /// Finds a day of a metric.
        one by KEY (org_id, metric, day);
        /// Finds the days of a metric from one on.
        since by KEY (org_id, metric, day from);
    }
}

table! {
    /// The movements of credit by month, as far as they are folded.
    credit_months in billing_internal {
        org_id: Uuid,
        unit: Code,
        month: Date,
        kind: Code,
        metric: Code,
        credits: Bigint,
    }
    indexes {
        /// The index of months by unit, kind and metric.
        KEY (org_id, unit, month, kind, metric);
    }
    find {
        /// Finds a month of a unit, kind and metric.
        one by KEY (org_id, unit, month, kind, metric);
    }
}

table! {
    /// The last entry of each lane that is folded.
    fold_positions in billing_internal { org_id: Uuid, slot: Smallint, entry_id: Bigint }
    indexes {
        /// The index of positions by lane.
        KEY (org_id, slot);
    }
    find {
        /// Finds the last folded entry of a lane.
        of_lane by KEY (org_id, slot);
    }
}
