//! The rules of a wallet, without a server: burn order, allocation, expiry, holds, refunds, and the
//! entries they write.
//!
//! A `Wallet` is one locked lane with the grants that matter; of a split wallet it is lane 0, with
//! those other lanes that are locked besides. Methods change it in memory and note entries; the
//! store writes the outcome. A method that refuses leaves the wallet as it was, so that a batch can
//! go on with it.

use crate::base::error::{Error, Result};
use crate::base::hash::Hash;
use crate::base::time::{INFINITY, Moment, NEG_INFINITY, Period};
use crate::base::words::Word;
use crate::ledger::chain::{self, Content, Position, Terms};
use crate::ledger::kind::EntryKind;
use crate::ledger::lanes;
use crate::ledger::recent::{self, LaneSummary};
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

/// A balance row of the table `lanes`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Lane {
    pub org_id: Uuid,
    pub unit: String,
    pub lane: i16,
    pub last_entry_id: i64,
    pub balance: i64,
    pub reserved: i64,
    pub locked: i64,
    pub purchased: i64,
    pub consumed: i64,
    pub scoped: i64,
    pub future: i64,
    pub slice_grant: i64,
    pub slice_credits: i64,
    pub fresh_until: Moment,
    pub holds_due: Moment,
    /// The balance below which an alert or a purchase may be due.
    pub alert_below: i64,
    /// The balance of the wallet after its last grant.
    pub alert_base: i64,
    /// The number of lanes of the wallet, which only lane 0 tells.
    pub lanes: i16,
    /// The hash of the last entry; empty before the first.
    pub head: Vec<u8>,
    /// The sums of its newest entries (`recent.rs`).
    pub recent: Option<Vec<u8>>,
}

impl Lane {
    /// Whether consumptions burn from other lanes than this one, which keeps the rest.
    pub fn is_split(&self) -> bool {
        self.lanes > 1
    }

    /// The moment until which the row alone tells what can be spent, and the slice may be burned.
    pub fn fast_until(&self) -> Moment {
        // A burn moves credit from the balance to `consumed`: as long as their sum fits, neither
        // overflows.
        let fits = self.consumed.checked_add(self.balance).is_some();
        let plain = self.scoped == 0 && self.future == 0 && fits;
        if plain { self.fresh_until.min(self.holds_due) } else { NEG_INFINITY }
    }
}

/// The columns of a grant that can change, as the table has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Saved {
    pub remaining: i64,
    pub written_off: i64,
    pub voided: bool,
}

/// A grant. `remaining` includes the slice that the lane holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Grant {
    pub grant_id: i64,
    pub amount: i64,
    pub remaining: i64,
    pub priority: i32,
    pub paid: bool,
    /// The credit that expired or was voided.
    pub written_off: i64,
    pub source: String,
    pub cost_minor: i64,
    pub currency: Option<String>,
    pub effective_at: Moment,
    /// The moment of expiry; `INFINITY` stands for never.
    pub expires_at: Moment,
    pub voided: bool,
    /// The only metrics on which it may be spent; None for any.
    pub metrics: Option<Vec<String>>,
    /// The columns as they are stored; None if this call made the grant.
    pub saved: Option<Saved>,
}

impl Grant {
    /// A grant that is about to be made: promotional credit, to be spent on anything from now on
    /// and for ever.
    ///
    /// Whatever differs is named over it: `Grant { expires_at, ..Grant::new(amount, source, now)
    /// }`.
    pub fn new(amount: i64, source: EntryKind, now: Moment) -> Self {
        Self {
            grant_id: 0,
            amount,
            remaining: 0,
            priority: 50,
            paid: false,
            written_off: 0,
            source: source.name().to_owned(),
            cost_minor: 0,
            currency: None,
            effective_at: now,
            expires_at: INFINITY,
            voided: false,
            metrics: None,
            saved: None,
        }
    }

    /// The hash of its terms, which the hash of its entry covers.
    pub fn terms(&self) -> Hash {
        chain::terms(&Terms {
            paid: self.paid,
            priority: self.priority,
            effective_at: self.effective_at,
            expires_at: self.expires_at,
            cost_minor: self.cost_minor,
            currency: self.currency.as_deref(),
            metrics: self.metrics.as_deref(),
        })
    }

    fn is_live(&self, now: Moment) -> bool {
        self.remaining > 0 && !self.voided && self.effective_at <= now && now < self.expires_at
    }

    fn is_dead(&self, now: Moment) -> bool {
        self.voided || self.expires_at <= now
    }

    /// Whether it may be spent on that metric; without one, whether it may be spent on anything.
    fn applies_to(&self, metric: Option<&str>) -> bool {
        match (&self.metrics, metric) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(only), Some(metric)) => only.iter().any(|m| m == metric),
        }
    }

    /// The one total burn order: scoped before general, priority, expires_at, promotional before
    /// paid, effective_at, id.
    fn burn_order(&self) -> impl Ord + use<> {
        (self.metrics.is_none(), self.priority, self.expires_at, self.paid, self.effective_at, self.grant_id)
    }
}

/// The credit of one grant that an operation burned, held or gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Part {
    pub grant_id: i64,
    pub credits: i64,
}

/// The slice of a lane that is not locked, as committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct UnlockedLane {
    pub lane: i16,
    pub slice: Part,
    /// The moment at which the grant of the slice expires.
    pub fresh_until: Moment,
}

/// The idempotency key of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The key as the caller gave it.
    pub key: String,
    /// The fingerprint of all arguments; None for consumptions, whose entry has all of them.
    pub hash: Option<i64>,
}

/// The columns that all entries of one operation have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct EntryContext {
    pub metric: Option<String>,
    pub quantity: Option<i64>,
    pub member_id: Option<Uuid>,
    pub source: Option<String>,
    pub source_id: Option<String>,
    pub reason: Option<String>,
    pub actor: Option<String>,
    /// The metadata, as the server prints it.
    pub metadata: String,
    /// The idempotency key, if the call came with one.
    pub request: Option<Request>,
}

impl EntryContext {
    /// A context that only tells where the movement comes from.
    pub fn from_source(source: &str, source_id: Option<String>) -> Self {
        Self { source: Some(source.to_owned()), source_id, metadata: "{}".to_owned(), ..Self::default() }
    }
}

/// An operation in progress, whose id is that of its first entry.
#[derive(Debug, Clone)]
pub struct Operation {
    id: Option<i64>,
    context: Rc<EntryContext>,
}

impl Operation {
    /// Begins an operation that has not written anything yet.
    pub fn new(context: EntryContext) -> Self {
        Self { id: None, context: Rc::new(context) }
    }

    /// The id, once an entry is written; 0 before.
    pub fn id(&self) -> i64 {
        self.id.unwrap_or(0)
    }
}

/// A ledger row to be written.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Entry {
    pub kind: EntryKind,
    pub amount: i64,
    pub operation_id: i64,
    pub position: Position,
    pub context: Rc<EntryContext>,
    pub result: Option<String>,
    /// The hash of the terms of the grant or hold that the entry made, which stand in other tables.
    pub terms: Option<Hash>,
    pub hash: Hash,
}

impl Entry {
    /// Whether it is the first of its operation, which carries the key and the result.
    pub fn leads(&self) -> bool {
        self.position.entry_id == self.operation_id
    }

    /// The idempotency key, on the first entry of an operation.
    pub fn request(&self) -> Option<&Request> {
        self.context.request.as_ref().filter(|_| self.leads())
    }
}

/// A usage hold that has timed out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Hold {
    pub hold_id: i64,
    pub credits: i64,
    pub member_id: Option<Uuid>,
    pub created_at: Moment,
    pub parts: Vec<Part>,
}

/// The change of a member's row in `member_usage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MemberDelta {
    pub consumed: i64,
    pub period: i64,
    pub active_at: Option<Moment>,
}

/// A member's budget as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Budget {
    pub limit: i64,
    pub per: Period,
    pub period_start: Moment,
    pub period_consumed: i64,
}

/// A locked lane with the grants that this call knows.
#[derive(Debug, Clone)]
pub struct Wallet {
    /// The balance row.
    pub lane: Lane,
    /// The grants with credit left, and those that the call names; None as long as the slice
    /// suffices.
    pub grants: Option<Vec<Grant>>,
    /// The other lanes that are locked too, each with its slice.
    pub lanes: Vec<Wallet>,
    /// The slices of the lanes that are not locked.
    pub away: Vec<UnlockedLane>,
    /// The entries to write.
    pub entries: Vec<Entry>,
    /// The holds that timed out and were booked, each with the operation that did it.
    pub expired_holds: Vec<(i64, i64)>,
    /// The changes of members.
    pub members: BTreeMap<Uuid, MemberDelta>,
    /// The budgets of the members that the call names.
    pub budgets: BTreeMap<Uuid, Budget>,
    now: Moment,
}

impl Wallet {
    /// A wallet of a lane that was just locked, with nothing loaded.
    pub fn new(lane: Lane, now: Moment) -> Self {
        Self {
            lane,
            grants: None,
            lanes: Vec::new(),
            away: Vec::new(),
            entries: Vec::new(),
            expired_holds: Vec::new(),
            members: BTreeMap::new(),
            budgets: BTreeMap::new(),
            now,
        }
    }

    /// The moment as of which the call is made.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Whether the figures of the row are right at this moment.
    pub fn is_fresh(&self) -> bool {
        self.now < self.lane.fresh_until && self.now < self.lane.holds_due
    }

    /// Whether the row alone can serve a burn of so much general credit.
    pub fn slice_suffices(&self, credits: i64) -> bool {
        !self.lane.is_split() && self.is_fresh() && self.lane.scoped == 0 && self.lane.slice_credits >= credits
    }

    /// Brings in the grants, and books timed-out holds and expired grants.
    pub fn load(&mut self, mut grants: Vec<Grant>, timed_out: &[Hold], next_hold_due: Moment) -> Result<()> {
        for grant in &mut grants {
            if grant.grant_id == self.lane.slice_grant {
                grant.remaining += self.lane.slice_credits;
            }
        }
        grants.sort_by_key(Grant::burn_order);
        self.grants = Some(grants);
        self.lane.holds_due = next_hold_due;
        for hold in timed_out {
            let mut operation = Operation::new(EntryContext::from_source("hold", Some(hold.hold_id.to_string())));
            self.give_back(&mut operation, EntryKind::Release, &hold.parts)?;
            self.lane.reserved -= hold.credits;
            self.note_member(hold.member_id, 0, -self.still_counted(hold), None);
            self.expired_holds.push((hold.hold_id, operation.id()));
        }
        self.write_off_dead_grants()
    }

    /// The credit of a hold that counts in the member's current budget period. The member's budget
    /// must be loaded.
    pub fn still_counted(&self, hold: &Hold) -> i64 {
        let start = hold.member_id.and_then(|m| self.budgets.get(&m)).map(|b| b.per.start(self.now));
        if start.is_none_or(|start| hold.created_at >= start) { hold.credits } else { 0 }
    }

    /// The credit that can be spent now; with `metric`, on that metric.
    pub fn spendable(&self, metric: Option<&str>) -> i64 {
        let elsewhere = self.away.iter().map(|a| a.slice).chain(self.lanes.iter().map(Self::slice));
        self.at_hand(metric) + elsewhere.filter(|slice| self.may_burn(*slice)).map(|slice| slice.credits).sum::<i64>()
    }

    /// The credit of [`Wallet::spendable`] that other lanes do not hold.
    pub fn at_hand(&self, metric: Option<&str>) -> i64 {
        match &self.grants {
            Some(grants) => grants
                .iter()
                .filter(|grant| grant.is_live(self.now) && grant.applies_to(metric))
                .map(|grant| grant.remaining)
                .sum(),
            None => self.lane.balance - self.lane.scoped - self.lane.future,
        }
    }

    /// All credit of the wallet that is neither reserved nor locked, whatever it may be spent on.
    pub fn balance(&self) -> i64 {
        let elsewhere = self.away.iter().map(|a| a.slice.credits).chain(self.lanes.iter().map(|l| l.lane.balance));
        self.lane.balance + elsewhere.sum::<i64>()
    }

    fn slice(&self) -> Part {
        Part { grant_id: self.lane.slice_grant, credits: self.lane.slice_credits }
    }

    /// Whether the grant of a slice can be spent now.
    fn may_burn(&self, slice: Part) -> bool {
        let grant = self.grants.iter().flatten().find(|grant| grant.grant_id == slice.grant_id);
        grant.is_some_and(|grant| !grant.is_dead(self.now) && grant.effective_at <= self.now)
    }

    /// The lanes whose credit is to be burned after some that is at hand, because a grant has come
    /// before theirs.
    pub fn later_lanes(&self) -> Vec<i16> {
        let grants = || self.grants.iter().flatten();
        let Some(first) = grants().find(|grant| grant.metrics.is_none() && grant.is_live(self.now)) else {
            return Vec::new();
        };
        let is_later = |away: &&UnlockedLane| {
            grants().any(|grant| grant.grant_id == away.slice.grant_id && grant.burn_order() > first.burn_order())
        };
        self.away.iter().filter(is_later).map(|away| away.lane).collect()
    }

    /// The lanes whose credit a burn takes before what is at hand, or needs besides. `passed` lanes
    /// are left out.
    pub fn wanted_lanes(&self, credits: i64, metric: Option<&str>, passed: &[i16]) -> Vec<i16> {
        let (mut missing, mut wanted) = (credits, Vec::new());
        for grant in self.grants.iter().flatten().filter(|grant| !grant.is_dead(self.now) && grant.applies_to(metric)) {
            let at_hand = if grant.is_live(self.now) { grant.remaining } else { 0 };
            if missing <= at_hand {
                break;
            }
            missing -= at_hand;
            for away in self.away.iter().filter(|a| a.slice.grant_id == grant.grant_id && !passed.contains(&a.lane)) {
                if missing > 0 {
                    missing -= away.slice.credits;
                    wanted.push(away.lane);
                }
            }
            if missing <= 0 {
                break;
            }
        }
        wanted
    }

    /// Takes the slice of another lane, which was just locked, back to its grant.
    pub fn reclaim_lane(&mut self, lane: Lane) -> Result<()> {
        self.away.retain(|away| away.lane != lane.lane);
        let number = lane.lane;
        let mut from = Self::new(lane, self.now);
        if let Some(known) = self.lanes.iter().position(|l| l.lane.lane == number) {
            from = self.lanes.swap_remove(known);
        }
        let slice = from.slice();
        if slice.credits > 0 {
            let mut leaving = Operation::new(EntryContext::from_source("lane", Some(self.lane.lane.to_string())));
            from.take(&mut leaving, EntryKind::Lane, &[slice])?;
            let mut coming = Operation::new(EntryContext::from_source("lane", Some(number.to_string())));
            self.give_back(&mut coming, EntryKind::Lane, &[slice])?;
        }
        from.lane.slice_grant = 0;
        from.lane.fresh_until = INFINITY;
        self.lanes.push(from);
        Ok(())
    }

    /// Gives a reclaimed lane its share of the credit at hand, for calls of `credits` each. It gets
    /// nothing while some credit is scoped or not effective yet, since consumptions go through the
    /// wallet's lock then, or where the share would not cover such a call.
    pub fn refill_lane(&mut self, number: i16, credits: i64) -> Result<()> {
        let now = self.now;
        let grant = self.grants.iter().flatten().find(|grant| grant.metrics.is_none() && grant.is_live(now));
        let Some((grant_id, remaining, expires_at)) = grant.map(|l| (l.grant_id, l.remaining, l.expires_at)) else {
            return Ok(());
        };
        // Slices are cut from one grant at a time, so that it is used up before the next one is
        // begun.
        let slice = Part { grant_id, credits: lanes::refill_amount(remaining, self.lane.lanes, credits) };
        let place = self.lanes.iter().position(|l| l.lane.lane == number);
        let Some(place) = place.filter(|_| slice.credits > 0 && self.restricted() == (0, 0)) else { return Ok(()) };
        let mut leaving = Operation::new(EntryContext::from_source("lane", Some(number.to_string())));
        self.take(&mut leaving, EntryKind::Lane, &[slice])?;
        let mut coming = Operation::new(EntryContext::from_source("lane", Some(self.lane.lane.to_string())));
        let to = &mut self.lanes[place];
        (to.lane.slice_grant, to.lane.fresh_until) = (grant_id, expires_at);
        to.give_back(&mut coming, EntryKind::Lane, &[slice])
    }

    /// The credit that is for some metrics only, and the general credit that is not effective yet.
    pub fn restricted(&self) -> (i64, i64) {
        let Some(grants) = &self.grants else { return (self.lane.scoped, self.lane.future) };
        let sum = |chosen: &dyn Fn(&&Grant) -> bool| grants.iter().filter(chosen).map(|l| l.remaining).sum();
        (sum(&|l| l.metrics.is_some()), sum(&|l| l.metrics.is_none() && l.effective_at > self.now))
    }

    /// The parts of grants that a burn would take, in burn order; an error if they do not cover it.
    pub fn allocate(&self, credits: i64, metric: Option<&str>) -> Result<Vec<Part>> {
        let mut missing = credits;
        let mut parts = Vec::new();
        if missing == 0 {
            return Ok(parts);
        }
        match &self.grants {
            None => {
                if self.lane.slice_credits >= missing {
                    parts.push(Part { grant_id: self.lane.slice_grant, credits: missing });
                    missing = 0;
                }
            }
            Some(grants) => {
                for grant in grants.iter().filter(|l| l.is_live(self.now) && l.applies_to(metric)) {
                    let credits = grant.remaining.min(missing);
                    parts.push(Part { grant_id: grant.grant_id, credits });
                    missing -= credits;
                    if missing == 0 {
                        break;
                    }
                }
            }
        }
        if missing > 0 {
            return Err(Error::insufficient(credits, self.spendable(metric)));
        }
        Ok(parts)
    }

    /// Takes credit out, one entry per grant; a burn of nothing still writes one entry.
    pub fn take(&mut self, operation: &mut Operation, kind: EntryKind, parts: &[Part]) -> Result<()> {
        if parts.is_empty() {
            return self.post(operation, kind, 0, None);
        }
        for part in parts {
            *self.grant_credits(part.grant_id)? -= part.credits;
            self.post(operation, kind, -part.credits, Some(part.grant_id))?;
        }
        Ok(())
    }

    /// Puts credit back into the grants that it came from. If those are dead by now,
    /// [`Wallet::write_off_dead_grants`] must follow.
    pub fn give_back(&mut self, operation: &mut Operation, kind: EntryKind, parts: &[Part]) -> Result<()> {
        for part in parts {
            *self.grant_credits(part.grant_id)? += part.credits;
            self.post(operation, kind, part.credits, Some(part.grant_id))?;
        }
        if parts.is_empty() { self.post(operation, kind, 0, None) } else { Ok(()) }
    }

    /// Books the rest of voided and expired grants, each as an operation of its own.
    pub fn write_off_dead_grants(&mut self) -> Result<()> {
        let now = self.now;
        let dead: Vec<_> = self
            .grants
            .iter()
            .flatten()
            .filter(|grant| grant.remaining > 0 && grant.is_dead(now))
            .map(|grant| (grant.grant_id, grant.remaining, grant.voided, grant.source.clone()))
            .collect();
        for (grant_id, credits, voided, source) in dead {
            let mut operation = Operation::new(EntryContext::from_source(&source, None));
            let kind = if voided { EntryKind::Void } else { EntryKind::Expiry };
            self.write_off(&mut operation, kind, Part { grant_id, credits })?;
        }
        Ok(())
    }

    /// Takes out the credit that a dead grant still held.
    pub fn write_off(&mut self, operation: &mut Operation, kind: EntryKind, part: Part) -> Result<()> {
        self.find_grant(part.grant_id)?.written_off += part.credits;
        let parts = if part.credits > 0 { std::slice::from_ref(&part) } else { &[] };
        self.take(operation, kind, parts)
    }

    /// Adds a new grant, whose id is that of its entry.
    pub fn grant(&mut self, operation: &mut Operation, kind: EntryKind, mut grant: Grant) -> Result<i64> {
        let credits = grant.amount;
        // All credit of a wallet must fit 63 bits, or what is reserved or locked could not come
        // back.
        let held = self.balance().checked_add(self.lane.reserved).and_then(|sum| sum.checked_add(self.lane.locked));
        checked(held.and_then(|sum| sum.checked_add(credits)))?;
        grant.grant_id = self.lane.last_entry_id + 1;
        grant.remaining = credits;
        grant.saved = None;
        let grant_id = grant.grant_id;
        let terms = grant.terms();
        if kind == EntryKind::Purchase {
            self.lane.purchased = checked(self.lane.purchased.checked_add(credits))?;
        }
        let grants = self.grants.get_or_insert_default();
        let place = grants.partition_point(|known| known.burn_order() < grant.burn_order());
        grants.insert(place, grant);
        self.post(operation, kind, credits, Some(grant_id))?;
        self.lane.alert_base = self.balance();
        self.bind_terms_hash(grant_id, terms);
        Ok(grant_id)
    }

    /// Makes the hash of an entry cover the terms of the grant or hold that it made.
    pub fn bind_terms_hash(&mut self, entry_id: i64, terms: Hash) {
        if let Some(entry) = self.entries.iter_mut().find(|e| e.position.entry_id == entry_id) {
            entry.terms = Some(terms);
        }
    }

    /// Burns credit for usage, which counts as consumed for the wallet and the member.
    pub fn consume(&mut self, operation: &mut Operation, parts: &[Part], budgeted: i64) -> Result<()> {
        let credits: i64 = parts.iter().map(|p| p.credits).sum();
        let member = operation.context.member_id;
        let consumed = checked(self.lane.consumed.checked_add(credits))?;
        self.take(operation, EntryKind::Usage, parts)?;
        self.lane.consumed = consumed;
        self.note_member(member, credits, budgeted, Some(self.now));
        Ok(())
    }

    /// Refuses a burn that a member's budget does not cover.
    pub fn check_budget(&self, member_id: Option<Uuid>, credits: i64) -> Result<()> {
        let Some((member_id, budget)) = member_id.and_then(|m| Some((m, self.budgets.get(&m)?))) else {
            return Ok(());
        };
        let stored = if budget.period_start >= budget.per.start(self.now) { budget.period_consumed } else { 0 };
        let noted = self.members.get(&member_id).map_or(0, |d| d.period);
        let used = (stored + noted).max(0);
        if credits > 0 && used.saturating_add(credits) > budget.limit {
            return Err(Error::cap_exceeded(&member_id.to_string(), budget.per.name(), budget.limit, used, credits));
        }
        Ok(())
    }

    /// Notes what a member consumed, and what counts in the period of the member's budget.
    pub fn note_member(&mut self, member: Option<Uuid>, consumed: i64, period: i64, active_at: Option<Moment>) {
        if let Some(member) = member {
            let delta = self.members.entry(member).or_insert(MemberDelta { consumed: 0, period: 0, active_at: None });
            delta.consumed += consumed;
            delta.period += period;
            delta.active_at = active_at.or(delta.active_at);
        }
    }

    /// A grant that must be loaded; an error if it is not.
    pub fn find_grant(&mut self, grant_id: i64) -> Result<&mut Grant> {
        self.grants
            .iter_mut()
            .flatten()
            .find(|grant| grant.grant_id == grant_id)
            .ok_or(Error::corrupt("an entry names a grant that does not exist"))
    }

    fn grant_credits(&mut self, grant_id: i64) -> Result<&mut i64> {
        if self.grants.is_none() && self.lane.slice_grant == grant_id {
            return Ok(&mut self.lane.slice_credits);
        }
        Ok(&mut self.find_grant(grant_id)?.remaining)
    }

    fn post(&mut self, operation: &mut Operation, kind: EntryKind, amount: i64, grant_id: Option<i64>) -> Result<()> {
        let lane = &mut self.lane;
        let balance_before = lane.balance;
        lane.balance = checked(balance_before.checked_add(amount))?;
        lane.last_entry_id += 1;
        let entry_id = lane.last_entry_id;
        self.entries.push(Entry {
            kind,
            amount,
            operation_id: *operation.id.get_or_insert(entry_id),
            position: Position { entry_id, balance_before, balance_after: lane.balance, grant_id },
            context: Rc::clone(&operation.context),
            result: None,
            terms: None,
            hash: [0; 32],
        });
        Ok(())
    }

    /// The sums of the lane's unfolded entries with the new ones; None if the lane does not have
    /// them.
    pub fn recent(&self) -> Option<LaneSummary> {
        let known = self.entries.first().map_or(self.lane.last_entry_id, |first| first.position.entry_id - 1);
        let mut recent = LaneSummary::of_lane(self.lane.recent.as_deref(), known)?;
        for entry in &self.entries {
            recent.add(recent::Entry {
                entry_id: entry.position.entry_id,
                operation_id: entry.operation_id,
                kind: entry.kind.name(),
                metric: entry.context.metric.as_deref(),
                source: entry.context.source.as_deref(),
                created_at: self.now,
                quantity: entry.context.quantity,
                amount: entry.amount,
            });
        }
        Some(recent)
    }

    /// Stores the answer of the call with the first entry of its operation, for a repeated call.
    pub fn keep_result(&mut self, operation: &Operation, result: String) {
        if operation.context.request.is_some() {
            let id = operation.id();
            if let Some(entry) = self.entries.iter_mut().find(|e| e.position.entry_id == id) {
                entry.result = Some(result);
            }
        }
    }

    /// Makes the row ready for the next call: the slice, the derived figures, and the hashes of the
    /// new entries.
    pub fn close(&mut self) {
        let now = self.now;
        let restricted = self.restricted();
        for lane in &mut self.lanes {
            lane.close();
        }
        let lane = &mut self.lane;
        if let Some(grants) = &self.grants {
            let with_credit = || grants.iter().filter(|l| l.remaining > 0);
            (lane.scoped, lane.future) = restricted;
            let turns = with_credit()
                .map(|l| if l.effective_at > now { l.effective_at } else { l.expires_at })
                .min()
                .unwrap_or(INFINITY);
            lane.fresh_until = turns;
            let slice = grants.iter().find(|l| l.metrics.is_none() && l.is_live(now) && !lane.is_split());
            lane.slice_grant = slice.map_or(0, |l| l.grant_id);
            lane.slice_credits = slice.map_or(0, |l| l.remaining);
        }
        let mut previous = std::mem::take(&mut lane.head);
        for entry in &mut self.entries {
            let request = entry.request().cloned();
            let about = &entry.context;
            let content = chain::content(&Content {
                org_id: lane.org_id,
                unit: &lane.unit,
                kind: entry.kind.name(),
                amount: entry.amount,
                quantity: about.quantity,
                metric: about.metric.as_deref(),
                member_id: about.member_id,
                source: about.source.as_deref(),
                source_id: about.source_id.as_deref(),
                idempotency_key: request.as_ref().map(|r| r.key.as_str()),
                request_hash: request.as_ref().and_then(|r| r.hash),
                reason: about.reason.as_deref(),
                actor: about.actor.as_deref(),
                metadata: &about.metadata,
                result: entry.result.as_deref(),
                created_at: now,
                offset: entry.position.entry_id - entry.operation_id,
                terms: entry.terms,
            });
            entry.hash = chain::link(&previous, &content, entry.position);
            previous.clear();
            previous.extend_from_slice(&entry.hash);
        }
        lane.head = previous;
    }

    /// The columns of each grant that has changed, after [`Wallet::close`].
    pub fn grants_to_save(&self) -> Vec<(&Grant, Saved)> {
        let in_slice = |grant: &Grant| grant.grant_id == self.lane.slice_grant && !self.lane.is_split();
        self.grants
            .iter()
            .flatten()
            .map(|grant| {
                let remaining = if in_slice(grant) { 0 } else { grant.remaining };
                (grant, Saved { remaining, written_off: grant.written_off, voided: grant.voided })
            })
            .filter(|(grant, saved)| grant.saved != Some(*saved))
            .collect()
    }
}

/// The first `credits` of the parts, and the credit that they lack.
pub fn split(parts: &[Part], credits: i64) -> (Vec<Part>, i64) {
    let mut missing = credits;
    let mut taken = Vec::new();
    for part in parts {
        let credits = part.credits.min(missing);
        if credits > 0 {
            taken.push(Part { credits, ..*part });
            missing -= credits;
        }
    }
    (taken, missing)
}

fn checked(sum: Option<i64>) -> Result<i64> {
    sum.ok_or_else(|| Error::invalid("amount", "the balance would not fit 63 bits"))
}

#[cfg(test)]
#[path = "wallet_tests.rs"]
mod tests;
