//! Keeps the record of a run: metrics, journal, checkpoints' pruning, summary
//! and what the person at the terminal sees. The same for a cluster (in the
//! coordinator) and for one process.

use crate::config::Config;
use crate::dataset::{DatasetInfo, SampleSource};
use crate::plan::Plan;
use crate::run_dir::{DataDescription, Evaluation, Event, Recovery, RunDir, RunDirError, StepMetrics, Summary, SummaryBuilder};
use crate::ui::{Progress, duration};
use crate::wire::messages::Finished;

/// Samples that are named in the log before only their number is kept.
const NAMED_SKIPS: u64 = 20;

/// The record of one run.
pub struct Recorder {
    run_dir: RunDir,
    summary: SummaryBuilder,
    progress: Progress,
    skipped: u64,
}

/// How long a run is, derived from its config and dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    pub steps_per_epoch: u64,
    /// Steps of the whole run.
    pub steps: u64,
}

impl Length {
    pub fn of(config: &Config, plan: &Plan) -> Self {
        let steps_per_epoch = plan.steps_per_epoch();
        let steps = steps_per_epoch * u64::from(config.train.epochs);
        Self { steps_per_epoch, steps: config.train.max_steps.map_or(steps, |m| m.min(steps)) }
    }
}

/// The plan of `config` over a dataset; the dataset must be large enough.
pub fn plan(config: &Config, info: &DatasetInfo) -> Result<Plan, String> {
    if info.train < config.train.shards {
        return Err(format!(
            "the training set has {} samples, fewer than train.shards = {}: every shard needs at least one; lower train.shards",
            info.train, config.train.shards
        ));
    }
    config.model.check_classes(info.classes.len())?;
    Ok(Plan::new(config.seed, info.train, config.train.shards, config.train.global_batch))
}

impl Recorder {
    /// Starts the record at `first_step`; `quiet` shows nothing.
    pub fn new(
        mut run_dir: RunDir,
        config: &Config,
        source: &dyn SampleSource,
        plan: &Plan,
        world: u32,
        first_step: u64,
        quiet: bool,
    ) -> Result<Self, RunDirError> {
        run_dir.write_dataset(&DataDescription::of(source))?;
        run_dir.start_metrics(first_step)?;
        let length = Length::of(config, plan);
        let before = (0..first_step).map(|step| u64::from(plan.global_count(step))).sum();
        let epochs = length.steps.div_ceil(length.steps_per_epoch);
        Ok(Self {
            summary: SummaryBuilder::new(&config.name, config.model.kind(), world).resumed(before),
            progress: Progress::new(quiet, length.steps, epochs, first_step),
            run_dir,
            skipped: 0,
        })
    }

    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    pub fn run_dir_mut(&mut self) -> &mut RunDir {
        &mut self.run_dir
    }

    pub fn event(&mut self, event: &Event) -> Result<(), RunDirError> {
        self.run_dir.record(event)
    }

    /// A generation of `world` workers starts.
    pub fn generation(&mut self, world: u32) {
        self.summary.generation(world);
    }

    /// The run has gone on after the loss of a worker.
    pub fn recovery(&mut self, recovery: Recovery) {
        tracing::info!("went on {:.0} ms after the loss was noticed", recovery.resume_ms);
        self.summary.recovery(recovery);
    }

    pub fn step(&mut self, metrics: &StepMetrics) -> Result<(), RunDirError> {
        self.progress.step(metrics);
        self.summary.step(metrics);
        self.run_dir.write_step(metrics)
    }

    pub fn evaluation(&mut self, evaluation: &Evaluation) -> Result<(), RunDirError> {
        self.progress.evaluation(evaluation);
        self.summary.evaluation(evaluation);
        self.run_dir.write_evaluation(evaluation)
    }

    /// A sample was left out because it does not decode.
    pub fn skipped(&mut self, name: &str, problem: &str) {
        self.skipped += 1;
        if self.skipped <= NAMED_SKIPS {
            tracing::warn!("skipped `{name}`: {problem}");
        }
    }

    /// Writes the summary and says how the run ended. `reports` has one entry a
    /// worker; all hold the same digest.
    pub fn finish(mut self, reports: &[Finished]) -> Result<Summary, RunDirError> {
        self.progress.finish();
        if self.skipped > 0 {
            tracing::warn!("{} samples were skipped because they do not decode", self.skipped);
        }
        let digest = reports.first().map(|r| r.weights_blake3.clone()).unwrap_or_default();
        let sent = reports.iter().map(|r| r.bytes_sent).sum();
        let peak = reports.iter().map(|r| r.peak_rss_bytes).max().unwrap_or_default();
        let steps = reports.first().map(|r| r.step).unwrap_or_default();
        let summary = self.summary.finish(steps, digest, sent, peak);
        self.run_dir.write_summary(&summary)?;
        self.run_dir.record(&Event::RunFinished { step: steps })?;
        Ok(summary)
    }

    /// The run failed: leaves the terminal clean and the reason in the journal.
    pub fn fail(mut self, reason: &str) {
        self.progress.finish();
        if let Err(e) = self.run_dir.record(&Event::RunFailed { reason: reason.to_owned() }) {
            tracing::warn!("could not record the failure: {e}");
        }
    }
}

/// The lines that end a run on stdout.
pub fn describe(summary: &Summary, run_dir: &std::path::Path) -> String {
    let mut text = String::new();
    if let (Some(top1), Some(top5)) = (summary.top1, summary.top5) {
        text += &format!("top-1 {:.2}%, top-5 {:.2}% on the validation set\n", 100.0 * top1, 100.0 * top5);
    }
    text += &format!(
        "{} steps on {} worker{} in {}, {:.1} images/s\nrun directory: {}",
        summary.steps,
        summary.world,
        if summary.world == 1 { "" } else { "s" },
        duration(summary.wall_seconds),
        summary.images_per_second,
        run_dir.display()
    );
    text
}
