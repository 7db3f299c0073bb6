//! Tests of the rules against an obvious model: random histories, stored and loaded again between
//! the calls as the tables would.

use super::*;
use crate::ledger::audit::{BalanceRow, ChainWalk, StoredEntry};
use proptest::prelude::*;

const HOUR: i64 = 3_600_000_000;

fn empty_lane() -> Lane {
    Lane {
        org_id: Uuid::from_u128(1),
        unit: "credit".into(),
        lane: 0,
        last_entry_id: 0,
        balance: 0,
        reserved: 0,
        locked: 0,
        purchased: 0,
        consumed: 0,
        scoped: 0,
        future: 0,
        slice_grant: 0,
        slice_credits: 0,
        fresh_until: INFINITY,
        holds_due: INFINITY,
        alert_below: 0,
        alert_base: 0,
        lanes: 1,
        head: Vec::new(),
        recent: None,
    }
}

fn a_grant(amount: i64) -> Grant {
    Grant::new(amount, EntryKind::Bonus, 0)
}

fn plain() -> Operation {
    Operation::new(EntryContext { metadata: "{}".into(), ..EntryContext::default() })
}

/// The rows of the tables between two calls.
struct Tables {
    lane: Lane,
    grants: Vec<Grant>,
    holds: Vec<(Hold, Moment)>,
    walk: ChainWalk,
    violations: Vec<crate::ledger::audit::Violation>,
}

impl Tables {
    fn new() -> Self {
        let walk = ChainWalk::new(Uuid::from_u128(1), 0, Some("credit".into()));
        Self { lane: empty_lane(), grants: Vec::new(), holds: Vec::new(), walk, violations: Vec::new() }
    }

    /// Makes a call as the server would: lock, load if need be, work, save. A refusal saves
    /// nothing.
    fn call(&mut self, now: Moment, load: bool, work: impl FnOnce(&mut Wallet) -> Result<()>) -> Result<()> {
        let mut wallet = Wallet::new(self.lane.clone(), now);
        if load || !wallet.is_fresh() {
            self.load(&mut wallet)?;
        }
        work(&mut wallet)?;
        wallet.close();
        for entry in &wallet.entries {
            self.walk.entry(&as_stored(&wallet, entry), &mut self.violations);
        }
        for (changed, saved) in wallet.grants_to_save() {
            let row = Grant { remaining: saved.remaining, saved: Some(saved), ..changed.clone() };
            match self.grants.iter_mut().find(|l| l.grant_id == row.grant_id) {
                Some(known) => *known = row,
                None => self.grants.push(row),
            }
        }
        self.holds.retain(|(h, _)| !wallet.expired_holds.iter().any(|(id, _)| *id == h.hold_id));
        self.lane = wallet.lane;
        Ok(())
    }

    fn load(&self, wallet: &mut Wallet) -> Result<()> {
        let now = wallet.now();
        let timed_out: Vec<Hold> = self.holds.iter().filter(|(_, due)| *due <= now).map(|(h, _)| h.clone()).collect();
        let next = self.holds.iter().map(|(_, due)| *due).filter(|due| *due > now).min().unwrap_or(INFINITY);
        wallet.load(self.grants.clone(), &timed_out, next)
    }

    /// The spendable credit by the obvious rule: every grant with its slice, looked at one by one,
    /// and the credit of timed-out holds.
    fn obvious_total(&self, now: Moment) -> i64 {
        let live = |l: &&Grant| !l.voided && l.effective_at <= now && now < l.expires_at && l.metrics.is_none();
        let back = |id| -> i64 {
            self.holds
                .iter()
                .filter(|(_, due)| *due <= now)
                .flat_map(|(h, _)| &h.parts)
                .filter(|p| p.grant_id == id)
                .map(|p| p.credits)
                .sum()
        };
        let slice = |id| if id == self.lane.slice_grant { self.lane.slice_credits } else { 0 };
        self.grants.iter().filter(live).map(|l| l.remaining + slice(l.grant_id) + back(l.grant_id)).sum()
    }

    fn total(&self, now: Moment) -> i64 {
        let mut wallet = Wallet::new(self.lane.clone(), now);
        if !wallet.is_fresh() {
            self.load(&mut wallet).unwrap();
        }
        wallet.spendable(None)
    }

    fn check(&self, now: Moment) {
        assert_eq!(self.violations, []);
        assert_eq!(self.total(now), self.obvious_total(now));
        let in_grants: i64 = self.grants.iter().map(|l| l.remaining).sum();
        assert_eq!(in_grants + self.lane.slice_credits, self.lane.balance);
        assert!(self.grants.iter().all(|l| (0..=l.amount).contains(&l.remaining)));
        let held: i64 = self.holds.iter().map(|(h, _)| h.credits).sum();
        assert_eq!(held, self.lane.reserved);
        let mut out = Vec::new();
        self.walk.finish(Some(&row(&self.lane)), &mut out);
        assert_eq!(out, []);
    }
}

fn row(lane: &Lane) -> BalanceRow {
    BalanceRow {
        unit: lane.unit.clone(),
        last_entry_id: lane.last_entry_id,
        balance: lane.balance,
        reserved: lane.reserved,
        locked: lane.locked,
        purchased: lane.purchased,
        consumed: lane.consumed,
        head: lane.head.clone(),
    }
}

fn as_stored(wallet: &Wallet, e: &Entry) -> StoredEntry {
    StoredEntry {
        org_id: wallet.lane.org_id,
        operation_id: e.operation_id,
        entry_id: e.position.entry_id,
        amount: e.amount,
        balance_before: e.position.balance_before,
        balance_after: e.position.balance_after,
        created_at: wallet.now(),
        grant_id: e.position.grant_id,
        quantity: e.context.quantity,
        request_hash: e.request().and_then(|r| r.hash),
        member_id: e.context.member_id,
        unit: wallet.lane.unit.clone(),
        kind: e.kind.name().to_owned(),
        metric: e.context.metric.clone(),
        source: e.context.source.clone(),
        source_id: e.context.source_id.clone(),
        idempotency_key: e.request().map(|r| r.key.clone()),
        request_id: e.request().map(|r| crate::ledger::chain::request_id(&r.key)),
        reason: e.context.reason.clone(),
        actor: e.context.actor.clone(),
        metadata: e.context.metadata.clone(),
        result: e.result.clone(),
        entry_hash: e.hash.to_vec(),
        terms: e.terms,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Grant { amount: i64, priority: i32, paid: bool, starts_in: i64, lasts: Option<i64>, scoped: bool },
    Consume { credits: i64, by_slice: bool },
    Hold { credits: i64, hours: i64 },
    Release { which: usize },
    Void { which: usize },
    Wait { hours: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..100i64, 0..3i32, any::<bool>(), 0..4i64, proptest::option::of(1..30i64), proptest::bool::weighted(0.2))
            .prop_map(|(amount, priority, paid, starts_in, lasts, scoped)| Step::Grant {
                amount,
                priority,
                paid,
                starts_in,
                lasts,
                scoped
            }),
        (0..60i64, any::<bool>()).prop_map(|(credits, by_slice)| Step::Consume { credits, by_slice }),
        (0..60i64, 1..6i64).prop_map(|(credits, hours)| Step::Hold { credits, hours }),
        (0..5usize).prop_map(|which| Step::Release { which }),
        (0..9usize).prop_map(|which| Step::Void { which }),
        (0..9i64).prop_map(|hours| Step::Wait { hours }),
    ]
}

fn play(tables: &mut Tables, now: &mut Moment, step: &Step) {
    match step.clone() {
        Step::Wait { hours } => *now += hours * HOUR,
        Step::Grant { amount, priority, paid, starts_in, lasts, scoped } => {
            let effective_at = *now + starts_in * HOUR;
            let expires_at = lasts.map_or(INFINITY, |hours| effective_at + hours * HOUR);
            let metrics = scoped.then(|| vec!["other".to_owned()]);
            let grant = Grant { priority, paid, effective_at, expires_at, metrics, ..a_grant(amount) };
            tables.call(*now, true, |w| w.grant(&mut plain(), EntryKind::Bonus, grant).map(drop)).unwrap();
        }
        Step::Consume { credits, by_slice } => {
            let total = tables.obvious_total(*now);
            let direct = by_slice && Wallet::new(tables.lane.clone(), *now).slice_suffices(credits);
            let done = tables.call(*now, !direct, |w| {
                let parts = w.allocate(credits, None)?;
                w.consume(&mut plain(), &parts, credits)
            });
            assert_eq!(done.is_ok(), credits <= total, "{credits} of {total}");
        }
        Step::Hold { credits, hours } => {
            let due = *now + hours * HOUR;
            let mut made = None;
            let done = tables.call(*now, true, |w| {
                let parts = w.allocate(credits, None)?;
                let mut operation = plain();
                w.take(&mut operation, EntryKind::Hold, &parts)?;
                w.lane.reserved += credits;
                w.lane.holds_due = w.lane.holds_due.min(due);
                made = Some(Hold { hold_id: operation.id(), credits, member_id: None, created_at: w.now(), parts });
                Ok(())
            });
            if done.is_ok() {
                tables.holds.extend(made.map(|hold| (hold, due)));
            }
        }
        Step::Release { which } => {
            let Some((hold, due)) = tables.holds.get(which).cloned() else { return };
            if due <= *now {
                return;
            }
            tables
                .call(*now, true, |w| {
                    w.give_back(&mut plain(), EntryKind::Release, &hold.parts)?;
                    w.lane.reserved -= hold.credits;
                    w.write_off_dead_grants()
                })
                .unwrap();
            tables.holds.retain(|(h, _)| h.hold_id != hold.hold_id);
        }
        Step::Void { which } => {
            let Some(grant_id) = tables.grants.get(which).map(|l| l.grant_id) else { return };
            tables
                .call(*now, true, |w| {
                    w.find_grant(grant_id)?.voided = true;
                    w.write_off_dead_grants()
                })
                .unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_histories_keep_every_invariant(steps in proptest::collection::vec(step(), 1..40)) {
        let mut tables = Tables::new();
        let mut now = 0;
        for step in &steps {
            play(&mut tables, &mut now, step);
            tables.check(now);
        }
    }
}

#[test]
fn burn_order_is_total_and_as_promised() {
    let base = Grant { grant_id: 9, remaining: 1, ..a_grant(1) };
    let order = [
        Grant { metrics: Some(vec!["m".into()]), priority: 99, ..base.clone() },
        Grant { priority: 1, expires_at: INFINITY, paid: true, ..base.clone() },
        Grant { expires_at: 10, paid: true, ..base.clone() },
        Grant { expires_at: 20, paid: false, effective_at: 5, ..base.clone() },
        Grant { expires_at: 20, paid: true, effective_at: 1, ..base.clone() },
        Grant { paid: false, effective_at: 1, ..base.clone() },
        Grant { paid: false, effective_at: 2, ..base.clone() },
        Grant { paid: false, effective_at: 2, grant_id: 10, ..base.clone() },
        Grant { paid: true, effective_at: 0, ..base.clone() },
        Grant { priority: 51, ..base },
    ];
    for pair in order.windows(2) {
        assert!(pair[0].burn_order() < pair[1].burn_order(), "{pair:?}");
    }
}

#[test]
fn a_budget_counts_its_period_only() {
    let mut wallet = Wallet::new(empty_lane(), Period::Day.start(0) + HOUR);
    let member = Uuid::from_u128(5);
    let budget = Budget { limit: 10, per: Period::Day, period_start: Period::Day.start(0), period_consumed: 8 };
    wallet.budgets.insert(member, budget);
    assert!(wallet.check_budget(Some(member), 2).is_ok());
    assert_eq!(wallet.check_budget(Some(member), 3).unwrap_err().code, "cap_exceeded");
    wallet.note_member(Some(member), 2, 2, None);
    assert!(wallet.check_budget(Some(member), 1).is_err());
    let mut tomorrow = Wallet::new(empty_lane(), 25 * HOUR);
    tomorrow.budgets.insert(member, budget);
    assert!(tomorrow.check_budget(Some(member), 10).is_ok());
    assert!(tomorrow.check_budget(Some(Uuid::from_u128(6)), 1000).is_ok());
}

#[test]
fn a_balance_beyond_63_bits_is_refused() {
    let mut wallet = Wallet::new(empty_lane(), 0);
    wallet.grant(&mut plain(), EntryKind::Bonus, a_grant(i64::MAX)).unwrap();
    assert_eq!(wallet.grant(&mut plain(), EntryKind::Bonus, a_grant(1)).unwrap_err().sqlstate, *b"22023");
}

#[test]
fn what_is_refused_leaves_the_wallet_as_it_was() {
    let lane = Lane { consumed: i64::MAX - 5, ..empty_lane() };
    let mut wallet = Wallet::new(lane, 0);
    wallet.grant(&mut plain(), EntryKind::Bonus, a_grant(100)).unwrap();
    let (lane, grants, entries) = (wallet.lane.clone(), wallet.grants.clone(), wallet.entries.len());
    let parts = wallet.allocate(50, None).unwrap();
    assert!(wallet.consume(&mut plain(), &parts, 50).is_err());
    assert!(wallet.grant(&mut plain(), EntryKind::Bonus, a_grant(i64::MAX)).is_err());
    assert_eq!((wallet.lane, wallet.grants, wallet.entries.len()), (lane, grants, entries));
}
