//! The common part of the functions that change a wallet: the idempotency key, the metadata, the
//! moment, and the answer to a repeated call.

use crate::base::error::{Error, Result};
use crate::base::hash::fingerprint;
use crate::base::time::Moment;
use crate::catalog::cache;
use crate::ledger::store;
use crate::ledger::wallet::{EntryContext, Lane, Operation, Request, Wallet};
use crate::pg::jsonb::Jsonb;
use crate::pg::spi::{self, Db};
use crate::pg::{arguments, clock};
use crate::posting;
use crate::settlement::periods;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// The moment at which the idempotency key of a call is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The key is looked up before anything else.
    First,
    /// The key is taken by the first entry, before anything else is written, and needs no look-up
    /// of its own.
    WithEntry,
}

/// A call that changes one wallet.
pub struct Call {
    /// The org whose wallet it is.
    pub org_id: Uuid,
    /// The idempotency key and the fingerprint of the arguments, if the call came with a key.
    pub request: Option<Request>,
    /// The metadata, as the server prints it.
    pub metadata: String,
}

impl Call {
    /// Checks key and metadata. `arguments` are all other arguments that tell requests apart, as
    /// text.
    pub fn new(
        org_id: Uuid,
        function: &str,
        arguments: &[Option<&str>],
        key: Option<&str>,
        metadata: Option<Jsonb>,
    ) -> Result<Self> {
        let metadata = arguments::metadata_text(metadata)?;
        let request = arguments::key(key)?.map(|key| {
            let mut all = arguments.to_vec();
            all.push(Some(&metadata));
            Request { key: key.to_owned(), hash: Some(fingerprint(function, &all)) }
        });
        Ok(Self { org_id, request, metadata })
    }

    /// Makes an operation with this call's key and metadata.
    pub fn operation(&self, context: EntryContext) -> Operation {
        Operation::new(EntryContext { metadata: self.metadata.clone(), request: self.request.clone(), ..context })
    }

    /// Runs the call on the wallet that `lock` locks: answers a repeated call as the first time,
    /// else does the `work`, stores the answer with its first entry, and posts the wallet.
    ///
    /// The moment is taken after the wait for the lock.
    pub fn run<R: Serialize + DeserializeOwned + Answer>(
        &self,
        lock: impl FnOnce(&Db, Moment) -> Result<Lane>,
        work: impl FnOnce(&Db, &mut Wallet) -> Result<(Operation, R)>,
    ) -> Result<R> {
        self.run_then(
            |db, now| Ok((lock(db, now)?, Key::First)),
            |db, wallet| {
                let (operation, answer) = work(db, wallet)?;
                Ok((operation, answer, |_: &Db, _: &Wallet| Ok(())))
            },
        )
    }

    /// Runs the call like [`Call::run`], and does the work's third result after the entries are
    /// written.
    ///
    /// If the work itself writes nothing, the key need not be looked up before it: the entry that
    /// takes the key finds the repetition.
    pub fn run_then<R, L>(
        &self,
        lock: impl FnOnce(&Db, Moment) -> Result<(Lane, Key)>,
        work: impl FnOnce(&Db, &mut Wallet) -> Result<(Operation, R, L)>,
    ) -> Result<R>
    where
        R: Serialize + DeserializeOwned + Answer,
        L: FnOnce(&Db, &Wallet) -> Result<()>,
    {
        spi::connect(|db| {
            cache::require_installed(db)?;
            // The usage of the old period is charged before anything of it expires.
            periods::begin_due(db, vec![self.org_id])?;
            let (lane, key) = match lock(db, clock::now()) {
                Ok(locked) => locked,
                // A repeated call gets its answer even if it would be refused now, before it locks
                // anything.
                Err(error) => return self.replay()?.ok_or(error),
            };
            // In a split wallet, a call with the same key on another lane is not kept out by the
            // wallet's lock.
            let looks_later = key == Key::WithEntry && !lane.is_split();
            if !looks_later && let Some(answer) = self.replay()? {
                return Ok(answer);
            }
            let mut wallet = Wallet::new(lane, clock::now());
            let (operation, mut answer, then) = match work(db, &mut wallet) {
                Ok(done) => done,
                Err(error) if looks_later => return self.replay()?.ok_or(error),
                Err(error) => return Err(error),
            };
            answer.set_operation(operation.id());
            wallet.keep_result(&operation, to_json(&answer)?);
            let wallets = std::slice::from_mut(&mut wallet);
            if !looks_later {
                // If this is refused, the error undoes whatever the work has written.
                posting::save(db, wallets, &self.metadata)?;
            } else if !posting::save_new(db, wallets, &self.metadata)? {
                return self.replay()?.ok_or_else(Error::contended);
            }
            then(db, &wallet)?;
            Ok(answer)
        })
    }

    /// The first answer, marked as replayed, if the key was used before; an error if that was for
    /// another request.
    pub fn replay<R: DeserializeOwned + Answer>(&self) -> Result<Option<R>> {
        let Some(request) = &self.request else { return Ok(None) };
        let Some(found) = store::find_replay(self.org_id, &request.key)? else { return Ok(None) };
        if found.request_hash != request.hash {
            return Err(Error::idempotency_conflict(&request.key));
        }
        let mut answer: R = found
            .result
            .and_then(|text| serde_json::from_str(&text).ok())
            .ok_or(Error::corrupt("the answer of an operation cannot be read"))?;
        answer.set_replayed();
        Ok(Some(answer))
    }
}

/// The text of an answer as it is stored.
pub fn to_json<R: Serialize>(answer: &R) -> Result<String> {
    serde_json::to_string(answer).map_err(|_| Error::corrupt("an answer cannot be stored"))
}

/// A receipt that can be given again to a repeated call.
pub trait Answer {
    /// Marks the receipt as given again.
    fn set_replayed(&mut self);
    /// Tells the receipt its operation, if it names one.
    fn set_operation(&mut self, _operation_id: i64) {}
}
