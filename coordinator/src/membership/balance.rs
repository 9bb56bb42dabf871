//! Decides how many shards each rank owns, by the speeds that the workers report, and when
//! a ring that trains is to be formed anew for it.
//!
//! A step takes as long as its slowest rank, so ranks that finish together make the
//! shortest step. Which samples a step takes does not depend on who owns which shards.
//!
//! Every ring that forms has its shards given away by the speeds known so far, which costs
//! nothing. A ring that trains is formed anew only where that is worth its cost: in
//! [`WINDOWS`] windows in a row another ownership would have made steps shorter by
//! [`WORTH`], and an epoch has ended since. So there is at most one such forming in an
//! epoch, and none for a disturbance of a second or two.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use common::plan::Ownership;

use super::events::Rules;
use super::listening::At;

/// Shares that are not equal have to shorten the predicted step by so much: speeds that
/// are measured on like machines differ by some percent, and mean equal shares.
const NOISE: f64 = 0.05;

/// A ring is formed anew if that shortens the predicted step by so much.
const WORTH: f64 = 0.1;

/// A window ends after so many steps, after so long, and once all members have reported a
/// speed in it. Speeds are medians of 20 steps, so each window has figures of its own.
const WINDOW_STEPS: u64 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// So many windows in a row have to agree.
const WINDOWS: u32 = 3;

/// Speeds that are remembered.
const REMEMBERED: usize = 4096;

/// Who owns how many shards, given the speeds by rank. A speed that is unknown counts as
/// the median of those that are known; if none is, or if they hardly differ, all ranks own
/// equally many. There must be as many shards as ranks, or more.
pub(super) fn by_speed(speeds: &[Option<f64>], shards: u32) -> Ownership {
    let equal = Ownership::equal(speeds.len() as u32, shards);
    let Some(speeds) = filled(speeds) else { return equal };
    let counts = shortest(&speeds, shards);
    let shorter = step_time(&counts, &speeds) <= (1.0 - NOISE) * step_time(equal.counts(), &speeds);
    if shorter { Ownership::of(&counts, speeds.len(), shards).unwrap_or(equal) } else { equal }
}

/// The speeds, with the median of the known ones in the place of the unknown ones. `None`
/// if all are unknown.
fn filled(speeds: &[Option<f64>]) -> Option<Vec<f64>> {
    let mut known: Vec<f64> = speeds.iter().copied().flatten().collect();
    known.sort_by(f64::total_cmp);
    let (low, high) = (known.get(known.len().saturating_sub(1) / 2)?, known.get(known.len() / 2)?);
    let median = (low + high) / 2.0;
    Some(speeds.iter().map(|speed| speed.unwrap_or(median)).collect())
}

/// The counts by rank with the shortest step: a shard for each rank, and then one after
/// the other to the rank that is done with it first; ties go to the lower rank. Equal
/// speeds give the counts of [`Ownership::equal`].
fn shortest(speeds: &[f64], shards: u32) -> Vec<u32> {
    let mut counts = vec![1u32; speeds.len()];
    // The bits of positive numbers are in their order.
    let after_one_more = |count: u32, rank: usize| Reverse(((f64::from(count + 1) / speeds[rank]).to_bits(), rank));
    let mut ranks: BinaryHeap<_> = (0..speeds.len()).map(|rank| after_one_more(1, rank)).collect();
    for _ in speeds.len()..shards as usize {
        let Some(Reverse((_, rank))) = ranks.pop() else { break };
        counts[rank] += 1;
        ranks.push(after_one_more(counts[rank], rank));
    }
    counts
}

/// How long a step takes with these counts by rank, but for a factor.
fn step_time(counts: &[u32], speeds: &[f64]) -> f64 {
    counts.iter().zip(speeds).map(|(&count, speed)| f64::from(count) / speed).fold(0.0, f64::max)
}

/// What the shares of the newest generation are judged by.
#[derive(Debug)]
pub(super) struct Balancing {
    /// Samples a second, by the name of the worker: one that comes back keeps its figure.
    speeds: BTreeMap<String, f64>,
    /// The newest generation's.
    ownership: Ownership,
    window: Window,
    /// Windows in a row in which another ownership would have been better.
    better: u32,
    /// The newest epoch that has begun.
    epoch: u64,
    /// The ring is to be formed anew.
    due: bool,
}

#[derive(Debug, Default)]
struct Window {
    first_step: u64,
    since: At,
    /// The names of those that have reported a speed in it.
    heard: BTreeSet<String>,
}

impl Balancing {
    pub(super) fn new(ownership: Ownership) -> Self {
        Self { speeds: BTreeMap::new(), ownership, window: Window::default(), better: 0, epoch: 0, due: false }
    }

    /// A worker reports its speed.
    pub(super) fn hear(&mut self, name: &str, speed: f64) {
        if self.speeds.len() >= REMEMBERED && !self.speeds.contains_key(name) {
            self.speeds.clear();
        }
        self.speeds.insert(name.to_owned(), speed);
        if self.window.heard.len() < REMEMBERED {
            self.window.heard.insert(name.to_owned());
        }
    }

    /// A generation with this ownership starts.
    pub(super) fn starts(&mut self, ownership: Ownership, first_step: u64, at: At, rules: &Rules) {
        self.ownership = ownership;
        self.window = Window { first_step, since: at, heard: BTreeSet::new() };
        (self.better, self.due) = (0, false);
        self.epoch = self.epoch.max(epoch(first_step, rules));
    }

    /// Takes in that `step` steps are committed by members of these names, by rank.
    pub(super) fn stepped(&mut self, names: &[&str], step: u64, at: At, rules: &Rules) {
        let window = &self.window;
        let long = step >= window.first_step.saturating_add(WINDOW_STEPS) && at.saturating_sub(window.since) >= WINDOW;
        if long && names.iter().all(|name| window.heard.contains(*name)) {
            let gain = self.gain(names, rules.shards).map_or(0.0, |(gain, _)| gain);
            self.better = if gain >= WORTH { self.better.saturating_add(1) } else { 0 };
            self.window = Window { first_step: step, since: at, heard: BTreeSet::new() };
        }
        let now = epoch(step, rules);
        if now > self.epoch {
            self.epoch = now;
            // Near the end of the run there is nothing left to win.
            let left = rules.steps.saturating_sub(step);
            self.due = self.better >= WINDOWS && left >= u64::from(WINDOWS) * WINDOW_STEPS;
        }
    }

    /// Whether the ring may have to be formed anew.
    pub(super) fn is_due(&self) -> bool {
        self.due
    }

    /// What is known of the speeds of the workers of these names.
    pub(super) fn speeds(&self, names: &[&str]) -> Vec<Option<f64>> {
        names.iter().map(|name| self.speeds.get(*name).copied()).collect()
    }

    /// The newest generation's ownership, the one that its ring is to be formed anew for,
    /// and by which share that shortens the predicted step. `None` if it is to go on.
    pub(super) fn moves(&self, names: &[&str], shards: u32) -> Option<(Ownership, Ownership, f64)> {
        let (gain, to) = self.gain(names, shards)?;
        (self.due && gain >= WORTH).then(|| (self.ownership.clone(), to, gain))
    }

    /// By which share the best ownership shortens the predicted step, and that ownership.
    fn gain(&self, names: &[&str], shards: u32) -> Option<(f64, Ownership)> {
        let speeds = self.speeds(names);
        let (known, best) = (filled(&speeds)?, by_speed(&speeds, shards));
        let (now, then) = (step_time(self.ownership.counts(), &known), step_time(best.counts(), &known));
        (now > 0.0).then(|| (1.0 - then / now, best))
    }
}

/// The epoch that follows `step` committed steps.
fn epoch(step: u64, rules: &Rules) -> u64 {
    step / rules.steps_per_epoch.max(1)
}

#[cfg(test)]
mod tests {
    use common::seed;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// A speed between 1 and 1000, evenly on a scale of ratios.
    fn speed(rng: &mut ChaCha8Rng) -> f64 {
        10f64.powf(f64::from(seed::below(rng, 3001)) / 1000.0)
    }

    fn known(speeds: &[f64]) -> Vec<Option<f64>> {
        speeds.iter().copied().map(Some).collect()
    }

    #[test]
    fn any_speeds_give_every_rank_a_shard_and_all_shards_away() {
        for case in 0..5000 {
            let mut rng = seed::stream(case, "shares", &[]);
            let world = 1 + seed::below(&mut rng, 9);
            let shards = world + seed::below(&mut rng, 60);
            // Some are unknown, and some as far apart as a worker can say.
            let extreme = [1e-5, 1e9];
            let speeds: Vec<Option<f64>> = (0..world)
                .map(|_| match seed::below(&mut rng, 8) {
                    0 => None,
                    1 => Some(extreme[seed::below(&mut rng, 2) as usize]),
                    _ => Some(speed(&mut rng)),
                })
                .collect();
            let ownership = by_speed(&speeds, shards);
            assert_eq!(Ownership::of(ownership.counts(), world as usize, shards), Ok(ownership.clone()), "{speeds:?}");
            assert_eq!(by_speed(&speeds, shards), ownership, "the same speeds give the same shares");
        }
    }

    #[test]
    fn equal_speeds_and_those_within_the_noise_give_equal_shares() {
        for case in 0..3000 {
            let mut rng = seed::stream(case, "equal shares", &[]);
            let world = 1 + seed::below(&mut rng, 12);
            let shards = world + seed::below(&mut rng, 100);
            let (equal, one) = (Ownership::equal(world, shards), speed(&mut rng));
            let same = vec![one; world as usize];
            assert_eq!(shortest(&same, shards), equal.counts(), "{world} ranks, {shards} shards");
            let noisy: Vec<f64> = same.iter().map(|one| one * (1.0 + 0.0004 * f64::from(seed::below(&mut rng, 101)))).collect();
            for speeds in [known(&same), known(&noisy), vec![None; world as usize]] {
                assert_eq!(by_speed(&speeds, shards), equal, "{speeds:?}");
            }
        }
    }

    /// All ways of giving `shards` shards to `ranks` ranks, at least one each.
    fn all_counts(ranks: usize, shards: u32) -> Vec<Vec<u32>> {
        if ranks == 1 {
            return vec![vec![shards]];
        }
        let rest = |first: u32| all_counts(ranks - 1, shards - first).into_iter().map(move |rest| [vec![first], rest].concat());
        (1..=shards + 1 - ranks as u32).flat_map(rest).collect()
    }

    #[test]
    fn no_other_shares_make_a_shorter_step() {
        for case in 0..2000 {
            let mut rng = seed::stream(case, "shortest", &[]);
            let world = 1 + seed::below(&mut rng, 4);
            let shards = world + seed::below(&mut rng, 8);
            let speeds: Vec<f64> = (0..world).map(|_| speed(&mut rng)).collect();
            let mine = step_time(&shortest(&speeds, shards), &speeds);
            let least = all_counts(world as usize, shards).iter().map(|counts| step_time(counts, &speeds)).fold(f64::MAX, f64::min);
            assert_eq!(mine, least, "{speeds:?}, {shards} shards");
        }
    }

    #[test]
    fn a_faster_rank_never_owns_less_and_more_shards_come_closer_to_the_speeds() {
        for case in 0..3000 {
            let mut rng = seed::stream(case, "faster", &[]);
            let world = 2 + seed::below(&mut rng, 6);
            let speeds: Vec<f64> = (0..world).map(|_| speed(&mut rng)).collect();
            let counts = by_speed(&known(&speeds), 16 * world).counts().to_vec();
            let slower = |a: usize, b: usize| speeds[a] < speeds[b] && counts[a] > counts[b] + 1;
            let ranks = 0..world as usize;
            assert!(ranks.clone().all(|a| ranks.clone().all(|b| !slower(a, b))), "{speeds:?}: {counts:?}");
        }
        let half = [Some(200.0), Some(100.0)];
        let counts = [8, 32, 300].map(|shards| by_speed(&half, shards).counts().to_vec());
        assert_eq!(counts, [[6, 2], [22, 10], [200, 100]]);
        assert_eq!(by_speed(&[Some(400.0), None, Some(100.0)], 30).counts(), [16, 10, 4], "the second one counts as 250");
    }
}
