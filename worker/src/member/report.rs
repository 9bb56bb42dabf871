//! What a worker tells the coordinator of its steps. Metrics and checkpoints are
//! the same on every rank, so rank 0 sends them for all; the others remember
//! them, should it be lost before it was heard.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use anyhow::Result;
use common::audit::Trained;
use common::run_dir::{Evaluation, StepMetrics};
use common::wire::messages::{Generation, ToCoordinator};

use crate::checkpoints::Upload;
use crate::data::Batch;
use crate::link::Link;
use crate::train::{Record, Snapshot};

/// Steps, and evaluations, that are remembered: a few megabytes, and at 20 steps
/// a second as long as the coordinator may be away.
const REMEMBERED: usize = 12_000;

/// Outlives the generations that it reports of.
pub(super) struct Report<'a> {
    link: &'a Link,
    generation: u64,
    rank: u32,
    audit: bool,
    steps: VecDeque<StepMetrics>,
    evaluations: VecDeque<Evaluation>,
    upload: Option<Upload>,
    /// Gradient bytes that were sent in earlier generations.
    sent: u64,
}

impl<'a> Report<'a> {
    pub(super) fn new(link: &'a Link, audit: bool) -> Self {
        Self { link, generation: 0, rank: 0, audit, steps: VecDeque::new(), evaluations: VecDeque::new(), upload: None, sent: 0 }
    }

    /// A generation starts here: says what the record lacks of earlier ones.
    pub(super) fn begin(&mut self, generation: &Generation) -> Result<()> {
        let (number, first, recorded) = (generation.number, generation.first_step, generation.recorded);
        (self.generation, self.rank) = (number, generation.rank);
        self.link.step.store(first, Ordering::Relaxed);
        // What only a lost ring had is trained again.
        self.steps.retain(|metrics| metrics.step < first);
        self.evaluations.retain(|evaluation| evaluation.step <= first);
        for metrics in self.steps.iter().filter(|metrics| metrics.step >= recorded) {
            self.link.say(ToCoordinator::Step { generation: number, metrics: metrics.clone() })?;
        }
        for evaluation in self.evaluations.iter().filter(|evaluation| evaluation.step > generation.evaluated) {
            self.link.say(ToCoordinator::Evaluation(evaluation.clone()))?;
        }
        Ok(())
    }

    /// Adds what a generation sent; returns the sum over all.
    pub(super) fn count_sent(&mut self, bytes: u64) -> u64 {
        self.sent += bytes;
        self.sent
    }

    /// The run is over here: its last checkpoint has to be on disk.
    pub(super) fn finish(&mut self) -> Result<()> {
        match self.upload.take() {
            Some(mut upload) => self.link.runtime.block_on(upload.stored()),
            None => Ok(()),
        }
    }
}

impl Record for Report<'_> {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.link.step.store(metrics.step + 1, Ordering::Relaxed);
        // After one step of the ring everybody has the state that it started from.
        self.link.donor.withdraw();
        remember(&mut self.steps, metrics);
        if self.rank == 0 {
            self.link.say(ToCoordinator::Step { generation: self.generation, metrics: metrics.clone() })?;
        }
        Ok(())
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        remember(&mut self.evaluations, evaluation);
        if self.rank == 0 { self.link.say(ToCoordinator::Evaluation(evaluation.clone())) } else { Ok(()) }
    }

    fn trained(&mut self, step: u64, batch: &Batch) -> Result<()> {
        if !self.audit {
            return Ok(());
        }
        let skipped = batch.skipped.iter().map(|s| s.id).collect();
        let trained = Trained { generation: self.generation, step, rank: self.rank, ids: batch.ids.clone(), skipped };
        self.link.say(ToCoordinator::Trained(trained))
    }

    fn skipped(&mut self, step: u64, name: &str, problem: &str) -> Result<()> {
        self.link.say(ToCoordinator::Skipped { step, name: name.to_owned(), problem: problem.to_owned() })
    }

    fn checkpoint(&mut self, export: &mut dyn FnMut() -> Result<Snapshot>) -> Result<()> {
        if self.rank == 0 {
            // At most one copy of the weights waits in memory: a checkpoint that cannot
            // be stored now makes place for its successor.
            if let Some(mut last) = self.upload.take() {
                self.link.runtime.block_on(last.settled());
            }
            self.upload = Some(Upload::start(&self.link.runtime, self.link.bulk.clone(), export()?));
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

fn remember<T: Clone>(queue: &mut VecDeque<T>, item: &T) {
    if queue.len() == REMEMBERED {
        queue.pop_front();
    }
    queue.push_back(item.clone());
}
