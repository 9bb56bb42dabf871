//! The training loop: the same for one worker and for sixteen, in one process
//! and across machines. Read this file first.
//!
//! A step: take the next samples of this rank's shards, compute their gradient, sum it
//! over the ring, apply it. The state after a step is the same bytes on every rank. The
//! loop waits for no message from the coordinator to go on: the ring is the barrier.

use anyhow::{Context, Result};
use common::audit::checksum;
use common::config::Keep;
use common::dataset::{SampleSource, Split};
use common::metrics::Evaluation;
use common::ring::Span;
use common::trace;
use std::ops::Range;
use std::sync::Arc;

use super::clock::StepClock;
use super::confusion::Confusions;
use super::early_stop::EarlyStop;
use super::exchange::{Exchange, Receiver};
use super::job::Job;
use super::left_out::{self, LeftOut};
use super::micro_batch::micro_batch;
use super::pictures::RunPictures;
use super::record::{Record, snapshot};
use super::totals::StepTotals;
use crate::data::{Batch, EvalLoader, LoadError, TrainLoader};
use crate::optim::Update;
use crate::replica::{BatchPart, Progress, Replica, ReplicaError};

/// Training has reached a state from which no worker can go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Diverged(String);

/// Where training starts: after how many steps, and the newest steps whose evaluation
/// and whose checkpoint are on the record.
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
pub enum TrainingEnd {
    /// The job is done, or a user asked for the run to stop.
    Run { step: u64 },
    /// All ranks left the generation together; the run goes on.
    Generation { step: u64 },
    /// The only rank was asked to stop while it waited for data, between two steps.
    Interrupted { step: u64 },
}

impl TrainingEnd {
    /// After how many steps it ended.
    pub fn step(self) -> u64 {
        match self {
            Self::Run { step } | Self::Generation { step } | Self::Interrupted { step } => step,
        }
    }
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
) -> Result<TrainingEnd> {
    let first = start.step;
    let micro_batch = micro_batch(job, replica)?;
    let mut loader = TrainLoader::start(
        job.samples(source),
        job.plan.clone(),
        job.shards(),
        job.config.seed,
        first..job.length.steps,
        job.loader_options(),
        replica.dropouts().to_vec(),
    )?;
    let mut ahead = None;
    let mut early_stop = EarlyStop::new(job, first);
    let mut left_out = LeftOut::new(job.plan.samples(), job.config.data.pixels.max_corrupt);
    let (mut step, mut stored) = (first, start.stored);
    let settings = &job.config.train;
    let mut progress = replica.progress();
    let mut pictures = RunPictures::new(record.draws(), source);
    // The evaluation and the checkpoint after the last step of an earlier generation,
    // if that generation ended before it made them. What an evaluation decides is not in the
    // state before the next step, so that none of the ranks can have it before the others: it
    // is made again.
    if job.evaluates_after(step) && (step > start.evaluated || (settings.follows_evaluations() && step > 0)) {
        let Some((evaluation, confusions)) = evaluate(job, replica, exchange, source, record, step, true)? else {
            return Ok(TrainingEnd::Interrupted { step });
        };
        progress = job.progress(progress, &evaluation);
        record.evaluation(&evaluation)?;
        pictures.evaluation(job, replica, &evaluation, &confusions, step == job.length.steps, record)?;
    }
    let is_best = |progress: &Progress| settings.keep == Keep::Best && progress.is_best();
    let again = progress != replica.progress();
    let ended = again && progress.is_exhausted(settings);
    if (job.checkpoints_after(step) || (again && is_best(&progress)) || ended) && step > stored {
        record.checkpoint(is_best(&progress), &mut || snapshot(replica))?;
        stored = if record.stored().unwrap_or(true) { step } else { stored };
    }
    let mut interrupted = false;
    while step < job.length.steps && !ended {
        let mut clock = StepClock::start(step);
        let batch = match ahead.take().map_or_else(|| loader.next_batch_unless(|| record.may_stop_at_once()), Ok) {
            Err(LoadError::Stopped) => {
                interrupted = true;
                break;
            }
            batch => batch?,
        };
        clock.data_arrived();

        let planned = job.plan.global_count(step);
        let scale = 1.0 / planned as f32;
        // The next batch is on its way to the device while this one is computed.
        ahead = loader.made_batch();
        let next = ahead.as_ref().and_then(|batch| parts_of(job, &loader, batch, micro_batch).into_iter().next());
        let parts = parts_of(job, &loader, &batch, micro_batch);
        exchange.begin(job.rows(&batch.shards), &job.parts(&batch.shards, micro_batch))?;
        let mut sent = Ok(());
        let mine = replica.gradients(&parts, next.as_ref(), scale, exchange.delivery(), &mut |part, piece| {
            if sent.is_ok() {
                sent = exchange.add(part, piece);
            }
        });
        let mine = mine.with_context(|| stopped(step, &*record, stored, job))?;
        sent?;
        clock.gradient_computed();

        let mine = StepTotals {
            loss: mine.loss,
            top1: mine.top1.into(),
            top5: mine.top5.into(),
            count: mine.count.into(),
            checksum: checksum(&batch.ids),
            stop: record.stop_requested(),
            pause: record.pause_requested(),
            ..StepTotals::default()
        };
        let mut receiver = ToReplica { replica: &mut *replica, outcome: Ok(()) };
        let all = exchange.finish(mine, &mut receiver)?;
        receiver.outcome.with_context(|| stopped(step, &*record, stored, job))?;
        clock.gradient_summed(exchange.multiplied());
        if exchange.differs(&all) {
            return Err(unlike(step, &*record, stored, job));
        }

        for skipped in &batch.skipped {
            record.skipped(step, &skipped.name, &skipped.problem)?;
        }
        left_out.step(job.plan.position(step).epoch, planned, all.count)?;
        if !all.loss.is_finite() {
            return Err(Diverged(format!(
                "the loss is {} at step {step} (epoch {}): lower train.lr, or set train.clip_norm{}",
                all.loss,
                job.plan.position(step).epoch,
                record.stored().map_or_else(String::new, |_| kept(stored, job))
            ))
            .into());
        }
        let lr = job.learning_rate(step, &progress);
        let update = Update { step, lr, factor: correction(planned, all.count) };
        let updated = if exchange.is_alone() { replica.update_with_own(update) } else { replica.update(exchange.gradient(), update) };
        let updated = updated.with_context(|| stopped(step, &*record, stored, job))?;
        replica.set_progress(progress);
        clock.updated();
        exchange.committed(updated.grad_norm);

        // The gradient of a rank that is alone stays in the engine, which may still compute
        // it when the clock goes on; and there is nobody to share with.
        if let Some(speed) = clock.own_speed(batch.ids.len()).filter(|_| !exchange.is_alone()) {
            record.own_speed(speed);
        }
        record.trained(step, &batch)?;
        record.step(&clock.metrics(job.plan.position(step).epoch, all, lr, updated.grad_norm))?;
        pictures.first_batch(job, &batch, record);
        loader.recycle(batch);
        step += 1;

        let mut over = early_stop.reached(step, all.top1, all.count) || step == job.length.steps;
        let mut best = false;
        // A run that is asked to stop does not wait for an evaluation, which is made
        // when the run is resumed. A run that is over is not resumed.
        if over || (job.evaluates_after(step) && !all.stop) {
            // A run that is over is not resumed, so its evaluation is waited for.
            let Some((evaluation, confusions)) = evaluate(job, replica, exchange, source, record, step, !over)? else {
                interrupted = true;
                break;
            };
            progress = job.progress(progress, &evaluation);
            record.evaluation(&evaluation)?;
            best = is_best(&progress);
            over |= progress.is_exhausted(settings);
            pictures.evaluation(job, replica, &evaluation, &confusions, over, record)?;
        }
        if job.checkpoints_after(step) || best || over || all.stop || record.checkpoint_due() {
            record.checkpoint(best, &mut || snapshot(replica))?;
            stored = if record.stored().unwrap_or(true) { step } else { stored };
        }
        if over || all.stop {
            break;
        }
        if all.pause {
            return Ok(TrainingEnd::Generation { step });
        }
    }
    if interrupted {
        if step > stored {
            record.checkpoint(false, &mut || snapshot(replica))?;
        }
        return Ok(TrainingEnd::Interrupted { step });
    }
    Ok(TrainingEnd::Run { step })
}

/// Hands what the exchange receives to the replica, until that fails.
struct ToReplica<'a> {
    replica: &'a mut Replica,
    outcome: Result<(), ReplicaError>,
}

impl Receiver for ToReplica<'_> {
    fn summed(&mut self, offset: usize, span: Span<'_>) {
        if self.outcome.is_ok() {
            self.outcome = self.replica.receive(offset, span);
        }
    }

    fn gathered(&mut self, layer: usize, inputs: Span<'_>, slopes: Span<'_>) {
        if self.outcome.is_ok() {
            self.outcome = self.replica.multiply(layer, inputs, slopes);
        }
    }
}

/// Workers found out before step `step` that their weights differ.
fn unlike(step: u64, record: &dyn Record, stored: u64, job: &Job) -> anyhow::Error {
    Diverged(format!(
        "the gradient of step {} was not the same on all workers, so their weights differ: a processor or a memory makes errors, or workers of unlike versions compute together{}",
        step.saturating_sub(1),
        record.stored().map_or_else(String::new, |_| kept(stored, job))
    ))
    .into()
}

/// The parts of a batch that are computed one after the other.
fn parts_of<'a>(job: &Job, loader: &TrainLoader, batch: &'a Batch, micro_batch: usize) -> Vec<BatchPart<'a>> {
    let part = |(number, places): (usize, Range<usize>)| {
        let (inputs, labels, seconds) = batch.part(&places);
        BatchPart { inputs, labels, seconds, masks: batch.masks.rows(&places), name: Some(loader.name(batch.step, number)) }
    };
    job.parts(&batch.shards, micro_batch).into_iter().enumerate().map(part).collect()
}

/// Says where a run ends that cannot go on, and which checkpoint is kept.
fn stopped(step: u64, record: &dyn Record, stored: u64, job: &Job) -> String {
    format!("training stopped at step {step}{}", record.stored().map_or_else(String::new, |_| kept(stored, job)))
}

/// Says which checkpoint of a run that cannot go on is kept: the one after `stored`
/// steps, or none.
fn kept(stored: u64, job: &Job) -> String {
    if stored > 0 {
        return format!("; the checkpoint of step {stored} is kept");
    }
    let first = job.checkpoint_every().min(job.length.steps);
    format!("; there is no checkpoint yet: the first would follow step {first}, and train.checkpoint_steps makes it sooner")
}

/// The gradient was scaled by the planned number of samples; if corrupt samples were
/// left out, this factor makes it the mean over the others.
fn correction(planned: u32, counted: u64) -> f64 {
    if counted == 0 { 1.0 } else { f64::from(planned) / counted as f64 }
}

/// Evaluates the whole validation set, each rank a part of its own: exact sums and counts,
/// no padding. Every rank returns the same result. In reproducible mode it is the same in any
/// world: the same samples are computed at a time, and their losses are summed as integers.
/// With `train.ema` the moving average of the weights is evaluated. `None` if it was given up
/// for a request to stop while it waited for data, which `gives_up` allows.
pub fn evaluate(
    job: &Job,
    replica: &mut Replica,
    exchange: &mut Exchange,
    source: &Arc<dyn SampleSource>,
    record: &mut dyn Record,
    step: u64,
    gives_up: bool,
) -> Result<Option<(Evaluation, Confusions)>> {
    replica.averaged(|replica| evaluate_weights(job, replica, exchange, source, record, step, gives_up))?
}

fn evaluate_weights(
    job: &Job,
    replica: &Replica,
    exchange: &mut Exchange,
    source: &Arc<dyn SampleSource>,
    record: &mut dyn Record,
    step: u64,
    gives_up: bool,
) -> Result<Option<(Evaluation, Confusions)>> {
    let _span = trace::span("evaluation", Some(step));
    let (range, batch) = job.evaluation();
    let of = range.len() as u64;
    let mut loader = EvalLoader::start(job.samples(source), Split::Val, range, batch, job.loader_options())?;
    let mut mine = StepTotals::default();
    let mut confusions = Confusions::new(job.info.classes.len(), exchange.counts());
    loop {
        let batch = match loader.next_batch_unless(|| gives_up && record.may_stop_at_once()) {
            Err(LoadError::Stopped) => return Ok(None),
            batch => batch?,
        };
        let Some(batch) = batch else { break };
        let (sums, scores) = replica.scores_of_crops(batch.inputs.all(), &batch.labels, job.config.data.pixels.eval_crops.count())?;
        confusions.add(&batch.labels, &scores);
        mine.loss += sums.loss;
        mine.checksum = mine.checksum.wrapping_add(fixed(sums.loss));
        mine.top1 += u64::from(sums.top1);
        mine.top5 += u64::from(sums.top5);
        mine.count += u64::from(sums.count);
        record.evaluating(mine.count, of);
        for skipped in &batch.skipped {
            record.skipped(step, &skipped.name, &skipped.problem)?;
        }
        loader.recycle(batch);
    }
    let (all, counts) = exchange.evaluation(mine, confusions.into_counts())?;
    if exchange.differs(&all) {
        return Err(Diverged(format!("workers have different weights after {step} steps: a processor or a memory makes errors")).into());
    }
    left_out::evaluated(source.info().val, all.count, job.config.data.pixels.max_corrupt)?;
    let share = |n: u64| n as f64 / all.count.max(1) as f64;
    // A loss that is not finite, or too large for its integer, is the rounded sum.
    let exact = job.config.train.reproducible && all.loss.abs() < LARGEST_FIXED;
    let loss = if exact { all.checksum.cast_signed() as f64 / FIXED } else { all.loss };
    let evaluation = Evaluation {
        step,
        epoch: step / job.length.steps_per_epoch,
        loss: loss / all.count.max(1) as f64,
        top1: share(all.top1),
        top5: share(all.top5),
        samples: all.count,
    };
    Ok(Some((evaluation, Confusions::summed(job.info.classes.len(), counts))))
}

/// By what a batch's loss is multiplied before it becomes an integer, which needs no more
/// digits than the losses of f32 have.
const FIXED: f64 = (1u64 << 24) as f64;

/// The largest sum that is exact as an integer.
const LARGEST_FIXED: f64 = (1u64 << 38) as f64;

/// A loss as an integer, of which sums do not depend on their order.
fn fixed(loss: f64) -> u64 {
    ((loss * FIXED).round() as i64).cast_unsigned()
}
