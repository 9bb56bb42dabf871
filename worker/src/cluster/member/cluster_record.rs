//! A worker's reports to the coordinator on its steps. Metrics and checkpoints are the
//! same on every rank, so rank 0 sends them for all; the other ranks remember the
//! metrics, in case rank 0 is lost before the coordinator has received them.

use std::sync::atomic::Ordering;

use anyhow::Result;
use common::audit::TrainedSamples;
use common::metrics::{Evaluation, RunPicture, StepMetrics};
use common::predictions::Predictions;
use common::wire::messages::{Generation, ToCoordinator};

use crate::cluster::checkpoints::Upload;
use crate::cluster::link::Link;
use crate::cluster::pictures::{Pictures, Sent};
use crate::data::Batch;
use crate::replica::Replica;
use crate::training::clock::OwnSpeed;
use crate::training::record::{Record, Snapshot, snapshot};

/// This worker's reports over all generations that it takes part in.
pub(super) struct ClusterRecord<'a> {
    link: &'a Link,
    generation: u64,
    rank: u32,
    audit: bool,
    upload: Option<Upload>,
    /// Whether what is being sent has to be stored as it is.
    uploads_best: bool,
    /// The state with the best evaluation, while an earlier one is being sent.
    waiting: Option<Snapshot>,
    /// Whether a checkpoint was due while the one before it was being sent.
    due: bool,
    pictures: Pictures,
    /// Gradient bytes that were sent in earlier generations.
    sent: u64,
    speed: OwnSpeed,
}

impl<'a> ClusterRecord<'a> {
    pub(super) fn new(link: &'a Link, audit: bool) -> Self {
        Self {
            link,
            generation: 0,
            rank: 0,
            audit,
            upload: None,
            uploads_best: false,
            waiting: None,
            due: false,
            pictures: Pictures::default(),
            sent: 0,
            speed: OwnSpeed::default(),
        }
    }

    /// Starts a generation, and sends the reports on earlier ones that the record lacks.
    pub(super) fn begin(&mut self, generation: &Generation) -> Result<()> {
        let (number, first, recorded) = (generation.number, generation.first_step, generation.recorded);
        (self.generation, self.rank) = (number, generation.rank);
        self.link.step.store(first, Ordering::Relaxed);
        self.due = false;
        // The run has gone back behind it.
        self.waiting = self.waiting.take().filter(|waiting| waiting.state.step <= first);
        for message in self.link.log.lacking(number, first, recorded, generation.evaluated) {
            self.link.send(message)?;
        }
        Ok(())
    }

    /// Adds the bytes that a generation sent; returns the sum over all generations.
    pub(super) fn count_sent(&mut self, bytes: u64) -> u64 {
        self.sent += bytes;
        self.sent
    }

    /// Ends the run: returns when its last checkpoint is on disk.
    pub(super) fn finish(&mut self, replica: &Replica) -> Result<()> {
        self.link.runtime.block_on(self.pictures.settle());
        if let Some(waiting) = self.waiting.take() {
            self.settle()?;
            self.start(waiting, true);
        }
        if std::mem::take(&mut self.due) {
            if self.uploads_best {
                self.settle()?;
            }
            self.start(snapshot(replica)?, false);
        }
        self.settle()
    }

    /// Waits until what is being sent is on disk.
    fn settle(&mut self) -> Result<()> {
        self.upload.take().map_or(Ok(()), |mut upload| self.link.runtime.block_on(upload.stored()))
    }

    /// Stores the state of `replica`, which no other worker holds.
    pub(super) fn store(&mut self, replica: &Replica) -> Result<()> {
        self.start(snapshot(replica)?, false);
        Ok(())
    }

    /// Sends a checkpoint; an earlier one that is still being sent is dropped.
    fn start(&mut self, snapshot: Snapshot, best: bool) {
        self.uploads_best = best;
        self.upload = None;
        self.upload = Some(Upload::start(&self.link.runtime, self.link.bulk.clone(), snapshot));
    }

    /// Whether the next checkpoint has to wait: one that is held for a retry may be dropped for
    /// a newer one, unless it is the best.
    fn is_busy(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.is_under_way() || (self.uploads_best && !upload.is_stored()))
    }
}

impl Record for ClusterRecord<'_> {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.link.step.store(metrics.step + 1, Ordering::Relaxed);
        self.link.shares.add(metrics);
        // After one step every member has the state that the generation started from.
        self.link.donor.withdraw();
        if self.rank == 0 {
            return self.link.send(ToCoordinator::Step { generation: self.generation, metrics: metrics.clone() });
        }
        self.link.log.keep_step(self.generation, metrics);
        Ok(())
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        if self.rank == 0 {
            return self.link.send(ToCoordinator::Evaluation(evaluation.clone()));
        }
        self.link.log.keep_evaluation(evaluation);
        Ok(())
    }

    /// Over all generations: a change of the ring does not change how fast this worker is.
    fn own_speed(&mut self, samples_per_second: f64) {
        if let Some(speed) = self.speed.add(samples_per_second) {
            self.link.speed.set(speed);
        }
    }

    fn trained(&mut self, step: u64, batch: &Batch) -> Result<()> {
        if !self.audit {
            return Ok(());
        }
        let skipped = batch.skipped.iter().map(|s| s.id).collect();
        let trained = TrainedSamples { generation: self.generation, step, rank: self.rank, ids: batch.ids.clone(), skipped };
        self.link.send(ToCoordinator::Trained(trained))
    }

    fn skipped(&mut self, step: u64, name: &str, problem: &str) -> Result<()> {
        self.link.send(ToCoordinator::Skipped { step, name: name.to_owned(), problem: problem.to_owned() })
    }

    fn draws(&self) -> bool {
        self.rank == 0
    }

    fn picture(&mut self, picture: RunPicture) {
        self.pictures.send(&self.link.runtime, &self.link.bulk, Sent::picture(picture));
    }

    fn predictions(&mut self, predictions: Predictions) {
        self.pictures.send(&self.link.runtime, &self.link.bulk, Sent::predictions(predictions));
    }

    /// A slow link delays checkpoints, not the ring: while a checkpoint is being sent,
    /// the next one waits, and is then made of the step reached by that time. Only the best
    /// one is kept in memory meanwhile.
    fn checkpoint(&mut self, best: bool, export: &mut dyn FnMut() -> Result<Snapshot>) -> Result<()> {
        let reports = self.rank == 0;
        if self.is_busy() {
            if reports && best {
                self.waiting = Some(export()?);
            }
            self.due |= reports && !best;
            return Ok(());
        }
        match self.waiting.take() {
            Some(waiting) if !(reports && best) => {
                self.start(waiting, true);
                self.due |= reports;
            }
            _ if reports => {
                self.due = false;
                self.start(export()?, best);
            }
            _ => {}
        }
        Ok(())
    }

    fn checkpoint_due(&self) -> bool {
        (self.due || self.waiting.is_some()) && !self.is_busy()
    }

    fn stop_requested(&self) -> bool {
        self.link.stop.load(Ordering::Relaxed)
    }

    fn pause_requested(&self) -> bool {
        self.link.pause.load(Ordering::Relaxed) == self.generation
    }
}
