//! The statements of gift cards. A card's row is locked after the wallet, never before.

use crate::base::time::Moment;
use crate::base::validity::Validity;
use crate::gift_cards::code::CodeHash;
use crate::pg::jsonb::Jsonb;
use crate::pg::spi::{self, Db, Row, Timestamptz};
use crate::{args, statements};
use uuid::Uuid;

/// $1 the code, $2 the org, $3 now.
macro_rules! redeemable {
    () => {
        " where c.code_hash = $1 and c.voided_at is null and c.redeemed < c.max_redemptions
            and (c.expires_at is null or c.expires_at > $3)
            and not exists (select from billing.gift_card_redemptions r where r.org_id = $2 and r.code_hash = $1)"
    };
}

statements! {
    NEW_CARDS(byteas, text, text, int8, texts, int4, timestamptz, text, text, jsonb, timestamptz) =
        "insert into billing.gift_cards (code_hash, name, unit, credits, metrics, max_redemptions, expires_at, validity, source,
                                         metadata, created_at)
         select k.code_hash, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 from unnest($1) k (code_hash)";
    UNIT(bytea, uuid, timestamptz) = concat!("select c.unit from billing.gift_cards c", redeemable!());
    TAKE(bytea, uuid, timestamptz) = concat!(
        "update billing.gift_cards c set redeemed = c.redeemed + 1", redeemable!(), "
         returning c.name, c.credits, c.metrics, c.validity, c.source");
    REDEEMED(uuid, bytea, int8, timestamptz, text) =
        "insert into billing.gift_card_redemptions (org_id, code_hash, grant_id, redeemed_at, name) values ($1, $2, $3, $4, $5)";
    IS_THERE(text) = "select from billing.gift_cards where name = $1 limit 1";
    // In one order, so that two of these do not wait in a circle.
    VOID(text, timestamptz) =
        "with open as (
            select code_hash from billing.gift_cards
             where name = $1 and voided_at is null and redeemed < max_redemptions
             order by code_hash for update)
         update billing.gift_cards c set voided_at = $2 from open where c.code_hash = open.code_hash";
}

/// What the cards of a batch are.
pub struct Batch<'a> {
    /// Its name.
    pub name: &'a str,
    /// Of the wallet.
    pub unit: &'a str,
    /// What each redemption grants.
    pub credits: i64,
    /// On which alone it may be spent.
    pub metrics: Option<Vec<String>>,
    /// How often each can be redeemed.
    pub max_redemptions: i32,
    /// Until when.
    pub expires_at: Option<Moment>,
    /// How long the credit can be spent.
    pub validity: Option<Validity>,
    /// Of the grants.
    pub source: &'a str,
    /// What the caller noted.
    pub metadata: Jsonb,
}

/// A card that is being redeemed.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Card {
    pub name: String,
    pub credits: i64,
    pub metrics: Option<Vec<String>>,
    pub validity: Option<Validity>,
    pub source: String,
}

fn card(row: &Row) -> Card {
    Card {
        name: row.get(0),
        credits: row.get(1),
        metrics: row.opt(2),
        validity: row.opt::<String>(3).as_deref().and_then(Validity::parse),
        source: row.get(4),
    }
}

/// Makes cards.
pub fn create(db: &Db, hashes: &[CodeHash], batch: Batch<'_>, now: Moment) {
    let hashes: Vec<Vec<u8>> = hashes.iter().map(|hash| hash.to_vec()).collect();
    db.write(
        &NEW_CARDS,
        args![
            hashes,
            batch.name,
            batch.unit,
            batch.credits,
            batch.metrics,
            batch.max_redemptions,
            batch.expires_at.map(Timestamptz),
            batch.validity.map(|validity| validity.to_string()),
            batch.source,
            batch.metadata,
            Timestamptz(now),
        ],
    );
}

/// The unit of a card that the org can redeem, as it looks without a lock.
pub fn unit(db: &Db, org_id: Uuid, hash: &CodeHash, now: Moment) -> Option<String> {
    db.write(&UNIT, args![hash.as_slice(), org_id, Timestamptz(now)]).first().map(|row| row.get(0))
}

/// Takes one redemption of a card, after whoever is taking another; None where there is none left. The org's wallet is locked,
/// so nobody redeems the same for it.
pub fn take(db: &Db, org_id: Uuid, hash: &CodeHash, now: Moment) -> Option<Card> {
    let mut taken = None;
    // Undone, so that whoever waited in vain does not hold up the others until he has been refused.
    spi::in_subtransaction(|| {
        taken = db.write(&TAKE, args![hash.as_slice(), org_id, Timestamptz(now)]).first().as_ref().map(card);
        taken.is_some()
    });
    taken
}

/// Notes a redemption.
pub fn redeemed(db: &Db, org_id: Uuid, hash: &CodeHash, grant_id: i64, now: Moment, name: &str) {
    db.write(&REDEEMED, args![org_id, hash.as_slice(), grant_id, Timestamptz(now), name]);
}

/// Whether there is any card of that name.
pub fn is_there(db: &Db, name: &str) -> bool {
    db.write(&IS_THERE, args![name]).count() > 0
}

/// Voids the cards of that name that are not used up; gives their number.
pub fn void(db: &Db, name: &str, now: Moment) -> usize {
    db.write(&VOID, args![name, Timestamptz(now)]).count()
}
