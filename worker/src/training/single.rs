//! `worker train`: the training loop in one process, without coordinator or ring.

use common::digest::Digest;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use common::audit::TrainedSamples;
use common::config::Config;
use common::dataset::SampleSource;
use common::dense::Factored;
use common::metrics::{Evaluation, RunPicture, StepMetrics};
use common::plan::Ownership;
use common::predictions::Predictions;
use common::recorder::Recorder;
use common::run_dir::{CHECKPOINT_FILES, CheckpointMeta, Dense, Event, LastGeneration, RunDir, RunDirError, Summary, peak_rss_bytes};
use common::wire::messages::Finished;

use super::initial::begin_with;
use super::record::{Record, STORE_RETRY, STORE_TIMEOUT, Snapshot, snapshot};
use super::train::{Start, TrainingEnd, train};
use crate::data::Batch;
use crate::engine::device::Devices;
use crate::replica::{Replica, State};
use crate::training::exchange::{Exchange, Summation};
use crate::training::job::Job;

/// A single-node run, ready to start.
pub struct SingleRun {
    pub config: Config,
    pub source: Arc<dyn SampleSource>,
    pub run_dir: RunDir,
    pub devices: Devices,
    pub quiet: bool,
    /// Becomes true when a user asks the run to stop after this step.
    pub stop: Arc<AtomicBool>,
}

/// How a single-node run went.
#[derive(Debug)]
pub struct Outcome {
    pub summary: Summary,
    /// Whether a user stopped the run before it was over.
    pub stopped: bool,
}

/// Trains to the end, or until it is stopped.
pub fn run(run: SingleRun) -> Result<Outcome> {
    let SingleRun { config, source, mut run_dir, devices, quiet, stop } = run;
    let ownership = Ownership::equal(1, config.train.shards);
    let job = Job::new(config, source.info().clone(), 0, ownership).map_err(|e| anyhow!(e))?;
    devices.prepare(&job.config.train)?;
    let input = Job::input(&job.config, &job.info);
    let mut replica = Replica::new(&job.config.model, &job.config.train, input, job.config.seed, devices)?;
    let weights = run_dir.keep_weights(&job.config)?;
    let mut first = 0;
    if let Some(checkpoint) = run_dir.newest_checkpoint()? {
        first = checkpoint.step;
        // A run without its last evaluation is not complete.
        if first >= job.length.steps && run_dir.has_evaluation(first) {
            bail!("the run in `{}` is complete at step {first}: raise train.epochs to go on", run_dir.path().display());
        }
        let [model, optimizer] = CHECKPOINT_FILES.map(|name| std::fs::read(checkpoint.path.join(name)));
        replica.import(&State { step: first, model: model?, optimizer: optimizer? })?;
    } else if let Some(weights) = weights {
        begin_with(&mut replica, &job.config.model, &weights.path, &weights.origin)?;
    }
    let last = run_dir.last_generation()?;
    let generation = last.number + 1;
    let dense = dense_exchange(&job, &mut replica, &last)?;
    let plan = job.exchange_plan(matches!(dense, Some(Dense::Factors(_))));
    replica.factor(&plan.factored)?;
    let mut exchange = Exchange::new(None, plan, 0, Summation::of(&job.config.train, None));
    let mut recorder = Recorder::new(run_dir, &job.config, source.as_ref(), &job.plan, 1, quiet)?;
    recorder.event(&Event::RunStarted { name: job.config.name.clone(), step: first });
    recorder.generation(generation, &[], first, job.ownership.counts(), &[], dense);
    let evaluated = recorder.recorded().1;
    let mut record = LocalRecord {
        recorder,
        generation,
        audit: job.config.records_samples(),
        identity: job.config.identity(),
        unstored: None,
        evaluated,
        stop,
    };
    let start = Start { step: first, evaluated, stored: first };
    match train(&job, &mut replica, &mut exchange, &source, &mut record, start) {
        Ok(end) => {
            let step = end.step();
            record.store_at_last(|| snapshot(&replica));
            if let Some(problem) = record.unstored {
                record.recorder.fail(&problem);
                bail!("the last checkpoint could not be stored: {problem}");
            }
            let report = Finished { step, weights_blake3: replica.weights_blake3()?, bytes_sent: 0, peak_rss_bytes: peak_rss_bytes() };
            // A run that was not stopped ends with an evaluation.
            let stopped = record.evaluated < step || matches!(end, TrainingEnd::Interrupted { .. });
            Ok(Outcome { summary: record.recorder.finish(&[report])?, stopped })
        }
        Err(e) => {
            record.recorder.fail(&format!("{e:#}"));
            Err(e)
        }
    }
}

/// What this run exchanges of dense layers. Nothing is exchanged here, but a reproducible run
/// has the weights that it would have in a cluster.
fn dense_exchange(job: &Job, replica: &mut Replica, last: &LastGeneration) -> Result<Option<Dense>> {
    let factored = Factored::of(&job.config, Job::input(&job.config, &job.info));
    if !job.config.train.reproducible || factored.layers.is_empty() {
        return Ok(None);
    }
    let products = replica.products_of_seeded_factors(&factored, &job.config.train)?;
    match last.decided() {
        Some(Dense::Factors(before)) if products != Some(before) => bail!(
            "this processor, or this libtorch, makes other bits of the same factors than the one on which this reproducible run began: go on there, or begin a run with cluster.dense = \"sum\""
        ),
        Some(before) => Ok(Some(before)),
        None => Ok(Some(products.map_or_else(|| Dense::Sum("this device cannot multiply factors".to_owned()), Dense::Factors))),
    }
}

/// Keeps the record in this process.
struct LocalRecord {
    recorder: Recorder,
    generation: u64,
    audit: bool,
    identity: Digest,
    /// Why the newest checkpoint could not be stored.
    unstored: Option<String>,
    /// The newest step after which there is an evaluation.
    evaluated: u64,
    stop: Arc<AtomicBool>,
}

impl LocalRecord {
    /// Tries the last checkpoint again for [`STORE_TIMEOUT`], so that a user can make
    /// room for it.
    fn store_at_last(&mut self, export: impl Fn() -> Result<Snapshot>) {
        let start = Instant::now();
        while self.unstored.is_some() && start.elapsed() < STORE_TIMEOUT {
            std::thread::sleep(STORE_RETRY);
            if let Err(e) = self.checkpoint(false, &mut || export()) {
                self.unstored = Some(format!("{e:#}"));
            }
        }
    }

    fn store(&mut self, snapshot: &Snapshot) -> Result<(), RunDirError> {
        let Snapshot { state, weights_blake3 } = snapshot;
        let mut writer = self.recorder.run_dir().checkpoints().begin(state.step)?;
        for (name, bytes) in CHECKPOINT_FILES.into_iter().zip([&state.model, &state.optimizer]) {
            writer.start_file(name)?;
            writer.write(bytes)?;
        }
        writer.commit(&CheckpointMeta { config_identity: self.identity, weights_blake3: *weights_blake3 })?;
        self.recorder.checkpoint(state.step);
        Ok(())
    }
}

impl Record for LocalRecord {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.recorder.step(metrics);
        Ok(())
    }

    fn evaluating(&mut self, done: u64, of: u64) {
        self.recorder.evaluating(done, of);
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        self.evaluated = evaluation.step;
        self.recorder.evaluation(evaluation);
        Ok(())
    }

    fn trained(&mut self, step: u64, batch: &Batch) -> Result<()> {
        if self.audit {
            let skipped = batch.skipped.iter().map(|s| s.id).collect();
            self.recorder.trained(&TrainedSamples { generation: self.generation, step, rank: 0, ids: batch.ids.clone(), skipped });
        }
        Ok(())
    }

    fn skipped(&mut self, step: u64, name: &str, problem: &str) -> Result<()> {
        self.recorder.skipped(step, name, problem);
        Ok(())
    }

    fn draws(&self) -> bool {
        true
    }

    fn picture(&mut self, picture: RunPicture) {
        self.recorder.picture(&picture);
    }

    fn predictions(&mut self, predictions: Predictions) {
        self.recorder.predictions(&predictions);
    }

    /// A checkpoint that cannot be stored does not fail the run, unless it is the last one.
    fn checkpoint(&mut self, _best: bool, export: &mut dyn FnMut() -> Result<Snapshot>) -> Result<()> {
        self.unstored = self.store(&export()?).err().map(|e| e.to_string());
        if let Some(problem) = &self.unstored {
            tracing::warn!("the checkpoint is not stored; free space or mend the disk, it is tried again: {problem}");
        }
        Ok(())
    }

    fn stored(&self) -> Option<bool> {
        Some(self.unstored.is_none())
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn may_stop_at_once(&self) -> bool {
        self.stop_requested()
    }
}
