//! The protocol of a wallet that is split into lanes, without a server: where a consumer looks for credit, how much a lane is
//! dealt, from where the last credits are gathered, and when there should be more lanes or fewer.
//!
//! Lane 0 is the wallet's lock and keeps what no other lane holds: the rest. Lanes 1 to n hold a slice of one grant each.
//!
//! 1. A consumer burns from a lane that nobody holds, and that has enough. It never waits for anything while it holds a lane.
//! 2. Credit comes into a lane only from the rest, under the wallet's lock. So whoever holds that lock sees in what others
//!    committed the most that their lanes can still have.
//! 3. Under the wallet's lock, what the rest lacks is gathered from the lanes: first from those that are free, then from those
//!    that are held, waiting, since nobody who holds a lane waits for the wallet. Refused is only what all of that does not
//!    cover.

use crate::base::time::Moment;

/// Most lanes of a wallet.
pub const MOST: i16 = 64;

/// Most that the automatic mode makes.
const MOST_AUTOMATIC: i16 = 16;

/// How long nobody must have waited before there are fewer again.
const IDLE: Moment = 10 * 60 * 1_000_000;

/// What a consumer sees of a wallet before it locks anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// What no lane holds.
    pub rest: i64,
    /// Of lanes 1, 2, …: what can be burned from it now.
    pub lanes: Vec<i64>,
}

/// Where a consumer goes next. Lanes are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Burn from this lane, unless somebody holds it.
    Burn(i16),
    /// Wait until nobody holds this lane, and look again.
    Await(i16),
    /// Lock the wallet, and have this lane dealt something.
    Wallet(i16),
}

/// Where to go for so much credit. `mine`: the lane to begin with. `held`: those that somebody held when they were tried.
pub fn step(view: &View, mine: i16, credits: i64, held: &[i16]) -> Step {
    let count = i16::try_from(view.lanes.len()).unwrap_or(MOST).max(1);
    let mine = (mine - 1).rem_euclid(count) + 1;
    let has =
        |lane: &i16| usize::try_from(lane - 1).ok().and_then(|i| view.lanes.get(i)).is_some_and(|l| *l >= credits);
    // As long as there is a rest, a lane that runs dry is filled at once: else all of them would run dry together.
    if !has(&mine) && view.rest >= credits && !held.contains(&mine) {
        return Step::Wallet(mine);
    }
    let around = || (0..count).map(|i| (mine - 1 + i) % count + 1).filter(has);
    match around().find(|lane| !held.contains(lane)) {
        Some(lane) => Step::Burn(lane),
        None => around().next().map_or(Step::Wallet(mine), Step::Await),
    }
}

/// How much of what is left of a grant a lane is dealt: small enough that all lanes together take half of it at first, so that what is left
/// is shared nearly to the end. Nothing where it would not cover another call of that size.
pub fn refill_amount(rest: i64, lanes: i16, credits: i64) -> i64 {
    let share = rest / (2 * i64::from(lanes.max(1)));
    if share >= credits.max(1) { share } else { 0 }
}

/// Which lane to gather next under the wallet's lock, where the wallet has so much at hand and needs `credits`; and whether to
/// wait for it. `away`: lanes and what they hold, as committed. `passed`: those that somebody held when they were tried.
/// None: what is at hand suffices, or all of it would not.
pub fn next_lane_to_reclaim(at_hand: i64, away: &[(i16, i64)], credits: i64, passed: &[i16]) -> Option<(i16, bool)> {
    let most = away.iter().fold(at_hand, |sum, (_, slice)| sum.saturating_add(*slice));
    if at_hand >= credits || most < credits {
        return None;
    }
    let full = || away.iter().filter(|(_, slice)| *slice > 0).map(|(lane, _)| *lane);
    let free = full().filter(|lane| !passed.contains(lane)).min().map(|lane| (lane, false));
    free.or_else(|| full().min().map(|lane| (lane, true)))
}

/// How much a backend had to wait for others who spend from the same wallet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContentionMeter(u32);

impl ContentionMeter {
    /// Not at all.
    pub const NONE: Self = Self(0);

    const WHOLE: u32 = 1 << 16;

    /// Notes a call.
    pub fn note(&mut self, waited: bool) {
        // The share of the last dozen calls or so.
        self.0 -= self.0.div_ceil(8);
        if waited {
            self.0 += Self::WHOLE / 8;
        }
    }

    /// Most of the last calls had to wait.
    pub fn is_high(self) -> bool {
        self.0 > Self::WHOLE / 2
    }
}

/// How many lanes a contended wallet gets.
pub fn more(lanes: i16) -> i16 {
    (lanes.max(2) * 2).min(MOST_AUTOMATIC).max(lanes)
}

/// Wallets for which nobody waited since then need no lanes any more.
pub fn idle_since(now: Moment) -> Moment {
    now.saturating_sub(IDLE)
}

/// Whether a wallet for which somebody last waited at a moment needs no lanes any more.
pub fn is_idle(contended_at: Option<Moment>, now: Moment) -> bool {
    contended_at.is_none_or(|at| at < idle_since(now))
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
