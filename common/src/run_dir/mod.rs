//! The run directory: the only durable place of a run.
//!
//! ```text
//! config.toml      the resolved config
//! journal.jsonl    who came and went, generations, checkpoints
//! metrics.jsonl    a line a step, a line an evaluation
//! checkpoints/     step-NNNNNNNN/{model,optimizer}.safetensors, manifest.json
//! summary.json     at the end
//! ```
//!
//! Everything here is plain files and synchronous code; nothing knows a socket.

mod checkpoint;
mod journal;
mod lines;
mod metrics;
mod summary;

use std::fs::File;
use std::path::{Path, PathBuf};

pub use checkpoint::{CHECKPOINT_FILES, Checkpoint, CheckpointFiles, CheckpointMeta, CheckpointWriter};
pub use journal::Event;
pub use metrics::{Evaluation, StepMetrics};
pub use summary::{Parts, StepTimes, Summary, SummaryBuilder, peak_rss_bytes};

use crate::config::Config;
use journal::Journal;
use metrics::Metrics;

#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("could not {action} `{}`: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{}` already holds a run: go on with --resume, or choose another --run-dir", .0.display())]
    Taken(PathBuf),
    #[error("`{}` holds no run to resume: leave out --resume to start one", .0.display())]
    NothingToResume(PathBuf),
    #[error("another process is using the run directory `{}`: wait for it or stop it", .0.display())]
    Locked(PathBuf),
    #[error(
        "the config differs from the one that the run in `{}` was started with, so its weights would not be those of either: restore what config.toml there says, or choose another --run-dir", .0.display()
    )]
    OtherConfig(PathBuf),
    #[error("`{}` {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
}

impl RunDirError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// One run's directory, locked for this process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    journal: Journal,
    metrics: Option<Metrics>,
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
                        Err(RunDirError::Taken(_) | RunDirError::Locked(_)) => n += 1,
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
        if file.exists() {
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
            return Err(RunDirError::OtherConfig(path.to_owned()));
        }
        write_atomically(&file, config.to_toml().as_bytes())?;
        Self::with_lock(path, lock, true)
    }

    fn with_lock(path: &Path, lock: File, resumed: bool) -> Result<Self, RunDirError> {
        let folder = path.join("checkpoints");
        std::fs::create_dir_all(&folder).map_err(RunDirError::io("create", &folder))?;
        Ok(Self { path: path.to_owned(), journal: Journal::open(&path.join("journal.jsonl"))?, metrics: None, resumed, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends to the journal, on disk when this returns.
    pub fn record(&mut self, event: &Event) -> Result<(), RunDirError> {
        self.journal.append(event)
    }

    /// The number of the newest generation that the journal knows, or 0.
    pub fn last_generation(&self) -> Result<u64, RunDirError> {
        let events = self.journal.events()?;
        Ok(events
            .iter()
            .filter_map(|e| if let Event::Generation { generation, .. } = e { Some(*generation) } else { None })
            .max()
            .unwrap_or(0))
    }

    /// Opens metrics.jsonl for the steps from `first_step` on; lines of that
    /// step and later ones, of which a checkpoint knows nothing, are removed.
    pub fn start_metrics(&mut self, first_step: u64) -> Result<(), RunDirError> {
        self.metrics = Some(Metrics::open(&self.path.join("metrics.jsonl"), first_step)?);
        Ok(())
    }

    /// Appends a step's line; it is on disk within a second.
    pub fn write_step(&mut self, metrics: &StepMetrics) -> Result<(), RunDirError> {
        self.metrics_file()?.step(metrics)
    }

    pub fn write_evaluation(&mut self, evaluation: &Evaluation) -> Result<(), RunDirError> {
        self.metrics_file()?.evaluation(evaluation)
    }

    fn metrics_file(&mut self) -> Result<&mut Metrics, RunDirError> {
        if self.metrics.is_none() {
            self.start_metrics(0)?;
        }
        self.metrics.as_mut().ok_or_else(|| RunDirError::Damaged { path: self.path.clone(), problem: "has no metrics file".to_owned() })
    }

    /// Writes summary.json, and what metrics still wait in memory.
    pub fn write_summary(&mut self, summary: &Summary) -> Result<(), RunDirError> {
        if let Some(metrics) = &mut self.metrics {
            metrics.flush()?;
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

fn lock(path: &Path) -> Result<File, RunDirError> {
    let name = path.join(".lock");
    let file = File::options().create(true).append(true).open(&name).map_err(RunDirError::io("open", &name))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(RunDirError::Locked(path.to_owned())),
        Err(std::fs::TryLockError::Error(e)) => Err(RunDirError::io("lock", &name)(e)),
    }
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
