//! `verify_ledger()`: recomputes every chain and holds wallets, grants, holds and refunds against the sum of their entries.
//!
//! The chains are read in order of the primary key, in portions whose memory is given back; the sums are the server's.

use crate::access;
use crate::base::error::Result;
use crate::base::hash::Hash;
use crate::base::time::INFINITY;
use crate::catalog::cache;
use crate::catalog::price::Price;
use crate::ledger::audit::{self, Stored, Violation, Walk};
use crate::ledger::chain::{self, HoldTerms, Terms};
use crate::pg::arguments::optional_uuid;
use crate::pg::raise::or_raise;
use crate::pg::spi::{self, Db, Row};
use crate::{args, statements};
use pgrx::prelude::*;
use uuid::Uuid;

/// Violations beyond this many are not listed: something is wrong with everything.
const MOST_VIOLATIONS: usize = 10_000;

statements! {
    // With the terms of the holds that entries made: one look-up each, in one plan.
    PORTION(uuid, int8, uuid) =
        "select e.org_id, e.operation_id, e.entry_id, e.amount, e.balance_after, e.created_at, e.grant_id, e.quantity,
                e.request_hash, e.member_id, e.unit, e.kind, e.metric, e.source, e.source_id, e.idempotency_key, e.reason,
                e.actor, e.metadata::text, e.result, e.entry_hash, e.request_id,
                h.kind, h.credits, h.parts, h.expires_at, h.created_at, h.metric, h.quantity, h.member_id, h.price::text
           from (select * from billing.entries where (org_id, entry_id) > ($1, $2) and org_id <= $3
                  order by org_id, entry_id limit 5000) e
           left join billing.holds h
             on h.org_id = e.org_id
            and h.hold_id = case when e.kind in ('hold', 'payout_hold') and e.entry_id = e.operation_id then e.entry_id end
          order by e.org_id, e.entry_id";
    LANE(uuid, int8) =
        "select unit, last_entry_id, balance, reserved, locked, purchased, consumed, head
           from billing_internal.lanes where org_id = $1 and slot = $2";
    TERMS(uuid, int8) =
        "select category = 'paid', priority, effective_at, expires_at, cost_minor, currency, metrics
           from billing_internal.grants where org_id = $1 and grant_id = $2";
    LANES_WITHOUT_ENTRIES(uuid, uuid) =
        "select l.org_id, l.unit, 'entries_missing',
                jsonb_build_object('last_entry_id', l.last_entry_id, 'found', l.slot::int8 << 40)::text
           from billing_internal.lanes l
          where l.org_id between $1 and $2
            and (l.last_entry_id <> l.slot::int8 << 40 or l.balance <> 0 or l.reserved <> 0 or l.locked <> 0
                 or l.purchased <> 0 or l.consumed <> 0)
            and not exists (select from billing.entries e where e.org_id = l.org_id
                               and e.entry_id > l.slot::int8 << 40 and e.entry_id < (l.slot::int8 + 1) << 40)";
    GRANTS(uuid, uuid) =
        "with slices as (
            select org_id, slice_grant as grant_id, sum(slice_credits) as credits from billing_internal.lanes
             where slice_grant <> 0 and org_id between $1 and $2 group by 1, 2),
         moved as (
            select org_id, grant_id, min(unit) as unit, min(unit) <> max(unit) as mixed, sum(amount) as credits,
                   min(amount) filter (where entry_id = grant_id) as granted
              from billing.entries where grant_id is not null and org_id between $1 and $2 group by 1, 2),
         known as (
            select g.org_id, g.grant_id, g.unit, g.amount, g.remaining + coalesce(s.credits, 0) as remaining
              from billing_internal.grants g left join slices s using (org_id, grant_id) where g.org_id between $1 and $2)
         select org_id, coalesce(k.unit, m.unit, '?'),
                case when k.grant_id is null then 'entry_without_grant' when m.grant_id is null then 'grant_without_entry'
                     when k.remaining not between 0 and k.amount then 'grant_out_of_range'
                     else 'grant_mismatch' end,
                jsonb_build_object('grant_id', grant_id, 'amount', k.amount, 'granted', m.granted,
                                   'remaining', k.remaining, 'entries', m.credits)::text
           from known k full join moved m using (org_id, grant_id)
          where k.grant_id is null or m.grant_id is null or m.mixed or k.unit <> m.unit
             or k.amount is distinct from m.granted or k.remaining <> m.credits
             or k.remaining not between 0 and k.amount
         union all
         select s.org_id, '?', 'slice_without_grant', jsonb_build_object('grant_id', s.grant_id)::text
           from slices s where s.credits <> 0
            and not exists (select from billing_internal.grants g where g.org_id = s.org_id and g.grant_id = s.grant_id)";
    // What was not effective when the row was written last is effective from fresh_until on, or later.
    DERIVED(uuid, uuid) =
        "with wallets as (
            select org_id, unit, scoped, future, fresh_until
              from billing_internal.lanes where org_id between $1 and $2 and lane = 0),
         restricted as (
            select g.org_id, g.unit, sum(g.remaining) filter (where g.metrics is not null) as scoped,
                   sum(g.remaining) filter (where g.metrics is null and g.effective_at >= w.fresh_until) as future
              from billing_internal.grants g join wallets w using (org_id, unit) where g.remaining > 0 group by 1, 2)
         select w.org_id, w.unit, 'restricted_mismatch',
                jsonb_build_object('scoped', w.scoped, 'scoped_grants', coalesce(r.scoped, 0),
                                   'future', w.future, 'future_grants', coalesce(r.future, 0))::text
           from wallets w left join restricted r using (org_id, unit)
          where w.scoped <> coalesce(r.scoped, 0) or w.future <> coalesce(r.future, 0)";
    // A row that claims to hold beyond the next turn of its grants or holds would go on spending what has expired.
    FRESHNESS(uuid, uuid) =
        "with wallets as (
            select org_id, unit, lane, fresh_until, holds_due, slice_grant as slice, slice_credits
              from billing_internal.lanes where org_id between $1 and $2)
         select w.org_id, w.unit, 'freshness_mismatch',
                jsonb_build_object('fresh_until', w.fresh_until, 'grant_id', g.grant_id, 'expires_at', g.expires_at)::text
           from wallets w join billing_internal.grants g using (org_id, unit)
          where (w.lane = 0 and (g.remaining > 0 or g.grant_id = w.slice) or g.grant_id = w.slice and w.slice_credits > 0)
            and g.expires_at < w.fresh_until and g.effective_at < w.fresh_until
         union all
         select org_id, unit, 'freshness_mismatch', jsonb_build_object('fast_until', fast_until)::text
           from billing_internal.lanes
          where org_id between $1 and $2
            and fast_until > case when scoped = 0 and future = 0 then least(fresh_until, holds_due)
                                  else '-infinity' end
         union all
         select w.org_id, w.unit, 'freshness_mismatch',
                jsonb_build_object('holds_due', w.holds_due, 'hold_id', h.hold_id, 'expires_at', h.expires_at)::text
           from wallets w join billing.holds h using (org_id, unit)
          where w.lane = 0 and h.status = 'open' and h.expires_at < w.holds_due
         union all
         select l.org_id, l.unit, 'lanes_mismatch',
                jsonb_build_object('lane', l.lane, 'lanes', w.lanes, 'balance', l.balance, 'slice_credits', l.slice_credits,
                                   'fast_until', l.fast_until, 'fresh_until', l.fresh_until)::text
           from billing_internal.lanes l join billing_internal.lanes w on w.org_id = l.org_id and w.unit = l.unit and w.lane = 0
          where l.org_id between $1 and $2
            and case when l.lane = 0 then l.lanes < 1 or l.lanes > 1 and l.slice_credits <> 0
                     else l.balance <> l.slice_credits or l.lanes <> 1 or l.balance > 0 and l.lane > w.lanes
                       or l.balance > 0 and w.lanes = 1 or l.scoped <> 0 or l.future <> 0 end";
    VOIDS(uuid, uuid) =
        "select g.org_id, g.unit, 'void_mismatch',
                jsonb_build_object('grant_id', g.grant_id, 'voided_at', g.voided_at, 'entry', v.grant_id)::text
           from (select * from billing_internal.grants where org_id between $1 and $2) g
           left join (select distinct org_id, source_id as grant_id from billing.entries
                       where kind = 'void' and source = 'grant' and org_id between $1 and $2) v
             on v.org_id = g.org_id and v.grant_id = g.grant_id::text
          where (g.voided_at is null) <> (v.grant_id is null)";
    HOLDS(uuid, uuid) =
        "with held as (
            select org_id, operation_id as hold_id, min(unit) as unit, -sum(amount) as credits,
                   case when count(*) = 1 then min(grant_id) end as grant_id
              from billing.entries
             where kind in ('hold', 'payout_hold') and org_id between $1 and $2 group by 1, 2),
         freed as (
            select org_id, source_id, sum(amount) as credits from billing.entries
             where kind in ('release', 'payout_release') and source = 'hold' and org_id between $1 and $2 group by 1, 2),
         open as (
            select org_id, unit, sum(credits) filter (where kind = 'usage') as reserved,
                   sum(credits) filter (where kind = 'payout') as locked
              from billing.holds where status = 'open' and org_id between $1 and $2 group by 1, 2),
         rows as (
            select org_id, unit, sum(reserved) as reserved, sum(locked) as locked from billing_internal.lanes
             where org_id between $1 and $2 group by 1, 2)
         select h.org_id, coalesce(h.unit, h.held_unit), 'hold_mismatch',
                jsonb_build_object('hold_id', h.hold_id, 'status', h.status, 'credits', h.credits, 'held', h.held,
                                   'freed', f.credits)::text
           from (select org_id, hold_id, h.status, h.credits, h.unit, e.credits as held, e.unit as held_unit,
                        (h.status = 'open') = (h.closed_at is null)
                        and (h.grant_id is null or h.grant_id is not distinct from e.grant_id) as is_consistent
                   from (select * from billing.holds where org_id between $1 and $2) h
                   full join held e using (org_id, hold_id)) h
           left join freed f on f.org_id = h.org_id and f.source_id = h.hold_id::text
          where h.credits is distinct from h.held or h.unit <> h.held_unit or not h.is_consistent
             or coalesce(f.credits, 0) <> case when h.status = 'open' then 0 else h.credits end
         union all
         select org_id, unit, 'holds_mismatch',
                jsonb_build_object('reserved', r.reserved, 'open_usage_holds', o.reserved,
                                   'locked', r.locked, 'open_payout_holds', o.locked)::text
           from rows r full join open o using (org_id, unit)
          where coalesce(r.reserved, 0) <> coalesce(o.reserved, 0) or coalesce(r.locked, 0) <> coalesce(o.locked, 0)";
    REFUNDS(uuid, uuid) =
        "with refunded as (
            select org_id, source_id, grant_id, min(unit) as unit, sum(amount) as credits from billing.entries
             where kind = 'refund' and source = 'operation' and org_id between $1 and $2 group by 1, 2, 3),
         noted as (
            select org_id, operation_id::text as source_id, grant_id, credits from billing_internal.refunds
             where org_id between $1 and $2),
         burned as (
            select e.org_id, e.operation_id::text as source_id, e.grant_id, -sum(e.amount) as credits
              from billing.entries e
             where e.kind = 'usage' and e.org_id between $1 and $2
               and (e.org_id, e.operation_id::text) in (select org_id, source_id from refunded)
             group by 1, 2, 3)
         select org_id, coalesce(r.unit, '?'),
                case when r.credits > coalesce(b.credits, 0) then 'refund_exceeds' else 'refund_mismatch' end,
                jsonb_build_object('operation_id', source_id, 'grant_id', grant_id, 'refunded', r.credits,
                                   'noted', n.credits, 'burned', b.credits)::text
           from refunded r full join noted n using (org_id, source_id, grant_id)
           left join burned b using (org_id, source_id, grant_id)
          where r.credits is distinct from n.credits or r.credits > coalesce(b.credits, 0)";
    WRITTEN_OFF(uuid, uuid) =
        "select org_id, g.unit, 'written_off_mismatch',
                jsonb_build_object('grant_id', grant_id, 'written_off', g.written_off, 'entries', e.credits)::text
           from (select * from billing_internal.grants where org_id between $1 and $2) g
           left join (select org_id, grant_id, -sum(amount) as credits from billing.entries
                       where kind in ('expiry', 'void') and org_id between $1 and $2 group by 1, 2) e
             using (org_id, grant_id)
          where g.written_off <> coalesce(e.credits, 0)";
}

fn stored(row: &Row) -> Stored {
    let (amount, balance_after): (i64, i64) = (row.get(3), row.get(4));
    Stored {
        org_id: row.get(0),
        operation_id: row.get(1),
        entry_id: row.get(2),
        amount,
        balance_before: balance_after.wrapping_sub(amount),
        balance_after,
        created_at: row.get(5),
        grant_id: row.opt(6),
        quantity: row.opt(7),
        request_hash: row.opt(8),
        member_id: row.opt(9),
        unit: row.get(10),
        kind: row.get(11),
        metric: row.opt(12),
        source: row.opt(13),
        source_id: row.opt(14),
        idempotency_key: row.opt(15),
        reason: row.opt(16),
        actor: row.opt(17),
        metadata: row.get(18),
        result: row.opt(19),
        entry_hash: row.get(20),
        request_id: row.opt(21),
        terms: None,
    }
}

/// The terms of the grant or hold that an entry made.
fn terms(db: &Db, entry: &Stored, row: &Row) -> Option<Hash> {
    if entry.grant_id == Some(entry.entry_id) { grant_terms(db, entry) } else { hold_terms(row) }
}

fn hold_terms(row: &Row) -> Option<Hash> {
    let kind: String = row.opt(22)?;
    let metric: Option<String> = row.opt(27);
    // What cannot be read gives another hash than what was written.
    let price = row.opt::<String>(30).map(|text| {
        let price = serde_json::from_str::<Price>(&text).ok();
        price.and_then(|p| serde_json::to_string(&p).ok()).unwrap_or(text)
    });
    Some(chain::hold_terms(&HoldTerms {
        kind: &kind,
        credits: row.get(23),
        parts: row.get(24),
        expires_at: row.opt(25),
        created_at: row.get(26),
        metric: metric.as_deref(),
        quantity: row.opt(28),
        member_id: row.opt(29),
        price: price.as_deref(),
    }))
}

fn grant_terms(db: &Db, entry: &Stored) -> Option<Hash> {
    db.read(&TERMS, args![entry.org_id, entry.entry_id]).first().map(|row| {
        let currency: Option<String> = row.opt(5);
        let metrics: Option<Vec<String>> = row.opt(6);
        chain::terms(&Terms {
            paid: row.get(0),
            priority: row.get(1),
            effective_at: row.get(2),
            expires_at: row.opt(3).unwrap_or(INFINITY),
            cost_minor: row.get(4),
            currency: currency.as_deref(),
            metrics: metrics.as_deref(),
        })
    })
}

fn balance_row(db: &Db, org_id: Uuid, slot: i64) -> Option<audit::Row> {
    db.read(&LANE, args![org_id, slot]).first().map(|row| audit::Row {
        unit: row.get(0),
        last_entry_id: row.get(1),
        balance: row.get(2),
        reserved: row.get(3),
        locked: row.get(4),
        purchased: row.get(5),
        consumed: row.get(6),
        head: row.get(7),
    })
}

/// Walks all chains of the orgs from `first` to `last`.
fn chains(first: Uuid, last: Uuid, out: &mut Vec<Violation>) {
    let mut at = (first, i64::MIN);
    let mut walk: Option<(Walk, Option<audit::Row>)> = None;
    loop {
        // A connection per portion: its memory is free before the next.
        let count = spi::connect(|db| {
            let rows = db.read(&PORTION, args![at.0, at.1, last]);
            for row in rows.iter() {
                let mut entry = stored(&row);
                entry.terms = terms(db, &entry, &row);
                if !walk.as_ref().is_some_and(|(w, _)| w.is_of(&entry)) {
                    if let Some((done, row)) = walk.take() {
                        done.finish(row.as_ref(), out);
                    }
                    let row = balance_row(db, entry.org_id, entry.slot());
                    let unit = row.as_ref().map(|r| r.unit.clone());
                    walk = Some((Walk::new(entry.org_id, entry.slot(), unit), row));
                }
                if let Some((walk, _)) = &mut walk {
                    walk.entry(&entry, out);
                }
                at = (entry.org_id, entry.entry_id);
            }
            rows.count()
        });
        pgrx::check_for_interrupts!();
        if count == 0 || out.len() >= MOST_VIOLATIONS {
            break;
        }
    }
    if let Some((done, row)) = walk {
        done.finish(row.as_ref(), out);
    }
}

fn sums(db: &Db, first: Uuid, last: Uuid, out: &mut Vec<Violation>) {
    for statement in [&LANES_WITHOUT_ENTRIES, &GRANTS, &DERIVED, &FRESHNESS, &VOIDS, &HOLDS, &REFUNDS, &WRITTEN_OFF] {
        for row in db.scan(statement, args![first, last]).iter() {
            let violation: String = row.get(2);
            let detail: String = row.get(3);
            out.push(Violation {
                org_id: row.get(0),
                unit: row.get(1),
                violation: NAMES.into_iter().find(|name| *name == violation).unwrap_or("mismatch"),
                detail: serde_json::from_str(&detail).unwrap_or_default(),
            });
        }
    }
}

/// Names that the statements give.
const NAMES: [&str; 15] = [
    "entries_missing",
    "entry_without_grant",
    "grant_without_entry",
    "grant_out_of_range",
    "grant_mismatch",
    "slice_without_grant",
    "restricted_mismatch",
    "hold_mismatch",
    "holds_mismatch",
    "refund_exceeds",
    "refund_mismatch",
    "written_off_mismatch",
    "freshness_mismatch",
    "void_mismatch",
    "lanes_mismatch",
];

/// Proves the ledger of one org, or of all: no row means that it is sound.
///
/// Recomputes every hash, and checks that no entry is missing from a chain; that each `balance_after` is `balance_before` plus
/// amount, and the next entry's `balance_before`; that wallets, grants, reserved and locked credit agree with the sum of their
/// entries; that no grant is below zero or above its amount; that refunds stay within what was burned. `detail` names the
/// place. Lists at most about 10,000 violations. Reads one snapshot and blocks nobody.
#[pg_extern(stable)]
#[search_path(pg_catalog, pg_temp)]
fn verify_ledger(
    org_id: default!(Option<pgrx::Uuid>, "NULL"),
) -> TableIterator<
    'static,
    (name!(org_id, pgrx::Uuid), name!(unit, String), name!(violation, String), name!(detail, pgrx::JsonB)),
> {
    let found = or_raise(access::auditor(|| -> Result<Vec<Violation>> {
        let (first, last) = optional_uuid(org_id).map_or((Uuid::nil(), Uuid::max()), |org| (org, org));
        let mut out = Vec::new();
        spi::connect(cache::require_installed)?;
        chains(first, last, &mut out);
        spi::connect(|db| sums(db, first, last, &mut out));
        Ok(out)
    }));
    TableIterator::new(found.into_iter().map(|v| {
        let org_id = pgrx::Uuid::from_bytes(v.org_id.into_bytes());
        (org_id, v.unit, v.violation.to_owned(), pgrx::JsonB(v.detail))
    }))
}
