//! The proof of a chain, without a server: entries go in one by one, in order of their lane; violations come out.

use crate::base::hash::Hash;
use crate::base::time::Moment;
use crate::ledger::chain::{self, Content, Position};
use serde_json::{Value, json};
use uuid::Uuid;

/// Entries of a lane are numbered from `slot << SLOT_BITS` + 1.
pub const SLOT_BITS: u32 = 40;

/// A ledger row as it is stored, trusted in nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stored {
    pub org_id: Uuid,
    pub operation_id: i64,
    pub entry_id: i64,
    pub amount: i64,
    pub balance_before: i64,
    pub balance_after: i64,
    pub created_at: Moment,
    pub grant_id: Option<i64>,
    pub quantity: Option<i64>,
    pub request_hash: Option<i64>,
    pub member_id: Option<Uuid>,
    pub unit: String,
    pub kind: String,
    pub metric: Option<String>,
    pub source: Option<String>,
    pub source_id: Option<String>,
    pub idempotency_key: Option<String>,
    pub request_id: Option<i64>,
    pub reason: Option<String>,
    pub actor: Option<String>,
    pub metadata: String,
    pub result: Option<String>,
    pub entry_hash: Vec<u8>,
    /// Of the grant that the entry made, as its table has them.
    pub terms: Option<Hash>,
}

impl Stored {
    /// The lane's number within the org.
    pub fn slot(&self) -> i64 {
        self.entry_id >> SLOT_BITS
    }

    fn hash(&self, previous: &[u8]) -> Hash {
        let content = chain::content(&Content {
            org_id: self.org_id,
            unit: &self.unit,
            kind: &self.kind,
            amount: self.amount,
            quantity: self.quantity,
            metric: self.metric.as_deref(),
            member_id: self.member_id,
            source: self.source.as_deref(),
            source_id: self.source_id.as_deref(),
            idempotency_key: self.idempotency_key.as_deref(),
            request_hash: self.request_hash,
            reason: self.reason.as_deref(),
            actor: self.actor.as_deref(),
            metadata: &self.metadata,
            result: self.result.as_deref(),
            created_at: self.created_at,
            offset: self.entry_id.wrapping_sub(self.operation_id),
            terms: self.terms,
        });
        let position = Position {
            entry_id: self.entry_id,
            balance_before: self.balance_before,
            balance_after: self.balance_after,
            grant_id: self.grant_id,
        };
        chain::link(previous, &content, position)
    }
}

/// The balance row that a chain must end in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Row {
    pub unit: String,
    pub last_entry_id: i64,
    pub balance: i64,
    pub reserved: i64,
    pub locked: i64,
    pub purchased: i64,
    pub consumed: i64,
    pub head: Vec<u8>,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Violation {
    pub org_id: Uuid,
    pub unit: String,
    pub violation: &'static str,
    pub detail: Value,
}

/// A lane on the way through its entries.
#[derive(Debug)]
pub struct Walk {
    org_id: Uuid,
    slot: i64,
    unit: Option<String>,
    last_id: i64,
    balance: i64,
    hash: Vec<u8>,
    reserved: i64,
    locked: i64,
    purchased: i64,
    consumed: i64,
}

impl Walk {
    /// Before the first entry of a lane. `unit` is that of its balance row, if there is one.
    pub fn new(org_id: Uuid, slot: i64, unit: Option<String>) -> Self {
        Self {
            org_id,
            slot,
            unit,
            last_id: slot << SLOT_BITS,
            balance: 0,
            hash: Vec::new(),
            reserved: 0,
            locked: 0,
            purchased: 0,
            consumed: 0,
        }
    }

    /// Whether an entry belongs to this lane.
    pub fn is_of(&self, entry: &Stored) -> bool {
        self.org_id == entry.org_id && self.slot == entry.slot()
    }

    fn note(&self, out: &mut Vec<Violation>, unit: &str, violation: &'static str, detail: Value) {
        out.push(Violation { org_id: self.org_id, unit: unit.to_owned(), violation, detail });
    }

    /// The next entry of the lane.
    pub fn entry(&mut self, e: &Stored, out: &mut Vec<Violation>) {
        let id = e.entry_id;
        if id != self.last_id + 1 {
            let detail = json!({"entry_id": id, "expected": self.last_id + 1});
            self.note(out, &e.unit, "chain_gap", detail);
        } else if e.balance_before != self.balance {
            let detail = json!({"entry_id": id, "balance_before": e.balance_before, "expected": self.balance});
            self.note(out, &e.unit, "balance_not_continuous", detail);
        }
        if e.balance_before.checked_add(e.amount) != Some(e.balance_after) || e.balance_after < 0 {
            let detail = json!({
                "entry_id": id, "balance_before": e.balance_before, "amount": e.amount, "balance_after": e.balance_after,
            });
            self.note(out, &e.unit, "balance_mismatch", detail);
        }
        if e.request_id != e.idempotency_key.as_deref().map(chain::request_id) {
            self.note(out, &e.unit, "key_mismatch", json!({"entry_id": id, "idempotency_key": e.idempotency_key}));
        }
        if e.entry_hash != e.hash(&self.hash) {
            self.note(out, &e.unit, "hash_mismatch", json!({"entry_id": id}));
        }
        match &self.unit {
            None => self.note(out, &e.unit, "entry_without_wallet", json!({"entry_id": id})),
            Some(unit) if *unit != e.unit => {
                self.note(out, &e.unit, "unit_mismatch", json!({"entry_id": id, "wallet": unit}));
            }
            Some(_) => {}
        }
        match e.kind.as_str() {
            "hold" | "release" => self.reserved = self.reserved.wrapping_sub(e.amount),
            "payout_hold" | "payout_release" => self.locked = self.locked.wrapping_sub(e.amount),
            "purchase" => self.purchased = self.purchased.wrapping_add(e.amount),
            "usage" => self.consumed = self.consumed.wrapping_sub(e.amount),
            "refund" if e.source.as_deref() == Some("operation") => {
                self.consumed = self.consumed.wrapping_sub(e.amount);
            }
            _ => {}
        }
        self.last_id = id;
        self.balance = e.balance_after;
        self.hash.clone_from(&e.entry_hash);
    }

    /// After the last entry of the lane, held against its balance row.
    pub fn finish(&self, row: Option<&Row>, out: &mut Vec<Violation>) {
        let Some(row) = row else { return };
        let unit = row.unit.as_str();
        if row.last_entry_id != self.last_id {
            let detail = json!({"last_entry_id": row.last_entry_id, "found": self.last_id});
            self.note(out, unit, "entries_missing", detail);
        } else if row.head != self.hash {
            self.note(out, unit, "head_mismatch", json!({"last_entry_id": row.last_entry_id}));
        }
        for (violation, stored, sum) in [
            ("wallet_balance_mismatch", row.balance, self.balance),
            ("reserved_mismatch", row.reserved, self.reserved),
            ("locked_mismatch", row.locked, self.locked),
            ("purchased_mismatch", row.purchased, self.purchased),
            ("consumed_mismatch", row.consumed, self.consumed),
        ] {
            if stored != sum {
                self.note(out, unit, violation, json!({"wallet": stored, "entries": sum}));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: i64, before: i64, amount: i64, kind: &str, previous: &[u8]) -> Stored {
        let mut e = Stored {
            org_id: Uuid::from_u128(7),
            operation_id: id,
            entry_id: id,
            amount,
            balance_before: before,
            balance_after: before + amount,
            created_at: 5,
            grant_id: Some(1),
            quantity: Some(3),
            request_hash: Some(4),
            member_id: Some(Uuid::from_u128(9)),
            unit: "credit".into(),
            kind: kind.into(),
            metric: Some("ai".into()),
            source: Some("purchase".into()),
            source_id: Some("x".into()),
            idempotency_key: Some("k".into()),
            request_id: Some(chain::request_id("k")),
            reason: Some("r".into()),
            actor: Some("a".into()),
            metadata: "{}".into(),
            result: Some("{}".into()),
            entry_hash: Vec::new(),
            terms: None,
        };
        e.entry_hash = e.hash(previous).to_vec();
        e
    }

    fn sound() -> (Vec<Stored>, Row) {
        let a = entry(1, 0, 100, "purchase", b"");
        let b = entry(2, 100, -30, "usage", &a.entry_hash);
        let c = entry(3, 70, -20, "hold", &b.entry_hash);
        let row = Row {
            unit: "credit".into(),
            last_entry_id: 3,
            balance: 50,
            reserved: 20,
            locked: 0,
            purchased: 100,
            consumed: 30,
            head: c.entry_hash.clone(),
        };
        (vec![a, b, c], row)
    }

    fn audit(entries: &[Stored], row: &Row) -> Vec<&'static str> {
        let mut out = Vec::new();
        let mut walk = Walk::new(Uuid::from_u128(7), 0, Some(row.unit.clone()));
        for e in entries {
            walk.entry(e, &mut out);
        }
        walk.finish(Some(row), &mut out);
        out.iter().map(|v| v.violation).collect()
    }

    #[test]
    fn a_sound_chain_has_no_violation() {
        let (entries, row) = sound();
        assert!(audit(&entries, &row).is_empty());
    }

    #[test]
    fn a_change_of_any_column_shows_up() {
        type Change = fn(&mut Stored);
        let changes: [Change; 24] = [
            |e| e.terms = Some([0; 32]),
            |e| e.request_id = None,
            |e| e.org_id = Uuid::from_u128(8),
            |e| e.operation_id -= 1,
            |e| e.entry_id += 1,
            |e| e.amount += 1,
            |e| e.balance_before += 1,
            |e| e.balance_after += 1,
            |e| e.created_at += 1,
            |e| e.grant_id = None,
            |e| e.quantity = None,
            |e| e.request_hash = None,
            |e| e.member_id = None,
            |e| e.unit = "EUR".into(),
            |e| e.kind = "bonus".into(),
            |e| e.metric = None,
            |e| e.source = None,
            |e| e.source_id = None,
            |e| e.idempotency_key = None,
            |e| e.reason = None,
            |e| e.actor = None,
            |e| e.metadata = "{\"a\": 1}".into(),
            |e| e.result = None,
            |e| e.entry_hash[0] ^= 1,
        ];
        for (i, change) in changes.iter().enumerate() {
            for position in 0..3 {
                let (mut entries, row) = sound();
                change(&mut entries[position]);
                assert!(!audit(&entries, &row).is_empty(), "change {i} of entry {position}");
            }
        }
    }

    #[test]
    fn missing_entries_show_up() {
        for gone in 0..3 {
            let (mut entries, row) = sound();
            entries.remove(gone);
            assert!(!audit(&entries, &row).is_empty());
        }
        let (_, row) = sound();
        assert!(audit(&[], &row).contains(&"entries_missing"));
    }
}
