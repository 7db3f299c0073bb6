//! The statements of webhooks: the events as they came, and what became of them.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::pg::spi::{Db, Timestamptz};
use crate::{args, statements};
use uuid::Uuid;

statements! {
    RECEIVE(text, text, text, timestamptz, text) =
        "insert into billing.webhook_events (provider, event_id, type, status, received_at, payload)
         values ($1, $2, $3, 'review', $4, $5)
         on conflict (provider, event_id) do nothing";
    REPEAT(text, text) =
        "update billing.webhook_events set deliveries = deliveries + 1 where provider = $1 and event_id = $2
         returning type, status, reason, org_id";
    FINISH(text, text, text, text, timestamptz, uuid, texts) =
        "update billing.webhook_events
            set status = $3, reason = $4, processed_at = case when $3 <> 'review' then $5 end, org_id = coalesce($6, org_id),
                refs = $7
          where provider = $1 and event_id = $2";
    STORED(text, text) =
        "select payload, status, type, org_id from billing.webhook_events where provider = $1 and event_id = $2 for update";
    WAITING(text, texts) =
        "select event_id, payload from billing.webhook_events
          where provider = $1 and status = 'review' and refs && $2
          order by received_at for update skip locked";
    BY_ID(uuid) = "select org_id from billing.payments where payment_id = $1 limit 2";
}

/// Stores an event that is to be handled, and answers whether it is new.
pub fn receive(db: &Db, provider: &str, id: &str, kind: &str, payload: &str, now: Moment) -> bool {
    db.write(&RECEIVE, args![provider, id, kind, Timestamptz(now), payload]).count() > 0
}

/// An event that was delivered before.
#[allow(missing_docs)]
pub struct Repeated {
    pub event_type: String,
    pub status: String,
    pub reason: Option<String>,
    pub org_id: Option<Uuid>,
}

/// Counts one more delivery of a stored event.
pub fn repeat(db: &Db, provider: &str, id: &str) -> Result<Repeated> {
    let rows = db.write(&REPEAT, args![provider, id]);
    let row = rows.first().ok_or_else(Error::contended)?;
    Ok(Repeated { event_type: row.get(0), status: row.get(1), reason: row.opt(2), org_id: row.opt(3) })
}

/// The end of handling an event.
#[derive(Default)]
pub struct Finish<'a> {
    /// The status: processed, ignored or review.
    pub status: &'a str,
    /// The reason why it waits for a person.
    pub reason: Option<&'a str>,
    /// The org that the event is about.
    pub org_id: Option<Uuid>,
    /// The provider's ids that the event names.
    pub refs: Vec<String>,
}

/// Notes how handling an event ended.
pub fn finish(db: &Db, provider: &str, id: &str, finish: Finish<'_>, now: Moment) {
    let Finish { status, reason, org_id, refs } = finish;
    db.write(&FINISH, args![provider, id, status, reason, Timestamptz(now), org_id, refs]);
}

/// A stored event.
#[allow(missing_docs)]
pub struct Stored {
    pub payload: String,
    pub status: String,
    pub event_type: String,
    pub org_id: Option<Uuid>,
}

/// Locks and reads a stored event.
pub fn lock(db: &Db, provider: &str, id: &str) -> Option<Stored> {
    let rows = db.write(&STORED, args![provider, id]);
    rows.first().map(|row| Stored {
        payload: row.get(0),
        status: row.get(1),
        event_type: row.get(2),
        org_id: row.opt(3),
    })
}

/// An event that waits for a person.
#[allow(missing_docs)]
pub struct Waiting {
    pub event_id: String,
    pub payload: String,
}

/// Locks the events that wait for a person and name one of these ids, oldest first; those that
/// another transaction has locked are left to it.
pub fn lock_waiting(db: &Db, provider: &str, refs: Vec<String>) -> Vec<Waiting> {
    let rows = db.write(&WAITING, args![provider, refs]);
    rows.iter().map(|row| Waiting { event_id: row.get(0), payload: row.get(1) }).collect()
}

/// The org of the payment of that id; None if there is no such payment, or more than one.
pub fn owner_of_payment(db: &Db, payment_id: Uuid) -> Option<Uuid> {
    let rows = db.write(&BY_ID, args![payment_id]);
    rows.first().map(|row| row.get(0)).filter(|_| rows.count() == 1)
}
