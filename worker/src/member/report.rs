//! What a worker tells the coordinator of its steps. Metrics and checkpoints are
//! the same on every rank, so rank 0 sends them for all.

use std::sync::atomic::Ordering;

use anyhow::Result;
use common::run_dir::{Evaluation, StepMetrics};
use common::wire::messages::ToCoordinator;
use tokio::task::JoinHandle;

use crate::checkpoints;
use crate::link::Link;
use crate::train::{Record, Snapshot};

/// Outlives the generations that it reports of.
pub(super) struct Report<'a> {
    link: &'a Link,
    generation: u64,
    rank: u32,
    /// The newest step's line: should rank 0 be lost before it has sent it, the
    /// next rank 0 does.
    last: Option<StepMetrics>,
    upload: Option<JoinHandle<Result<()>>>,
    /// Gradient bytes that were sent in earlier generations.
    sent: u64,
}

impl<'a> Report<'a> {
    pub(super) fn new(link: &'a Link) -> Self {
        Self { link, generation: 0, rank: 0, last: None, upload: None, sent: 0 }
    }

    /// A generation starts here at step `first`.
    pub(super) fn begin(&mut self, generation: u64, rank: u32, first: u64) -> Result<()> {
        (self.generation, self.rank) = (generation, rank);
        self.link.step.store(first, Ordering::Relaxed);
        match &self.last {
            Some(last) if rank == 0 && last.step < first => self.link.say(ToCoordinator::Step(last.clone())),
            _ => Ok(()),
        }
    }

    /// Adds what a generation sent; returns the sum over all.
    pub(super) fn count_sent(&mut self, bytes: u64) -> u64 {
        self.sent += bytes;
        self.sent
    }

    /// A checkpoint is stored before the next one starts, so that at most one
    /// copy of the weights waits in memory.
    pub(super) fn wait_for_upload(&mut self) -> Result<()> {
        match self.upload.take() {
            Some(upload) => self.link.runtime.block_on(upload)?,
            None => Ok(()),
        }
    }
}

impl Record for Report<'_> {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.link.step.store(metrics.step + 1, Ordering::Relaxed);
        // After one step of the ring everybody has the state that it started from.
        self.link.donor.withdraw();
        self.last = Some(metrics.clone());
        if self.rank == 0 { self.link.say(ToCoordinator::Step(metrics.clone())) } else { Ok(()) }
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        if self.rank == 0 { self.link.say(ToCoordinator::Evaluation(evaluation.clone())) } else { Ok(()) }
    }

    fn skipped(&mut self, name: &str, problem: &str) -> Result<()> {
        self.link.say(ToCoordinator::Skipped { name: name.to_owned(), problem: problem.to_owned() })
    }

    fn checkpoint(&mut self, export: &mut dyn FnMut() -> Result<Snapshot>) -> Result<()> {
        if self.rank == 0 {
            self.wait_for_upload()?;
            let (bulk, snapshot) = (self.link.bulk.clone(), export()?);
            self.upload = Some(self.link.runtime.spawn(async move { checkpoints::put(&bulk, snapshot).await }));
        }
        Ok(())
    }

    fn stop_requested(&self) -> bool {
        self.link.stop.load(Ordering::Relaxed)
    }

    fn pause_requested(&self) -> bool {
        self.link.pause.load(Ordering::Relaxed) == self.generation
    }
}
