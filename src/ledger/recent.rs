//! The sums of a lane's entries that no report has counted yet.
//!
//! A lane keeps them in its own row (`lanes.recent`), where the call that writes an entry adds to
//! them in passing: so neither folding nor an answer has to read those entries again. The sums name
//! the entries that they are of. Where they do not fit the lane or what is folded (an entry was
//! written without them, or they became too long to keep), the entries are read instead, and the
//! next folding makes them fit again.

use crate::base::time::{Moment, day};
use crate::base::words::Word;
use crate::ledger::kind::EntryKind;

/// The most sums that a lane keeps, since its row is written with every charge.
const MOST: usize = 16;

/// The kind of usage that settlement charged: it counted when it was recorded, so it adds no
/// quantity.
const SETTLED: &str = "settled";

/// The columns of an entry that reports use.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Entry<'a> {
    pub entry_id: i64,
    pub operation_id: i64,
    pub kind: &'a str,
    pub metric: Option<&'a str>,
    pub source: Option<&'a str>,
    pub created_at: Moment,
    pub quantity: Option<i64>,
    pub amount: i64,
}

/// The sum of a day's entries of one kind and, for usage, of one metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// The day, as the server counts days.
    pub day: i32,
    kind: String,
    /// The metric; empty for anything but usage.
    pub metric: String,
    /// The quantity that was consumed; 0 for anything but usage.
    pub quantity: i64,
    /// The credit, signed as the balance sees it.
    pub amount: i64,
}

impl Sum {
    /// The kind as the ledger has it.
    pub fn kind(&self) -> &str {
        if self.kind == SETTLED { EntryKind::Usage.name() } else { &self.kind }
    }

    /// Whether it was consumed, and not charged by settlement.
    pub fn is_consumed(&self) -> bool {
        self.kind == EntryKind::Usage.name()
    }
}

/// The sums of a lane's entries after one, up to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSummary {
    /// The last entry before those that are counted.
    pub after: i64,
    /// The last entry that is counted.
    pub last: i64,
    /// The sums of the entries.
    pub sums: Vec<Sum>,
    /// The last operation whose quantity was counted.
    counted: Option<i64>,
}

impl LaneSummary {
    /// The summary after an entry, which has counted nothing yet.
    pub fn after(entry_id: i64) -> Self {
        Self { after: entry_id, last: entry_id, sums: Vec::new(), counted: None }
    }

    /// The summary that a lane's row keeps, if it goes up to the lane's last entry.
    pub fn of_lane(kept: Option<&[u8]>, last: i64) -> Option<Self> {
        kept.and_then(Self::decode).filter(|recent| recent.last == last)
    }

    /// The bytes that a lane's row keeps up to its entry `last`: an empty summary if that is being
    /// folded, else all that is known; None if nothing is.
    pub fn to_keep(recent: Option<&Self>, last: i64, is_folded: bool) -> Option<Vec<u8>> {
        if is_folded { Self::after(last).encode() } else { recent?.encode() }
    }

    /// The sums of a metric's consumption.
    pub fn consumed(&self, metric: &str) -> impl Iterator<Item = &Sum> {
        self.sums.iter().filter(move |sum| sum.is_consumed() && sum.metric == metric)
    }

    /// Counts the next entry.
    pub fn add(&mut self, entry: Entry<'_>) {
        let is_usage = entry.kind == EntryKind::Usage.name();
        let is_settled = is_usage && entry.source == Some("settlement");
        let kind = if is_settled { SETTLED } else { entry.kind };
        let metric = entry.metric.filter(|_| is_usage).unwrap_or_default();
        // Each entry of a consumption has the whole quantity, so only the first one counts.
        let is_first = is_usage && !is_settled && self.counted.replace(entry.operation_id) != Some(entry.operation_id);
        let quantity = entry.quantity.filter(|_| is_first).unwrap_or(0);
        let day = day(entry.created_at);
        self.last = entry.entry_id;
        match self.sums.iter_mut().find(|s| s.day == day && s.kind == kind && s.metric == metric) {
            Some(sum) => {
                sum.quantity = sum.quantity.saturating_add(quantity);
                sum.amount = sum.amount.saturating_add(entry.amount);
            }
            None => {
                let (kind, metric) = (kind.to_owned(), metric.to_owned());
                self.sums.push(Sum { day, kind, metric, quantity, amount: entry.amount });
            }
        }
    }

    /// The summary as bytes for the lane's row; None if there is too much of it.
    pub fn encode(&self) -> Option<Vec<u8>> {
        if self.sums.len() > MOST {
            return None;
        }
        let mut kept = Vec::with_capacity(16 + self.sums.len() * 48);
        kept.extend(self.after.to_be_bytes());
        kept.extend(self.last.to_be_bytes());
        for sum in &self.sums {
            kept.extend(sum.day.to_be_bytes());
            // Usage, the common case, is stored without a name.
            for text in [if sum.is_consumed() { "" } else { &sum.kind }, &sum.metric] {
                kept.push(u8::try_from(text.len()).ok()?);
                kept.extend(text.as_bytes());
            }
            kept.extend(sum.quantity.to_be_bytes());
            kept.extend(sum.amount.to_be_bytes());
        }
        Some(kept)
    }

    fn decode(kept: &[u8]) -> Option<Self> {
        let mut rest = kept;
        let mut recent = Self::after(i64::from_be_bytes(take(&mut rest)?));
        recent.last = i64::from_be_bytes(take(&mut rest)?);
        while !rest.is_empty() {
            let day = i32::from_be_bytes(take(&mut rest)?);
            let kind = take_text(&mut rest)?;
            recent.sums.push(Sum {
                day,
                kind: if kind.is_empty() { EntryKind::Usage.name().to_owned() } else { kind },
                metric: take_text(&mut rest)?,
                quantity: i64::from_be_bytes(take(&mut rest)?),
                amount: i64::from_be_bytes(take(&mut rest)?),
            });
        }
        Some(recent)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*bytes)
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let [length] = take(rest)?;
    let (text, after) = rest.split_at_checked(length.into())?;
    *rest = after;
    String::from_utf8(text.to_vec()).ok()
}

/// The distance of the entries at which a lane is folded: small enough that reading the unfolded
/// ones costs reports little.
const FOLDED_EVERY: i64 = 128;

/// Whether one of the entries after `from` up to `to` has a number at which its lane is folded.
pub fn is_fold_due(from: i64, to: i64) -> bool {
    from / FOLDED_EVERY != to / FOLDED_EVERY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(entry_id: i64, operation_id: i64, kind: &'static str, at: &str, amount: i64) -> Entry<'static> {
        let created_at = crate::base::time::parse(at).unwrap();
        let metric = Some("call");
        Entry { entry_id, operation_id, kind, metric, source: None, created_at, quantity: Some(3), amount }
    }

    fn told(recent: &LaneSummary) -> Vec<(i32, &str, bool, &str, i64, i64)> {
        recent
            .sums
            .iter()
            .map(|s| (s.day, s.kind(), s.is_consumed(), s.metric.as_str(), s.quantity, s.amount))
            .collect()
    }

    fn some() -> LaneSummary {
        let (one, two) = ("2026-01-31T23:59:59Z", "2026-02-01T00:00:00Z");
        let mut recent = LaneSummary::after(9);
        recent.add(entry(10, 10, "bonus", one, 100));
        recent.add(entry(11, 11, "usage", one, -10));
        recent.add(entry(12, 11, "usage", one, -5));
        recent.add(entry(13, 13, "usage", one, -1));
        recent.add(entry(14, 14, "usage", two, -7));
        recent.add(Entry { source: Some("settlement"), ..entry(15, 15, "usage", two, -50) });
        recent
    }

    #[test]
    fn a_consumption_counts_once_however_many_grants_paid_it() {
        let (one, two) = (
            day(crate::base::time::parse("2026-01-31").unwrap()),
            day(crate::base::time::parse("2026-02-01").unwrap()),
        );
        assert_eq!(
            told(&some()),
            [
                (one, "bonus", false, "", 0, 100),
                (one, "usage", true, "call", 6, -16),
                (two, "usage", true, "call", 3, -7),
                (two, "usage", false, "call", 0, -50),
            ]
        );
    }

    #[test]
    fn a_lane_keeps_it_whole() {
        let recent = some();
        let kept = recent.encode().unwrap();
        let again = LaneSummary::of_lane(Some(&kept), 15).unwrap();
        assert_eq!((again.after, again.last, &again.sums), (9, 15, &recent.sums));
        assert_eq!(LaneSummary::of_lane(Some(&kept), 16), None, "an entry that it does not know");
        assert_eq!(LaneSummary::of_lane(None, 15), None);
        // Cut off anywhere, it cannot be read, or counts less.
        for length in 0..kept.len() {
            assert_ne!(LaneSummary::of_lane(Some(&kept[..length]), 15).as_ref(), Some(&again));
        }
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let mut recent = LaneSummary::after(0);
        let names: Vec<String> = (0..=MOST).map(|n| format!("metric_{n}")).collect();
        for (name, number) in names.iter().zip(1..) {
            assert!(recent.encode().is_some());
            recent.add(Entry { metric: Some(name), ..entry(number, number, "usage", "2026-01-31", -1) });
        }
        assert_eq!(recent.encode(), None);
        let mut recent = LaneSummary::after(0);
        let long = "x".repeat(256);
        recent.add(Entry { metric: Some(&long), ..entry(1, 1, "usage", "2026-01-31", -1) });
        assert_eq!(recent.encode(), None);
    }
}
