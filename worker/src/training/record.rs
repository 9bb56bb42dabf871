//! The training loop's reports on its steps, to the coordinator or to this process itself.

use common::digest::Digest;
use std::time::Duration;

use anyhow::Result;
use common::metrics::{Evaluation, RunPicture, StepMetrics};
use common::predictions::Predictions;
use common::trace;

use crate::data::Batch;
use crate::replica::{Replica, State};

/// The pause before a checkpoint that could not be stored is tried again.
pub const STORE_RETRY: Duration = Duration::from_secs(5);

/// How long a run waits at its end until its last checkpoint can be stored.
pub const STORE_TIMEOUT: Duration = Duration::from_secs(600);

/// A state to store, with the digest of its weights.
pub struct Snapshot {
    pub state: State,
    pub weights_blake3: Digest,
}

/// Receives the training loop's reports: for the coordinator, or for this process itself.
pub trait Record {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()>;
    /// An evaluation has come so far, in samples of this rank.
    fn evaluating(&mut self, _done: u64, _of: u64) {}
    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()>;
    /// The samples of its own that this rank computed in a second of a committed step.
    fn own_speed(&mut self, _samples_per_second: f64) {}
    /// The samples of this rank that went into a committed step.
    fn trained(&mut self, step: u64, batch: &Batch) -> Result<()>;
    fn skipped(&mut self, step: u64, name: &str, problem: &str) -> Result<()>;
    /// Whether this rank draws pictures for the record.
    fn draws(&self) -> bool {
        false
    }
    /// Hands over a picture; one that cannot be recorded is left out.
    fn picture(&mut self, _picture: RunPicture) {}
    /// Hands over what the model says of a few pictures, which is no loss if it does not arrive.
    fn predictions(&mut self, _predictions: Predictions) {}
    /// Stores a checkpoint, if this rank is the one that stores it; may return before
    /// it is stored. `best`: of this very state, whose evaluation is the best so far; else a
    /// later one will do.
    fn checkpoint(&mut self, best: bool, export: &mut dyn FnMut() -> Result<Snapshot>) -> Result<()>;
    /// Whether a checkpoint that could not be taken when it was due may be taken now.
    fn checkpoint_due(&self) -> bool {
        false
    }
    /// Whether the last checkpoint is stored. `None` in a cluster, where the
    /// coordinator knows it and reports which checkpoint is kept.
    fn stored(&self) -> Option<bool> {
        None
    }
    /// Whether this worker was asked to end the run.
    fn stop_requested(&self) -> bool;
    /// Whether this worker was asked to end the run, and may do so between two steps: no other
    /// one waits for its part of a step.
    fn may_stop_at_once(&self) -> bool {
        false
    }
    /// Whether this worker was asked to end the generation.
    fn pause_requested(&self) -> bool {
        false
    }
}

/// The current state, to be stored.
pub fn snapshot(replica: &Replica) -> Result<Snapshot> {
    let _span = trace::span("snapshot", Some(replica.step()));
    Ok(Snapshot { state: replica.export()?, weights_blake3: replica.weights_blake3()? })
}
