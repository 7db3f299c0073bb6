//! The protocol of a wallet that is split into lanes, without a server: where a consumer looks for
//! credit, how much a lane gets, from where the last credits are reclaimed, and when there should
//! be more lanes or fewer.
//!
//! Lane 0 is the wallet's lock and keeps the rest, which no other lane holds. Lanes 1 to n hold a
//! slice of one grant each.
//!
//! 1. A consumer burns from a lane that nobody holds and that has enough. It never waits for
//!    anything while it holds a lane.
//! 2. Credit comes into a lane only from the rest, under the wallet's lock. So whoever holds that
//!    lock sees in what others committed the most that their lanes can still have.
//! 3. Under the wallet's lock, credit that the rest lacks is reclaimed from the lanes: first from
//!    those that are free, then from those that are held, waiting, since nobody who holds a lane
//!    waits for the wallet. Only what all of that does not cover is refused.

use crate::base::time::Moment;

/// The highest number of lanes of a wallet.
pub const MOST: i16 = 64;

/// The highest number of lanes that the automatic mode makes.
const MOST_AUTOMATIC: i16 = 16;

/// The time in which nobody has waited, after which lanes are merged.
const IDLE: Moment = 10 * 60 * 1_000_000;

/// The credit of a wallet as a consumer sees it before it locks anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The credit that no lane holds.
    pub rest: i64,
    /// The credit that can be burned now from each of the lanes 1, 2, ….
    pub lanes: Vec<i64>,
}

/// A consumer's next step. Lanes are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The consumer burns from this lane, unless somebody holds it.
    Burn(i16),
    /// The consumer waits until nobody holds this lane, and looks again.
    Await(i16),
    /// The consumer locks the wallet, and refills this lane.
    Wallet(i16),
}

/// The next step towards so much credit. `mine` is the lane to begin with, `held` are those that
/// somebody held when they were tried.
pub fn step(view: &View, mine: i16, credits: i64, held: &[i16]) -> Step {
    let count = i16::try_from(view.lanes.len()).unwrap_or(MOST).max(1);
    let mine = (mine - 1).rem_euclid(count) + 1;
    let has =
        |lane: &i16| usize::try_from(lane - 1).ok().and_then(|i| view.lanes.get(i)).is_some_and(|l| *l >= credits);
    // As long as there is a rest, a lane that runs dry is refilled at once: otherwise all of them
    // would run dry together.
    if !has(&mine) && view.rest >= credits && !held.contains(&mine) {
        return Step::Wallet(mine);
    }
    let around = || (0..count).map(|i| (mine - 1 + i) % count + 1).filter(has);
    match around().find(|lane| !held.contains(lane)) {
        Some(lane) => Step::Burn(lane),
        None => around().next().map_or(Step::Wallet(mine), Step::Await),
    }
}

/// The amount that a lane gets of what is left of a grant. All lanes together take half of it at
/// first, so that the rest is shared nearly to the end. It is 0 where it would not cover another
/// call of that size.
pub fn refill_amount(rest: i64, lanes: i16, credits: i64) -> i64 {
    let share = rest / (2 * i64::from(lanes.max(1)));
    if share >= credits.max(1) { share } else { 0 }
}

/// The lane to reclaim next under the wallet's lock, and whether to wait for it; None if the credit
/// at hand suffices, or if all of it would not.
///
/// `away` are the lanes and their slices, as committed; `passed` are those that somebody held when
/// they were tried.
pub fn next_lane_to_reclaim(at_hand: i64, away: &[(i16, i64)], credits: i64, passed: &[i16]) -> Option<(i16, bool)> {
    let most = away.iter().fold(at_hand, |sum, (_, slice)| sum.saturating_add(*slice));
    if at_hand >= credits || most < credits {
        return None;
    }
    let full = || away.iter().filter(|(_, slice)| *slice > 0).map(|(lane, _)| *lane);
    let free = full().filter(|lane| !passed.contains(lane)).min().map(|lane| (lane, false));
    free.or_else(|| full().min().map(|lane| (lane, true)))
}

/// A backend's measure of how often it had to wait for others who spend from the same wallet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContentionMeter(u32);

impl ContentionMeter {
    /// The measure of a backend that never had to wait.
    pub const NONE: Self = Self(0);

    const WHOLE: u32 = 1 << 16;

    /// Notes whether a call had to wait.
    pub fn note(&mut self, waited: bool) {
        // This keeps the share of about the last dozen calls.
        self.0 -= self.0.div_ceil(8);
        if waited {
            self.0 += Self::WHOLE / 8;
        }
    }

    /// Whether most of the last calls had to wait.
    pub fn is_high(self) -> bool {
        self.0 > Self::WHOLE / 2
    }
}

/// The number of lanes that a contended wallet gets instead of `lanes`.
pub fn more(lanes: i16) -> i16 {
    (lanes.max(2) * 2).min(MOST_AUTOMATIC).max(lanes)
}

/// The moment before which somebody must last have waited for a wallet to be idle.
pub fn idle_since(now: Moment) -> Moment {
    now.saturating_sub(IDLE)
}

/// Whether a wallet for which somebody last waited at `contended_at` needs no lanes any more.
pub fn is_idle(contended_at: Option<Moment>, now: Moment) -> bool {
    contended_at.is_none_or(|at| at < idle_since(now))
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
