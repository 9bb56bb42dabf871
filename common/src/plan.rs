//! The sample plan: which samples a step consumes, as a pure function of the config. It
//! knows workers only through [`owned_shards`], and no file and no clock.
//!
//! Every sample belongs to one of V shards by a seeded permutation of the whole
//! set. A shard's order in an epoch is a permutation seeded by (seed, epoch,
//! shard). Step s takes the next `global_batch / V` samples of *every* shard; the
//! last step of an epoch takes what is left. So no sample is padded, dropped or
//! used twice in an epoch, whatever the number of workers.

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

/// The shards that `rank` of `world` owns: contiguous, balanced to within one.
pub fn owned_shards(rank: u32, world: u32, shards: u32) -> Range<u32> {
    balanced(shards, world, rank)
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
                for rank in 0..world {
                    for shard in owned_shards(rank, world, shards) {
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
    fn ownership_is_contiguous_complete_and_balanced() {
        for shards in 1..40 {
            for world in 1..=shards {
                let mut next = 0;
                for rank in 0..world {
                    let own = owned_shards(rank, world, shards);
                    assert_eq!(own.start, next);
                    assert!(own.len() as u32 == shards / world || own.len() as u32 == shards / world + 1);
                    next = own.end;
                }
                assert_eq!(next, shards);
            }
        }
    }

    #[test]
    fn orders_differ_between_epochs_and_positions_count_on() {
        let plan = Plan::new(5, 1000, 4, 40);
        assert_ne!(plan.shard_order(0, 1), plan.shard_order(1, 1));
        assert_eq!(plan.steps_per_epoch(), 25);
        assert_eq!(plan.position(51), Position { epoch: 2, step_in_epoch: 1 });
    }
}
