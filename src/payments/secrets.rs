//! The secrets with which providers sign their reports.

use crate::base::error::{Error, Result};
use crate::base::time::{Moment, NEG_INFINITY};
use crate::entry_point;
use crate::pg::arguments::required;
use crate::pg::clock;
use crate::pg::spi::{Db, Timestamptz};
use crate::providers::{self, Provider};
use crate::{args, statements};
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;

statements! {
    VALID(text, timestamptz) =
        "select secret from billing_internal.webhook_secrets where provider = $1 and (expires_at is null or expires_at > $2)";
    RETIRE(text, timestamptz) =
        "update billing_internal.webhook_secrets set expires_at = $2 where provider = $1 and (expires_at is null or expires_at > $2)";
    FORGET(text, timestamptz) = "delete from billing_internal.webhook_secrets where provider = $1 and expires_at <= $2";
    SET(text, timestamptz, bytea) =
        "insert into billing_internal.webhook_secrets (provider, created_at, secret) values ($1, $2, $3)";
}

/// The provider of that name, as an argument.
pub fn provider(name: Option<&str>) -> Result<&'static dyn Provider> {
    let name = required("provider", name)?;
    let names = || format!("must be {}", providers::names().join(" or "));
    providers::find(name).ok_or_else(|| Error::invalid("provider", &names()))
}

/// The secrets of a provider that are valid at a moment.
pub fn valid_secrets(db: &Db, provider: &str, now: Moment) -> Vec<Vec<u8>> {
    db.write(&VALID, args![provider, Timestamptz(now)]).iter().map(|row| row.get(0)).collect()
}

/// At most ten years, and far from where adding would overflow.
fn later(now: Moment, interval: &Interval) -> Result<Moment> {
    let bad = || Error::invalid("keep_old", "must be zero or more, and at most ten years");
    let is_long = interval.months().unsigned_abs() > 120
        || interval.days().unsigned_abs() > 3660
        || interval.micros().unsigned_abs() > 3660 * 86_400_000_000;
    let start = TimestampWithTimeZone::try_from(now).map_err(|_| bad())?;
    let end = if is_long { NEG_INFINITY } else { Moment::from(start + *interval) };
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
    entry_point::service(|db| {
        let provider = self::provider(provider)?;
        let secret = required("secret", secret)?;
        let keep_old = required("keep_old", keep_old)?;
        if secret.trim() != secret || !(8..=500).contains(&secret.len()) {
            return Err(Error::invalid("secret", "must have 8 to 500 bytes and no blanks around it"));
        }
        let now = clock::now();
        let until = later(now, &keep_old)?;
        db.write(&RETIRE, args![provider.name(), Timestamptz(until)]);
        db.write(&FORGET, args![provider.name(), Timestamptz(now)]);
        db.write(&SET, args![provider.name(), Timestamptz(now), secret.as_bytes()]);
        Ok(())
    });
}
