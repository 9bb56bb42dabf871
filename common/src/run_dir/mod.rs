//! The run directory: the only durable place of a run.
//!
//! ```text
//! config.toml      the resolved config
//! dataset.json     classes and columns of the data
//! journal.jsonl    workers that joined and left, generations, checkpoints
//! metrics.jsonl    a line a step, a line an evaluation
//! audit.jsonl      what each worker trained on, with train.audit
//! initial-weights  what model.weights named when the run began
//! skipped.jsonl    samples that were left out because they do not decode
//! predictions.json what the newest evaluation says of a few pictures, with the pictures
//! events.out.*     steps, evaluations and pictures for TensorBoard
//! mlflow.json      which run of an MLflow server it is, if there is one
//! checkpoints/     step-NNNNNNNN/{model,optimizer}.safetensors, manifest.json
//! summary.json     at the end
//! ```
//!
//! Everything here is plain files and synchronous code; nothing knows a socket.

mod checkpoint;
mod contents;
mod differences;
mod error;
mod follow;
mod journal;
mod layout;
mod lines;
mod metrics;
mod mirror;
mod names;
mod resume;
mod skipped;
mod summary;
mod tensorboard;
mod view;
mod weights;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};

pub use checkpoint::{CHECKPOINT_FILES, Checkpoint, CheckpointFiles, CheckpointMeta, VerifiedFile};
pub use contents::ContentsCheck;
pub use error::RunDirError;
pub use follow::{Added, RunFollower};
pub use journal::{Dated, Dense, Event, LastGeneration};
pub use layout::CheckpointLayout;
pub use resume::Resume;
pub use skipped::SkippedSample;
pub use summary::{Best, Parts, StepTimes, Summary, SummaryBuilder, peak_rss_bytes};
pub use view::{DataDescription, RunView, Which, events};
pub use weights::{InitialWeights, weights_file, weights_to_begin_with};
pub use writer::CheckpointWriter;

use crate::audit::TrainedSamples;
use crate::config::Config;
use crate::files::open_lock;
use crate::metrics::{Evaluation, RunPicture, StepMetrics};
use crate::predictions::Predictions;
use error::write_whole;
use journal::Journal;
use lines::Lines;
use metrics::Metrics;
use mirror::{InStore, Mirror};
use names::{JOURNAL, METRICS, PREDICTIONS, SKIPPED};
use skipped::SkippedSamples;
use tensorboard::TensorBoard;

/// One run's directory, locked for this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    journal: Journal,
    metrics: Option<Metrics>,
    tensorboard: TensorBoard,
    trained: Option<Lines>,
    skipped: Option<SkippedSamples>,
    /// The journal has lines in memory that must be written after the metrics.
    metrics_first: bool,
    checkpoints: CheckpointFiles,
    /// Dropped before the lock, so that nobody else has the run while it is copied.
    mirror: Option<Mirror>,
    resumed: bool,
    /// The content of config.toml before this resumption.
    config_before: Option<String>,
    _lock: File,
}

impl RunDir {
    /// Creates the run directory, or resumes the run in it. Without a path, the
    /// first free one of `runs/NAME`, `runs/NAME-2`...
    pub fn open(path: Option<&Path>, resume: bool, config: &Config) -> Result<Self, RunDirError> {
        match (path, resume) {
            (Some(path), true) => Self::resume(path, config),
            (Some(path), false) => Self::create(path, config),
            (None, _) => {
                let mut n = 1;
                loop {
                    let name = if n == 1 { config.name.clone() } else { format!("{}-{n}", config.name) };
                    match Self::create(&Path::new("runs").join(name), config) {
                        Err(RunDirError::Taken(_) | RunDirError::Locked { .. }) => n += 1,
                        other => return other,
                    }
                }
            }
        }
    }

    /// Starts a new run in `path`, which may exist but must not hold a run.
    pub fn create(path: &Path, config: &Config) -> Result<Self, RunDirError> {
        std::fs::create_dir_all(path).map_err(RunDirError::io("create", path))?;
        let lock = lock(path)?;
        let file = path.join("config.toml");
        if file.exists() || has_traces(path)? {
            return Err(RunDirError::Taken(path.to_owned()));
        }
        if let Some(url) = &config.run.mirror
            && mirror::holds_run(&InStore(url.clone()))?
        {
            return Err(RunDirError::MirrorTaken { url: url.clone() });
        }
        write_whole(&file, config.to_toml().as_bytes())?;
        Self::with_lock(path, lock, config, None)
    }

    /// Continues the run in `path`, or, if there is none, the one that its mirror holds.
    /// Its config must decide the same weights.
    pub fn resume(path: &Path, config: &Config) -> Result<Self, RunDirError> {
        let file = path.join("config.toml");
        let mirror = config.run.mirror.clone().map(InStore);
        if !file.exists() && (mirror.is_none() || has_traces(path)?) {
            return Err(RunDirError::NothingToResume(path.to_owned()));
        }
        std::fs::create_dir_all(path).map_err(RunDirError::io("create", path))?;
        let lock = lock(path)?;
        if let (Some(mirror), false) = (mirror, file.exists()) {
            if !mirror::restore(&mirror, path)? {
                return Err(RunDirError::NothingToResume(path.to_owned()));
            }
            tracing::info!("the run was copied from its mirror `{}` to `{}`", mirror.0, path.display());
        }
        let damaged = |problem: String| RunDirError::Damaged { path: file.clone(), problem };
        let text = std::fs::read_to_string(&file).map_err(RunDirError::io("read", &file))?;
        let before = Config::parse(&text, &file.display().to_string(), &[]).map_err(|e| damaged(e.to_string()))?;
        if before.identity() != config.identity() {
            return Err(RunDirError::OtherConfig { path: path.to_owned(), keys: differences::deciding_keys(&before, config) });
        }
        if before != *config {
            write_whole(&file, config.to_toml().as_bytes())?;
        }
        Self::with_lock(path, lock, config, Some(text))
    }

    /// `before`: the config of a run that is resumed.
    fn with_lock(path: &Path, lock: File, config: &Config, before: Option<String>) -> Result<Self, RunDirError> {
        let folder = path.join("checkpoints");
        std::fs::create_dir_all(&folder).map_err(RunDirError::io("create", &folder))?;
        let checkpoints = CheckpointFiles::new(folder);
        checkpoints.remove_unfinished()?;
        let mirror = config.run.mirror.as_deref().map(|url| Mirror::start(InStore(url.to_owned()), url, path)).transpose()?;
        Ok(Self {
            path: path.to_owned(),
            journal: Journal::open(&path.join(JOURNAL))?,
            metrics_first: false,
            metrics: None,
            tensorboard: TensorBoard::new(path, config.values()),
            trained: None,
            skipped: None,
            checkpoints,
            mirror,
            resumed: before.is_some(),
            config_before: before,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends to the journal; the line is on disk when this returns. Before a
    /// checkpoint and before a generation, the metrics are written to disk first, so
    /// that a resumed run lacks no line.
    pub fn record(&mut self, event: &Event) -> Result<(), RunDirError> {
        self.journal.push(event);
        self.metrics_first |= matches!(event, Event::Checkpoint { .. } | Event::Generation { .. });
        self.sync_journal()?;
        if let Some(mirror) = &self.mirror {
            match event {
                Event::Checkpoint { step } => mirror.checkpoint(*step),
                _ => mirror.changed(),
            }
        }
        Ok(())
    }

    /// Writes the journal's lines that could not be written before, after the metrics
    /// that must precede them.
    pub fn sync_journal(&mut self) -> Result<(), RunDirError> {
        if self.metrics_first {
            self.metrics.as_mut().map_or(Ok(()), Metrics::sync)?;
            self.trained.as_mut().map_or(Ok(()), Lines::sync)?;
            self.metrics_first = false;
        }
        self.journal.sync()
    }

    /// All events of the journal, in order.
    pub fn events(&self) -> Result<Vec<Event>, RunDirError> {
        self.journal.events()
    }

    /// The newest generation in the journal.
    pub fn last_generation(&self) -> Result<LastGeneration, RunDirError> {
        Ok(journal::last_generation(&self.journal.events()?))
    }

    /// Whether the journal says that a run of `steps` steps has finished.
    pub fn is_complete(&self, steps: u64) -> Result<bool, RunDirError> {
        let events = self.journal.events()?;
        let finished = |event: &Event| matches!(event, Event::RunFinished { step } if *step >= steps);
        Ok(events.iter().any(finished) && !journal::last_generation(&events).under_way)
    }

    /// Opens metrics.jsonl for the steps from `first_step` on; lines of that
    /// step and later ones, which are about to be trained again, are removed.
    pub fn start_metrics(&mut self, first_step: u64) -> Result<(), RunDirError> {
        self.metrics_file()?.flush()?;
        let path = self.path.join(METRICS);
        self.metrics = Some(Metrics::open(&path)?.cut(first_step)?);
        self.tensorboard.goes_on_from(first_step);
        Ok(())
    }

    /// The first step that the metrics lack, and the newest one after which
    /// they have an evaluation.
    pub fn recorded(&mut self) -> Result<(u64, Option<u64>), RunDirError> {
        self.metrics_file().map(|m| (m.next_step(), m.evaluated()))
    }

    /// Whether there is an evaluation of the state after `step` steps.
    pub fn has_evaluation(&mut self, step: u64) -> bool {
        self.metrics_file().is_ok_and(|m| m.has_evaluation(step))
    }

    /// All recorded steps and evaluations.
    pub fn metrics(&mut self) -> Result<(Vec<StepMetrics>, Vec<Evaluation>), RunDirError> {
        self.metrics_file()?.flush()?;
        metrics::read(&self.path.join(METRICS))
    }

    /// Appends what a worker trained on to audit.jsonl.
    pub fn write_trained(&mut self, trained: &TrainedSamples) -> Result<(), RunDirError> {
        if self.trained.is_none() {
            self.trained = Some(Lines::open(&self.path.join("audit.jsonl"))?);
        }
        let Some(lines) = &mut self.trained else { return Ok(()) };
        lines.push(trained);
        lines.flush_large()
    }

    /// Appends a sample that was left out to skipped.jsonl. Returns how many there are now,
    /// none if this one was known.
    pub fn write_skipped(&mut self, sample: &SkippedSample) -> Result<Option<u64>, RunDirError> {
        let skipped = self.skipped_file()?;
        if !skipped.add(sample) {
            return Ok(None);
        }
        let count = skipped.count();
        skipped.flush()?;
        Ok(Some(count))
    }

    /// How many different samples were left out, in earlier parts of the run as well.
    pub fn skipped(&mut self) -> Result<u64, RunDirError> {
        let none = self.skipped.is_none() && !self.path.join(SKIPPED).exists();
        if none { Ok(0) } else { self.skipped_file().map(|s| s.count()) }
    }

    fn skipped_file(&mut self) -> Result<&mut SkippedSamples, RunDirError> {
        let file = match self.skipped.take() {
            Some(file) => file,
            None => SkippedSamples::open(&self.path.join(SKIPPED))?,
        };
        Ok(self.skipped.insert(file))
    }

    /// Refuses to continue with other data than the run was started with, and names the
    /// differences; then it restores the previous config. A new run, and one that was
    /// killed before it described its data, may have any data.
    pub fn check_dataset(&self, data: &DataDescription) -> Result<(), RunDirError> {
        if !self.resumed {
            return Ok(());
        }
        let checked = DataDescription::read(&self.path).and_then(|kept| match kept {
            Some(kept) if !kept.agrees(data) => {
                Err(RunDirError::OtherData { path: self.path.clone(), differences: differences::of_data(&kept, data) })
            }
            _ => Ok(()),
        });
        self.restore_config_unless(checked)
    }

    /// Has the run go on with other data where it differs, which the journal then says.
    /// Refuses data that does not fit the model.
    pub fn accept_dataset(&mut self, data: &DataDescription) -> Result<(), RunDirError> {
        let kept = if self.resumed { DataDescription::read(&self.path)? } else { None };
        let Some(kept) = kept.filter(|kept| !kept.agrees(data)) else { return Ok(()) };
        let differences = differences::of_data(&kept, data);
        if kept.info.input(1) != data.info.input(1) {
            return self.restore_config_unless(Err(RunDirError::UnfitData { path: self.path.clone(), differences }));
        }
        tracing::warn!("goes on with other data than before, as --accept-data says: {differences}");
        self.record(&Event::DataAccepted { differences })?;
        data.write(&self.path)
    }

    fn restore_config_unless<T>(&self, accepted: Result<T, RunDirError>) -> Result<T, RunDirError> {
        if let (Err(_), Some(config)) = (&accepted, &self.config_before) {
            write_whole(&self.path.join("config.toml"), config.as_bytes())?;
        }
        accepted
    }

    /// Writes dataset.json: what is needed to use the model without its data. One that
    /// says as much is left as it is; see [`RunDir::check_dataset`] for what is refused.
    pub fn write_dataset(&self, data: &DataDescription) -> Result<(), RunDirError> {
        self.check_dataset(data)?;
        let kept = DataDescription::read(&self.path).ok().flatten().filter(|kept| kept.agrees(data));
        match kept {
            Some(kept) if kept.files.is_none() && data.files.is_some() => {
                tracing::warn!(
                    "an older version began the run in `{}` and did not record what its files contain: from now on they have to stay as they are",
                    self.path.display()
                );
            }
            Some(kept) if kept.contents().is_some() || data.contents().is_none() => return Ok(()),
            _ => {}
        }
        data.write(&self.path)
    }

    /// Keeps a copy of the weights that `model.weights` names, with which the run begins;
    /// none if the config names nothing. What a resumed run began with, it goes on with.
    pub fn keep_weights(&self, config: &Config) -> Result<Option<InitialWeights>, RunDirError> {
        let Some(origin) = config.model.weights() else { return Ok(None) };
        self.restore_config_unless(weights::keep(&self.path, origin)).map(Some)
    }

    /// Appends a step's line; it is in the file within a second. If the step already
    /// has a line (repeated after a failure, or reported twice), the first line stays.
    pub fn write_step(&mut self, metrics: &StepMetrics) -> Result<(), RunDirError> {
        self.metrics_file()?.step(metrics)?;
        self.tensorboard.step(metrics);
        Ok(())
    }

    pub fn write_evaluation(&mut self, evaluation: &Evaluation) -> Result<(), RunDirError> {
        self.metrics_file()?.evaluation(evaluation)?;
        self.tensorboard.evaluation(evaluation);
        Ok(())
    }

    /// Shows a picture to those who look at the run's events.
    pub fn write_picture(&mut self, picture: &RunPicture) {
        self.tensorboard.picture(picture);
    }

    /// Keeps what the newest evaluation says of a few pictures, in place of what the one
    /// before it said.
    pub fn write_predictions(&self, predictions: &Predictions) -> Result<(), RunDirError> {
        let text = serde_json::to_string(predictions).unwrap_or_else(|e| unreachable!("predictions are plain data: {e}"));
        write_whole(&self.path.join(PREDICTIONS), text.as_bytes())
    }

    fn metrics_file(&mut self) -> Result<&mut Metrics, RunDirError> {
        if self.metrics.is_none() {
            self.metrics = Some(Metrics::open(&self.path.join(METRICS))?);
        }
        self.metrics.as_mut().ok_or_else(|| RunDirError::Damaged { path: self.path.clone(), problem: "has no metrics file".to_owned() })
    }

    /// Writes summary.json, and the metrics that still wait in memory.
    pub fn write_summary(&mut self, summary: &Summary) -> Result<(), RunDirError> {
        if let Some(metrics) = &mut self.metrics {
            metrics.flush()?;
        }
        if let Some(trained) = &mut self.trained {
            trained.flush()?;
        }
        let text = serde_json::to_string_pretty(summary).unwrap_or_else(|e| unreachable!("a summary is plain data: {e}"));
        write_whole(&self.path.join("summary.json"), text.as_bytes())?;
        if let Some(mirror) = &self.mirror {
            mirror.changed();
        }
        Ok(())
    }

    /// The checkpoints of this run; may be used while the run directory is held.
    pub fn checkpoints(&self) -> CheckpointFiles {
        self.checkpoints.clone()
    }

    /// The newest valid checkpoint of a resumed run. Broken ones are named in
    /// the log and passed over. A new run has none.
    pub fn newest_checkpoint(&self) -> Result<Option<Checkpoint>, RunDirError> {
        if !self.resumed {
            return Ok(None);
        }
        let (newest, broken) = self.checkpoints.newest_valid()?;
        for reason in broken {
            tracing::warn!("passed over a broken checkpoint: {reason}");
        }
        Ok(newest)
    }

    /// Removes all but the newest `keep` checkpoints and the one of the step `best`.
    pub fn prune_checkpoints(&self, keep: usize, best: Option<u64>) -> Result<(), RunDirError> {
        self.checkpoints.prune(keep, best)
    }
}

/// Whether there is anything left of a run whose config.toml is gone: its old
/// checkpoints would outrank those of a new run.
fn has_traces(path: &Path) -> Result<bool, RunDirError> {
    let filled = |name: &str| std::fs::metadata(path.join(name)).is_ok_and(|m| m.len() > 0);
    if ["journal.jsonl", "metrics.jsonl", "summary.json"].into_iter().any(filled) {
        return Ok(true);
    }
    CheckpointFiles::new(path.join("checkpoints")).is_empty().map(|empty| !empty)
}

/// Takes the directory's lock and writes this process's id into it. Closing the file
/// releases the lock, so that a killed process leaves none behind.
fn lock(path: &Path) -> Result<File, RunDirError> {
    use std::io::{Read, Write};
    let name = path.join(".lock");
    let mut file = open_lock(&name).map_err(RunDirError::io("open", &name))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Used only in the message, which is less precise without it.
            let _ = file.take(20).read_to_string(&mut holder);
            let holder = if holder.trim().is_empty() { "another process".to_owned() } else { format!("process {}", holder.trim()) };
            return Err(RunDirError::Locked { path: path.to_owned(), holder });
        }
        Err(std::fs::TryLockError::Error(e)) => return Err(RunDirError::io("lock", &name)(e)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(RunDirError::io("write", &name))?;
    Ok(file)
}

#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod tests_of_checkpoints;
#[cfg(test)]
mod tests_of_contents;
#[cfg(test)]
mod tests_of_damage;
#[cfg(test)]
mod tests_of_resume;
#[cfg(test)]
mod tests_of_weights;
