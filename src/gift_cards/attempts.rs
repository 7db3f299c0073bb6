//! Failed attempts at codes: counted per org, and refused unseen after too many within an hour.
//!
//! A call that fails takes back what it wrote, so an attempt is noted in a transaction of its own,
//! before the caller is told that it failed. If it cannot be noted, the caller is not told whether
//! the code was right.

use crate::base::error::{Error, Result};
use crate::base::time::{self, Moment};
use crate::pg::spi::{self, Db, Timestamptz};
use crate::pg::{background, random};
use crate::{args, statements};
use pgrx::prelude::*;
use std::fmt;
use uuid::Uuid;

/// The number of failed attempts of an org after which it has to wait.
const MOST: usize = 10;
/// The time within which they count.
const WINDOW: Moment = 3_600_000_000;
/// The time to wait after an attempt that could not be noted.
const PAUSE: Moment = 60_000_000;

const TABLE: &str = "billing_internal.gift_card_attempts";
const WORKER: &str = "pg_billing_note_attempt";

statements! {
    // Billing time may have gone back: an attempt far in the future counts as little as one long
    // ago.
    RECENT(uuid, timestamptz, timestamptz, int8) =
        "select attempted_at from billing_internal.gift_card_attempts
          where org_id = $1 and attempted_at > $2 and attempted_at <= $3 order by attempted_at desc limit $4";
    IS_NOTED(uuid, timestamptz, uuid) =
        "select from billing_internal.gift_card_attempts where org_id = $1 and attempted_at = $2 and attempt_id = $3";
    NOTE(uuid, timestamptz, uuid) =
        "insert into billing_internal.gift_card_attempts (org_id, attempted_at, attempt_id) values ($1, $2, $3)";
    FORGET(uuid, timestamptz) = "delete from billing_internal.gift_card_attempts where org_id = $1 and attempted_at < $2";
    TAKES_SIGNALS() =
        "select coalesce(has_function_privilege(to_regprocedure('billing.note_signal(uuid,text,integer,text,jsonb)')::oid, 'execute'), false)";
    SIGNAL(uuid, int8) =
        "select billing.note_signal($1, 'code_guessing', 50, 'wrong gift card codes within an hour', jsonb_build_object('attempts', $2))";
}

/// A failed attempt, in the form in which the process that notes it gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    database: u32,
    org_id: Uuid,
    at: Moment,
    id: Uuid,
}

impl fmt::Display for Attempt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {} {}", self.database, self.org_id, self.at, self.id)
    }
}

impl Attempt {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        Some(Self {
            database: parts.next()?.parse().ok()?,
            org_id: parts.next()?.parse().ok()?,
            at: parts.next()?.parse().ok()?,
            id: parts.next()?.parse().ok()?,
        })
    }
}

/// The newest failed attempts of an org within an hour, at most `most`. They are read on the newest
/// snapshot, or a transaction could go on guessing with what it saw at its beginning.
fn recent(db: &Db, org_id: Uuid, now: Moment, most: usize) -> Vec<Moment> {
    let (from, until) = (Timestamptz(now.saturating_sub(WINDOW)), Timestamptz(now.saturating_add(WINDOW)));
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    spi::on_newest_snapshot(|| {
        db.read(&RECENT, args![org_id, from, until, most]).iter().map(|row| row.get(0)).collect()
    })
}

/// The refusal for these attempts, if there are too many.
fn refusal(recent: &[Moment]) -> Option<Error> {
    recent.get(MOST - 1).map(|at| Error::too_many_attempts(at.saturating_add(WINDOW)))
}

/// Refuses an org that has tried too often.
pub fn check(db: &Db, org_id: Uuid, now: Moment) -> Result<()> {
    refusal(&recent(db, org_id, now, MOST)).map_or(Ok(()), Err)
}

/// Notes a failed attempt, and gives the error for the caller.
pub fn note(db: &Db, org_id: Uuid, now: Moment) -> Error {
    // SAFETY: reads a global.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let id = uuid::Builder::from_random_bytes(random::bytes()).into_uuid();
    let attempt = Attempt { database, org_id, at: now, id };
    let was_run = background::run(WORKER, &attempt.to_string());
    let is_noted = spi::on_newest_snapshot(|| db.read(&IS_NOTED, args![org_id, Timestamptz(now), id]).count() > 0);
    if is_noted {
        // Of many calls at once, the first ones are told that their codes are wrong, and the others
        // nothing: otherwise they could guess more often than allowed.
        let recent = recent(db, org_id, now, MOST + 1);
        return refusal(&recent).filter(|_| recent.len() > MOST).unwrap_or_else(Error::unknown_code);
    }
    // The worker cannot see tables that the caller's own transaction made; and then there is nobody
    // yet to guess.
    if was_run && background::is_made_here(db, TABLE) {
        return Error::unknown_code();
    }
    Error::too_many_attempts(now.saturating_add(PAUSE))
}

/// The body of the process that notes an attempt: it also forgets attempts of the day before, and
/// raises a flag after too many.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_billing_note_attempt(_told: background::Argument) {
    let Some(attempt) = Attempt::parse(background::told()) else { return };
    let Attempt { org_id, at, id, .. } = attempt;
    background::begin(pg_sys::Oid::from(attempt.database));
    background::transaction(TABLE, move |db| {
        db.write(&NOTE, args![org_id, Timestamptz(at), id]);
        db.write(&FORGET, args![org_id, Timestamptz(time::add_days(at, -1))]);
    });
    // A transaction of its own: the attempt stays noted whatever becomes of the flag.
    background::transaction(TABLE, move |db| {
        let count = recent(db, org_id, at, MOST).len();
        if count >= MOST && db.write(&TAKES_SIGNALS, &[]).first().is_some_and(|row| row.get(0)) {
            db.write(&SIGNAL, args![org_id, i64::try_from(count).unwrap_or(i64::MAX)]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood_and_fits() {
        for at in [i64::MIN, -1, 0, i64::MAX] {
            let attempt = Attempt { database: u32::MAX, org_id: Uuid::max(), at, id: Uuid::nil() };
            let told = attempt.to_string();
            assert!(told.len() < 128);
            assert_eq!(Attempt::parse(&told), Some(attempt));
        }
        for wrong in ["", "1", "x y z", "1 2 3 4"] {
            assert_eq!(Attempt::parse(wrong), None);
        }
    }

    #[test]
    fn the_tenth_attempt_is_the_last_until_an_hour_later() {
        let attempts: Vec<Moment> = (0..10).rev().collect();
        assert_eq!(refusal(&attempts[1..]), None);
        assert_eq!(refusal(&attempts), Some(Error::too_many_attempts(WINDOW)));
        // With more attempts than that, the org waits until nine are left of the hour.
        let attempts: Vec<Moment> = (0..12).rev().collect();
        assert_eq!(refusal(&attempts), Some(Error::too_many_attempts(WINDOW + 2)));
    }
}
