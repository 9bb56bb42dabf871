//! journal.jsonl: what happened to a run, in order, each line on disk before
//! the next thing happens.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::lines::{self, Lines};
use super::{Recovery, RunDirError};
use crate::wire::messages::Member;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    RunStarted {
        name: String,
        step: u64,
    },
    /// A worker was given its certificate, for the token of this id.
    Enrolled {
        name: String,
        token: String,
    },
    WorkerJoined {
        name: String,
        addr: String,
    },
    WorkerLeft {
        name: String,
        reason: String,
    },
    Generation {
        generation: u64,
        workers: u32,
        step: u64,
        /// By rank; none in a single-node run.
        #[serde(default)]
        members: Vec<Member>,
    },
    Recovered(Recovery),
    Checkpoint {
        step: u64,
    },
    RunFinished {
        step: u64,
    },
    RunFailed {
        reason: String,
    },
}

/// The newest generation of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LastGeneration {
    /// 0 before the first.
    pub number: u64,
    pub members: Vec<Member>,
    /// Its first step.
    pub step: u64,
    /// Nothing was heard of its end: its ring may still train.
    pub under_way: bool,
}

pub(super) fn last_generation(events: &[Event]) -> LastGeneration {
    let mut last = LastGeneration::default();
    for event in events {
        match event {
            Event::Generation { generation, members, step, .. } => {
                last = LastGeneration { number: *generation, members: members.clone(), step: *step, under_way: true };
            }
            Event::RunFinished { .. } | Event::RunFailed { .. } => last.under_way = false,
            _ => {}
        }
    }
    last
}

#[derive(Debug, Serialize, Deserialize)]
struct Line<E> {
    unix_seconds: f64,
    #[serde(flatten)]
    event: E,
}

/// All events of a journal, in order.
pub(super) fn read(path: &Path) -> Result<Vec<Event>, RunDirError> {
    Ok(lines::parse::<Line<Event>>(path)?.into_iter().map(|line| line.event).collect())
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
        read(self.0.path())
    }
}
