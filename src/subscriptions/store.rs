//! The statements of subscriptions: answers of calls, and what providers reported. The rows of
//! `subscriptions` themselves are those of `plans`.

use crate::base::time::Moment;
use crate::pg::spi::{Db, Timestamptz};
use crate::plans::store::BillingProvider;
use crate::{args, statements};
use uuid::Uuid;

statements! {
    REQUEST(uuid, text) =
        "select request_hash, result from billing_internal.subscription_requests where org_id = $1 and idempotency_key = $2";
    KEEP_REQUEST(uuid, text, int8, text) =
        "insert into billing_internal.subscription_requests (org_id, idempotency_key, request_hash, result) values ($1, $2, $3, $4)";
    KNOWN(text, text) =
        "select org_id, plan from billing.provider_subscriptions where provider = $1 and subscription = $2 limit 2";
    // A report that is older than the known state changes nothing, except that an end stays an end;
    // a payment overrules a report that money is missing.
    REPORT(uuid, text, text, text, text, boolean, int8) =
        "insert into billing.provider_subscriptions as s
                (org_id, provider, subscription, state, plan, cancel_at_period_end, last_report_at)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (org_id, provider, subscription) do update
            set state = case when $4 in ('incomplete', 'past_due') and s.last_paid_report_at > $7 then s.state else $4 end,
                plan = coalesce($5, s.plan), cancel_at_period_end = $6, last_report_at = greatest(s.last_report_at, $7)
          where (s.last_report_at <= $7 or $4 = 'canceled') and s.state <> 'canceled'
         returning state";
    COLLECT(uuid, text, text, text, timestamptz, int8) =
        "insert into billing.provider_subscriptions as s (org_id, provider, subscription, state, plan, paid_until, last_paid_report_at)
         values ($1, $2, $3, 'active', $4, $5, $6)
         on conflict (org_id, provider, subscription) do update
            set plan = $4, paid_until = greatest(s.paid_until, $5), last_paid_report_at = greatest(s.last_paid_report_at, $6),
                state = case when s.state in ('incomplete', 'past_due') then 'active' else s.state end";
    STATE(uuid, text, text) =
        "select state from billing.provider_subscriptions where org_id = $1 and provider = $2 and subscription = $3";
    // Another subscription pays for the plan that runs.
    OTHER_PAID_SUBSCRIPTION(uuid, text, text, timestamptz) =
        "select from billing.subscriptions s
           join billing.provider_subscriptions c on c.org_id = s.org_id and c.provider = s.provider
                                                and c.subscription = s.provider_subscription
          where s.org_id = $1 and (s.ends_at is null or s.ends_at > $4) and (c.provider, c.subscription) <> ($2, $3)
            and c.state <> 'canceled' and c.paid_until > $4";
    LATE(uuid, text, text, int8) =
        "update billing.provider_subscriptions set state = 'past_due'
          where org_id = $1 and provider = $2 and subscription = $3 and greatest(last_report_at, last_paid_report_at) <= $4
            and state = 'active'";
}

/// The answer of an earlier call with the same idempotency key.
pub struct KeptAnswer {
    /// The fingerprint of the arguments of that call.
    pub request_hash: i64,
    /// The answer as JSON.
    pub answer: String,
}

/// The answer that was kept for an idempotency key.
pub fn find_answer(db: &Db, org_id: Uuid, key: &str) -> Option<KeptAnswer> {
    let rows = db.write(&REQUEST, args![org_id, key]);
    rows.first().map(|row| KeptAnswer { request_hash: row.get(0), answer: row.get(1) })
}

/// Keeps the answer of a call for its idempotency key.
pub fn keep_answer(db: &Db, org_id: Uuid, key: &str, request_hash: i64, answer: &str) {
    db.write(&KEEP_REQUEST, args![org_id, key, request_hash, answer]);
}

/// A subscription that a provider collects for, as far as it is known here.
pub struct Collected {
    /// The org that the provider bills.
    pub org_id: Uuid,
    /// The plan that it was for.
    pub plan: Option<String>,
}

/// The subscription that a provider knows by that id; None if there is none, or more than one.
pub fn find_collected(db: &Db, provider: &str, id: &str) -> Option<Collected> {
    let rows = db.write(&KNOWN, args![provider, id]);
    let only = rows.first().filter(|_| rows.count() == 1);
    only.map(|row| Collected { org_id: row.get(0), plan: row.opt(1) })
}

/// A provider's report about the state of a subscription.
#[allow(missing_docs)]
pub struct SubscriptionReport<'a> {
    pub org_id: Uuid,
    pub provider: &'a str,
    /// The provider's id of the subscription.
    pub id: &'a str,
    pub state: &'a str,
    pub plan: Option<String>,
    pub cancel_at_period_end: bool,
    /// The time of the report, in Unix seconds.
    pub created: i64,
}

/// Notes the state that a provider reports, and gives the one that holds now; None if the report is
/// older than what is known.
pub fn report(db: &Db, report: SubscriptionReport<'_>) -> Option<String> {
    let SubscriptionReport { org_id, provider, id, state, plan, cancel_at_period_end, created } = report;
    let rows = db.write(&REPORT, args![org_id, provider, id, state, plan, cancel_at_period_end, created]);
    rows.first().map(|row| row.get(0))
}

/// Notes that a provider's subscription is paid until then.
pub fn note_paid(db: &Db, org_id: Uuid, subscription: &BillingProvider, plan: &str, until: Moment, created: i64) {
    let (provider, id) = subscription;
    db.write(&COLLECT, args![org_id, provider.as_str(), id.as_str(), plan, Timestamptz(until), created]);
}

/// The state of a provider's subscription.
pub fn state(db: &Db, org_id: Uuid, provider: &str, id: &str) -> Option<String> {
    db.write(&STATE, args![org_id, provider, id]).first().map(|row| row.get(0))
}

/// Whether another subscription of a provider pays for the plan that runs.
pub fn is_paid_otherwise(db: &Db, org_id: Uuid, subscription: &BillingProvider, now: Moment) -> bool {
    let (provider, id) = subscription;
    db.write(&OTHER_PAID_SUBSCRIPTION, args![org_id, provider.as_str(), id.as_str(), Timestamptz(now)]).count() > 0
}

/// Notes that money for a subscription is missing, and answers whether that is news.
pub fn set_past_due(db: &Db, org_id: Uuid, provider: &str, id: &str, created: i64) -> bool {
    db.write(&LATE, args![org_id, provider, id, created]).count() > 0
}
