//! journal.jsonl: what happened to a run, in order; each line is on disk before the
//! next thing happens.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::RunDirError;
use super::lines::{self, Lines};
use crate::digest::Digest;
use crate::metrics::Recovery;
use crate::wire::messages::Member;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    RunStarted {
        name: String,
        step: u64,
    },
    /// A worker received its certificate, for the token of this id.
    Enrolled {
        name: String,
        token: String,
    },
    /// The token of this id admits no worker any more, and the workers that it admitted
    /// were removed.
    Revoked {
        token: String,
    },
    WorkerJoined {
        name: String,
        addr: SocketAddr,
    },
    WorkerLeft {
        name: String,
        reason: String,
    },
    /// A member of the ring was given up: `silent_ms` passed since its last sign of life.
    WorkerLost {
        name: String,
        reason: String,
        silent_ms: f64,
    },
    Generation {
        generation: u64,
        workers: u32,
        step: u64,
        /// By rank; none in a single-node run.
        #[serde(default)]
        members: Vec<Member>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dense: Option<Dense>,
        /// How many shards each owns, by rank; none in the record of an older version,
        /// where all owned equally many.
        #[serde(default)]
        shards: Vec<u32>,
        /// Their speeds in samples a second, by rank, as far as they were known when the
        /// shards were given away.
        #[serde(default)]
        speeds: Vec<Option<f64>>,
    },
    Recovered(Recovery),
    /// No worker held the newest step any more: steps from `to` on are trained again.
    WentBack {
        from: u64,
        to: u64,
    },
    /// A worker was left out of the ring for a while.
    LeftOut {
        name: String,
        reason: String,
    },
    /// Two members of this generation exchange their packets through the coordinator.
    Relayed {
        generation: u64,
        names: [String; 2],
        reason: String,
    },
    Checkpoint {
        step: u64,
    },
    /// The run goes on with other data, as its user accepted.
    DataAccepted {
        differences: String,
    },
    RunFinished {
        step: u64,
    },
    RunFailed {
        reason: String,
    },
}

/// What a generation exchanges of the dense layers whose factors the config has exchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dense {
    /// Factors: all members make these products of the run's seeded factors.
    Factors(Digest),
    /// The gradient is summed, for this reason.
    Sum(String),
}

/// The newest generation of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LastGeneration {
    /// 0 before the first.
    pub number: u64,
    pub members: Vec<Member>,
    /// How many shards each member owns; none if the journal does not say.
    pub shards: Vec<u32>,
    /// Its first step.
    pub step: u64,
    /// None if the config has no layer whose factors are exchanged, and in the journal of an
    /// older version.
    pub dense: Option<Dense>,
    /// The journal does not say that it ended: its ring may still train.
    pub under_way: bool,
}

impl LastGeneration {
    /// What a reproducible run with factored layers has decided to exchange of them, which
    /// stays so to its end; none before its first generation.
    pub fn decided(&self) -> Option<Dense> {
        let older = || Dense::Sum("the run began with a version that summed all gradients".to_owned());
        (self.number > 0).then(|| self.dense.clone().unwrap_or_else(older))
    }
}

pub(super) fn last_generation(events: &[Event]) -> LastGeneration {
    let mut last = LastGeneration::default();
    for event in events {
        match event {
            Event::Generation { generation, members, step, shards, dense, .. } => {
                let (members, shards, dense) = (members.clone(), shards.clone(), dense.clone());
                last = LastGeneration { number: *generation, members, shards, step: *step, dense, under_way: true };
            }
            Event::RunFinished { .. } | Event::RunFailed { .. } => last.under_way = false,
            _ => {}
        }
    }
    last
}

/// A line of the journal: what happened, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dated<E = Event> {
    pub unix_seconds: f64,
    #[serde(flatten)]
    pub event: E,
}

/// All events of a journal, in order.
pub(super) fn read(path: &Path) -> Result<Vec<Event>, RunDirError> {
    Ok(lines::parse::<Dated>(path)?.into_iter().map(|line| line.event).collect())
}

#[derive(Debug)]
pub(super) struct Journal(Lines);

impl Journal {
    pub(super) fn open(path: &Path) -> Result<Self, RunDirError> {
        Lines::open(path).map(Self)
    }

    /// Adds a line, in memory until [`Journal::sync`].
    pub(super) fn push(&mut self, event: &Event) {
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        self.0.push(&Dated { unix_seconds, event });
    }

    /// Writes the lines that wait in memory; they are on disk when this returns.
    pub(super) fn sync(&mut self) -> Result<(), RunDirError> {
        self.0.sync()
    }

    pub(super) fn events(&self) -> Result<Vec<Event>, RunDirError> {
        read(self.0.path())
    }
}
