//! Caps: the most that an org, or each of its members, may use of a metric or category per calendar day or month (UTC).
//!
//! Consumptions and reservations count in `cap_usage` and are refused beyond; what is recorded counts by what the usage tables
//! say. Rows are locked after the counters, in the order of (org, cap, member, period).

use crate::base::error::{CapReached, Error, Result};
use crate::base::time::Moment;
use crate::base::words::Word;
use crate::catalog::cache::{self, Metric};
use crate::catalog::sections::caps::{Cap, CapSubject};
use crate::pg::spi::{Db, Timestamptz};
use crate::{args, statements};
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

statements! {
    MAKE(uuids, texts, uuids, timestamptzs) =
        "insert into billing_internal.cap_usage (org_id, cap, member_id, period_start, quantity)
         select k.*, 0 from unnest($1, $2, $3, $4) k order by 1, 2, 3, 4 on conflict do nothing";
    LOCK(uuids, texts, uuids, timestamptzs) =
        "select u.org_id, u.cap, u.member_id, u.period_start, u.quantity
           from unnest($1, $2, $3, $4) k (org_id, cap, member_id, period_start)
           join billing_internal.cap_usage u using (org_id, cap, member_id, period_start)
          where u.org_id = any ($1)
          order by 1, 2, 3, 4 for update of u";
    READ(uuid, text, uuid, timestamptz) =
        "select quantity from billing_internal.cap_usage where org_id = $1 and cap = $2 and member_id = $3 and period_start = $4";
    SAVE(uuids, texts, uuids, timestamptzs, int8s) =
        "update billing_internal.cap_usage u set quantity = k.quantity
           from unnest($1, $2, $3, $4, $5) k (org_id, cap, member_id, period_start, quantity)
          where u.org_id = k.org_id and u.cap = k.cap and u.member_id = k.member_id and u.period_start = k.period_start
            and u.org_id = any ($1)";
    RECORDED(uuid, texts, timestamptz) =
        "select (coalesce((select sum(quantity) from billing_internal.unsettled_usage
                            where org_id = $1 and metric = any ($2) and segment >= $3), 0)
               + coalesce((select sum(recorded) from billing_internal.usage_days
                            where org_id = $1 and metric = any ($2) and day >= ($3 at time zone 'UTC')::date), 0))::int8";
    // A hold that is closed counts no longer for what was not used of it, in the period in which it was made; in caps that
    // were there then.
    GIVE_BACK(uuid, int8s, int8) =
        "with unused as (
            select k.cap, case k.subject when 'member' then h.member_id else '00000000-0000-0000-0000-000000000000' end as member_id,
                   date_trunc(k.per, h.created_at at time zone 'UTC') at time zone 'UTC' as period_start,
                   sum(coalesce(h.quantity - $3, h.quantity)) as quantity
              from billing.holds h
              join billing.metrics m on m.metric = h.metric
              join billing.caps k on (k.metric = h.metric or k.category = m.category) and k.created_at <= h.created_at
             where h.org_id = $1 and h.hold_id = any ($2)
             group by 1, 2, 3),
         locked as (
            select u.cap, u.member_id, u.period_start, g.quantity
              from unused g join billing_internal.cap_usage u
                on u.org_id = $1 and u.cap = g.cap and u.member_id = g.member_id and u.period_start = g.period_start
             order by u.cap, u.member_id, u.period_start for update of u)
         update billing_internal.cap_usage u set quantity = greatest(0, u.quantity - l.quantity)
           from locked l
          where u.org_id = $1 and u.cap = l.cap and u.member_id = l.member_id and u.period_start = l.period_start";
}

/// Names a row of `cap_usage`.
type Name = (Uuid, String, Uuid, Moment);

/// Whose usage counts; None for a cap per member where no member is named.
fn subject(cap: &Cap, member_id: Option<Uuid>) -> Option<Uuid> {
    match cap.subject {
        CapSubject::Member => member_id,
        CapSubject::Org => Some(Uuid::nil()),
    }
}

/// What was recorded of a cap's metrics in its period.
pub fn recorded(db: &Db, org_id: Uuid, cap: &Cap, now: Moment, fresh: bool) -> Result<i64> {
    match cap.subject {
        CapSubject::Member => return Ok(0),
        CapSubject::Org => {}
    }
    let all = cache::all_metrics(db)?.into_iter();
    let metrics: Vec<String> =
        all.filter(|m| !m.is_gauge() && m.caps.iter().any(|c| c.name == cap.name)).map(|m| m.name.clone()).collect();
    let rows = db.query(fresh, &RECORDED, args![org_id, metrics, Timestamptz(cap.per.start(now))]);
    Ok(rows.first().map_or(0, |row| row.get(0)))
}

/// What of a cap is used, for reading.
pub fn used(db: &Db, org_id: Uuid, cap: &Cap, now: Moment) -> Result<i64> {
    let rows = db.read(&READ, args![org_id, &cap.name, Uuid::nil(), Timestamptz(cap.per.start(now))]);
    let consumed = rows.first().map_or(0, |row| row.get::<i64>(0));
    Ok(consumed.saturating_add(recorded(db, org_id, cap, now, false)?))
}

/// The rows that some consumptions count in, locked.
#[derive(Default)]
pub struct Caps {
    rows: BTreeMap<Name, Row>,
    now: Moment,
}

struct Row {
    cap: Rc<Cap>,
    before: i64,
    quantity: i64,
    recorded: i64,
}

impl Caps {
    /// Locks what consumptions of these metrics by these members count in. The counters must be locked.
    pub fn lock(db: &Db, wanted: &[(Uuid, Rc<Metric>, Option<Uuid>)], now: Moment) -> Result<Self> {
        let mut names: BTreeMap<Name, Rc<Cap>> = BTreeMap::new();
        for (org_id, metric, member_id) in wanted {
            for cap in &metric.caps {
                if let Some(subject) = subject(cap, *member_id) {
                    names.insert((*org_id, cap.name.clone(), subject, cap.per.start(now)), Rc::clone(cap));
                }
            }
        }
        if names.is_empty() {
            return Ok(Self { rows: BTreeMap::new(), now });
        }
        let orgs = || names.keys().map(|n| n.0).collect::<Vec<_>>();
        let caps = || names.keys().map(|n| n.1.clone()).collect::<Vec<_>>();
        let members = || names.keys().map(|n| n.2).collect::<Vec<_>>();
        let starts = || names.keys().map(|n| Timestamptz(n.3)).collect::<Vec<_>>();
        db.write(&MAKE, args![orgs(), caps(), members(), starts()]);
        let mut rows = BTreeMap::new();
        for row in db.write(&LOCK, args![orgs(), caps(), members(), starts()]).iter() {
            let name: Name = (row.get(0), row.get(1), row.get(2), row.get(3));
            let Some(cap) = names.get(&name) else { continue };
            let recorded = recorded(db, name.0, cap, now, true)?;
            let (cap, before) = (Rc::clone(cap), row.get(4));
            rows.insert(name, Row { cap, before, quantity: before, recorded });
        }
        Ok(Self { rows, now })
    }

    /// Refuses what a cap does not allow.
    pub fn check(&self, org_id: Uuid, metric: &Metric, member_id: Option<Uuid>, quantity: i64) -> Result<()> {
        for cap in &metric.caps {
            let Some(subject) = subject(cap, member_id) else { continue };
            let name = (org_id, cap.name.clone(), subject, cap.per.start(self.now));
            let used = self.rows.get(&name).map_or(0, |row| row.quantity.saturating_add(row.recorded));
            if used.saturating_add(quantity) > cap.quantity {
                let member = member_id.filter(|_| cap.subject == CapSubject::Member);
                return Err(Error::cap_reached(&CapReached {
                    name: &cap.name,
                    metric: cap.metric.as_deref(),
                    category: cap.category.as_deref(),
                    per: cap.per.name(),
                    limit: cap.quantity,
                    used,
                    required: quantity,
                    member_id: member,
                    resets_at: cap.per.end(self.now),
                }));
            }
        }
        Ok(())
    }

    /// Counts what was allowed.
    pub fn add(&mut self, org_id: Uuid, metric: &Metric, member_id: Option<Uuid>, quantity: i64) {
        for cap in &metric.caps {
            let Some(subject) = subject(cap, member_id) else { continue };
            if let Some(row) = self.rows.get_mut(&(org_id, cap.name.clone(), subject, cap.per.start(self.now))) {
                row.quantity = row.quantity.saturating_add(quantity);
            }
        }
    }

    /// Writes what was counted.
    pub fn save(&self, db: &Db) {
        let changed: Vec<_> = self.rows.iter().filter(|(_, row)| row.quantity != row.before).collect();
        if !changed.is_empty() {
            db.write(
                &SAVE,
                args![
                    changed.iter().map(|(n, _)| n.0).collect::<Vec<_>>(),
                    changed.iter().map(|(n, _)| n.1.clone()).collect::<Vec<_>>(),
                    changed.iter().map(|(n, _)| n.2).collect::<Vec<_>>(),
                    changed.iter().map(|(n, _)| Timestamptz(n.3)).collect::<Vec<_>>(),
                    changed.iter().map(|(_, row)| row.quantity).collect::<Vec<_>>(),
                ],
            );
        }
    }

    /// Of the orgs' caps of which something was used: what was before, and is now.
    pub fn used(&self) -> impl Iterator<Item = (Uuid, &Cap, i64, i64)> {
        let changed = self.rows.iter().filter(|(name, row)| name.2.is_nil() && row.quantity != row.before);
        changed.map(|(name, row)| {
            (name.0, &*row.cap, row.before.saturating_add(row.recorded), row.quantity.saturating_add(row.recorded))
        })
    }

    /// The moment for which they were locked.
    pub fn now(&self) -> Moment {
        self.now
    }
}

/// Takes back what holds counted and was not used: all of it, or all but `used`.
pub fn give_back(db: &Db, org_id: Uuid, holds: Vec<i64>, used: Option<i64>) -> Result<()> {
    if !holds.is_empty() && !cache::all_caps(db)?.is_empty() {
        db.write(&GIVE_BACK, args![org_id, holds, used]);
    }
    Ok(())
}
