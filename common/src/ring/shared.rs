//! State shared by the threads that use a ring and the tasks that move its bytes: the
//! buckets that are done, and the one reason why the ring has failed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Connection, ConnectionError, VarInt};

use super::values::Values;
use crate::net::explain;
use crate::ui::visible_within;

/// Why a ring did not form or can no longer be used. After one of these the ring
/// is over; a new generation needs a new one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    #[error("worker `{name}` (rank {rank}) is lost: {cause}")]
    PeerLost { rank: u32, name: String, cause: String },
    #[error("worker `{name}` (rank {rank}) broke the ring's protocol: {problem}")]
    Protocol { rank: u32, name: String, problem: String },
    #[error("generation {generation} is over: worker `{name}` is in generation {newer}")]
    Stale { generation: u64, newer: u64, name: String },
    /// `reached`: a connection to that rank was established, so that it may only have
    /// been waiting for others itself.
    #[error("the ring of generation {generation} did not form within {within:?} for want of worker `{name}` (rank {rank}): {cause}")]
    Form { generation: u64, within: Duration, rank: u32, name: String, reached: bool, cause: String },
    #[error("the ring was left here: {cause}")]
    Left { cause: String },
    #[error("bucket {bucket} of step {step}: {problem}")]
    Misuse { step: u64, bucket: usize, problem: String },
}

/// (step, bucket).
pub(super) type Key = (u64, usize);

/// The close code of a ring that is over: the reason is the rank (u32, little
/// endian) at which it broke, then the cause.
const BROKEN: VarInt = VarInt::from_u32(16);
/// The close code of a rank that has the result of all it submitted and leaves.
pub(super) const DONE: VarInt = VarInt::from_u32(17);
/// The most bytes of the cause that are passed on.
const CAUSE_MAX: usize = 200;

pub(super) struct RingState {
    pub(super) rank: u32,
    /// By rank.
    pub(super) names: Vec<String>,
    connections: Mutex<Vec<Connection>>,
    state: Mutex<State>,
    changed: Condvar,
    bytes_sent: AtomicU64,
    /// A thread waits for a bucket.
    waiting: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Submitted and not yet waited for.
    outstanding: HashSet<Key>,
    done: HashMap<Key, Values>,
    newest_step: Option<u64>,
    failure: Option<RingError>,
}

impl RingState {
    pub(super) fn new(rank: u32, names: Vec<String>, connections: Vec<Connection>) -> Self {
        Self {
            rank,
            names,
            connections: Mutex::new(connections),
            state: Mutex::default(),
            changed: Condvar::new(),
            bytes_sent: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change below is complete when the lock is given up.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn peer_lost(&self, rank: u32, cause: String) -> RingError {
        RingError::PeerLost { rank, name: self.names[rank as usize].clone(), cause }
    }

    pub(super) fn protocol(&self, rank: u32, problem: String) -> RingError {
        RingError::Protocol { rank, name: self.names[rank as usize].clone(), problem }
    }

    /// The error that a connection's end stands for: a neighbour that found the ring
    /// broken names the rank at which it broke.
    pub(super) fn lost(&self, neighbour: u32, error: &ConnectionError) -> RingError {
        match error {
            ConnectionError::ApplicationClosed(close) if close.error_code == BROKEN => {
                let named = close.reason.first_chunk::<4>().map(|r| u32::from_le_bytes(*r)).filter(|r| (*r as usize) < self.names.len());
                let cause = visible_within(&String::from_utf8_lossy(close.reason.get(4..).unwrap_or_default()), CAUSE_MAX);
                match named {
                    Some(rank) if rank != neighbour => {
                        self.peer_lost(rank, format!("reported by `{}`: {cause}", self.names[neighbour as usize]))
                    }
                    _ => self.peer_lost(neighbour, cause),
                }
            }
            ConnectionError::ApplicationClosed(close) if close.error_code == DONE => {
                self.peer_lost(neighbour, "it left the ring".to_owned())
            }
            other => self.peer_lost(neighbour, explain(other)),
        }
    }

    /// Ends the ring with the first reason; later ones are its consequences.
    pub(super) fn fail(&self, error: RingError) {
        let mut state = self.state();
        if state.failure.is_some() {
            return;
        }
        let (rank, cause) = match &error {
            RingError::PeerLost { rank, cause, .. } => (*rank, cause.clone()),
            RingError::Protocol { rank, problem, .. } => (*rank, problem.clone()),
            RingError::Left { cause } => (self.rank, format!("it left the ring: {cause}")),
            other => (self.rank, other.to_string()),
        };
        state.failure = Some(error);
        self.changed.notify_all();
        let mut reason = rank.to_le_bytes().to_vec();
        reason.extend(cause.bytes().take(CAUSE_MAX));
        // Under the lock: a task that finds the ring failed may drop its streams, and
        // the peer must receive the reason before it sees their end.
        self.close(BROKEN, &reason);
    }

    pub(super) fn close(&self, code: VarInt, reason: &[u8]) {
        for connection in self.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            connection.close(code, reason);
        }
    }

    /// Records that a bucket is under way.
    pub(super) fn begin(&self, key: Key, most: usize) -> Result<(), RingError> {
        let mut state = self.state();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let misuse = |problem: &str| Err(RingError::Misuse { step: key.0, bucket: key.1, problem: problem.to_owned() });
        if state.outstanding.len() >= most {
            return misuse("two steps' buckets have been submitted and not waited for: wait first");
        }
        if !state.outstanding.insert(key) {
            return misuse("it has been submitted already");
        }
        state.newest_step = state.newest_step.max(Some(key.0));
        Ok(())
    }

    pub(super) fn complete(&self, key: Key, values: Values) {
        self.state().done.insert(key, values);
        self.changed.notify_all();
    }

    /// Blocks until a submitted bucket is done or the ring has failed.
    pub(super) fn take(&self, key: Key) -> Result<Values, RingError> {
        let mut state = self.state();
        loop {
            if let Some(values) = state.done.remove(&key) {
                state.outstanding.remove(&key);
                return Ok(values);
            }
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if !state.outstanding.contains(&key) {
                let problem = "it is waited for but was not submitted".to_owned();
                return Err(RingError::Misuse { step: key.0, bucket: key.1, problem });
            }
            self.waiting.store(true, Ordering::Relaxed);
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            self.waiting.store(false, Ordering::Relaxed);
        }
    }

    /// The ring is the barrier: no rank is more than one step from another. Before this
    /// rank's first step, any step is plausible.
    pub(super) fn plausible(&self, step: u64) -> bool {
        self.state().newest_step.is_none_or(|newest| step.abs_diff(newest) <= 1)
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }
}
