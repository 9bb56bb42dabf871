//! What one worker has to do in one generation: everything that follows from
//! the config, the dataset and its rank. Pure.

use std::ops::Range;
use std::sync::Arc;

use common::config::Config;
use common::dataset::{DatasetInfo, SampleSource};
use common::plan::{Plan, evaluation_range, owned_shards};
use common::recorder::{Length, plan};
use common::seed;

use crate::data::{Input, LoaderOptions};
use crate::models::{DropoutGroup, InputShape};
use crate::schedule::learning_rate;

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

    /// What goes into the model.
    pub fn input(config: &Config, info: &DatasetInfo) -> InputShape {
        info.input(config.data.pixels.image_size)
    }

    /// Compute threads of this worker.
    pub fn threads(config: &Config) -> usize {
        config.train.compute_threads(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Decoding keeps up with one thread for every few compute threads; more
    /// would only take cores from the model.
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

    /// Dropout follows the step and the shard, so that it is the same whatever
    /// the world; `shards` says which places of the batch belong to which shard.
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

    /// Whether a checkpoint follows when `steps` steps are committed.
    pub fn checkpoints_after(&self, steps: u64) -> bool {
        let every = self.config.train.checkpoint_steps.unwrap_or(self.length.steps_per_epoch);
        steps == self.length.steps || steps.is_multiple_of(every)
    }
}

/// Knows when training is over before its last step: after an epoch in which
/// every sample was right when its turn came, if the model stops there.
#[derive(Debug, Clone)]
pub struct Goal {
    applies: bool,
    steps_per_epoch: u64,
    /// Mistakes in this epoch; none while the epoch was not seen from its start.
    mistakes: Option<u64>,
}

impl Goal {
    /// Training (again) starts at step `first`.
    pub fn new(job: &Job, first: u64) -> Self {
        let steps_per_epoch = job.length.steps_per_epoch;
        let mistakes = first.is_multiple_of(steps_per_epoch).then_some(0);
        Self { applies: job.config.model.stops_when_right(), steps_per_epoch, mistakes }
    }

    /// Takes in a step's sums over all ranks, after which `steps` steps are
    /// committed. True when training is over.
    pub fn reached(&mut self, steps: u64, right: u64, count: u64) -> bool {
        self.mistakes = self.mistakes.map(|n| n + count.saturating_sub(right));
        if !steps.is_multiple_of(self.steps_per_epoch) {
            return false;
        }
        let faultless = self.mistakes.replace(0) == Some(0);
        self.applies && faultless
    }
}
