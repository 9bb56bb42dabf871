//! What bulk requests are served from.

use common::digest::Digest;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use common::config::Config;
use common::dataset::SampleSource;
use common::run_dir::{CheckpointFiles, CheckpointLayout, InitialWeights};
use tokio::sync::Semaphore;

use super::budget::Budget;
use super::clients::{Clients, OnAlive};
use crate::admissions::Admissions;
use crate::inbox::Inbox;
use crate::limits::Limits;
use crate::record_writer::OnShown;

/// Requests that are read from disk at the same time, over all workers.
const CONCURRENT_READS: usize = 8;

/// What bulk requests are served from.
pub struct BulkService {
    pub(super) source: Arc<dyn SampleSource>,
    pub(super) checkpoints: CheckpointFiles,
    /// With which the run began, if the seed did not decide.
    pub(super) weights: Option<InitialWeights>,
    pub(super) layout: CheckpointLayout,
    pub(super) config_identity: Digest,
    pub(super) inbox: Inbox,
    pub(super) reads: Semaphore,
    pub(super) admissions: Arc<Admissions>,
    pub(super) limits: Limits,
    pub(super) committed: Arc<AtomicU64>,
    pub(super) budget: Budget,
    pub(super) clients: Clients,
    pub(super) on_alive: OnAlive,
    pub(super) on_shown: OnShown,
}

impl BulkService {
    /// `committed` is the number of steps that the run is known to have committed: no
    /// worker can hold a state more than one step beyond it.
    pub fn new(
        config: &Config,
        source: Arc<dyn SampleSource>,
        checkpoints: CheckpointFiles,
        inbox: Inbox,
        admissions: Arc<Admissions>,
        limits: Limits,
        committed: Arc<AtomicU64>,
    ) -> Self {
        let layout = CheckpointLayout::of(config, source.info().input(config.data.pixels.image_size));
        Self {
            source,
            checkpoints,
            weights: None,
            layout,
            config_identity: config.identity(),
            inbox,
            reads: Semaphore::new(CONCURRENT_READS),
            admissions,
            limits,
            committed,
            budget: Budget::default(),
            clients: Clients::default(),
            on_alive: Arc::new(|_| ()),
            on_shown: Arc::new(|_| false),
        }
    }

    /// Gives out the weights that the run begins with.
    pub fn beginning_with(self, weights: Option<InitialWeights>) -> Self {
        Self { weights, ..self }
    }

    /// Calls `on_alive` with the name of a peer while its requests and checkpoints
    /// arrive, at most every 100 ms.
    pub fn reporting_to(self, on_alive: OnAlive) -> Self {
        Self { on_alive, ..self }
    }

    /// Hands pictures of the run, and predictions of pictures, to `on_shown`.
    pub fn showing_to(self, on_shown: OnShown) -> Self {
        Self { on_shown, ..self }
    }
}
