//! State and channels that the training thread of a cluster's worker shares with its
//! async side.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use common::config::Config;
use common::metrics::{StepMetrics, TimeShares};
use common::net::Endpoint;
use common::ring::{Ring, RingAborter, RingError};
use common::wire::messages::{Generation, ToCoordinator};
use tokio::sync::{mpsc, watch};

use crate::cluster::bulk::Bulk;
use crate::cluster::replay_log::ReplayLog;
use crate::cluster::state_transfer::Donor;

/// From the coordinator to the training thread.
#[derive(Debug)]
pub enum Order {
    Generation(Generation),
    /// The generation of this number is over.
    End(u64),
    /// Store the state that this worker holds as a checkpoint.
    Store,
    /// The run goes on with a config that trains the same weights.
    Config(Box<Config>),
}

/// The generation whose ring this worker is in, with the means to leave it.
pub type CurrentRing = Arc<Mutex<Option<(u64, RingAborter)>>>;

/// This worker's own speed in samples a second, for heartbeats.
#[derive(Debug, Clone, Default)]
pub struct KnownSpeed(Arc<AtomicU64>);

impl KnownSpeed {
    pub fn set(&self, samples_per_second: f64) {
        self.0.store(samples_per_second.to_bits(), Ordering::Relaxed);
    }

    /// `None` before it is known.
    pub fn get(&self) -> Option<f64> {
        Some(f64::from_bits(self.0.load(Ordering::Relaxed))).filter(|speed| *speed > 0.0)
    }
}

/// Where this worker's time goes, for heartbeats.
#[derive(Debug, Clone, Default)]
pub struct KnownShares(Arc<Mutex<Option<TimeShares>>>);

/// How much the newest step weighs in the average.
const NEWEST: f64 = 0.1;

impl KnownShares {
    /// Adds a step by this worker's own clock.
    pub fn add(&self, step: &StepMetrics) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = TimeShares::of(step) {
            *known = Some(known.map_or(now, |average| average.towards(now, NEWEST)));
        }
    }

    /// `None` before the first step.
    pub fn get(&self) -> Option<TimeShares> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The training thread's side of the link.
pub struct Link {
    pub runtime: tokio::runtime::Handle,
    pub to_coordinator: mpsc::Sender<ToCoordinator>,
    pub orders: std::sync::mpsc::Receiver<Order>,
    /// End the run after this step.
    pub stop: Arc<AtomicBool>,
    /// End the generation of this number after this step.
    pub pause: Arc<AtomicU64>,
    /// The newest generation that was declared over.
    pub over: watch::Receiver<u64>,
    pub ring: CurrentRing,
    /// Steps committed so far, for heartbeats.
    pub step: Arc<AtomicU64>,
    pub speed: KnownSpeed,
    pub shares: KnownShares,
    pub endpoint: Arc<Endpoint>,
    pub bulk: Bulk,
    pub donor: Donor,
    pub log: ReplayLog,
}

impl Link {
    pub fn send(&self, message: ToCoordinator) -> Result<()> {
        self.to_coordinator.blocking_send(message).map_err(|_| anyhow!("the connection to the coordinator is gone"))
    }

    /// Blocks on `work`, unless the generation is declared over meanwhile.
    pub fn unless_over<T>(&self, generation: u64, work: impl Future<Output = T>) -> Result<T, RingError> {
        let mut over = self.over.clone();
        self.runtime.block_on(async {
            tokio::select! {
                result = work => Ok(result),
                _ = over.wait_for(|over| *over >= generation) => Err(left(generation)),
            }
        })
    }

    /// Lets the async side end this ring; an error if the generation is over already.
    pub fn keep_ring(&self, generation: u64, ring: &Ring) -> Result<(), RingError> {
        *self.lock() = Some((generation, ring.aborter()));
        if *self.over.borrow() >= generation { Err(left(generation)) } else { Ok(()) }
    }

    pub fn forget_ring(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(u64, RingAborter)>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn left(generation: u64) -> RingError {
    RingError::Left { cause: format!("the coordinator ended generation {generation}") }
}

/// Ends the ring of `generation` or an older one from the async side.
pub fn abort(ring: &CurrentRing, generation: u64, reason: &str) {
    let kept = ring.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((own, aborter)) = &*kept
        && *own <= generation
    {
        aborter.abort(reason);
    }
}

/// Whether the training thread waits for other ranks.
pub fn waits(ring: &CurrentRing) -> bool {
    let kept = ring.lock().unwrap_or_else(PoisonError::into_inner);
    kept.as_ref().is_some_and(|(_, ring)| ring.is_waiting())
}
