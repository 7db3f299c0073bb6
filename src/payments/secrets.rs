//! What providers sign with.

use crate::access;
use crate::arguments::required;
use crate::catalog::cache;
use crate::clock;
use crate::error::{Error, Result};
use crate::raise::or_raise;
use crate::sql::{self, Db, Timestamptz};
use crate::time::{Moment, NEVER_YET};
use crate::{args, statements};
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;

statements! {
    GOOD(text, timestamptz) =
        "select secret from billing.webhook_secrets where provider = $1 and (expires_at is null or expires_at > $2)";
    RETIRE(text, timestamptz) =
        "update billing.webhook_secrets set expires_at = $2 where provider = $1 and (expires_at is null or expires_at > $2)";
    FORGET(text, timestamptz) = "delete from billing.webhook_secrets where provider = $1 and expires_at <= $2";
    SET(text, timestamptz, bytea) =
        "insert into billing.webhook_secrets (provider, created_at, secret) values ($1, $2, $3)";
}

/// The providers whose signatures are known.
pub const PROVIDERS: [&str; 2] = ["stripe", "razorpay"];

/// One of those.
pub fn provider(name: Option<&str>) -> Result<&'static str> {
    let name = required("provider", name)?;
    let known = PROVIDERS.into_iter().find(|known| *known == name);
    known.ok_or_else(|| Error::invalid("provider", "must be stripe or razorpay"))
}

/// Those that are good at a moment.
pub fn good(db: &Db, provider: &str, now: Moment) -> Vec<Vec<u8>> {
    db.write(&GOOD, args![provider, Timestamptz(now)]).iter().map(|row| row.get(0)).collect()
}

/// At most ten years, and far from where adding would overflow.
fn later(now: Moment, interval: &Interval) -> Result<Moment> {
    let bad = || Error::invalid("keep_old", "must be zero or more, and at most ten years");
    let is_long = interval.months().unsigned_abs() > 120
        || interval.days().unsigned_abs() > 3660
        || interval.micros().unsigned_abs() > 3660 * 86_400_000_000;
    let start = TimestampWithTimeZone::try_from(now).map_err(|_| bad())?;
    let end = if is_long { NEVER_YET } else { Moment::from(start + *interval) };
    if end < now { Err(bad()) } else { Ok(end) }
}

/// Sets the secret with which a provider signs its webhooks (Stripe: `whsec_…`; Razorpay: the one of the webhook). Nobody can read
/// it back.
///
/// The one before stays good for `keep_old`, so that nothing is refused while the provider changes over. Errors: 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn set_webhook_secret(
    provider: Option<&str>,
    secret: Option<&str>,
    keep_old: default!(Option<Interval>, "'24 hours'"),
) {
    or_raise(access::service(|| {
        let provider = self::provider(provider)?;
        let secret = required("secret", secret)?;
        let keep_old = required("keep_old", keep_old)?;
        if secret.trim() != secret || !(8..=500).contains(&secret.len()) {
            return Err(Error::invalid("secret", "must have 8 to 500 bytes and no blanks around it"));
        }
        sql::connect(|db| {
            cache::require_installed(db)?;
            let now = clock::now();
            let until = later(now, &keep_old)?;
            db.write(&RETIRE, args![provider, Timestamptz(until)]);
            db.write(&FORGET, args![provider, Timestamptz(now)]);
            db.write(&SET, args![provider, Timestamptz(now), secret.as_bytes()]);
            Ok(())
        })
    }));
}
