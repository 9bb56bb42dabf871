//! Keeps the record of a run: metrics, journal, pruning of checkpoints, summary, and
//! the terminal output. The same for a cluster (in the coordinator) and for one
//! process.

use crate::digest::Digest;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::audit::TrainedSamples;
use crate::config::{Config, Keep, Metric};
use crate::dataset::{DatasetInfo, SampleSource};
use crate::dense::dense_layers;
use crate::metrics::Recovery;
use crate::metrics::{Evaluation, RunPicture, StepMetrics, best};
use crate::mlflow::{End, MlFlow, Pairs};
use crate::plan::Plan;
use crate::predictions::Predictions;
use crate::run_dir::{Best, DataDescription, Dense, Event, RunDir, RunDirError, SkippedSample, Summary, SummaryBuilder};
use crate::status::Status;
use crate::ui::{StepProgress, duration};
use crate::wire::messages::{Finished, Member};

/// Skipped samples that the log names.
const NAMED_SKIPS: u64 = 20;

/// Steps that wait for an earlier one which another worker must report. If more wait,
/// no worker is left that knows it.
const EARLY: usize = 256;

/// How often a disk that does not take the record is reported.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The steps after which it is said that the ring takes most of the time.
const NOTICED_AFTER: usize = 20;

/// How much of the newest generation's steps the workers waited for gradients.
#[derive(Debug, Default)]
struct RingShare {
    world: u32,
    /// Of each of its first steps.
    shares: Vec<f64>,
}

impl RingShare {
    /// Adds a step. Once a generation, after 20 steps: the median share, if above a half.
    fn add(&mut self, metrics: &StepMetrics) -> Option<f64> {
        if self.world < 2 || self.shares.len() == NOTICED_AFTER {
            return None;
        }
        let waited = metrics.all_reduce_exposed_ms - metrics.product_ms;
        self.shares.push(waited / metrics.step_ms.max(f64::MIN_POSITIVE));
        if self.shares.len() < NOTICED_AFTER {
            return None;
        }
        self.shares.sort_by(f64::total_cmp);
        Some(self.shares[NOTICED_AFTER / 2]).filter(|share| *share > 0.5)
    }
}

/// The record of one run.
pub struct Recorder {
    run_dir: RunDir,
    summary: SummaryBuilder,
    ring_share: RingShare,
    progress: StepProgress,
    length: Length,
    eval_epochs: u32,
    status: Arc<watch::Sender<Status>>,
    /// Steps that were reported before an earlier one.
    early: BTreeMap<u64, StepMetrics>,
    /// The evaluations on the record, by their steps.
    evaluations: BTreeMap<u64, Evaluation>,
    keeping: Keeping,
    mlflow: Option<MlFlow>,
    /// When a disk that takes no lines was last reported.
    complained: Option<Instant>,
}

/// Which checkpoints stay.
#[derive(Debug, Clone, Copy)]
struct Keeping {
    /// So many of the newest.
    newest: usize,
    /// And the one with the best evaluation by this metric.
    best: Option<Metric>,
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

    /// Whether an evaluation follows when `steps` steps are committed, where one follows every
    /// `eval_epochs` epochs.
    pub fn evaluates_after(&self, steps: u64, eval_epochs: u32) -> bool {
        steps == self.steps || steps.is_multiple_of(self.steps_per_epoch * u64::from(eval_epochs))
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
    config.check_described(info.input(config.data.pixels.image_size))?;
    Ok(Plan::new(config.seed, info.train, config.train.shards, config.train.global_batch))
}

impl Recorder {
    /// Continues the record in `run_dir`; `quiet` shows nothing.
    pub fn new(
        mut run_dir: RunDir,
        config: &Config,
        source: &dyn SampleSource,
        plan: &Plan,
        world: u32,
        quiet: bool,
    ) -> Result<Self, RunDirError> {
        run_dir.write_dataset(&DataDescription::of(source))?;
        let length = Length::of(config, plan);
        let epochs = length.steps.div_ceil(length.steps_per_epoch);
        let layers = dense_layers(config, source.info().input(config.data.pixels.image_size));
        let summary = SummaryBuilder::new(&config.name, config.model.kind(), world);
        let mut summary = summary.with_dense(layers, config.train.global_batch);
        let (steps, evaluations) = run_dir.metrics()?;
        summary.reload(&steps, &evaluations);
        let skipped = run_dir.skipped().unwrap_or_default();
        let mut status = Status { steps: length.steps, epochs, evaluation: evaluations.last().cloned(), skipped, ..Status::default() };
        for event in run_dir.events()? {
            match event {
                Event::Generation { workers, shards, dense, .. } => summary.generation(workers, shards, dense.as_ref()),
                Event::Recovered(recovery) => {
                    summary.recovery(recovery);
                    status.recovered(recovery);
                }
                Event::Checkpoint { step } => status.checkpoint = Some(step),
                _ => {}
            }
        }
        let train = &config.train;
        let keeping = Keeping { newest: train.keep_checkpoints as usize, best: (train.keep == Keep::Best).then_some(train.keep_metric) };
        let evaluations = evaluations.into_iter().map(|evaluation| (evaluation.step, evaluation)).collect();
        let progress = StepProgress::new(quiet, length.steps, run_dir.recorded()?.0);
        let status = Arc::new(watch::Sender::new(status));
        let (ring_share, early) = (RingShare::default(), BTreeMap::new());
        let mlflow = MlFlow::of_environment(config, run_dir.path(), tags(&run_dir, source.info()));
        let eval_epochs = train.eval_epochs;
        Ok(Self {
            run_dir,
            summary,
            ring_share,
            progress,
            length,
            eval_epochs,
            status,
            early,
            evaluations,
            keeping,
            mlflow,
            complained: None,
        })
    }

    /// The status of the run, for displays to watch.
    pub fn status(&self) -> Arc<watch::Sender<Status>> {
        Arc::clone(&self.status)
    }

    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// The first step that the record lacks, and the newest step after which it has an
    /// evaluation.
    pub fn recorded(&mut self) -> (u64, u64) {
        let (step, evaluated) = self.run_dir.recorded().unwrap_or_default();
        (step, evaluated.unwrap_or_default())
    }

    /// Appends to the journal. False if the line is not on disk yet; it waits in
    /// memory for [`Recorder::sync_journal`] or the next event.
    pub fn event(&mut self, event: &Event) -> bool {
        let written = self.run_dir.record(event);
        self.tolerate(written)
    }

    /// Tries again to write the journal's missing lines to disk; true once none is
    /// missing.
    pub fn sync_journal(&mut self) -> bool {
        let written = self.run_dir.sync_journal();
        self.tolerate(written)
    }

    /// A generation of `members` starts at `first_step`; a single-node run has no
    /// members. By rank, `shards` is how many each owns and `speeds` how fast each was
    /// known to be; `dense` is what they exchange of dense layers. The steps from
    /// `first_step` on that are recorded will be trained again. True if the event is on
    /// disk, as for [`Recorder::event`].
    pub fn generation(
        &mut self,
        number: u64,
        members: &[Member],
        first_step: u64,
        shards: &[u32],
        speeds: &[Option<f64>],
        dense: Option<Dense>,
    ) -> bool {
        let workers = members.len().max(1) as u32;
        self.early.split_off(&first_step);
        self.evaluations.split_off(&(first_step + 1));
        if self.recorded().0 > first_step {
            let cut = self.run_dir.start_metrics(first_step).and_then(|()| self.run_dir.metrics());
            match cut {
                Ok((steps, evaluations)) => self.summary.reload(&steps, &evaluations),
                Err(e) => _ = self.tolerate(Err(e)),
            }
        }
        self.summary.generation(workers, shards.to_vec(), dense.as_ref());
        self.ring_share = RingShare { world: workers, shares: Vec::new() };
        let (members, shards, speeds) = (members.to_vec(), shards.to_vec(), speeds.to_vec());
        self.event(&Event::Generation { generation: number, workers, step: first_step, members, shards, speeds, dense })
    }

    /// Records that the run has continued after the loss of a worker.
    pub fn recovery(&mut self, recovery: Recovery) {
        tracing::info!("went on {:.0} ms after the loss was noticed", recovery.resume_ms);
        self.summary.recovery(recovery);
        self.status.send_modify(|status| status.recovered(recovery));
        self.event(&Event::Recovered(recovery));
    }

    /// Records a step in its order; the first report of a step counts.
    pub fn step(&mut self, metrics: &StepMetrics) {
        let mut next = self.recorded().0;
        if metrics.step < next {
            return;
        }
        self.early.entry(metrics.step).or_insert_with(|| metrics.clone());
        while let Some(metrics) = self.early.remove(&next) {
            self.take_down(&metrics);
            next += 1;
        }
        if self.early.len() > EARLY {
            self.take_down_all();
        }
    }

    fn take_down_all(&mut self) {
        for metrics in std::mem::take(&mut self.early).values() {
            self.take_down(metrics);
        }
    }

    fn take_down(&mut self, metrics: &StepMetrics) {
        self.status.send_modify(|status| status.stepped(metrics));
        let evaluates = self.length.evaluates_after(metrics.step + 1, self.eval_epochs);
        self.progress.show(&self.status.borrow(), evaluates);
        self.summary.step(metrics);
        if let Some(share) = self.ring_share.add(metrics) {
            tracing::warn!(
                "workers wait for gradients {:.0} % of the time: fewer machines may train as fast; `coordinator check CONFIG --link RATE` says what would change it",
                100.0 * share
            );
        }
        let written = self.run_dir.write_step(metrics);
        self.tolerate(written);
        if let Some(mlflow) = &mut self.mlflow {
            mlflow.step(metrics);
        }
    }

    /// An evaluation has come so far, in samples.
    pub fn evaluating(&self, done: u64, of: u64) {
        self.progress.evaluating(done, of);
    }

    pub fn evaluation(&mut self, evaluation: &Evaluation) {
        if self.run_dir.has_evaluation(evaluation.step) {
            return;
        }
        self.status.send_modify(|status| status.evaluation = Some(evaluation.clone()));
        self.progress.evaluation(evaluation);
        self.evaluations.insert(evaluation.step, evaluation.clone());
        self.summary.evaluation(evaluation);
        let written = self.run_dir.write_evaluation(evaluation);
        self.tolerate(written);
        if let Some(mlflow) = &mut self.mlflow {
            mlflow.evaluation(evaluation);
        }
    }

    pub fn picture(&mut self, picture: &RunPicture) {
        self.run_dir.write_picture(picture);
        if let Some(mlflow) = &mut self.mlflow {
            mlflow.picture(picture);
        }
    }

    /// Keeps what an evaluation says of a few pictures. What cannot be written is missing,
    /// and the next evaluation's takes its place.
    pub fn predictions(&mut self, predictions: &Predictions) {
        if let Err(e) = self.run_dir.write_predictions(predictions) {
            tracing::debug!("the predictions of step {} are not kept: {e}", predictions.step);
        }
    }

    /// Records what a worker trained on.
    pub fn trained(&mut self, trained: &TrainedSamples) {
        let written = self.run_dir.write_trained(trained);
        self.tolerate(written);
    }

    /// A checkpoint of the state before `step` is stored; those that need not stay are
    /// removed.
    pub fn checkpoint(&mut self, step: u64) {
        self.event(&Event::Checkpoint { step });
        self.status.send_modify(|status| status.checkpoint = Some(step));
        let best = self.best().map(|evaluation| evaluation.step);
        let pruned = self.run_dir.prune_checkpoints(self.keeping.newest, best);
        self.tolerate(pruned);
    }

    /// The best evaluation of which there is a checkpoint, where that one is kept.
    fn best(&self) -> Option<&Evaluation> {
        let checkpoints = self.run_dir.checkpoints();
        let stored = self.evaluations.values().filter(|evaluation| checkpoints.is_whole(evaluation.step));
        best(stored, self.keeping.best?)
    }

    /// A disk that is full or gone costs lines of the record, not the run: they wait in
    /// memory and are tried again with the next ones. True if the write succeeded.
    fn tolerate(&mut self, written: Result<(), RunDirError>) -> bool {
        let Err(e) = written else { return true };
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            tracing::warn!("{e}: training goes on, and what is to be recorded waits in memory; free space or mend the disk");
        } else {
            tracing::debug!("{e}");
        }
        false
    }

    /// A sample was left out because it does not decode. It counts once, in whatever
    /// number of epochs and by whatever number of workers it is reported.
    pub fn skipped(&mut self, step: u64, name: &str, problem: &str) {
        let sample = SkippedSample { step, sample: name.to_owned(), problem: problem.to_owned() };
        match self.run_dir.write_skipped(&sample) {
            Ok(Some(count)) => {
                self.status.send_modify(|status| status.skipped = count);
                if count <= NAMED_SKIPS {
                    tracing::warn!("skipped `{name}` in step {step}: {problem}");
                }
            }
            Ok(None) => {}
            Err(e) => _ = self.tolerate(Err(e)),
        }
    }

    /// Writes the summary and prints how the run ended. `reports` has one entry for
    /// each worker; all hold the same digest.
    pub fn finish(mut self, reports: &[Finished]) -> Result<Summary, RunDirError> {
        self.take_down_all();
        self.progress.finish();
        let skipped = self.run_dir.skipped().unwrap_or_else(|e| {
            tracing::warn!("{e}");
            0
        });
        if skipped > 0 {
            let samples = if skipped == 1 { "sample was" } else { "samples were" };
            tracing::warn!("{skipped} {samples} skipped for not decoding: skipped.jsonl in the run directory lists what was skipped");
        }
        let digest = reports.first().map_or_else(|| Digest::of(&[]), |r| r.weights_blake3);
        let sent = reports.iter().map(|r| r.bytes_sent).sum();
        let peak = reports.iter().map(|r| r.peak_rss_bytes).max().unwrap_or_default();
        let steps = reports.first().map(|r| r.step).unwrap_or_default();
        let best = self.best().cloned().zip(self.keeping.best);
        let best = best.map(|(evaluation, metric)| Best { metric, evaluation });
        let summary = Summary { skipped, best, ..self.summary.finish(steps, digest, sent, peak) };
        self.run_dir.write_summary(&summary)?;
        self.run_dir.record(&Event::RunFinished { step: steps })?;
        if let Some(mlflow) = self.mlflow {
            // A run that was stopped lacks its last evaluation.
            let end = if self.evaluations.contains_key(&steps) { End::Finished } else { End::Killed };
            let best = summary.best.as_ref().map(|best| ("ringleader.best_step".to_owned(), best.evaluation.step.to_string()));
            mlflow.ended(end, best.into_iter().chain([("ringleader.weights_blake3".to_owned(), digest.to_string())]).collect());
        }
        Ok(summary)
    }

    /// The run failed: leaves the terminal clean and the reason in the journal.
    pub fn fail(mut self, reason: &str) {
        self.take_down_all();
        self.progress.finish();
        if let Err(e) = self.run_dir.record(&Event::RunFailed { reason: reason.to_owned() }) {
            tracing::warn!("could not record the failure: {e}");
        }
        if let Some(mlflow) = self.mlflow {
            mlflow.ended(End::Failed, vec![("ringleader.reason".to_owned(), reason.to_owned())]);
        }
    }
}

/// What other programs are told of a run beside its config.
fn tags(run_dir: &RunDir, info: &DatasetInfo) -> Pairs {
    let path = run_dir.path().canonicalize().unwrap_or_else(|_| run_dir.path().to_owned());
    let tags = [
        ("mlflow.source.name", "ringleader".to_owned()),
        ("ringleader.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("ringleader.run_dir", path.display().to_string()),
        ("ringleader.data", info.fingerprint.to_string()),
        ("ringleader.classes", info.classes.len().to_string()),
    ];
    tags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What to do with a trained run, on stdout at its end.
pub fn what_next(run_dir: &std::path::Path) -> String {
    let run = run_dir.display();
    format!(
        "next: worker eval {run}             precision, recall and confusion by class\n      worker predict {run} FILE     what it says of a picture, or of rows of a CSV file"
    )
}

/// The lines that end a run on stdout.
pub fn describe(summary: &Summary, run_dir: &std::path::Path) -> String {
    let mut text = String::new();
    if let (Some(top1), Some(top5)) = (summary.top1, summary.top5) {
        text += &format!("top-1 {:.2}%, top-5 {:.2}% on the validation set\n", 100.0 * top1, 100.0 * top5);
    }
    if let Some(Best { metric, evaluation }) = &summary.best {
        text += &format!(
            "best by {}: top-1 {:.2}%, top-5 {:.2}%, loss {:.4} after step {}, whose checkpoint is kept\n",
            metric.title(),
            100.0 * evaluation.top1,
            100.0 * evaluation.top5,
            evaluation.loss,
            evaluation.step
        );
    }
    let run = run_dir.display();
    text += &format!(
        "{} steps on {} worker{} in {}, {:.1} images/s\nrun directory: {run}",
        summary.steps,
        summary.world,
        if summary.world == 1 { "" } else { "s" },
        duration(summary.wall_seconds),
        summary.images_per_second,
    );
    text
}

#[cfg(test)]
mod tests;
