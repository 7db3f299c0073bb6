//! Gift cards and vouchers: codes that are worth credit to whoever redeems them.
//!
//! Only whoever was told a code knows it: the tables have its hash under a key of this database. A
//! code that cannot be redeemed is reported as unknown, whatever the reason, and an org that tries
//! too many of them has to wait.

mod attempts;
mod code;
mod store;

use crate::access::{self, actor, authorize};
use crate::base::error::{Error, Result};
use crate::base::time::{INFINITY, Moment};
use crate::base::validity::Validity;
use crate::base::words::Word;
use crate::call::{Answer, Call};
use crate::catalog::cache;
use crate::entry_point;
use crate::gift_cards::code::{Code, CodeHash};
use crate::gift_cards::store::{Batch, Card};
use crate::ledger::debts;
use crate::ledger::kind::EntryKind;
use crate::ledger::store as ledger;
use crate::ledger::wallet::{EntryContext, Grant, Operation, Wallet};
use crate::pg::arguments;
use crate::pg::arguments::{positive, required, required_uuid, unit};
use crate::pg::clock;
use crate::pg::jsonb::{self, Jsonb};
use crate::pg::raise::or_raise;
use crate::pg::random;
use crate::pg::spi::{self, Db};
use crate::receipt;
use crate::secrets;
use crate::wallets::rules::scope;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The name of the key under which codes are hashed.
const SECRET: &str = "gift_cards";
const MOST_CARDS: i32 = 10_000;
const MOST_REDEMPTIONS: i32 = 1_000_000;
const NAME_BYTES: usize = 200;

receipt! {
    /// The answer of `redeem_gift_card`.
    #[derive(Serialize, Deserialize)]
    GiftCardReceipt as "gift_card_receipt" {
        grant_id: i64,
        credits: i64,
        unit: String,
        expires_at: Option<i64>,
        balance_after: i64,
        replayed: bool,
    }
}
impl Answer for GiftCardReceipt {
    fn set_replayed(&mut self) {
        self.replayed = true;
    }
}

/// Checks the name of a batch.
fn batch_name(value: Option<&str>) -> Result<&str> {
    let name = required("name", value)?;
    if name.trim().is_empty() || name.len() > NAME_BYTES {
        return Err(Error::invalid("name", "must have 1 to 200 bytes"));
    }
    Ok(name)
}

fn required_within(name: &str, value: Option<i32>, most: i32) -> Result<i32> {
    let value = required(name, value)?;
    if (1..=most).contains(&value) { Ok(value) } else { Err(Error::invalid(name, &format!("must be 1 to {most}"))) }
}

/// The source of grants of that name, if gift cards have it.
fn source(value: &str) -> Option<EntryKind> {
    EntryKind::parse(value).filter(|kind| matches!(kind, EntryKind::GiftCard | EntryKind::Voucher))
}

/// Makes codes that are worth credit, and gives them this one time: only their hashes are kept.
///
/// `name`: the batch; the same name again adds to it. `credits`: what each redemption grants, whole
/// units from 1. `count`: so many codes, 1 to 10,000. `unit`: credit, or a currency (credits are
/// minor units then). `metrics`: the only metrics on which the credit may be spent, null for any.
/// `max_redemptions`: how often each code can be redeemed in all, 1 to 1,000,000; by each org once.
/// `expires_at`: until when the codes can be redeemed, null for ever. `validity`: how long the
/// credit can be spent from then on (`30 days`, `2 weeks`, `6 months`, `1 year`), null for ever.
/// `source`: `gift_card` | voucher. Errors: 22023; PT404 `unknown_metric`.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments)]
fn create_gift_cards(
    name: Option<&str>,
    credits: Option<i64>,
    count: default!(Option<i32>, 1),
    unit: default!(Option<&str>, "'credit'"),
    metrics: default!(Option<Vec<Option<String>>>, "NULL"),
    max_redemptions: default!(Option<i32>, 1),
    expires_at: default!(Option<TimestampWithTimeZone>, "NULL"),
    validity: default!(Option<&str>, "NULL"),
    source: default!(Option<&str>, "'gift_card'"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> SetOfIterator<'static, String> {
    let codes = entry_point::service(|db| {
        let name = batch_name(name)?;
        let credits = positive("credits", credits)?;
        let count = required_within("count", count, MOST_CARDS)?;
        let unit = self::unit(unit)?;
        let metrics = scope(metrics)?;
        let max_redemptions = required_within("max_redemptions", max_redemptions, MOST_REDEMPTIONS)?;
        let expires_at = expires_at.map(Moment::from).filter(|at| *at != INFINITY);
        let validity = Validity::argument("validity", validity)?;
        let source = self::source(required("source", source)?);
        let source = source.ok_or_else(|| Error::invalid("source", "must be gift_card or voucher"))?;
        let metadata = arguments::metadata(metadata)?.unwrap_or_else(|| jsonb::from_text("{}"));
        for metric in metrics.iter().flatten() {
            cache::metric(db, metric)?;
        }
        let now = clock::now();
        if expires_at.is_some_and(|at| at <= now) {
            return Err(Error::invalid("expires_at", "must be in the future"));
        }
        let key = secrets::secret(db, SECRET);
        let codes: Vec<Code> = (0..count).map(|_| Code::new(random::bytes())).collect();
        let hashes: Vec<CodeHash> = codes.iter().map(|code| code.hash(&key)).collect();
        let source = source.name();
        let batch = Batch { name, unit, credits, metrics, max_redemptions, expires_at, validity, source, metadata };
        store::create(db, &hashes, batch, now);
        Ok(codes.iter().map(Code::to_string).collect::<Vec<_>>())
    });
    SetOfIterator::new(codes)
}

/// The hash of the code that somebody typed, if this org may try one now.
fn hash_of_typed(db: &Db, org_id: Uuid, typed: &str) -> Result<CodeHash> {
    cache::require_installed(db)?;
    authorize(db, org_id)?;
    // A failed attempt could not be noted in a read-only transaction, so the server's own error
    // comes before any guess.
    // SAFETY: reads globals.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"redeem_gift_card()".as_ptr()) };
    let Some(code) = Code::read(typed) else {
        // A slip of the keyboard is not noted: it is refused without a look at any card, so whoever
        // guesses gains nothing by it.
        attempts::check(db, org_id, clock::now())?;
        return Err(Error::unknown_code());
    };
    Ok(code.hash(&secrets::secret(db, SECRET)))
}

/// Grants the credit of a card.
fn grant_card(db: &Db, call: &Call, wallet: &mut Wallet, hash: &CodeHash) -> Result<(Operation, GiftCardReceipt)> {
    let now = wallet.now();
    // Others may have tried in vain while this call waited for the lock.
    attempts::check(db, call.org_id, now)?;
    let card = store::take(db, call.org_id, hash, now).ok_or_else(Error::unknown_code)?;
    let Card { name, credits, metrics, validity, source } = card;
    let kind = self::source(&source).ok_or(Error::corrupt("the source of a gift card"))?;
    let expires_at = validity.map_or(INFINITY, |validity| validity.after(now));
    ledger::load(db, wallet, &[])?;
    let grant = Grant { expires_at, metrics: metrics.clone(), ..Grant::new(credits, kind, now) };
    let context = EntryContext { actor: Some(actor()), ..EntryContext::from_source(kind.name(), Some(name.clone())) };
    let mut operation = call.operation(context);
    let grant_id = wallet.grant(&mut operation, kind, grant)?;
    store::redeemed(db, call.org_id, hash, grant_id, now, &name);
    debts::pay(db, wallet, &[])?;
    let scope = metrics.as_ref().and_then(|m| m.first()).map(String::as_str);
    let receipt = GiftCardReceipt {
        grant_id,
        credits,
        unit: wallet.lane.unit.clone(),
        expires_at: (expires_at != INFINITY).then_some(expires_at),
        balance_after: wallet.spendable(scope),
        replayed: false,
    };
    Ok((operation, receipt))
}

/// Redeems a code for an org: grants it promotional credit, and makes its wallet when it is the
/// first.
///
/// `code`: as it was given, in capitals or not, with or without dashes and spaces, O for 0, I and L
/// for 1. `expires_at`: until when the credit can be spent, null for ever. Members may call it for
/// their own orgs. Errors: PT404 `unknown_code` for every code that this org cannot redeem, whether
/// it does not exist, is used up, expired or voided, or the org has redeemed it; PT429
/// `too_many_attempts` for every code after ten that failed within an hour, or where a failed
/// attempt cannot be noted (no free background worker), with `retry_at`; 42501 `not_authorized`;
/// PT409 `idempotency_conflict`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn redeem_gift_card(
    org_id: Option<pgrx::Uuid>,
    code: Option<&str>,
    idempotency_key: default!(Option<&str>, "NULL"),
    metadata: default!(Option<Jsonb>, "'{}'"),
) -> GiftCardReceipt {
    or_raise(access::customer(|| {
        let org_id = required_uuid("org_id", org_id)?;
        let typed = required("code", code)?;
        let hash = spi::connect(|db| hash_of_typed(db, org_id, typed))?;
        // Half of the hash suffices to tell codes apart.
        let half = Uuid::from_slice(&hash[..16]).unwrap_or_default().to_string();
        let call = Call::new(org_id, "redeem_gift_card", &[Some(&half)], idempotency_key, metadata)?;
        let answer = call.run(
            |db, now| {
                attempts::check(db, org_id, now)?;
                // The card is looked up without a lock first: a call that fails here holds nobody
                // up while its attempt is noted.
                let unit = store::unit(db, org_id, &hash, now).ok_or_else(Error::unknown_code)?;
                ledger::lock_or_create(db, org_id, &unit, now)
            },
            |db, wallet| grant_card(db, &call, wallet, &hash),
        );
        match answer {
            Err(error) if error == Error::unknown_code() => {
                Err(spi::connect(|db| attempts::note(db, org_id, clock::now())))
            }
            answer => answer,
        }
    }))
}

/// Voids the codes of a batch that are not used up, and gives their number. What was redeemed
/// stays.
///
/// Errors: PT404 `unknown_batch`; 22023.
#[pg_extern(volatile)]
#[search_path(pg_catalog, pg_temp)]
fn void_gift_cards(name: Option<&str>) -> i64 {
    entry_point::service(|db| {
        let name = batch_name(name)?;
        // Whoever mistypes the name of a batch that leaked should be told so.
        if !store::is_there(db, name) {
            return Err(Error::unknown("unknown_batch", name));
        }
        Ok(i64::try_from(store::void(db, name, clock::now())).unwrap_or(i64::MAX))
    })
}
