//! Folding the ledger into days and months, so that reports need not read it: by settlement, and now and then by the calls that
//! write entries. The wallet must be locked. What is not folded yet is read from the entries, so a report is never behind.

use crate::sql::Db;
use crate::{args, statements};
use uuid::Uuid;

/// A lane is folded by the call that writes its entry of such a number.
const EVERY: i64 = 64;

statements! {
    BEHIND(uuid) =
        "select coalesce(f.entry_id, l.slot::int8 << 40), l.last_entry_id
           from billing.lanes l left join billing.folded f on f.org_id = l.org_id and f.slot = l.slot
          where l.org_id = $1 and l.last_entry_id > coalesce(f.entry_id, l.slot::int8 << 40) order by l.slot";
    POSITION(uuid, int8) = "select entry_id from billing.folded where org_id = $1 and slot = ($2 >> 40)::int2";
    // The quantity stands in each entry of a consumption. What settlement burns counted when it was recorded.
    DAYS(uuid, int8, int8) =
        "insert into billing.usage_days as d (org_id, metric, day, consumed, credits)
         select $1, metric, day, sum(quantity), sum(credits)
           from (select operation_id, metric, (min(created_at) at time zone 'UTC')::date as day, min(quantity) as quantity,
                        -sum(amount) as credits
                   from billing.entries
                  where org_id = $1 and entry_id > $2 and entry_id <= $3 and kind = 'usage'
                    and source is distinct from 'settlement'
                  group by operation_id, metric) o
          group by metric, day order by metric, day
         on conflict (org_id, metric, day) do update
            set consumed = d.consumed + excluded.consumed, credits = d.credits + excluded.credits";
    MONTHS(uuid, int8, int8) =
        "insert into billing.credit_months as m (org_id, unit, month, kind, metric, credits)
         select $1, unit, date_trunc('month', created_at at time zone 'UTC')::date, kind,
                case when kind = 'usage' then coalesce(metric, '') else '' end, sum(amount)
           from billing.entries where org_id = $1 and entry_id > $2 and entry_id <= $3
          group by 2, 3, 4, 5 order by 2, 3, 4, 5
         on conflict (org_id, unit, month, kind, metric) do update set credits = m.credits + excluded.credits";
    ADVANCE(uuid, int8) =
        "insert into billing.folded as f (org_id, slot, entry_id) values ($1, ($2 >> 40)::int2, $2)
         on conflict (org_id, slot) do update set entry_id = excluded.entry_id";
}

/// Folds all lanes of an org, whose wallets are locked.
pub fn fold_all(db: &Db, org_id: Uuid) {
    for row in db.write(&BEHIND, args![org_id]).iter() {
        fold_from(db, org_id, (row.get(0), row.get(1)));
    }
}

/// Whether one of the entries after `from` up to `to` has a number at which its lane is folded.
pub fn is_due(from: i64, to: i64) -> bool {
    from / EVERY != to / EVERY
}

/// Folds the entries of a lane up to its newest one. The wallet must be locked.
pub fn fold(db: &Db, org_id: Uuid, last_entry_id: i64) {
    let known = db.write(&POSITION, args![org_id, last_entry_id]).first().map(|row| row.get::<i64>(0));
    let from = known.unwrap_or((last_entry_id >> 40) << 40);
    if from < last_entry_id {
        fold_from(db, org_id, (from, last_entry_id));
    }
}

fn fold_from(db: &Db, org_id: Uuid, (from, last_entry_id): (i64, i64)) {
    db.write(&DAYS, args![org_id, from, last_entry_id]);
    db.write(&MONTHS, args![org_id, from, last_entry_id]);
    db.write(&ADVANCE, args![org_id, last_entry_id]);
}
