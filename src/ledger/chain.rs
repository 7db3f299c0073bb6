//! The hash chain: what a lane's entries are sealed with.
//!
//! `entry_hash = sha256(previous hash ‖ content ‖ entry_id ‖ balance_before ‖ balance_after ‖ grant_id)`, numbers as 8 bytes,
//! big-endian, and 0 for no grant. `content` is the SHA-256 of all other columns ([`content`]). It is split like this
//! because the content is known before the lane is locked, and the rest only then.

use crate::base::hash::{Fields, Hash, first_bits};
use crate::base::time::Moment;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// One ledger row, borrowed: all columns but the numbers that the lane decides.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Content<'a> {
    pub org_id: Uuid,
    pub unit: &'a str,
    pub kind: &'a str,
    pub amount: i64,
    pub quantity: Option<i64>,
    pub metric: Option<&'a str>,
    pub member_id: Option<Uuid>,
    pub source: Option<&'a str>,
    pub source_id: Option<&'a str>,
    pub idempotency_key: Option<&'a str>,
    pub request_hash: Option<i64>,
    pub reason: Option<&'a str>,
    pub actor: Option<&'a str>,
    /// As the server prints it.
    pub metadata: &'a str,
    pub result: Option<&'a str>,
    pub created_at: Moment,
    /// `entry_id − operation_id`: 0 for the first entry of an operation.
    pub offset: i64,
    /// Of the grant that the entry made.
    pub terms: Option<Hash>,
}

/// Hash of the columns that are known before the lane is locked.
pub fn content(row: &Content<'_>) -> Hash {
    let mut fields = Fields::new();
    fields.uuid(Some(row.org_id));
    fields.text(Some(row.unit));
    fields.text(Some(row.kind));
    fields.number(Some(row.amount));
    fields.number(row.quantity);
    fields.text(row.metric);
    fields.uuid(row.member_id);
    fields.text(row.source);
    fields.text(row.source_id);
    fields.text(row.idempotency_key);
    fields.number(row.request_hash);
    fields.text(row.reason);
    fields.text(row.actor);
    fields.text(Some(row.metadata));
    fields.text(row.result);
    fields.number(Some(row.created_at));
    fields.number(Some(row.offset));
    fields.bytes(row.terms.as_ref().map(<[u8; 32]>::as_slice));
    fields.finish()
}

/// The numbers that the lane decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Position {
    pub entry_id: i64,
    pub balance_before: i64,
    pub balance_after: i64,
    pub grant_id: Option<i64>,
}

/// The hash of an entry; `previous` is empty for the first of a lane.
pub fn link(previous: &[u8], content: &Hash, position: Position) -> Hash {
    let mut hash = Sha256::new();
    hash.update(previous);
    hash.update(content);
    hash.update(position.entry_id.to_be_bytes());
    hash.update(position.balance_before.to_be_bytes());
    hash.update(position.balance_after.to_be_bytes());
    hash.update(position.grant_id.unwrap_or(0).to_be_bytes());
    hash.finalize().into()
}

/// The terms of a grant, which its entry's hash covers: they stand in another table and must not be bent either.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Terms<'a> {
    pub paid: bool,
    pub priority: i32,
    pub effective_at: Moment,
    pub expires_at: Moment,
    pub cost_minor: i64,
    pub currency: Option<&'a str>,
    pub metrics: Option<&'a [String]>,
}

/// Hash of the terms of a grant.
pub fn terms(terms: &Terms<'_>) -> Hash {
    let mut fields = Fields::new();
    fields.number(Some(i64::from(terms.paid)));
    fields.number(Some(i64::from(terms.priority)));
    fields.number(Some(terms.effective_at));
    fields.number(Some(terms.expires_at));
    fields.number(Some(terms.cost_minor));
    fields.text(terms.currency);
    fields.number(terms.metrics.map(|m| i64::try_from(m.len()).unwrap_or(i64::MAX)));
    for metric in terms.metrics.into_iter().flatten() {
        fields.text(Some(metric));
    }
    fields.finish()
}

/// The terms of a hold, covered likewise by the first entry of the operation that made it.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct HoldTerms<'a> {
    pub kind: &'a str,
    pub credits: i64,
    pub parts: i32,
    pub expires_at: Option<Moment>,
    pub created_at: Moment,
    pub metric: Option<&'a str>,
    pub quantity: Option<i64>,
    pub member_id: Option<Uuid>,
    /// As serde prints it.
    pub price: Option<&'a str>,
}

/// Hash of the terms of a hold.
pub fn hold_terms(terms: &HoldTerms<'_>) -> Hash {
    let mut fields = Fields::new();
    fields.text(Some(terms.kind));
    fields.number(Some(terms.credits));
    fields.number(Some(i64::from(terms.parts)));
    fields.number(terms.expires_at);
    fields.number(Some(terms.created_at));
    fields.text(terms.metric);
    fields.number(terms.quantity);
    fields.uuid(terms.member_id);
    fields.text(terms.price);
    fields.finish()
}

/// What makes an idempotency key unique: the first 64 bits of its SHA-256.
pub fn request_id(key: &str) -> i64 {
    first_bits(Sha256::digest(key.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Content<'static> {
        Content {
            org_id: Uuid::from_u128(1),
            unit: "credit",
            kind: "usage",
            amount: -5,
            quantity: Some(1),
            metric: Some("ai"),
            member_id: None,
            source: None,
            source_id: None,
            idempotency_key: Some("k"),
            request_hash: Some(7),
            reason: None,
            actor: None,
            metadata: "{}",
            result: None,
            created_at: 0,
            offset: 0,
            terms: None,
        }
    }

    #[test]
    fn every_column_counts() {
        let base = content(&row());
        let variants = [
            Content { org_id: Uuid::from_u128(2), ..row() },
            Content { unit: "EUR", ..row() },
            Content { kind: "expiry", ..row() },
            Content { amount: -6, ..row() },
            Content { quantity: None, ..row() },
            Content { metric: Some("aj"), ..row() },
            Content { member_id: Some(Uuid::nil()), ..row() },
            Content { source: Some(""), ..row() },
            Content { source_id: Some("1"), ..row() },
            Content { idempotency_key: None, ..row() },
            Content { request_hash: None, ..row() },
            Content { reason: Some("r"), ..row() },
            Content { actor: Some("a"), ..row() },
            Content { metadata: "{\"a\": 1}", ..row() },
            Content { result: Some("r"), ..row() },
            Content { created_at: 1, ..row() },
            Content { offset: 1, ..row() },
            Content { terms: Some([0; 32]), ..row() },
        ];
        let mut hashes: Vec<_> = variants.iter().map(content).collect();
        hashes.push(base);
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), variants.len() + 1);

        let position = Position { entry_id: 1, balance_before: 10, balance_after: 5, grant_id: Some(1) };
        let links = [
            link(b"", &base, position),
            link(&base, &base, position),
            link(b"", &base, Position { entry_id: 2, ..position }),
            link(b"", &base, Position { balance_before: 11, ..position }),
            link(b"", &base, Position { balance_after: 6, ..position }),
            link(b"", &base, Position { grant_id: None, ..position }),
        ];
        for (i, a) in links.iter().enumerate() {
            assert!(links.iter().skip(i + 1).all(|b| a != b));
        }
    }

    #[test]
    fn neighbouring_columns_do_not_run_together() {
        let a = Content { source: Some("ab"), source_id: Some("c"), ..row() };
        let b = Content { source: Some("a"), source_id: Some("bc"), ..row() };
        assert_ne!(content(&a), content(&b));
    }
}
