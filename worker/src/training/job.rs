//! The work of one worker in one generation: everything that follows from the config,
//! the dataset and its rank. Its functions are pure.

use std::ops::Range;
use std::sync::Arc;

use common::config::{Config, MicroBatch};
use common::dataset::{DatasetInfo, SampleSource};
use common::metrics::Evaluation;
use common::plan::{Ownership, Plan, evaluation_range};
use common::recorder::{Length, plan};
use common::ring::ExchangePlan;

use crate::data::{Input, LoaderOptions};
use crate::models::InputShape;
use crate::replica::Progress;
use crate::training::schedule::{learning_rate, reduces};

/// Batches that may wait, decoded, for the model.
pub(crate) const PREFETCH_STEPS: usize = 3;

/// A run as seen by one rank of one generation.
#[derive(Debug, Clone)]
pub struct Job {
    pub config: Config,
    pub info: DatasetInfo,
    pub plan: Plan,
    pub length: Length,
    pub rank: u32,
    pub world: u32,
    /// Which shards each rank owns.
    pub ownership: Ownership,
}

impl Job {
    /// Errors when the dataset is too small for the config, or when the run has no such
    /// rank or not so many shards.
    pub fn new(config: Config, info: DatasetInfo, rank: u32, ownership: Ownership) -> Result<Self, String> {
        let plan = plan(&config, &info)?;
        let (world, owned) = (ownership.world(), ownership.shards());
        if rank >= world || owned != config.train.shards {
            return Err(format!("rank {rank} of {world} workers that own {owned} shards is none in a run of {}", config.train.shards));
        }
        let length = Length::of(&config, &plan);
        Ok(Self { config, info, plan, length, rank, world, ownership })
    }

    /// The shape of the model's input.
    pub fn input(config: &Config, info: &DatasetInfo) -> InputShape {
        info.input(config.data.pixels.image_size)
    }

    /// Compute threads of this worker.
    pub fn threads(config: &Config) -> usize {
        config.train.compute_threads(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// As many decoding threads as compute threads keep up with the model: more would only
    /// take cores from it.
    pub fn loader_options(&self) -> LoaderOptions {
        let bytes = self.largest_batch() * Self::input(&self.config, &self.info).values();
        LoaderOptions::new(Self::threads(&self.config), PREFETCH_STEPS, bytes)
    }

    /// The samples of `source` as this run sees them.
    pub fn samples(&self, source: &Arc<dyn SampleSource>) -> Input {
        Input { source: Arc::clone(source), pixels: self.config.data.pixels.clone() }
    }

    /// The shards this rank owns.
    pub fn shards(&self) -> Range<u32> {
        self.ownership.range(self.rank)
    }

    /// What this rank exchanges with the others, with factors of dense layers or without.
    pub fn exchange_plan(&self, factors: bool) -> ExchangePlan {
        ExchangePlan::new(&self.config, Self::input(&self.config, &self.info), self.ownership.counts(), factors)
    }

    /// The row of the global batch that each sample of this rank's batch has: shard v has the
    /// rows from v times the samples of a full step on, in the last step of an epoch as well.
    /// `shards` says which places of the batch belong to which shard.
    pub fn rows(&self, shards: &[(u32, Range<usize>)]) -> Vec<usize> {
        let per_shard = self.plan.per_shard() as usize;
        shards.iter().flat_map(|(shard, places)| (0..places.len()).map(move |n| *shard as usize * per_shard + n)).collect()
    }

    /// The validation samples this rank evaluates, and how many at a time: equally many on
    /// every rank, however the shards are owned. In reproducible mode the samples of a batch
    /// do not depend on the number of ranks, and ranks have whole batches. Of samples with
    /// several crops fewer are evaluated at a time, but always all crops of one.
    pub fn evaluation(&self) -> (Range<u32>, u32) {
        let (train, val) = (&self.config.train, self.info.val);
        let samples = |pictures: u32| (pictures / self.config.data.pixels.eval_crops.count() as u32).max(1);
        if train.reproducible {
            let batch = samples((train.global_batch / train.shards).max(16));
            let batches = evaluation_range(self.rank, self.world, val.div_ceil(batch));
            return ((batches.start * batch).min(val)..(batches.end * batch).min(val), batch);
        }
        let batch = samples(train.global_batch.div_ceil(self.world).clamp(16, 256).min(self.evaluates_at_a_time()));
        (evaluation_range(self.rank, self.world, val), batch)
    }

    /// The learning rate of a step, after the evaluations before it.
    pub fn learning_rate(&self, step: u64, progress: &Progress) -> f64 {
        learning_rate(&self.config.train, self.length, step, progress.reductions())
    }

    /// What one more evaluation makes of the progress.
    pub fn progress(&self, progress: Progress, evaluation: &Evaluation) -> Progress {
        progress.after(&self.config.train, evaluation, |reductions| reduces(&self.config.train, reductions))
    }

    /// The places of the parts of a batch whose gradients are computed one after the other:
    /// of at most `most` samples, or, for reproducible sums, of a shard each. There is at
    /// least one. `shards` says which places of the batch belong to which shard.
    pub fn parts(&self, shards: &[(u32, Range<usize>)], most: usize) -> Vec<Range<usize>> {
        if self.config.train.reproducible {
            return shards.iter().map(|(_, places)| places.clone()).collect();
        }
        let end = shards.last().map_or(0, |(_, places)| places.end);
        let starts = (0..end.max(1)).step_by(most.max(1));
        starts.map(|start| start..end.min(start.saturating_add(most.max(1)))).collect()
    }

    /// The most samples of a step that this rank has.
    pub fn largest_batch(&self) -> usize {
        self.shards().len() * (self.config.train.global_batch / self.config.train.shards) as usize
    }

    /// The most pictures, or rows, that an evaluation may compute at a time.
    fn evaluates_at_a_time(&self) -> u32 {
        // Without a backward pass, far fewer activations are kept.
        if let Some(MicroBatch::Samples(samples)) = self.config.train.micro_batch { samples } else { u32::MAX }
    }

    /// Whether an evaluation follows when `steps` steps are committed.
    pub fn evaluates_after(&self, steps: u64) -> bool {
        self.length.evaluates_after(steps, self.config.train.eval_epochs)
    }

    /// Steps from one checkpoint to the next.
    pub fn checkpoint_every(&self) -> u64 {
        self.config.train.checkpoint_steps.unwrap_or(self.length.steps_per_epoch)
    }

    /// Whether a checkpoint follows when `steps` steps are committed.
    pub fn checkpoints_after(&self, steps: u64) -> bool {
        steps == self.length.steps || steps.is_multiple_of(self.checkpoint_every())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use common::dataset;

    use super::*;

    fn job(sets: &[&str]) -> Job {
        let text = "name = \"t\"\n[model]\nkind = \"softmax\"\n[data]\nkind = \"synthetic\"\nclasses = 2\ntrain = 64\nval = 8\nimage_size = 8\n[train]\nglobal_batch = 24\nshards = 3\n";
        let overrides: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let config = Config::parse(text, "test", &overrides).unwrap();
        let source = dataset::open(&config.data, 1, &|_| {}).unwrap();
        let ownership = Ownership::equal(1, config.train.shards);
        Job::new(config, source.info().clone(), 0, ownership).unwrap()
    }

    #[test]
    fn a_rank_works_on_the_shards_that_it_owns() {
        let job = job(&[]);
        let part = |rank, counts: &[u32]| {
            let ownership = Ownership::of(counts, counts.len(), counts.iter().sum()).unwrap();
            Job::new(job.config.clone(), job.info.clone(), rank, ownership)
        };
        let second = part(1, &[1, 2]).unwrap();
        // A shard gives 8 samples to a step.
        assert_eq!((second.world, second.shards(), second.largest_batch()), (2, 1..3, 16));
        assert!(part(2, &[1, 2]).unwrap_err().contains("rank 2 of 2 workers"));
        assert!(part(0, &[1, 3]).unwrap_err().contains("own 4 shards"));
    }

    #[test]
    fn parts_cover_the_batch() {
        let job = job(&[]);
        let shards = [(0, 0..8), (1, 8..8), (2, 8..13)];
        for most in [1, 2, 3, 5, 8, 100] {
            let parts = job.parts(&shards, most);
            assert!(parts.iter().all(|part| (1..=most).contains(&part.len())));
            let places: Vec<usize> = parts.into_iter().flatten().collect();
            assert_eq!(places, (0..13).collect::<Vec<_>>());
        }
        let none: Vec<_> = job.parts(&[(0, 0..0)], 5).iter().map(std::iter::ExactSizeIterator::len).collect();
        assert_eq!(none, [0], "a rank without samples has a gradient too");
    }

    #[test]
    fn samples_have_the_rows_of_their_shards() {
        let job = job(&[]);
        // A shard with a corrupt sample, an empty one, and one of a short last step.
        assert_eq!(job.rows(&[(0, 0..7), (1, 7..7), (2, 7..9)]), [0, 1, 2, 3, 4, 5, 6, 16, 17]);
    }

    #[test]
    fn every_validation_sample_is_evaluated_once_and_reproducibly_in_the_same_batches() {
        for (reproducible, crops, expected) in [(false, "centre", 16), (true, "centre", 16), (false, "five", 3), (true, "ten", 1)] {
            let job = job(&["data.val=100", &format!("train.reproducible={reproducible}"), &format!("data.eval_crops={crops}")]);
            for world in 1..=3 {
                let rank = |rank| Job::new(job.config.clone(), job.info.clone(), rank, Ownership::equal(world, 3)).unwrap().evaluation();
                let parts: Vec<(Range<u32>, u32)> = (0..world).map(rank).collect();
                let all: Vec<u32> = parts.iter().flat_map(|(range, _)| range.clone()).collect();
                assert_eq!(all, (0..100).collect::<Vec<_>>());
                if reproducible {
                    assert!(parts.iter().all(|(range, batch)| *batch == expected && range.start.is_multiple_of(expected)), "{parts:?}");
                }
                // 24 samples of a step, on one worker.
                let most = if reproducible || world > 1 { expected } else { expected * 3 / 2 };
                assert!(parts.iter().all(|(_, batch)| *batch <= most), "{parts:?}");
            }
        }
    }

    #[test]
    fn reproducible_parts_are_the_shards() {
        let job = job(&["train.reproducible=true"]);
        assert_eq!(job.parts(&[(0, 0..8), (2, 8..13)], 1), [0..8, 8..13]);
    }
}
