//! The statements of purchases, and of the subscriptions whose payments go back.

use crate::base::time::Moment;
use crate::pg::spi::{Db, Timestamptz};
use crate::plans::period::Span;
use crate::{args, statements};
use uuid::Uuid;

statements! {
    BEGUN(uuid, timestamptz, int8) =
        "select created_at from billing.payments where org_id = $1 and created_at > $2 and source = 'purchase'
          order by created_at desc limit $3";
    // The plan's grants of the paid periods; those that another payment brought are left to that
    // one.
    PLAN_GRANTS(uuid, timestamptz, timestamptz, uuid) =
        "select grant_id from billing_internal.grants l
          where org_id = $1 and source = 'plan' and unit = 'credit'
            and effective_at >= $2 and effective_at < $3
            and not exists (select from billing.payments p
                             where p.org_id = $1 and p.payment_id <> $4 and l.grant_id = any (p.grants))
          order by grant_id";
    // The periods that this payment paid for are no longer paid.
    REVERSE_PAYMENT(uuid, text, text, timestamptz, timestamptz) =
        "update billing.provider_subscriptions set paid_until = $4
          where org_id = $1 and provider = $2 and subscription = $3 and paid_until = $5";
}

/// The moments at which the newest purchases of an org since then were begun, newest first.
pub fn newest_purchases(db: &Db, org_id: Uuid, since: Moment, most: usize) -> Vec<Moment> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    db.write(&BEGUN, args![org_id, Timestamptz(since), most]).iter().map(|row| row.get(0)).collect()
}

/// The plan's grants of periods that began in a span, but those that another payment brought.
pub fn plan_grants(db: &Db, org_id: Uuid, payment_id: Uuid, paid: Span) -> Vec<i64> {
    let (start, end) = (Timestamptz(paid.start), Timestamptz(paid.end));
    db.write(&PLAN_GRANTS, args![org_id, start, end, payment_id]).iter().map(|row| row.get(0)).collect()
}

/// Takes back that a provider's subscription is paid until the end of a span.
pub fn reverse_payment(db: &Db, org_id: Uuid, provider: &str, subscription: &str, paid: Span) {
    let (start, end) = (Timestamptz(paid.start), Timestamptz(paid.end));
    db.write(&REVERSE_PAYMENT, args![org_id, provider, subscription, start, end]);
}
