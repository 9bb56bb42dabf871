//! The training loop: the same for one worker and for sixteen, in one process
//! and across machines. Read this file first.
//!
//! A step: take the next samples of this rank's shards, compute their gradient,
//! sum it over the ring, apply it. State after a step is the same bytes on
//! every rank. The loop needs nobody's word to go on: the ring is the barrier.

use anyhow::{Context, Result, bail};
use common::audit::checksum;
use common::dataset::{SampleSource, Split};
use common::ring::Values;
use common::run_dir::{Evaluation, StepMetrics};
use common::trace;
use std::sync::Arc;

use crate::clock::StepClock;
use crate::data::{Batch, EvalLoader, TrainLoader};
use crate::exchange::{Exchange, Totals};
use crate::job::{Goal, Job};
use crate::replica::{Replica, State, Sums};

/// A state to store, with the digest of its weights.
pub struct Snapshot {
    pub state: State,
    pub weights_blake3: String,
}

/// Who keeps the record: the coordinator, or this process itself.
pub trait Record {
    fn step(&mut self, metrics: &StepMetrics) -> Result<()>;
    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()>;
    /// The samples of this rank that went into a committed step.
    fn trained(&mut self, step: u64, batch: &Batch) -> Result<()>;
    fn skipped(&mut self, step: u64, name: &str, problem: &str) -> Result<()>;
    /// Stores a checkpoint, if it is this one's to store; may return before it
    /// is stored.
    fn checkpoint(&mut self, export: &mut dyn FnMut() -> Result<Snapshot>) -> Result<()>;
    /// Whether this worker was asked to end the run.
    fn stop_requested(&self) -> bool;
    /// Whether this worker was asked to end the generation.
    fn pause_requested(&self) -> bool {
        false
    }
}

/// Where training starts: after how many steps, and which the newest steps are
/// after which an evaluation and a checkpoint are on the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    pub step: u64,
    pub evaluated: u64,
    pub stored: u64,
}

impl Start {
    /// Nothing is missing from the record up to `step`.
    pub fn at(step: u64) -> Self {
        Self { step, evaluated: step, stored: step }
    }
}

/// Why training ended, and after how many steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The job is done, or somebody asked for the run to stop.
    Run { step: u64 },
    /// All ranks left the generation together; the run goes on.
    Generation { step: u64 },
}

/// Runs the steps from `start` to the end of the job, until its goal is reached,
/// or until some rank is asked to stop.
pub fn train(
    job: &Job,
    replica: &mut Replica,
    exchange: &mut Exchange,
    source: &Arc<dyn SampleSource>,
    record: &mut dyn Record,
    start: Start,
) -> Result<Ended> {
    let first = start.step;
    let mut loader = TrainLoader::start(
        job.samples(source),
        job.plan.clone(),
        job.shards(),
        job.config.seed,
        first..job.length.steps,
        job.loader_options(),
    )?;
    let mut goal = Goal::new(job, first);
    let mut step = first;
    // What an earlier generation was to do after its last step, if it did not come to it.
    if job.evaluates_after(step) && step > start.evaluated {
        record.evaluation(&evaluate(job, replica, exchange, source, step)?)?;
    }
    if job.checkpoints_after(step) && step > start.stored {
        record.checkpoint(&mut || snapshot(replica))?;
    }
    while step < job.length.steps {
        let mut clock = StepClock::start(step);
        let batch = loader.next_batch()?;
        clock.data_arrived();

        let planned = job.plan.global_count(step);
        let mut mine = Sums::default();
        for shards in job.parts(&batch.shards) {
            let (images, labels) = batch.part(shards);
            let mut sent = Ok(());
            mine += replica.gradient(images, labels, 1.0 / planned as f32, &job.dropout(step, shards), &mut |offset, span| {
                if sent.is_ok() {
                    sent = exchange.add(offset, span);
                }
            })?;
            sent?;
            exchange.end_part();
        }
        clock.gradient_computed();

        let all = exchange.finish(Totals {
            loss: mine.loss,
            top1: mine.top1.into(),
            top5: mine.top5.into(),
            count: mine.count.into(),
            checksum: checksum(&batch.ids),
            stop: record.stop_requested(),
            pause: record.pause_requested(),
        })?;
        clock.gradient_summed();

        if !all.loss.is_finite() {
            bail!(
                "the loss is {} at step {step} (epoch {}): lower train.lr, or set train.clip_norm; the last checkpoint is kept",
                all.loss,
                job.plan.position(step).epoch
            );
        }
        correct_for_skipped(exchange.gradient(), planned, all.count);
        let lr = job.learning_rate(step);
        let update = replica.update(exchange.gradient(), step, lr).with_context(|| format!("step {step}"))?;
        clock.updated();

        record.trained(step, &batch)?;
        for skipped in &batch.skipped {
            record.skipped(step, &skipped.name, &skipped.problem)?;
        }
        loader.recycle(batch);
        record.step(&clock.metrics(job.plan.position(step).epoch, all, lr, update.grad_norm))?;
        step += 1;

        let reached = goal.reached(step, all.top1, all.count);
        if (job.evaluates_after(step) || reached) && !all.stop {
            let evaluation = evaluate(job, replica, exchange, source, step)?;
            record.evaluation(&evaluation)?;
        }
        if job.checkpoints_after(step) || reached || all.stop {
            record.checkpoint(&mut || snapshot(replica))?;
        }
        if reached || all.stop {
            break;
        }
        if all.pause {
            return Ok(Ended::Generation { step });
        }
    }
    Ok(Ended::Run { step })
}

/// The state as it stands, to be stored.
pub fn snapshot(replica: &Replica) -> Result<Snapshot> {
    let _span = trace::span("snapshot", Some(replica.step()));
    Ok(Snapshot { state: replica.export()?, weights_blake3: replica.weights_blake3() })
}

/// The gradient was scaled by the planned number of samples; where corrupt ones
/// were left out, this makes it the mean over those that were there.
fn correct_for_skipped(gradient: &mut [Values], planned: u32, counted: u64) {
    if counted != u64::from(planned) && counted > 0 {
        let factor = planned as f32 / counted as f32;
        gradient.iter_mut().for_each(|bucket| bucket.scale(factor));
    }
}

/// Evaluates the whole validation set, each rank a part of its own: exact sums,
/// no padding. Every rank returns the same result.
pub fn evaluate(job: &Job, replica: &Replica, exchange: &mut Exchange, source: &Arc<dyn SampleSource>, step: u64) -> Result<Evaluation> {
    let _span = trace::span("evaluation", Some(step));
    let batch = job.config.train.global_batch.div_ceil(job.world).clamp(16, 256);
    let mut loader = EvalLoader::start(job.samples(source), Split::Val, job.evaluation(), batch, job.loader_options())?;
    let mut mine = Totals::default();
    while let Some(batch) = loader.next_batch()? {
        let sums = replica.evaluate(&batch.images, &batch.labels)?;
        mine.loss += sums.loss;
        mine.top1 += u64::from(sums.top1);
        mine.top5 += u64::from(sums.top5);
        mine.count += u64::from(sums.count);
        loader.recycle(batch);
    }
    let all = exchange.totals(mine)?;
    let share = |n: u64| n as f64 / all.count.max(1) as f64;
    Ok(Evaluation {
        step,
        epoch: step / job.length.steps_per_epoch,
        loss: all.loss / all.count.max(1) as f64,
        top1: share(all.top1),
        top5: share(all.top5),
        samples: all.count,
    })
}
