//! The sample plan: which samples a step consumes, as a pure function of the config. It
//! knows workers only through [`Ownership`], and no file and no clock.
//!
//! Every sample belongs to one of V shards by a seeded permutation of the whole
//! set. A shard's order in an epoch is a permutation seeded by (seed, epoch,
//! shard). Step s takes the next `global_batch / V` samples of *every* shard; the
//! last step of an epoch takes what is left. So no sample is padded, dropped or
//! used twice in an epoch, whatever the number of workers.

use std::fmt;
use std::ops::Range;

use crate::seed;

/// The position of a step: its epoch and its place in that epoch, both from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub epoch: u64,
    pub step_in_epoch: u64,
}

/// The plan of one run over its training set.
#[derive(Debug, Clone)]
pub struct Plan {
    seed: u64,
    shards: u32,
    per_shard: u32,
    /// Sample ids, shard after shard.
    members: Vec<u32>,
}

impl Plan {
    /// `samples` in `shards` shards (V), `global_batch` samples a step. `global_batch`
    /// must be a positive multiple of `shards`, and there must be at least as many
    /// samples as shards: the config's validation ensures both.
    pub fn new(seed: u64, samples: u32, shards: u32, global_batch: u32) -> Self {
        assert!(shards > 0 && global_batch > 0 && global_batch.is_multiple_of(shards), "global_batch {global_batch} over {shards} shards");
        assert!(samples >= shards, "{samples} samples in {shards} shards");
        let mut members: Vec<u32> = (0..samples).collect();
        seed::shuffle(&mut members, &mut seed::stream(seed, "shard membership", &[]));
        Self { seed, shards, per_shard: global_batch / shards, members }
    }

    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// Samples that a step takes of a shard: fewer in the last step of an epoch.
    pub fn per_shard(&self) -> u32 {
        self.per_shard
    }

    pub fn samples(&self) -> u32 {
        self.members.len() as u32
    }

    /// Optimizer steps in one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        // The first shard is one of the largest.
        u64::from(self.shard_len(0).div_ceil(self.per_shard))
    }

    pub fn position(&self, step: u64) -> Position {
        let n = self.steps_per_epoch();
        Position { epoch: step / n, step_in_epoch: step % n }
    }

    /// How many samples shard `shard` holds.
    pub fn shard_len(&self, shard: u32) -> u32 {
        balanced(self.samples(), self.shards, shard).len() as u32
    }

    /// The sample ids of a shard in the order in which `epoch` visits them.
    pub fn shard_order(&self, epoch: u64, shard: u32) -> Vec<u32> {
        let span = balanced(self.samples(), self.shards, shard);
        let mut order = self.members[span.start as usize..span.end as usize].to_vec();
        seed::shuffle(&mut order, &mut seed::stream(self.seed, "shard order", &[epoch, u64::from(shard)]));
        order
    }

    /// Which part of a shard's order the step at `step_in_epoch` consumes.
    pub fn span(&self, step_in_epoch: u64, shard: u32) -> Range<usize> {
        let len = self.shard_len(shard) as usize;
        let start = (step_in_epoch as usize * self.per_shard as usize).min(len);
        start..(start + self.per_shard as usize).min(len)
    }

    /// How many samples all shards together put into a step: the divisor of the summed
    /// gradient.
    pub fn global_count(&self, step: u64) -> u32 {
        let at = self.position(step).step_in_epoch;
        (0..self.shards).map(|v| self.span(at, v).len() as u32).sum()
    }
}

/// Who owns which of the run's shards: each rank a contiguous range, in the order of the
/// ranks. It decides who computes what, and never what is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// How many shards each rank owns.
    counts: Vec<u32>,
}

/// Ranks whose counts are written out; of a larger world the first ones are.
const SHOWN: usize = 16;

impl Ownership {
    /// Equal counts to within one, the larger ones first. Every rank owns a shard if
    /// there are at least as many shards as ranks.
    pub fn equal(world: u32, shards: u32) -> Self {
        Self { counts: (0..world).map(|rank| balanced(shards, world, rank).len() as u32).collect() }
    }

    /// The ownership with these counts by rank. The error says what is wrong with them
    /// for `world` ranks that own `shards` shards together.
    pub fn of(counts: &[u32], world: usize, shards: u32) -> Result<Self, String> {
        if counts.len() != world {
            return Err(format!("has shards for {} ranks, and there are {world}", counts.len()));
        }
        if let Some(rank) = counts.iter().position(|&count| count == 0) {
            return Err(format!("gives rank {rank} no shard, and every rank owns at least one"));
        }
        let sum: u64 = counts.iter().copied().map(u64::from).sum();
        if sum != u64::from(shards) {
            return Err(format!("gives away {sum} shards, and the run has {shards}"));
        }
        Ok(Self { counts: counts.to_vec() })
    }

    /// The ownership in the record of a run: equal where it has no counts, as in the
    /// record of an older version.
    pub fn recorded(counts: &[u32], world: usize, shards: u32) -> Result<Self, String> {
        if !counts.is_empty() {
            return Self::of(counts, world, shards);
        }
        let ranks = u32::try_from(world).ok().filter(|ranks| (1..=shards).contains(ranks));
        ranks.map(|ranks| Self::equal(ranks, shards)).ok_or_else(|| format!("has {world} ranks for {shards} shards"))
    }

    /// How many shards each rank owns.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    pub fn world(&self) -> u32 {
        self.counts.len() as u32
    }

    /// V: the shards of all ranks.
    pub fn shards(&self) -> u32 {
        self.counts.iter().sum()
    }

    /// The shards that `rank` owns; none if there is no such rank.
    pub fn range(&self, rank: u32) -> Range<u32> {
        let start = self.counts.iter().take(rank as usize).sum();
        start..start + self.counts.get(rank as usize).copied().unwrap_or_default()
    }

    /// Whether all ranks own equally many shards, to within one.
    pub fn is_equal(&self) -> bool {
        let (least, most) = (self.counts.iter().min(), self.counts.iter().max());
        least.zip(most).is_none_or(|(least, most)| most - least <= 1)
    }
}

impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<String> = self.counts.iter().take(SHOWN).map(u32::to_string).collect();
        let more = if self.counts.len() > SHOWN { ", ..." } else { "" };
        write!(f, "{}{more}", counts.join(", "))
    }
}

/// The samples of a validation set that `rank` of `world` evaluates: disjoint,
/// complete, without padding.
pub fn evaluation_range(rank: u32, world: u32, samples: u32) -> Range<u32> {
    balanced(samples, world, rank)
}

/// Part `index` of `total` items cut into `parts` contiguous spans whose sizes
/// differ by at most one, larger ones first.
pub fn balanced(total: u32, parts: u32, index: u32) -> Range<u32> {
    debug_assert!(index < parts);
    let (small, extra) = (total / parts, total % parts);
    let start = index * small + index.min(extra);
    start..start + small + u32::from(index < extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some counts that may be: a shard for each rank, and the others for any.
    fn any_ownership(case: u64, world: u32, shards: u32) -> Ownership {
        let mut rng = seed::stream(case, "ownership", &[]);
        let mut counts = vec![1; world as usize];
        (world..shards).for_each(|_| counts[seed::below(&mut rng, world) as usize] += 1);
        Ownership::of(&counts, world as usize, shards).unwrap_or_else(|e| panic!("{counts:?}: {e}"))
    }

    #[test]
    fn every_sample_of_an_epoch_is_used_exactly_once_by_any_world() {
        for case in 0..300u64 {
            let shards = 1 + (case % 13) as u32;
            let samples = shards + (case * 7 % 211) as u32;
            let batch = shards * (1 + (case % 5) as u32);
            let world = 1 + (case as u32 * 3) % shards;
            let plan = Plan::new(case, samples, shards, batch);
            for epoch in 0..2 {
                let mut used = vec![0; samples as usize];
                let ownership = any_ownership(case, world, shards);
                for rank in 0..world {
                    for shard in ownership.range(rank) {
                        let order = plan.shard_order(epoch, shard);
                        for at in 0..plan.steps_per_epoch() {
                            for &id in &order[plan.span(at, shard)] {
                                used[id as usize] += 1;
                            }
                        }
                    }
                }
                assert!(used.iter().all(|&n| n == 1), "case {case}: {used:?}");
            }
            let counted: u32 = (0..plan.steps_per_epoch()).map(|s| plan.global_count(s)).sum();
            assert_eq!(counted, samples);
        }
    }

    #[test]
    fn every_step_of_an_epoch_has_samples_and_all_but_the_last_are_full() {
        for case in 0..300u32 {
            let shards = 1 + case % 9;
            let plan = Plan::new(1, shards + case, shards, shards * 4);
            let n = plan.steps_per_epoch();
            for step in 0..n {
                assert!(plan.global_count(step) > 0);
                if step + 2 < n {
                    assert_eq!(plan.global_count(step), shards * 4);
                }
            }
        }
    }

    #[test]
    fn equal_ownership_is_contiguous_complete_and_balanced() {
        for shards in 1..40 {
            for world in 1..=shards {
                let equal = Ownership::equal(world, shards);
                let mut next = 0;
                for rank in 0..world {
                    let own = equal.range(rank);
                    assert_eq!(own, balanced(shards, world, rank));
                    assert_eq!(own.start, next);
                    assert!(own.len() as u32 == shards / world || own.len() as u32 == shards / world + 1);
                    next = own.end;
                }
                assert_eq!((next, equal.world(), equal.shards(), equal.is_equal()), (shards, world, shards, true));
                assert_eq!(Ownership::of(equal.counts(), world as usize, shards), Ok(equal.clone()));
                assert_eq!(Ownership::recorded(&[], world as usize, shards), Ok(equal));
            }
        }
    }

    #[test]
    fn any_ownership_is_contiguous_and_complete() {
        for case in 0..2000u64 {
            let shards = 1 + (case % 37) as u32;
            let world = 1 + (case * 5 % u64::from(shards)) as u32;
            let ownership = any_ownership(case, world, shards);
            let owned: Vec<u32> = (0..world).flat_map(|rank| ownership.range(rank)).collect();
            assert_eq!(owned, (0..shards).collect::<Vec<_>>(), "{ownership:?}");
            assert!((0..world).all(|rank| ownership.range(rank).len() as u32 == ownership.counts()[rank as usize]));
            assert!(ownership.range(world).is_empty());
        }
    }

    #[test]
    fn counts_that_cannot_be_are_named() {
        for (counts, word) in [
            (&[3, 5][..], "for 2 ranks, and there are 3"),
            (&[4, 0, 4], "rank 1 no shard"),
            (&[2, 3, 2], "gives away 7 shards, and the run has 8"),
            (&[u32::MAX, u32::MAX, 10], "gives away 8589934600 shards"),
        ] {
            let problem = Ownership::of(counts, 3, 8).err().unwrap_or_default();
            assert!(problem.contains(word), "{counts:?}: {problem}");
        }
        for world in [0, 9, usize::MAX] {
            assert!(Ownership::recorded(&[], world, 8).is_err());
        }
        let unequal = Ownership::of(&[5, 1, 2], 3, 8).unwrap_or_else(|e| panic!("{e}"));
        assert!(!unequal.is_equal() && unequal.to_string() == "5, 1, 2" && Ownership::equal(40, 80).to_string().ends_with("2, ..."));
    }

    #[test]
    fn orders_differ_between_epochs_and_positions_count_on() {
        let plan = Plan::new(5, 1000, 4, 40);
        assert_ne!(plan.shard_order(0, 1), plan.shard_order(1, 1));
        assert_eq!(plan.steps_per_epoch(), 25);
        assert_eq!(plan.position(51), Position { epoch: 2, step_in_epoch: 1 });
    }
}
