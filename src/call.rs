//! What the mutating calls have in common: the key, the metadata, the moment, and the answer to a repeated call.

use crate::base::error::{Error, Result};
use crate::base::hash::fingerprint;
use crate::base::time::Moment;
use crate::catalog::cache;
use crate::ledger::store;
use crate::ledger::wallet::{EntryContext, Lane, Operation, Request, Wallet};
use crate::pg::arguments;
use crate::pg::clock;
use crate::pg::jsonb::Jsonb;
use crate::pg::spi::{self, Db};
use crate::posting;
use crate::settlement;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// When the key of a call is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Before anything else.
    First,
    /// When the first entry is written, before anything else is.
    WithEntry,
}

/// A mutating call on one wallet.
pub struct Call {
    /// Whose.
    pub org_id: Uuid,
    /// Key and fingerprint.
    pub request: Option<Request>,
    /// As the server prints it.
    pub metadata: String,
}

impl Call {
    /// Checks key and metadata. `arguments` are all others that make the request what it is, as text.
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

    /// An operation with this call's key and metadata.
    pub fn operation(&self, context: EntryContext) -> Operation {
        Operation::new(EntryContext { metadata: self.metadata.clone(), request: self.request.clone(), ..context })
    }

    /// Runs the call on the wallet that `lock` locks: gives a repeated call its first answer, else does the `work` on the
    /// wallet, stores the answer with its first entry, and writes.
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

    /// The same, with something to be written after the entries; and where all that the work writes is written then, the key
    /// need not be looked up before it: the entry that takes it finds out.
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
            // What the period before is to pay is charged before anything of it expires.
            settlement::begin_due(db, vec![self.org_id])?;
            let (lane, key) = match lock(db, clock::now()) {
                Ok(locked) => locked,
                // What was refused before there was a lock may still be a repeated call.
                Err(error) => return self.replay()?.ok_or(error),
            };
            // Who uses the key on another lane is not kept out by our lock.
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
                // What the work has written goes with the error.
                posting::save(db, wallets, &self.metadata)?;
            } else if !posting::save_new(db, wallets, &self.metadata)? {
                return self.replay()?.ok_or_else(Error::contended);
            }
            then(db, &wallet)?;
            Ok(answer)
        })
    }

    /// The first answer, marked, when the key was used before; an error when that was for another request.
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

/// An answer as it is stored.
pub fn to_json<R: Serialize>(answer: &R) -> Result<String> {
    serde_json::to_string(answer).map_err(|_| Error::corrupt("an answer cannot be stored"))
}

/// A receipt that can be given again.
pub trait Answer {
    /// Marks it as given again.
    fn set_replayed(&mut self);
    /// Tells it the operation, where it names one.
    fn set_operation(&mut self, _operation_id: i64) {}
}
