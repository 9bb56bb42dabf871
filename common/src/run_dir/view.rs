//! A run directory opened for reading without the lock, so that a run may be inspected
//! while it trains.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checkpoint::{CHECKPOINT_FILES, Checkpoint, CheckpointFiles};
use super::error::{RunDirError, write_whole};
use super::journal::{self, Event};
use super::{lines, metrics};
use crate::audit::{GenerationStart, TrainedSamples};
use crate::config::Config;
use crate::dataset::{Column, DatasetInfo, FileDigests, SampleSource};
use crate::digest::Digest;
use crate::metrics::{Evaluation, StepMetrics, best};
use crate::plan::Ownership;

const DATASET: &str = "dataset.json";

/// dataset.json: the meaning of the model's inputs and outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataDescription {
    pub info: DatasetInfo,
    /// The features; empty for pictures.
    pub columns: Vec<Column>,
    /// Where samples are files. An older version recorded a fingerprint of the listing
    /// alone, and none of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FileDigests>,
}

impl DataDescription {
    pub fn of(source: &dyn SampleSource) -> Self {
        Self { info: source.info().clone(), columns: source.columns().to_vec(), files: source.files() }
    }

    /// The contents of the files, where they are known.
    pub(super) fn contents(&self) -> Option<Digest> {
        self.files.and_then(|files| files.contents)
    }

    /// Whether `other` describes the same data as this, which was read from a file, as far
    /// as both know it: contents that one of them lacks are not compared. Numbers may lose
    /// bits on the way through JSON, so `other` goes the same way first.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        // Without contents, the fingerprint is that of the listing.
        let listing = |data: &Self| {
            let fingerprint = data.files.map_or(data.info.fingerprint, |files| files.listing);
            Self { info: DatasetInfo { fingerprint, ..data.info.clone() }, columns: data.columns.clone(), files: None }
        };
        let read = serde_json::to_string(&listing(other)).and_then(|text| serde_json::from_str::<Self>(&text));
        let contents_differ = self.contents().zip(other.contents()).is_some_and(|(kept, found)| kept != found);
        read.is_ok_and(|other| other == listing(self)) && !contents_differ
    }

    /// The description in the run directory `run`, if there is one.
    pub(super) fn read(run: &Path) -> Result<Option<Self>, RunDirError> {
        let path = run.join(DATASET);
        let bytes = lines::read(&path)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|e| RunDirError::DamagedData { path, problem: e.to_string() })
    }

    pub(super) fn write(&self, run: &Path) -> Result<(), RunDirError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_else(|e| unreachable!("a description is plain data: {e}"));
        write_whole(&run.join(DATASET), text.as_bytes())
    }
}

/// All events in the journal of the run in `path`, in order.
pub fn events(path: &Path) -> Result<Vec<Event>, RunDirError> {
    journal::read(&path.join("journal.jsonl"))
}

/// Which checkpoint of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The newest.
    Last,
    /// The one with the best evaluation by `train.keep_metric`, of those that are there.
    Best,
    /// The one after so many steps.
    Step(u64),
}

impl std::str::FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "last" => Ok(Self::Last),
            "best" => Ok(Self::Best),
            step => step.parse().map(Self::Step).map_err(|_| format!("`{text}` is neither best, last nor a step")),
        }
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
        let text = std::fs::read_to_string(&file).map_err(RunDirError::io("read", &file))?;
        let config = Config::parse(&text, &file.display().to_string(), &[]).map_err(|e| damaged(file, e.to_string()))?;
        let file = path.join(DATASET);
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

    /// All steps and evaluations so far.
    pub fn metrics(&self) -> Result<(Vec<StepMetrics>, Vec<Evaluation>), RunDirError> {
        metrics::read(&self.path.join("metrics.jsonl"))
    }

    /// The samples that workers recorded as trained on; none without `train.audit`.
    pub fn trained(&self) -> Result<Vec<TrainedSamples>, RunDirError> {
        lines::parse(&self.path.join("audit.jsonl"))
    }

    /// All events in the journal so far, in order.
    pub fn events(&self) -> Result<Vec<Event>, RunDirError> {
        journal::read(&self.path.join("journal.jsonl"))
    }

    /// The generations so far, in order.
    pub fn generations(&self) -> Result<Vec<GenerationStart>, RunDirError> {
        let start = |event| {
            let Event::Generation { generation, step, workers, shards, .. } = event else { return None };
            let ownership = Ownership::recorded(&shards, workers as usize, self.config.train.shards);
            let damaged =
                |problem: &String| tracing::warn!("the journal's generation {generation} {problem}: who owned what is not checked");
            Some(GenerationStart { generation, first_step: step, ownership: ownership.inspect_err(damaged).ok() })
        };
        Ok(self.events()?.into_iter().filter_map(start).collect())
    }

    /// A checkpoint that is whole.
    pub fn checkpoint(&self, which: Which) -> Result<Checkpoint, RunDirError> {
        let files = CheckpointFiles::new(self.path.join("checkpoints"));
        let none = || RunDirError::NoCheckpoint(self.path.clone());
        match which {
            Which::Last => {
                let (newest, broken) = files.newest_valid()?;
                for reason in broken {
                    tracing::warn!("passed over a broken checkpoint: {reason}");
                }
                newest.ok_or_else(none)
            }
            Which::Best => {
                let evaluations = self.metrics()?.1;
                let stored = evaluations.iter().filter(|evaluation| files.is_whole(evaluation.step));
                let best = best(stored, self.config.train.keep_metric).ok_or_else(|| RunDirError::NoneEvaluated(self.path.clone()))?;
                files.verify(best.step)
            }
            Which::Step(step) if files.is_whole(step) => files.verify(step),
            Which::Step(step) => {
                let mut there = files.steps()?;
                there.reverse();
                let there =
                    if there.is_empty() { return Err(none()) } else { there.iter().map(u64::to_string).collect::<Vec<_>>().join(", ") };
                Err(RunDirError::NoSuchCheckpoint { path: self.path.clone(), step, there })
            }
        }
    }

    /// The weights of a checkpoint (safetensors), and its step.
    pub fn weights(&self, which: Which) -> Result<(u64, Vec<u8>), RunDirError> {
        self.file(which, CHECKPOINT_FILES[0])
    }

    /// The optimizer's state of a checkpoint (safetensors), and its step.
    pub fn optimizer(&self, which: Which) -> Result<(u64, Vec<u8>), RunDirError> {
        self.file(which, CHECKPOINT_FILES[1])
    }

    fn file(&self, which: Which, name: &str) -> Result<(u64, Vec<u8>), RunDirError> {
        let checkpoint = self.checkpoint(which)?;
        let file = checkpoint.path.join(name);
        let bytes = std::fs::read(&file).map_err(RunDirError::io("read", &file))?;
        Ok((checkpoint.step, bytes))
    }
}
