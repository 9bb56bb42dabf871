//! The work of one worker in one generation: everything that follows from the config,
//! the dataset and its rank. Its functions are pure.

use std::ops::Range;
use std::sync::Arc;

use common::config::Config;
use common::dataset::{DatasetInfo, SampleSource};
use common::plan::{Plan, evaluation_range, owned_shards};
use common::recorder::{Length, plan};
use common::seed;

use crate::data::{Input, LoaderOptions};
use crate::models::{DropoutGroup, InputShape};
use crate::training::schedule::learning_rate;

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
}

impl Job {
    /// Errors when the dataset is too small for the config.
    pub fn new(config: Config, info: DatasetInfo, rank: u32, world: u32) -> Result<Self, String> {
        let plan = plan(&config, &info)?;
        if rank >= world || world > config.train.shards {
            return Err(format!("rank {rank} of {world} workers is none in a run of {} shards", config.train.shards));
        }
        let length = Length::of(&config, &plan);
        Ok(Self { config, info, plan, length, rank, world })
    }

    /// The shape of the model's input.
    pub fn input(config: &Config, info: &DatasetInfo) -> InputShape {
        info.input(config.data.pixels.image_size)
    }

    /// Compute threads of this worker.
    pub fn threads(config: &Config) -> usize {
        config.train.compute_threads(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// As many decoding threads as compute threads, at most 8, keep up with the model;
    /// more would only take cores from it.
    pub fn loader_options(&self) -> LoaderOptions {
        LoaderOptions { threads: Self::threads(&self.config).clamp(1, 8), prefetch_steps: PREFETCH_STEPS }
    }

    /// The samples of `source` as this run sees them.
    pub fn samples(&self, source: &Arc<dyn SampleSource>) -> Input {
        Input { source: Arc::clone(source), pixels: self.config.data.pixels.clone(), on_corrupt: self.config.data.on_corrupt() }
    }

    /// The shards this rank owns.
    pub fn shards(&self) -> Range<u32> {
        owned_shards(self.rank, self.world, self.plan.shards())
    }

    /// The validation samples this rank evaluates.
    pub fn evaluation(&self) -> Range<u32> {
        evaluation_range(self.rank, self.world, self.info.val)
    }

    pub fn learning_rate(&self, step: u64) -> f64 {
        learning_rate(&self.config.train, self.length.steps_per_epoch, self.length.steps, step)
    }

    /// The shards of a batch whose gradients are computed together: all of them,
    /// or, for reproducible sums, each by itself.
    pub fn parts<'a>(&self, shards: &'a [(u32, Range<usize>)]) -> impl Iterator<Item = &'a [(u32, Range<usize>)]> {
        shards.chunks(if self.config.train.reproducible { 1 } else { shards.len().max(1) })
    }

    /// Dropout depends on the step and the shard alone, so that it is the same in any
    /// world; `shards` says which places of the batch belong to which shard.
    pub fn dropout(&self, step: u64, shards: &[(u32, Range<usize>)]) -> Vec<DropoutGroup> {
        let group = |(shard, places): &(u32, Range<usize>)| DropoutGroup {
            seed: seed::derive(self.config.seed, "dropout", &[step, u64::from(*shard)]),
            samples: places.len(),
        };
        shards.iter().map(group).collect()
    }

    /// Whether an evaluation follows when `steps` steps are committed.
    pub fn evaluates_after(&self, steps: u64) -> bool {
        let every = self.length.steps_per_epoch * u64::from(self.config.train.eval_epochs);
        steps == self.length.steps || steps.is_multiple_of(every)
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
