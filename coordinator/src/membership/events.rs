//! The inputs and outputs of the membership, and the rules of a run.

use std::time::Duration;

use common::config::Balance;
use common::digest::Digest;
use common::plan::Ownership;
use common::run_dir::Dense;
use common::wire::messages::{Finished, Generation, Member};

/// A worker's connection, numbered in the order of arrival.
pub type WorkerId = u64;

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A worker said hello. `member` says where other workers may reach it.
    Joined {
        worker: WorkerId,
        member: Member,
        preferred_rank: Option<u32>,
        /// The generation that it is in, if it has lost only its connection and not
        /// its ring.
        generation: Option<u64>,
    },
    /// The worker is in no ring, and holds the state after `step` steps, the last of
    /// them committed in generation `committed`. `generation` is the last generation
    /// that it was in.
    Ready {
        worker: WorkerId,
        generation: u64,
        step: u64,
        committed: u64,
        /// The products that it makes of the run's seeded factors.
        products: Option<Digest>,
    },
    /// A heartbeat, after `step` committed steps; `waiting`: the worker waits for the
    /// others in its ring; `speed`: its own, in samples a second.
    Beat {
        worker: WorkerId,
        step: u64,
        waiting: bool,
        speed: Option<f64>,
    },
    /// The worker of this name is no longer let in, whatever state it holds.
    Revoked {
        name: String,
    },
    /// Something was received from the worker.
    Alive {
        worker: WorkerId,
    },
    /// The worker has tried to reach the worker `peer`; the test transfer took `millis`.
    Probed {
        worker: WorkerId,
        peer: String,
        problem: Option<String>,
        millis: u64,
    },
    /// The worker's ring could not form, or the worker did not get its state, because
    /// of the member `peer`.
    Missed {
        worker: WorkerId,
        generation: u64,
        peer: String,
        /// `peer` was the donor of the state.
        donor: bool,
        reason: String,
    },
    /// In the ring of `generation` the worker reaches its successor `peer` only through this
    /// coordinator.
    Relayed {
        worker: WorkerId,
        generation: u64,
        peer: String,
    },
    Finished {
        worker: WorkerId,
        report: Finished,
    },
    /// The worker cannot go on; `run`: no other worker could either.
    Failed {
        worker: WorkerId,
        reason: String,
        run: bool,
    },
    /// The worker asked to leave.
    Leaving {
        worker: WorkerId,
    },
    /// The worker's process closed its connection, or was thrown out: the worker is gone.
    Left {
        worker: WorkerId,
        reason: String,
    },
    /// The worker's connection broke. The worker may come back over another one.
    Disconnected {
        worker: WorkerId,
    },
    /// The launcher of the worker that prefers this rank saw its process end.
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
    /// The run is short of workers and waits.
    Waiting {
        ready: u32,
        needed: u32,
    },
    /// The newest step may be held by these workers, which are out of reach. The run
    /// waits for them for `at_most`, and then goes back to an older state.
    Awaiting {
        step: u64,
        names: Vec<String>,
        at_most: Duration,
    },
    /// The newest step is lost: the run goes on from an older one.
    WentBack {
        from: u64,
        to: u64,
    },
    /// No worker is heard any more. The fault may be the coordinator's, so no worker
    /// is given up.
    Isolated,
    /// Have this worker try to reach `peers`, and time the transfer of `bytes` bytes
    /// to them if that is not 0.
    Probe {
        worker: WorkerId,
        peers: Vec<Member>,
        bytes: u64,
    },
    /// This worker is left out of all rings for `again`, and then tried again. `other`: the
    /// worker that does not reach it, or that it does not reach.
    LeftOut {
        name: String,
        other: Option<String>,
        reason: String,
        again: Duration,
    },
    /// Two members of this generation exchange their packets through this coordinator, as
    /// `reason` says.
    Relayed {
        generation: u64,
        names: [String; 2],
        reason: String,
    },
    /// Have this worker store the state that it holds.
    Store {
        worker: WorkerId,
    },
    /// Send each member its generation. `speeds`, by rank: those by which the shards
    /// were given away.
    Start {
        members: Vec<WorkerId>,
        generation: Generation,
        /// What is exchanged of dense layers; none if the config has no factors exchanged.
        dense: Option<Dense>,
        speeds: Vec<Option<f64>>,
    },
    /// A member is lost, after it was silent for `silent`.
    Lost {
        name: String,
        reason: String,
        silent: Duration,
    },
    /// Tell these members to leave the ring at once.
    End {
        members: Vec<WorkerId>,
        generation: u64,
        reason: String,
    },
    /// The ring is about to be formed anew because other shares of the shards shorten the
    /// predicted step by the share `gain`.
    Balance {
        from: Ownership,
        to: Ownership,
        gain: f64,
    },
    /// Tell these members to leave the ring after the step in flight.
    Yield {
        members: Vec<WorkerId>,
        generation: u64,
    },
    /// Tell this worker that there is no place for it now.
    Spare {
        worker: WorkerId,
    },
    /// Tell this worker that it was given up.
    Drop {
        worker: WorkerId,
        reason: String,
    },
    /// Tell this worker that it may go.
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
    /// The first generation waits for this many workers; at least `min_workers`.
    pub start_workers: u32,
    /// With fewer workers the run waits.
    pub min_workers: u32,
    /// V: more workers than shards would have nothing to do.
    pub shards: u32,
    /// What decides who owns how many of them.
    pub balance: Balance,
    pub steps_per_epoch: u64,
    /// Steps of the whole run.
    pub steps: u64,
    pub timeout: Duration,
    /// How long all others may wait for a member.
    pub stall: Duration,
    /// How long the run waits for a former member that holds the newest step.
    pub rejoin: Duration,
    /// How long the transfer of a newcomer's state may hold a ring up.
    pub handover: Duration,
    /// The config has factors of dense layers exchanged.
    pub factors: bool,
    /// The weights do not depend on who trains: what is exchanged stays the same throughout
    /// the run.
    pub reproducible: bool,
    /// Bytes of the state that a newcomer needs.
    pub state_bytes: u64,
    /// The step of the newest checkpoint, from which the run starts, and the number
    /// of the last generation before that.
    pub first_step: u64,
    pub last_generation: u64,
    /// The first step that the record lacks, which is also the number of steps known
    /// to be committed.
    pub recorded: u64,
}
