//! journal.jsonl: what happened to a run, in order, each line on disk before
//! the next thing happens.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::RunDirError;
use super::lines::{self, Lines};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    RunStarted { name: String, step: u64 },
    WorkerJoined { name: String, addr: String },
    WorkerLeft { name: String, reason: String },
    Generation { generation: u64, workers: u32, step: u64 },
    Checkpoint { step: u64 },
    RunFinished { step: u64 },
    RunFailed { reason: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Line<E> {
    unix_seconds: f64,
    #[serde(flatten)]
    event: E,
}

#[derive(Debug)]
pub(super) struct Journal(Lines);

impl Journal {
    pub(super) fn open(path: &Path) -> Result<Self, RunDirError> {
        Lines::open(path).map(Self)
    }

    pub(super) fn append(&mut self, event: &Event) -> Result<(), RunDirError> {
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        self.0.push(&Line { unix_seconds, event });
        self.0.sync()
    }

    pub(super) fn events(&self) -> Result<Vec<Event>, RunDirError> {
        Ok(lines::parse::<Line<Event>>(self.0.path())?.into_iter().map(|line| line.event).collect())
    }
}
