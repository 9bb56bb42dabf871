//! A run directory as others see it: read without the lock, so that a run may
//! be looked at while it goes on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Checkpoint, CheckpointFiles, Evaluation, Event, RunDirError, StepMetrics, journal, lines, metrics};
use crate::audit::Trained;
use crate::config::Config;
use crate::dataset::{Column, DatasetInfo, SampleSource};

/// dataset.json: what the model's inputs and outputs mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataDescription {
    pub info: DatasetInfo,
    /// The features; empty for pictures.
    pub columns: Vec<Column>,
}

impl DataDescription {
    pub fn of(source: &dyn SampleSource) -> Self {
        Self { info: source.info().clone(), columns: source.columns().to_vec() }
    }
}

/// A run to look at.
#[derive(Debug)]
pub struct RunView {
    path: PathBuf,
    config: Config,
    data: DataDescription,
}

impl RunView {
    /// Errors when `path` holds no run.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let file = path.join("config.toml");
        if !file.exists() {
            return Err(RunDirError::NoRun(path.to_owned()));
        }
        let damaged = |path: PathBuf, problem: String| RunDirError::Damaged { path, problem };
        let config = Config::load(&file, &[]).map_err(|e| damaged(file, e.to_string()))?;
        let file = path.join("dataset.json");
        let bytes = std::fs::read(&file).map_err(RunDirError::io("read", &file))?;
        let data = serde_json::from_slice(&bytes).map_err(|e| damaged(file, e.to_string()))?;
        Ok(Self { path: path.to_owned(), config, data })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn data(&self) -> &DataDescription {
        &self.data
    }

    /// Every step and every evaluation so far.
    pub fn metrics(&self) -> Result<(Vec<StepMetrics>, Vec<Evaluation>), RunDirError> {
        metrics::read(&self.path.join("metrics.jsonl"))
    }

    /// What workers recorded of the samples that they trained on; none without
    /// `train.audit`.
    pub fn trained(&self) -> Result<Vec<Trained>, RunDirError> {
        lines::parse(&self.path.join("audit.jsonl"))
    }

    /// The generations so far with their first steps, in order.
    pub fn generations(&self) -> Result<Vec<(u64, u64)>, RunDirError> {
        let events = journal::read(&self.path.join("journal.jsonl"))?;
        let start = |event| if let Event::Generation { generation, step, .. } = event { Some((generation, step)) } else { None };
        Ok(events.into_iter().filter_map(start).collect())
    }

    /// The newest checkpoint that is whole.
    pub fn checkpoint(&self) -> Result<Checkpoint, RunDirError> {
        let (newest, broken) = CheckpointFiles::new(self.path.join("checkpoints")).newest_valid()?;
        for reason in broken {
            tracing::warn!("passed over a broken checkpoint: {reason}");
        }
        newest.ok_or_else(|| RunDirError::NoCheckpoint(self.path.clone()))
    }

    /// The weights of the newest checkpoint (safetensors), and the step they are of.
    pub fn weights(&self) -> Result<(u64, Vec<u8>), RunDirError> {
        let checkpoint = self.checkpoint()?;
        let file = checkpoint.path.join(super::CHECKPOINT_FILES[0]);
        let bytes = std::fs::read(&file).map_err(RunDirError::io("read", &file))?;
        Ok((checkpoint.step, bytes))
    }
}
