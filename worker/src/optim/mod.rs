//! SGD with momentum, Adam and AdamW: what one update does to each weight (`Rule`), and
//! the optimizer that does it to flat vectors in host memory, fused into one pass over
//! gradient, weights and state. Nothing here depends on a tensor or a network, and the
//! result does not depend on the number of threads.

mod kernels;
#[cfg(test)]
mod tests;

use common::config::{OptimizerKind, TrainConfig};
use rayon::prelude::*;
use std::sync::Arc;

use common::ring::{Bucket, Span};
use common::simd::f32_to_bf16;
pub(crate) use kernels::{AdamStep, SgdStep};

/// Values that one thread works on at a time. Fixed, so that partial sums are the
/// same however many threads there are.
const CHUNK: usize = 1 << 16;

/// Up to so many chunks are computed by the calling thread, which takes less time than
/// to wake other threads.
const FEW: usize = 4;

/// An optimizer and its state for a flat vector of weights.
#[derive(Debug)]
pub struct Optimizer {
    settings: TrainConfig,
    /// SGD: the momentum. Adam and AdamW: first and second moment.
    slots: Vec<Vec<f32>>,
    threads: Threads,
}

/// A gradient that holds a NaN or an infinity at this place of the flat vector, and none
/// before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the gradient is not finite at place {at} of the flat vector")]
pub struct NotFinite {
    pub at: usize,
}

impl Optimizer {
    /// An optimizer of `total` weights with zero state.
    pub fn new(train: &TrainConfig, total: usize, threads: Threads) -> Self {
        let slots = train.optimizer.state().iter().map(|_| vec![0.0; total]).collect();
        Self { settings: train.clone(), slots, threads }
    }

    /// The state by name, each as long as the weights.
    pub fn state(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        self.settings.optimizer.state().iter().copied().zip(self.slots.iter().map(Vec::as_slice))
    }

    /// The state to be overwritten, by name.
    pub fn state_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut [f32])> {
        self.settings.optimizer.state().iter().copied().zip(self.slots.iter_mut().map(Vec::as_mut_slice))
    }

    /// Computes the norm of the gradient, clips it, and applies update number `step`:
    /// see [`Self::step`] for the vectors.
    ///
    /// # Errors
    /// The gradient is not finite; nothing is changed.
    pub fn update(
        &mut self,
        weights: &mut [f32],
        mirror: Option<&mut [u16]>,
        gradient: &[impl Bucket],
        update: Update,
    ) -> Result<UpdateReport, NotFinite> {
        let clipped = update.clip(self.settings.clip_norm, self.threads.norm(gradient)?);
        self.step(weights, mirror, gradient, update.step, update.lr, clipped.factor);
        Ok(clipped.report)
    }

    /// Applies update number `step` (from 0) to `weights` with `factor * gradient`.
    /// `mirror`, where given, receives the new weights as bf16. The mirror, and the
    /// gradient's buckets back to back, are as long as the weights.
    pub fn step(&mut self, weights: &mut [f32], mirror: Option<&mut [u16]>, gradient: &[impl Bucket], step: u64, lr: f64, factor: f64) {
        let total: usize = gradient.iter().map(|bucket| bucket.span().len()).sum();
        assert_eq!(total, weights.len(), "the gradient's buckets must cover the weights");
        let mut tasks = Vec::with_capacity(total / CHUNK + gradient.len());
        let (mut weights, mut mirror) = (weights, mirror);
        let mut slots: Vec<&mut [f32]> = self.slots.iter_mut().map(Vec::as_mut_slice).collect();
        for gradient in gradient.iter().flat_map(|bucket| bucket.span().chunks(CHUNK)) {
            let n = gradient.len();
            tasks.push(Task {
                gradient,
                weights: weights.split_off_mut(..n).unwrap_or_default(),
                mirror: mirror.as_mut().and_then(|m| m.split_off_mut(..n)),
                slots: slots.iter_mut().map(|s| s.split_off_mut(..n).unwrap_or_default()).collect(),
            });
        }
        let rule = Rule::new(&self.settings, step, lr, factor);
        self.threads.map(tasks, |task| rule.apply(task));
    }
}

/// The settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Its number, from 0.
    pub step: u64,
    pub lr: f64,
    /// The gradient is multiplied by this first.
    pub factor: f64,
}

/// The result of an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateReport {
    /// Euclidean norm of the gradient, before clipping.
    pub grad_norm: f64,
    pub clipped: bool,
}

/// By how much a gradient is multiplied in all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clipped {
    pub factor: f64,
    pub report: UpdateReport,
}

impl Update {
    /// `norm` is that of the gradient before it is multiplied by anything.
    pub fn clip(&self, limit: Option<f64>, norm: f64) -> Clipped {
        let grad_norm = norm * self.factor;
        let limit = limit.filter(|&limit| grad_norm > limit);
        let factor = limit.map_or(self.factor, |limit| limit / grad_norm * self.factor);
        Clipped { factor, report: UpdateReport { grad_norm, clipped: limit.is_some() } }
    }
}

/// Threads for work in host memory.
#[derive(Debug, Clone)]
pub struct Threads(Arc<rayon::ThreadPool>);

impl Threads {
    /// # Errors
    /// The threads could not be started.
    pub fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("host-{i}")).build().map(|pool| Self(Arc::new(pool)))
    }

    /// The Euclidean norm of a gradient given as buckets, summed in f64.
    ///
    /// # Errors
    /// The first value, in the order of the flat vector, that is not finite.
    pub fn norm(&self, gradient: &[impl Bucket]) -> Result<f64, NotFinite> {
        let chunks = gradient.iter().flat_map(|bucket| bucket.span().chunks(CHUNK)).collect();
        let mut partial = self.map(chunks, sum_of_squares).into_iter();
        let (mut sum, mut start) = (0.0, 0);
        for values in gradient.iter().map(Bucket::span) {
            let total: f64 = partial.by_ref().take(values.len().div_ceil(CHUNK)).sum();
            // Squares of f32 cannot overflow an f64 sum.
            if !total.is_finite() {
                return Err(NotFinite { at: start + first_not_finite(values) });
            }
            sum += total;
            start += values.len();
        }
        Ok(sum.sqrt())
    }

    /// The result of `work` for each chunk, in order.
    pub fn map<T: Send, R: Send>(&self, chunks: Vec<T>, work: impl Fn(T) -> R + Send + Sync) -> Vec<R> {
        match chunks.len() {
            ..=FEW => chunks.into_iter().map(work).collect(),
            _ => self.0.install(|| chunks.into_par_iter().map(work).collect()),
        }
    }
}

fn sum_of_squares(values: Span<'_>) -> f64 {
    let mut sum = 0.0;
    values.for_each_f32(|values| sum += kernels::sum_of_squares(values));
    sum
}

fn first_not_finite(values: Span<'_>) -> usize {
    let (mut before, mut found) = (0, None);
    values.for_each_f32(|values| {
        found = found.or_else(|| values.iter().position(|v| !v.is_finite()).map(|at| before + at));
        before += values.len();
    });
    found.unwrap_or(0)
}

/// One chunk of everything that an update touches.
struct Task<'a> {
    gradient: Span<'a>,
    weights: &'a mut [f32],
    mirror: Option<&'a mut [u16]>,
    slots: Vec<&'a mut [f32]>,
}

/// What one update does to each weight, its gradient and its state.
pub(crate) enum Rule {
    Sgd(SgdStep),
    Adam(AdamStep),
}

impl Rule {
    /// The rule of update number `step` (from 0), whose gradient is multiplied by
    /// `factor`.
    pub(crate) fn new(settings: &TrainConfig, step: u64, lr: f64, factor: f64) -> Self {
        let decoupled = settings.optimizer == OptimizerKind::Adamw;
        match settings.optimizer {
            OptimizerKind::Sgd => Self::Sgd(SgdStep {
                lr: lr as f32,
                factor: factor as f32,
                momentum: settings.momentum as f32,
                weight_decay: settings.weight_decay as f32,
            }),
            OptimizerKind::Adam | OptimizerKind::Adamw => {
                let updates = (step + 1) as f64;
                let (correct1, correct2) = (1.0 - settings.beta1.powf(updates), 1.0 - settings.beta2.powf(updates));
                Self::Adam(AdamStep {
                    rate: (lr / correct1) as f32,
                    factor: factor as f32,
                    beta1: settings.beta1 as f32,
                    rest1: (1.0 - settings.beta1) as f32,
                    beta2: settings.beta2 as f32,
                    rest2: (1.0 - settings.beta2) as f32,
                    root_correct2: correct2.sqrt() as f32,
                    epsilon: settings.epsilon as f32,
                    weight_decay: if decoupled { 0.0 } else { settings.weight_decay as f32 },
                    shrink: if decoupled { (1.0 - lr * settings.weight_decay) as f32 } else { 1.0 },
                })
            }
        }
    }

    fn apply(&self, task: Task<'_>) {
        let Task { gradient, weights, mirror, mut slots } = task;
        let mut at = 0;
        gradient.for_each_f32(|gradient| {
            let range = at..at + gradient.len();
            at = range.end;
            let weights = &mut weights[range.clone()];
            match (self, slots.as_mut_slice()) {
                (Self::Sgd(step), [momentum]) => kernels::sgd(step, weights, gradient, &mut momentum[range]),
                (Self::Adam(step), [m, v]) => kernels::adam(step, weights, gradient, &mut m[range.clone()], &mut v[range]),
                _ => unreachable!("slots are made for the optimizer's kind"),
            }
        });
        // The chunk just written is still in the cache.
        if let Some(mirror) = mirror {
            f32_to_bf16(weights, mirror);
        }
    }
}
