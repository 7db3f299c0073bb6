//! What the entries of a lane come to that no report has counted yet. A lane keeps it in its own row (`lanes.recent`), where the
//! call that writes an entry adds to it in passing: so neither folding nor an answer has to read those entries again.
//!
//! It says of which entries it speaks. Whoever finds that it does not fit the lane or what is folded (something wrote without
//! it, or it would have become too long to keep) reads the entries instead, and the next folding makes it fit again.

use crate::base::time::{Moment, day};

/// Most sums that a lane keeps: its row is written with every charge.
const MOST: usize = 16;

/// The kind of what settlement burned: it counted as usage when it was recorded, so it adds no quantity.
const SETTLED: &str = "settled";

/// What of an entry is told by the reports.
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

/// A day's entries of one kind and, for usage, of one metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// As the server counts days.
    pub day: i32,
    kind: String,
    /// Empty for what is no usage.
    pub metric: String,
    /// What was consumed; 0 for what is no usage.
    pub quantity: i64,
    /// Signed, as the balance sees it.
    pub amount: i64,
}

impl Sum {
    /// As the ledger calls it.
    pub fn kind(&self) -> &str {
        if self.kind == SETTLED { "usage" } else { &self.kind }
    }

    /// Whether it was consumed, and not settled.
    pub fn is_consumed(&self) -> bool {
        self.kind == "usage"
    }
}

/// The sums of the entries after one, up to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSummary {
    /// The last entry that is not in it.
    pub after: i64,
    /// The last that is.
    pub last: i64,
    /// What they come to.
    pub sums: Vec<Sum>,
    /// The last operation that was counted.
    counted: Option<i64>,
}

impl LaneSummary {
    /// Nothing yet after an entry.
    pub fn after(entry_id: i64) -> Self {
        Self { after: entry_id, last: entry_id, sums: Vec::new(), counted: None }
    }

    /// What a lane keeps, where that goes to its last entry.
    pub fn of_lane(kept: Option<&[u8]>, last: i64) -> Option<Self> {
        kept.and_then(Self::decode).filter(|recent| recent.last == last)
    }

    /// What a lane keeps from an entry on, which is its last: nothing of what is folded then, else all that is known.
    pub fn to_keep(recent: Option<&Self>, last: i64, is_folded: bool) -> Option<Vec<u8>> {
        if is_folded { Self::after(last).encode() } else { recent?.encode() }
    }

    /// What was consumed of a metric.
    pub fn consumed(&self, metric: &str) -> impl Iterator<Item = &Sum> {
        self.sums.iter().filter(move |sum| sum.is_consumed() && sum.metric == metric)
    }

    /// Takes in the next entry.
    pub fn add(&mut self, entry: Entry<'_>) {
        let is_usage = entry.kind == "usage";
        let is_settled = is_usage && entry.source == Some("settlement");
        let kind = if is_settled { SETTLED } else { entry.kind };
        let metric = entry.metric.filter(|_| is_usage).unwrap_or_default();
        // The quantity stands in each entry of a consumption.
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

    /// For the lane; None where that is too much.
    pub fn encode(&self) -> Option<Vec<u8>> {
        if self.sums.len() > MOST {
            return None;
        }
        let mut kept = Vec::with_capacity(16 + self.sums.len() * 48);
        kept.extend(self.after.to_be_bytes());
        kept.extend(self.last.to_be_bytes());
        for sum in &self.sums {
            kept.extend(sum.day.to_be_bytes());
            // Usage, the common case, has no name.
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
                kind: if kind.is_empty() { "usage".to_owned() } else { kind },
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

/// A lane is folded by the call that writes its entry of such a number: often enough that reading the rest costs reports little.
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
        // Anything shorter is no such thing, or tells less.
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
