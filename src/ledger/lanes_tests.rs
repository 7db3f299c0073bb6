//! Every interleaving of a few consumers on a few lanes, small enough to be walked through whole. The model makes the choices
//! by the functions of the protocol; each of its steps is what the server does at once.

use super::*;
use std::collections::HashSet;

/// How a consumer's transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Commit,
    RollBack,
}

/// What a process does: each is a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Job {
    Consume(i64, End),
    /// What voids, expiries and fewer lanes need: all lanes, whoever holds them.
    GatherAll,
    Grant(i64),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum At {
    /// Looks at the wallet without a lock.
    Look,
    Burn {
        lane: i16,
        held: Vec<i16>,
    },
    Await(i16),
    /// Wants the wallet's lock, to have a lane dealt something.
    Wallet(i16),
    /// Holds it.
    Gather {
        mine: i16,
        passed: Vec<i16>,
    },
    /// Decided; the transaction is about to end.
    End,
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Process {
    job: Job,
    at: At,
    refused: bool,
}

/// Row 0 is the rest, row n is lane n.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Row {
    /// As committed.
    committed: i64,
    /// As the process that holds it left it.
    pending: i64,
    holder: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    rows: Vec<Row>,
    processes: Vec<Process>,
    granted: i64,
    burned: i64,
}

const START: i16 = 1;

impl World {
    fn new(rows: &[i64], jobs: &[Job]) -> Self {
        let row = |credits: &i64| Row { committed: *credits, pending: *credits, holder: None };
        let at = |job: &Job| if matches!(job, Job::Consume(..)) { At::Look } else { At::Wallet(START) };
        Self {
            rows: rows.iter().map(row).collect(),
            processes: jobs.iter().map(|job| Process { job: *job, at: at(job), refused: false }).collect(),
            granted: rows.iter().sum(),
            burned: 0,
        }
    }

    fn lanes(&self) -> i16 {
        i16::try_from(self.rows.len() - 1).unwrap()
    }

    fn row(&mut self, lane: i16) -> &mut Row {
        &mut self.rows[usize::try_from(lane).unwrap()]
    }

    fn is_free(&self, lane: i16, who: usize) -> bool {
        self.rows[usize::try_from(lane).unwrap()].holder.is_none_or(|holder| holder == who)
    }

    fn view(&self) -> View {
        View { rest: self.rows[0].committed, lanes: self.rows[1..].iter().map(|r| r.committed).collect() }
    }

    /// The step that a process can make now; None where it waits, or is done.
    fn next(&self, who: usize) -> Option<Self> {
        let mut world = self.clone();
        let process = &self.processes[who];
        let credits = if let Job::Consume(credits, _) = process.job { credits } else { 0 };
        // Processes begin with different lanes.
        let mine = i16::try_from(who).unwrap() % self.lanes() + 1;
        let at = match process.at.clone() {
            At::Done => return None,
            At::Look => from_step(&self.view(), mine, credits, &[]),
            At::Burn { lane, mut held } => {
                let row = world.row(lane);
                if row.holder.is_some() {
                    held.push(lane);
                    from_step(&self.view(), mine, credits, &held)
                } else if row.committed < credits {
                    At::Look
                } else {
                    row.holder = Some(who);
                    row.pending -= credits;
                    At::End
                }
            }
            // Whoever waits holds nothing: that is what makes it safe.
            At::Await(lane) => {
                assert!(self.rows.iter().all(|r| r.holder != Some(who)), "waits for a lane and holds one: {self:?}");
                if !self.is_free(lane, who) {
                    return None;
                }
                At::Look
            }
            At::Wallet(mine) => {
                if !self.is_free(0, who) {
                    return None;
                }
                world.row(0).holder = Some(who);
                if let Job::Grant(amount) = process.job {
                    world.row(0).pending += amount;
                    At::End
                } else {
                    At::Gather { mine, passed: Vec::new() }
                }
            }
            At::Gather { mine, passed } => world.next_lane_to_reclaim(who, mine, passed)?,
            At::End => {
                world.end(who);
                At::Done
            }
        };
        world.processes[who].at = at;
        Some(world)
    }

    /// One step of a process that holds the wallet's lock; None where it waits.
    fn next_lane_to_reclaim(&mut self, who: usize, mine: i16, mut passed: Vec<i16>) -> Option<At> {
        let all: Vec<(i16, i64)> = (1..=self.lanes())
            .filter(|lane| self.rows[usize::try_from(*lane).unwrap()].holder != Some(who))
            .map(|lane| (lane, self.rows[usize::try_from(lane).unwrap()].committed))
            .collect();
        let wanted = match self.processes[who].job {
            Job::Consume(credits, _) => next_lane_to_reclaim(self.rows[0].pending, &all, credits, &passed),
            _ => all.iter().map(|(lane, _)| (*lane, true)).min(),
        };
        match wanted {
            Some((lane, _)) if self.is_free(lane, who) => {
                let row = self.row(lane);
                row.holder = Some(who);
                let slice = std::mem::take(&mut row.pending);
                self.row(0).pending += slice;
                return Some(At::Gather { mine, passed });
            }
            Some((_, true)) => return None,
            Some((lane, false)) => {
                passed.push(lane);
                return Some(At::Gather { mine, passed });
            }
            None => {}
        }
        if let Job::Consume(credits, _) = self.processes[who].job {
            if self.rows[0].pending < credits {
                // Nobody can add to what is there, and whatever is not committed can only take from it or leave it.
                let most: i64 = self.rows[0].pending + all.iter().map(|(_, slice)| slice).sum::<i64>();
                assert!(most < credits, "a false refusal: {self:?}");
                self.processes[who].refused = true;
                return Some(At::End);
            }
            self.row(0).pending -= credits;
            if self.is_free(mine, who) {
                let lanes = self.lanes();
                let rest = self.rows[0].pending;
                let row = self.row(mine);
                if row.holder.is_none() {
                    row.pending = row.committed;
                }
                row.holder = Some(who);
                let slice = refill_amount(rest, lanes, credits);
                row.pending += slice;
                self.row(0).pending -= slice;
            }
        }
        Some(At::End)
    }

    /// Ends a transaction.
    fn end(&mut self, who: usize) {
        let process = &self.processes[who];
        let keeps = match process.job {
            Job::Consume(_, End::RollBack) => false,
            _ => !process.refused,
        };
        if keeps {
            match process.job {
                Job::Consume(credits, _) => self.burned += credits,
                Job::Grant(amount) => self.granted += amount,
                Job::GatherAll => {}
            }
        }
        for row in self.rows.iter_mut().filter(|r| r.holder == Some(who)) {
            if keeps {
                row.committed = row.pending;
            } else {
                row.pending = row.committed;
            }
            row.holder = None;
        }
    }

    fn check(&self) {
        for row in &self.rows {
            assert!(row.committed >= 0 && row.pending >= 0, "overspent: {self:?}");
        }
        if self.rows.iter().all(|r| r.holder.is_none()) {
            let left: i64 = self.rows.iter().map(|r| r.committed).sum();
            assert_eq!(left, self.granted - self.burned, "credit appeared or vanished: {self:?}");
        }
    }
}

fn from_step(view: &View, mine: i16, credits: i64, held: &[i16]) -> At {
    match step(view, mine, credits, held) {
        Step::Burn(lane) => At::Burn { lane, held: held.to_vec() },
        Step::Await(lane) => At::Await(lane),
        Step::Wallet(lane) => At::Wallet(lane),
    }
}

/// Walks through everything that can happen; gives the number of states, and how the processes that were refused differ.
fn explore(start: World) -> (usize, HashSet<Vec<bool>>) {
    let mut seen = HashSet::new();
    let mut ends = HashSet::new();
    let mut todo = vec![start];
    while let Some(world) = todo.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        world.check();
        let next: Vec<World> = (0..world.processes.len()).filter_map(|who| world.next(who)).collect();
        if next.is_empty() {
            assert!(world.processes.iter().all(|p| p.at == At::Done), "deadlock: {world:?}");
            ends.insert(world.processes.iter().map(|p| p.refused).collect());
        }
        todo.extend(next);
    }
    (seen.len(), ends)
}

const COMMIT: End = End::Commit;

#[test]
fn enough_for_all_is_enough_in_every_interleaving() {
    for rows in [vec![3, 0, 0], vec![0, 1, 2], vec![0, 3, 0], vec![1, 1, 1], vec![8, 1, 0], vec![0, 1, 1, 1]] {
        let jobs = [Job::Consume(1, COMMIT), Job::Consume(1, COMMIT), Job::Consume(1, COMMIT)];
        let (states, ends) = explore(World::new(&rows, &jobs));
        assert!(states > 50, "{states} states");
        assert_eq!(ends, HashSet::from([vec![false; 3]]), "{rows:?}");
    }
}

#[test]
fn the_last_credits_are_gathered_for_who_needs_them() {
    for rows in [vec![1, 2, 2], vec![0, 4, 1], vec![0, 0, 5], vec![1, 1, 1, 2]] {
        let (_, ends) = explore(World::new(&rows, &[Job::Consume(5, COMMIT)]));
        assert_eq!(ends, HashSet::from([vec![false]]));
        // Of two who want all of it, one gets it, whoever comes first.
        let (_, ends) = explore(World::new(&rows, &[Job::Consume(5, COMMIT), Job::Consume(5, COMMIT)]));
        assert_eq!(ends, HashSet::from([vec![false, true], vec![true, false]]));
    }
}

#[test]
fn too_little_is_refused_and_nothing_overspent() {
    let (_, ends) = explore(World::new(&[1, 1, 0], &[Job::Consume(1, COMMIT); 3]));
    assert!(ends.iter().all(|refused| refused.iter().filter(|r| **r).count() == 1), "{ends:?}");
    let (_, ends) =
        explore(World::new(&[0, 2, 1], &[Job::Consume(2, COMMIT), Job::Consume(1, COMMIT), Job::Consume(1, COMMIT)]));
    assert!(!ends.contains(&vec![false; 3]));
}

#[test]
fn who_rolls_back_leaves_its_credit_to_others() {
    let jobs = [Job::Consume(2, End::RollBack), Job::Consume(2, COMMIT), Job::Consume(1, COMMIT)];
    for rows in [vec![0, 2, 1], vec![1, 1, 1], vec![3, 0, 0]] {
        let (_, ends) = explore(World::new(&rows, &jobs));
        // Never refused: the two that commit fit, and whoever needs the credit of the third waits for its end.
        assert!(ends.iter().all(|refused| !refused[1] && !refused[2]), "{rows:?}: {ends:?}");
    }
}

#[test]
fn gathering_all_lanes_and_grants_go_with_everything() {
    let jobs = [Job::GatherAll, Job::Consume(1, COMMIT), Job::Consume(1, COMMIT), Job::Grant(1)];
    for rows in [vec![0, 1, 0], vec![1, 1, 1], vec![4, 0, 0]] {
        let (_, ends) = explore(World::new(&rows, &jobs));
        if rows.iter().sum::<i64>() >= 2 {
            assert_eq!(ends, HashSet::from([vec![false; 4]]));
        }
    }
}

#[test]
fn lanes_take_half_of_the_rest_at_first_and_less_and_less() {
    let mut rest = 1_000_000;
    for _ in 0..16 {
        rest -= refill_amount(rest, 16, 15);
    }
    assert!((500_000..650_000).contains(&rest), "{rest}");
    assert_eq!(refill_amount(1_000, 16, 32), 0);
    assert_eq!(refill_amount(1_000, 16, 31), 31);
    assert_eq!(refill_amount(0, 16, 0), 0);
}

#[test]
fn waiting_now_and_then_is_no_contention() {
    let mut waits = ContentionMeter::default();
    for n in 0..1000 {
        waits.note(n % 3 == 0);
        assert!(!waits.is_high());
    }
    for _ in 0..10 {
        waits.note(true);
    }
    assert!(waits.is_high());
    for _ in 0..10 {
        waits.note(false);
    }
    assert!(!waits.is_high());
    assert_eq!([1, 2, 4, 8, 16, 40].map(more), [4, 4, 8, 16, 16, 40]);
    let hour = 3_600_000_000;
    assert!(is_idle(None, hour) && is_idle(Some(0), hour) && !is_idle(Some(hour - 1), hour));
}
