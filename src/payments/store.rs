//! The statements of payments. A payment's row is locked after the wallet that it pays into.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::payments::state::{Money, Status};
use crate::pg::spi::{Db, Row, Timestamptz};
use crate::{args, statements};
use uuid::Uuid;

macro_rules! payment_columns {
    () => {
        "p.payment_id, p.status, p.total, p.paid_at, p.refunded, p.disputed_amount, p.last_report_at, p.source, p.provider, p.pack, p.plan, p.unit,
         p.currency, p.validity, p.credits, p.bonus, p.metrics, p.grants, p.taken_back, p.unrecovered, p.price, p.tax, p.fee,
         p.request_hash, p.dispute, p.failure, p.customer, p.payment_method, p.fingerprint, p.priority, p.subscription,
         p.period_start, p.period_end"
    };
}

statements! {
    LOCK(uuid, uuid) =
        concat!("select ", payment_columns!(), " from billing.payments p where p.org_id = $1 and p.payment_id = $2 for update");
    OF_REQUEST(uuid, text) =
        concat!("select ", payment_columns!(), " from billing.payments p where p.org_id = $1 and p.idempotency_key = $2");
    UNIT(uuid, uuid) = "select unit from billing.payments where org_id = $1 and payment_id = $2";
    BY_REFS(text, texts) =
        "select distinct org_id, payment_id from billing.payment_refs
          where provider = $1 and ref = any ($2) limit 2";
    NEW(uuid, uuid, timestamptz, int8, int8, int8, int8, int8, int8, text, text, text, text, text, text, text, text, text, text,
        text, jsonb, int8, texts, int4, text, timestamptz, timestamptz) =
        "insert into billing.payments
                (org_id, payment_id, created_at, updated_at, price, tax, fee, total, credits, bonus, status, source, provider, pack,
                 plan, unit, currency, validity, customer, payment_method, metadata, request_hash, idempotency_key, metrics, priority, subscription, period_start,
                 period_end)
         values ($1, $2, $3, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $21, $22, $20,
                 $23, $24, $25, $26, $27)";
    SAVE(uuid, uuid, timestamptz, text, timestamptz, int8, int8, int8, int8s, int8s, int8, text, text, text, text, text) =
        "update billing.payments
            set updated_at = $3, status = $4, paid_at = $5, refunded = $6, disputed_amount = $7, last_report_at = $8, grants = $9, taken_back = $10,
                unrecovered = $11, dispute = $12, failure = $13, customer = $14, payment_method = $15, fingerprint = $16
          where org_id = $1 and payment_id = $2";
    ADD_REF(uuid, text, text, uuid) =
        "insert into billing.payment_refs (org_id, provider, ref, payment_id) values ($1, $2, $3, $4) on conflict do nothing";
    PENDING(uuid, text) =
        "select coalesce(sum(credits + bonus), 0)::int8 from billing.payments
          where org_id = $1 and unit = $2 and status = 'pending'";
    SIGNALS(uuid, text) = "select billing_internal.look_for_signals($1, $2)";
    NOTE_SIGNAL(uuid, text, int4, text, jsonb) = "select billing.note_signal($1, $2, $3, $4, $5)";
    LINK(uuid, text, text) =
        "insert into billing.provider_customers (org_id, provider, customer)
         select $1, $2, $3
          where not exists (select from billing.provider_customers where provider = $2 and customer = $3)
         on conflict do nothing";
    CUSTOMERS(uuid, text) =
        "select customer from billing.provider_customers where org_id = $1 and provider = $2 order by customer limit 2";
    ORG_OF_CUSTOMER(text, text) = "select org_id from billing.provider_customers where provider = $1 and customer = $2";
}

/// A row of `payments`.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Payment {
    pub org_id: Uuid,
    pub payment_id: Uuid,
    pub money: Money,
    pub paid_at: Option<Moment>,
    pub source: String,
    pub provider: String,
    pub pack: Option<String>,
    pub plan: Option<String>,
    pub unit: String,
    pub currency: String,
    pub validity: Option<String>,
    pub credits: i64,
    pub bonus: i64,
    pub metrics: Option<Vec<String>>,
    /// The grants that it brought, and what of each was taken back.
    pub grants: Vec<(i64, i64)>,
    pub unrecovered: i64,
    pub priority: i32,
    /// What it paid of a provider's subscription.
    pub subscription: Option<String>,
    pub period: Option<(Moment, Moment)>,
    pub price: i64,
    pub tax: i64,
    pub fee: i64,
    pub request_hash: Option<i64>,
    pub dispute: Option<String>,
    pub failure: Option<String>,
    pub customer: Option<String>,
    pub payment_method: Option<String>,
    pub fingerprint: Option<String>,
}

fn payment(row: &Row, org_id: Uuid) -> Result<Payment> {
    let status = Status::parse(&row.get::<String>(1)).ok_or(Error::corrupt("a payment of no known status"))?;
    let paid_at: Option<Moment> = row.opt(3);
    let grants: Vec<i64> = row.get(17);
    Ok(Payment {
        org_id,
        payment_id: row.get(0),
        money: Money {
            total: row.get(2),
            paid: paid_at.is_some(),
            refunded: row.get(4),
            disputed_amount: row.get(5),
            status,
            last_report_at: row.get(6),
        },
        paid_at,
        source: row.get(7),
        provider: row.get(8),
        pack: row.opt(9),
        plan: row.opt(10),
        unit: row.get(11),
        currency: row.get(12),
        validity: row.opt(13),
        credits: row.get(14),
        bonus: row.get(15),
        metrics: row.opt::<Vec<String>>(16),
        grants: grants.into_iter().zip(row.get::<Vec<i64>>(18)).collect(),
        unrecovered: row.get(19),
        price: row.get(20),
        tax: row.get(21),
        fee: row.get(22),
        request_hash: row.opt(23),
        dispute: row.opt(24),
        failure: row.opt(25),
        customer: row.opt(26),
        payment_method: row.opt(27),
        fingerprint: row.opt(28),
        priority: row.get(29),
        subscription: row.opt(30),
        period: row.opt(31).zip(row.opt(32)),
    })
}

/// Locks a payment. Its wallet must be locked.
pub fn lock(db: &Db, org_id: Uuid, payment_id: Uuid) -> Result<Payment> {
    let found = db.write(&LOCK, args![org_id, payment_id]).first().map(|row| payment(&row, org_id));
    found.ok_or_else(|| Error::unknown("unknown_payment", payment_id.to_string()))?
}

/// The payment that a request started, if it did.
pub fn of_request(db: &Db, org_id: Uuid, key: &str) -> Result<Option<Payment>> {
    db.write(&OF_REQUEST, args![org_id, key]).first().map(|row| payment(&row, org_id)).transpose()
}

/// The unit of the wallet that a payment pays into; None where there is no such payment.
pub fn unit(db: &Db, org_id: Uuid, payment_id: Uuid) -> Option<String> {
    db.write(&UNIT, args![org_id, payment_id]).first().map(|row| row.get(0))
}

/// The payment that a provider knows by one of these ids; None where there is none, or more than one.
pub fn by_refs(db: &Db, provider: &str, refs: &[String]) -> Option<(Uuid, Uuid)> {
    let rows = db.write(&BY_REFS, args![provider, refs.to_vec()]);
    if rows.count() == 1 { rows.first().map(|row| (row.get(0), row.get(1))) } else { None }
}

/// Inserts a payment.
pub fn insert(db: &Db, new: &Payment, key: Option<&str>, metadata: &str, now: Moment) {
    db.write(
        &NEW,
        args![
            new.org_id,
            new.payment_id,
            Timestamptz(now),
            new.price,
            new.tax,
            new.fee,
            new.money.total,
            new.credits,
            new.bonus,
            new.money.status().name(),
            &new.source,
            &new.provider,
            new.pack.as_deref(),
            new.plan.as_deref(),
            &new.unit,
            &new.currency,
            new.validity.as_deref(),
            new.customer.as_deref(),
            new.payment_method.as_deref(),
            key,
            crate::pg::jsonb::from_text(metadata),
            new.request_hash,
            new.metrics.clone(),
            new.priority,
            new.subscription.as_deref(),
            new.period.map(|(start, _)| Timestamptz(start)),
            new.period.map(|(_, end)| Timestamptz(end)),
        ],
    );
}

/// Writes what of a payment can change.
pub fn save(db: &Db, payment: &Payment, now: Moment) {
    let (grants, taken): (Vec<i64>, Vec<i64>) = payment.grants.iter().copied().unzip();
    db.write(
        &SAVE,
        args![
            payment.org_id,
            payment.payment_id,
            Timestamptz(now),
            payment.money.status().name(),
            payment.paid_at.map(Timestamptz),
            payment.money.refunded,
            payment.money.disputed_amount,
            payment.money.last_report_at,
            grants,
            taken,
            payment.unrecovered,
            payment.dispute.as_deref(),
            payment.failure.as_deref(),
            payment.customer.as_deref(),
            payment.payment_method.as_deref(),
            payment.fingerprint.as_deref(),
        ],
    );
}

/// Notes by which ids the provider knows it.
pub fn add_refs(db: &Db, payment: &Payment, refs: &[String]) {
    for known in refs {
        db.write(&ADD_REF, args![payment.org_id, &payment.provider, known, payment.payment_id]);
    }
}

/// Credit of which the money is on its way.
pub fn pending(db: &Db, org_id: Uuid, unit: &str, fresh: bool) -> i64 {
    db.query(fresh, &PENDING, args![org_id, unit]).first().map_or(0, |row| row.get(0))
}

/// Looks whether the payments of an org are suspicious.
pub fn look_for_signals(db: &Db, org_id: Uuid, fingerprint: Option<&str>) {
    db.write(&SIGNALS, args![org_id, fingerprint]);
}

/// Raises a flag.
pub fn note_signal(db: &Db, org_id: Uuid, kind: &str, score: i32, reason: &str, detail: &serde_json::Value) {
    db.write(&NOTE_SIGNAL, args![org_id, kind, score, reason, crate::pg::jsonb::from_text(&detail.to_string())]);
}

/// Notes which org a provider's customer is, unless it is known.
pub fn link(db: &Db, org_id: Uuid, provider: &str, customer: &str) {
    db.write(&LINK, args![org_id, provider, customer]);
}

/// The provider's customer that an org is, where there is one only.
pub fn customer_of(db: &Db, org_id: Uuid, provider: &str) -> Option<String> {
    let rows = db.write(&CUSTOMERS, args![org_id, provider]);
    if rows.count() == 1 { rows.first().map(|row| row.get(0)) } else { None }
}

/// Which org a provider's customer is; None where nobody knows, or several are.
pub fn org_of_customer(db: &Db, provider: &str, customer: &str) -> Option<Uuid> {
    let rows = db.write(&ORG_OF_CUSTOMER, args![provider, customer]);
    if rows.count() == 1 { rows.first().map(|row| row.get(0)) } else { None }
}
