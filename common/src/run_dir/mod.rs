//! The run directory: the only durable place of a run.
//!
//! ```text
//! config.toml      the resolved config
//! dataset.json     classes and columns of the data
//! journal.jsonl    who came and went, generations, checkpoints
//! metrics.jsonl    a line a step, a line an evaluation
//! audit.jsonl      what each worker trained on, with train.audit
//! checkpoints/     step-NNNNNNNN/{model,optimizer}.safetensors, manifest.json
//! summary.json     at the end
//! ```
//!
//! Everything here is plain files and synchronous code; nothing knows a socket.

mod checkpoint;
mod differences;
mod error;
mod journal;
mod lines;
mod metrics;
mod summary;
mod view;

use std::fs::File;
use std::path::{Path, PathBuf};

pub use checkpoint::{CHECKPOINT_FILES, Checkpoint, CheckpointFiles, CheckpointMeta, CheckpointWriter};
pub use error::RunDirError;
pub use journal::{Event, LastGeneration};
pub use metrics::{Evaluation, StepMetrics};
pub use summary::{Parts, Recovery, StepTimes, Summary, SummaryBuilder, peak_rss_bytes};
pub use view::{DataDescription, RunView};

use crate::audit::Trained;
use crate::config::Config;
use journal::Journal;
use lines::Lines;
use metrics::Metrics;

/// One run's directory, locked for this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    journal: Journal,
    metrics: Option<Metrics>,
    trained: Option<Lines>,
    resumed: bool,
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
        write_atomically(&file, config.to_toml().as_bytes())?;
        Self::with_lock(path, lock, false)
    }

    /// Goes on with the run in `path`, whose config must decide the same weights.
    pub fn resume(path: &Path, config: &Config) -> Result<Self, RunDirError> {
        let file = path.join("config.toml");
        if !file.exists() {
            return Err(RunDirError::NothingToResume(path.to_owned()));
        }
        let lock = lock(path)?;
        let before = Config::load(&file, &[]).map_err(|e| RunDirError::Damaged { path: file.clone(), problem: e.to_string() })?;
        if before.identity() != config.identity() {
            return Err(RunDirError::OtherConfig { path: path.to_owned(), keys: differences::deciding_keys(&before, config) });
        }
        CheckpointFiles::new(path.join("checkpoints")).remove_unfinished()?;
        if before != *config {
            write_atomically(&file, config.to_toml().as_bytes())?;
        }
        Self::with_lock(path, lock, true)
    }

    fn with_lock(path: &Path, lock: File, resumed: bool) -> Result<Self, RunDirError> {
        let folder = path.join("checkpoints");
        std::fs::create_dir_all(&folder).map_err(RunDirError::io("create", &folder))?;
        Ok(Self {
            path: path.to_owned(),
            journal: Journal::open(&path.join("journal.jsonl"))?,
            metrics: None,
            trained: None,
            resumed,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends to the journal, on disk when this returns. Before a checkpoint and
    /// before a generation the metrics go to the disk, so that a resumed run lacks
    /// no line.
    pub fn record(&mut self, event: &Event) -> Result<(), RunDirError> {
        if let (Event::Checkpoint { .. } | Event::Generation { .. }, Some(metrics)) = (event, &mut self.metrics) {
            metrics.sync()?;
            if let Some(trained) = &mut self.trained {
                trained.sync()?;
            }
        }
        self.journal.append(event)
    }

    /// Everything that the journal knows, in order.
    pub fn events(&self) -> Result<Vec<Event>, RunDirError> {
        self.journal.events()
    }

    /// The newest generation that the journal knows.
    pub fn last_generation(&self) -> Result<LastGeneration, RunDirError> {
        Ok(journal::last_generation(&self.journal.events()?))
    }

    /// Opens metrics.jsonl for the steps from `first_step` on; lines of that
    /// step and later ones, which are about to be trained again, are removed.
    pub fn start_metrics(&mut self, first_step: u64) -> Result<(), RunDirError> {
        self.metrics_file()?.flush()?;
        let path = self.path.join("metrics.jsonl");
        self.metrics = Some(Metrics::open(&path)?.cut(first_step)?);
        Ok(())
    }

    /// The first step that the metrics lack, and the newest one after which
    /// they have an evaluation.
    pub fn recorded(&mut self) -> Result<(u64, Option<u64>), RunDirError> {
        self.metrics_file().map(|m| (m.next_step(), m.evaluated()))
    }

    /// Whether there is an evaluation of the state after so many steps.
    pub fn has_evaluation(&mut self, step: u64) -> bool {
        self.metrics_file().is_ok_and(|m| m.has_evaluation(step))
    }

    /// Every step and every evaluation on the record.
    pub fn metrics(&mut self) -> Result<(Vec<StepMetrics>, Vec<Evaluation>), RunDirError> {
        self.metrics_file()?.flush()?;
        metrics::read(&self.path.join("metrics.jsonl"))
    }

    /// Appends what a worker trained on to audit.jsonl.
    pub fn write_trained(&mut self, trained: &Trained) -> Result<(), RunDirError> {
        if self.trained.is_none() {
            self.trained = Some(Lines::open(&self.path.join("audit.jsonl"))?);
        }
        let Some(lines) = &mut self.trained else { return Ok(()) };
        lines.push(trained);
        lines.flush_large()
    }

    /// Writes dataset.json: what is needed to use the model without its data.
    pub fn write_dataset(&self, data: &DataDescription) -> Result<(), RunDirError> {
        let text = serde_json::to_string_pretty(data).unwrap_or_else(|e| unreachable!("a description is plain data: {e}"));
        write_atomically(&self.path.join("dataset.json"), text.as_bytes())
    }

    /// Appends a step's line; it is in the file within a second. A step that is
    /// there already (redone after a failure, or told twice) keeps its first line.
    pub fn write_step(&mut self, metrics: &StepMetrics) -> Result<(), RunDirError> {
        self.metrics_file()?.step(metrics)
    }

    pub fn write_evaluation(&mut self, evaluation: &Evaluation) -> Result<(), RunDirError> {
        self.metrics_file()?.evaluation(evaluation)
    }

    fn metrics_file(&mut self) -> Result<&mut Metrics, RunDirError> {
        if self.metrics.is_none() {
            self.metrics = Some(Metrics::open(&self.path.join("metrics.jsonl"))?);
        }
        self.metrics.as_mut().ok_or_else(|| RunDirError::Damaged { path: self.path.clone(), problem: "has no metrics file".to_owned() })
    }

    /// Writes summary.json, and what metrics still wait in memory.
    pub fn write_summary(&mut self, summary: &Summary) -> Result<(), RunDirError> {
        if let Some(metrics) = &mut self.metrics {
            metrics.flush()?;
        }
        if let Some(trained) = &mut self.trained {
            trained.flush()?;
        }
        let text = serde_json::to_string_pretty(summary).unwrap_or_else(|e| unreachable!("a summary is plain data: {e}"));
        write_atomically(&self.path.join("summary.json"), text.as_bytes())
    }

    /// The checkpoints of this run; may be used while the run directory is held.
    pub fn checkpoints(&self) -> CheckpointFiles {
        CheckpointFiles::new(self.path.join("checkpoints"))
    }

    /// The newest valid checkpoint of a resumed run. Broken ones are named in
    /// the log and passed over. A new run has none.
    pub fn newest_checkpoint(&self) -> Result<Option<Checkpoint>, RunDirError> {
        if !self.resumed {
            return Ok(None);
        }
        let (newest, broken) = self.checkpoints().newest_valid()?;
        for reason in broken {
            tracing::warn!("passed over a broken checkpoint: {reason}");
        }
        Ok(newest)
    }

    /// Removes all but the newest `keep` checkpoints.
    pub fn prune_checkpoints(&self, keep: usize) -> Result<(), RunDirError> {
        self.checkpoints().prune(keep)
    }
}

/// Whether there is anything of a run whose config.toml is gone: old checkpoints
/// would outrank those of a new run.
fn has_traces(path: &Path) -> Result<bool, RunDirError> {
    let filled = |name: &str| std::fs::metadata(path.join(name)).is_ok_and(|m| m.len() > 0);
    if ["journal.jsonl", "metrics.jsonl", "summary.json"].into_iter().any(filled) {
        return Ok(true);
    }
    CheckpointFiles::new(path.join("checkpoints")).is_empty().map(|empty| !empty)
}

/// Takes the directory's lock and leaves this process's id in it. The lock goes
/// with the open file, so that a killed process leaves none behind.
fn lock(path: &Path) -> Result<File, RunDirError> {
    use std::io::{Read, Write};
    let name = path.join(".lock");
    let open = File::options().create(true).read(true).write(true).truncate(false).open(&name);
    let mut file = open.map_err(RunDirError::io("open", &name))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message, which is less precise without it.
            let _ = file.take(20).read_to_string(&mut holder);
            let holder = if holder.trim().is_empty() { "another process".to_owned() } else { format!("process {}", holder.trim()) };
            return Err(RunDirError::Locked { path: path.to_owned(), holder });
        }
        Err(std::fs::TryLockError::Error(e)) => return Err(RunDirError::io("lock", &name)(e)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(RunDirError::io("write", &name))?;
    Ok(file)
}

/// Replaces a file as a whole: whoever reads it sees the old or the new one.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), RunDirError> {
    use std::io::Write;
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary).map_err(RunDirError::io("create", &temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(RunDirError::io("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(RunDirError::io("replace", path))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes renames and new names in a folder durable.
fn sync_folder(path: &Path) -> Result<(), RunDirError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(RunDirError::io("sync", path))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_damage;
