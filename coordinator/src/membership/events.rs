//! What the membership is told, and what it says is to be done.

use std::time::Duration;

use common::wire::messages::{Finished, Generation};

use super::WorkerId;

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A worker said hello. `addr` is where its predecessor reaches it.
    Joined {
        worker: WorkerId,
        name: String,
        addr: String,
        preferred_rank: Option<u32>,
        /// The ring that it is in, if it lost its connection and not its ring.
        generation: Option<u64>,
    },
    /// It is in no ring, and holds the state before step `step`. `generation` is
    /// the last one that it was in.
    Ready {
        worker: WorkerId,
        generation: u64,
        step: u64,
    },
    /// Its heartbeat; `waiting`: for the others in its ring, after `step` committed steps.
    Beat {
        worker: WorkerId,
        step: u64,
        waiting: bool,
    },
    /// Anything was heard from it.
    Alive {
        worker: WorkerId,
    },
    Finished {
        worker: WorkerId,
        report: Finished,
    },
    /// It cannot go on, and neither can the run.
    Failed {
        worker: WorkerId,
        reason: String,
    },
    /// It asked to leave.
    Leaving {
        worker: WorkerId,
    },
    /// Its connection closed.
    Left {
        worker: WorkerId,
        reason: String,
    },
    /// Whoever started the worker that prefers this rank saw its process end.
    Ended {
        preferred_rank: u32,
    },
    /// A checkpoint of the state before `step` is on disk.
    Stored {
        step: u64,
    },
    /// A person asked for the run to stop.
    StopRequested,
    /// Time passed.
    Tick,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    Refuse {
        worker: WorkerId,
        reason: String,
    },
    /// Short of workers.
    Waiting {
        ready: u32,
        needed: u32,
    },
    /// Send each member its generation.
    Start {
        members: Vec<WorkerId>,
        generation: Generation,
    },
    /// A member is gone after a silence of so long.
    Lost {
        name: String,
        reason: String,
        silent: Duration,
    },
    /// Tell these to leave the ring at once.
    End {
        members: Vec<WorkerId>,
        generation: u64,
        reason: String,
    },
    /// Tell these to leave the ring after the step in flight.
    Yield {
        members: Vec<WorkerId>,
        generation: u64,
    },
    /// Tell it that there is no place for it now.
    Spare {
        worker: WorkerId,
    },
    /// It was given up.
    Drop {
        worker: WorkerId,
        reason: String,
    },
    /// It may go.
    Goodbye {
        worker: WorkerId,
    },
    /// Ask all members to end the run after the step in flight.
    Stop {
        members: Vec<WorkerId>,
    },
    /// The run is over, and it ended as it should.
    Done {
        reports: Vec<Finished>,
    },
    /// The run is over and it failed: tell the workers, then end.
    Fail {
        members: Vec<WorkerId>,
        reason: String,
    },
}

/// The rules that a run's config sets.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The first generation waits for so many; at least `min_workers`.
    pub start_workers: u32,
    /// With fewer, the run waits.
    pub min_workers: u32,
    /// V: more workers than shards would have nothing to do.
    pub shards: u32,
    pub timeout: Duration,
    /// How long all others may wait for a member.
    pub stall: Duration,
    /// Where the run starts (its newest checkpoint), and the generation before its first.
    pub first_step: u64,
    pub last_generation: u64,
}
