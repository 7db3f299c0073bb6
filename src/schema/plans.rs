//! The tables of subscriptions.

use crate::schema::table::table;

table! {
    /// The subscriptions: which plan an org has or had, from when to when.
    subscriptions in billing {
        org_id: Uuid,
        starts_at: Moment,
        ends_at: Moment null,
        anchor: Moment,
        next_period_at: Moment null,
        created_at: Moment,
        plan: Code,
        pending_plan: Code null,
        cancel_at_period_end: Boolean,
        origin: Text,
        grants: Bigints,
        granted: Bigint,
        taken_back: Bigint,
        metadata: Jsonb,
        provider: Code null,
        provider_subscription: Code null,
    }
    indexes {
        /// The index of subscriptions by org and start.
        KEY (org_id, starts_at);
    }
    find {
        /// Finds all subscriptions of an org, in order.
        of_org by KEY (org_id);
    }
}

table! {
    /// The subscriptions at providers, and up to when each is paid.
    provider_subscriptions in billing {
        org_id: Uuid,
        provider: Code,
        subscription: Code,
        state: Code,
        plan: Code null,
        cancel_at_period_end: Boolean,
        paid_until: Moment null,
        last_report_at: Bigint,
        last_paid_report_at: Bigint,
    }
    indexes {
        /// The index of provider subscriptions by the provider and its id.
        KEY (org_id, provider, subscription);
    }
    find {
        /// Finds a provider subscription by the provider's id.
        one by KEY (org_id, provider, subscription);
    }
}
