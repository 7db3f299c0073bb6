//! One idempotent call that changes an org's subscription: it locks the org's wallets, begins the
//! periods that are due, runs, and keeps the answer.

use crate::base::error::{Error, Result};
use crate::base::time::Moment;
use crate::base::{hash, units};
use crate::call::{Answer, to_json};
use crate::catalog::cache;
use crate::ledger::store as ledger;
use crate::pg::jsonb::Jsonb;
use crate::pg::spi::{self, Db};
use crate::pg::{arguments, clock};
use crate::plans::store::{self as plans, Subscription};
use crate::settlement::periods;
use crate::subscriptions::status::SubscriptionStatus;
use crate::subscriptions::store;
use uuid::Uuid;

/// A call that changes an org's subscription.
pub struct SubscriptionCall<'a> {
    /// The org whose subscription it is.
    pub org_id: Uuid,
    key: Option<&'a str>,
    hash: i64,
    /// The metadata, as the server prints it.
    pub metadata: String,
}

impl<'a> SubscriptionCall<'a> {
    /// Checks key and metadata. `arguments` are all other arguments that tell requests apart.
    pub fn new(
        org_id: Uuid,
        function: &str,
        arguments: &[Option<&str>],
        key: Option<&'a str>,
        metadata: Option<Jsonb>,
    ) -> Result<Self> {
        let metadata = arguments::metadata_text(metadata)?;
        let mut all = arguments.to_vec();
        all.push(Some(&metadata));
        Ok(Self { org_id, key: arguments::key(key)?, hash: hash::fingerprint(function, &all), metadata })
    }

    /// Does the work under the locks of the org's wallets, and gives a repeated call its first
    /// answer.
    pub fn run(
        &self,
        makes_wallet: bool,
        work: impl FnOnce(&Db, &[Subscription], Moment) -> Result<SubscriptionStatus>,
    ) -> Result<SubscriptionStatus> {
        spi::connect(|db| {
            cache::require_installed(db)?;
            // All wallets are locked, in their order: the usage of periods before may have to be
            // paid from any of them.
            let units = if makes_wallet { vec![units::CREDIT.to_owned()] } else { Vec::new() };
            if ledger::lock_org(db, self.org_id, &units, clock::now())?.is_empty() {
                return Err(Error::no_subscription(&self.org_id.to_string()));
            }
            if let Some(answer) = self.replay(db)? {
                return Ok(answer);
            }
            let now = clock::now();
            periods::catch_up(db, self.org_id, now)?;
            let answer = work(db, &plans::subscriptions(self.org_id), now)?;
            if let Some(key) = self.key {
                let text = to_json(&answer)?;
                store::keep_answer(db, self.org_id, key, self.hash, &text);
            }
            Ok(answer)
        })
    }

    fn replay(&self, db: &Db) -> Result<Option<SubscriptionStatus>> {
        let Some(key) = self.key else { return Ok(None) };
        let Some(kept) = store::find_answer(db, self.org_id, key) else { return Ok(None) };
        if kept.request_hash != self.hash {
            return Err(Error::idempotency_conflict(key));
        }
        let mut answer: SubscriptionStatus = serde_json::from_str(&kept.answer)
            .map_err(|_| Error::corrupt("the answer of an operation cannot be read"))?;
        answer.set_replayed();
        Ok(Some(answer))
    }
}
