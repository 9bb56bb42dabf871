//! SGD with momentum, Adam, AdamW, LARS and LAMB: what one update does to each weight
//! (`Rule`), and the optimizer that does it to flat vectors in host memory, fused into one
//! pass over gradient, weights and state. LARS and LAMB need norms of each parameter before
//! that, which `norms` makes the same on every device. Nothing here depends on a tensor or a
//! network but on where parameters lie, and the result depends neither on the number of
//! threads nor on how a gradient is cut into buckets.

mod kernels;
pub(crate) mod norms;
pub(crate) mod rule;
#[cfg(test)]
mod tests;
mod update;

use std::ops::Range;
use std::sync::Arc;

use common::config::TrainConfig;
use common::ring::{Bucket, Span};
use common::simd::f32_to_bf16;
use rayon::prelude::*;

use crate::models::ParamLayout;
pub(crate) use kernels::LambStep;
pub(crate) use rule::Rule;
use rule::{Pairs, is_adapted, ratios, scales};
pub use update::{Clipped, Update, UpdateReport};

/// Values that one thread works on at a time. Fixed, so that partial sums are the
/// same however many threads there are.
const CHUNK: usize = 1 << 16;

/// Up to so many chunks are computed by the calling thread, which takes less time than
/// to wake other threads.
const FEW: usize = 4;

/// An optimizer and its state for the part of a flat vector of weights that is trained.
#[derive(Debug)]
pub struct Optimizer {
    settings: TrainConfig,
    layout: ParamLayout,
    /// In the order of [`TrainConfig::state`].
    slots: Vec<Vec<f32>>,
    /// The moving average of the weights.
    average: Option<Vec<f32>>,
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
    /// An optimizer of these parameters with zero state.
    pub fn new(train: &TrainConfig, layout: &ParamLayout, threads: Threads) -> Self {
        let mut slots: Vec<_> = train.state().iter().map(|_| vec![0.0; layout.trained_total()]).collect();
        let average = if train.ema.is_some() { slots.pop() } else { None };
        Self { settings: train.clone(), layout: layout.clone(), slots, average, threads }
    }

    /// The state by name, each as long as the weights.
    pub fn state(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        self.settings.state().into_iter().zip(self.slots.iter().chain(&self.average).map(Vec::as_slice))
    }

    /// The state to be overwritten, by name.
    pub fn state_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut [f32])> {
        self.settings.state().into_iter().zip(self.slots.iter_mut().chain(&mut self.average).map(Vec::as_mut_slice))
    }

    /// Exchanges the weights with their average, if there is one; `mirror` as for
    /// [`Self::step`].
    pub fn swap_average(&mut self, weights: &mut [f32], mirror: Option<&mut [u16]>) {
        if let Some(average) = &mut self.average {
            weights.swap_with_slice(average);
            if let Some(mirror) = mirror {
                f32_to_bf16(weights, mirror);
            }
        }
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
        let clipped = update.clip(self.settings.clip_norm, self.threads.norm(gradient, self.layout.running())?);
        self.step(weights, mirror, gradient, Update { factor: clipped.factor, ..update });
        Ok(clipped.report)
    }

    /// Applies an update, whose factor is the whole one. `mirror`, where given, receives the
    /// new weights as bf16. The mirror, and the gradient's buckets back to back, are as long
    /// as the weights.
    pub fn step(&mut self, weights: &mut [f32], mirror: Option<&mut [u16]>, gradient: &[impl Bucket], update: Update) {
        let total: usize = gradient.iter().map(|bucket| bucket.span().len()).sum();
        assert_eq!((total, total), (weights.len(), self.layout.trained_total()), "the gradient's buckets must cover the weights");
        let ratios = if self.settings.optimizer.is_layerwise() {
            if let Some(first) = Rule::first(&self.settings, update) {
                self.apply(&[(0..total - self.layout.running(), first)], weights, None, gradient, None);
            }
            self.ratios(weights, gradient, update)
        } else {
            Vec::new()
        };
        let runs = Rule::runs(&self.settings, &self.layout, update, &ratios);
        self.apply(&runs, weights, mirror, gradient, Rule::average(&self.settings, update));
    }

    /// Does what each rule says to its range of everything that an update touches. `rest`: how
    /// far the average of the weights follows them.
    fn apply(
        &mut self,
        runs: &[(Range<usize>, Rule)],
        weights: &mut [f32],
        mirror: Option<&mut [u16]>,
        gradient: &[impl Bucket],
        rest: Option<f32>,
    ) {
        let (mut weights, mut mirror) = (weights, mirror);
        let mut slots: Vec<&mut [f32]> = self.slots.iter_mut().map(Vec::as_mut_slice).collect();
        let mut average = rest.and(self.average.as_deref_mut());
        let task = |Piece { of, gradient, .. }| {
            let n = gradient.len();
            Task {
                rule: runs[of].1,
                gradient,
                weights: weights.split_off_mut(..n).unwrap_or_default(),
                mirror: mirror.as_mut().and_then(|m| m.split_off_mut(..n)),
                slots: slots.iter_mut().map(|s| s.split_off_mut(..n).unwrap_or_default()).collect(),
                average: average.as_mut().and_then(|a| a.split_off_mut(..n)).zip(rest),
            }
        };
        let tasks = cut(gradient, runs.iter().map(|(range, _)| range.clone()).enumerate()).into_iter().map(task).collect();
        self.threads.map(tasks, Task::run);
    }

    /// By what the learning rate of each parameter is multiplied.
    fn ratios(&self, weights: &[f32], gradient: &[impl Bucket], update: Update) -> Vec<f64> {
        let params = self.layout.params();
        let mut pieces = cut(gradient, self.layout.trained().map(|(number, param)| (number, param.range())));
        pieces.retain(|piece| is_adapted(&params[piece.of]));
        let lamb = Rule::direction(&self.settings, update);
        let places: Vec<usize> = pieces.iter().map(|piece| piece.of).collect();
        let of_pieces = pieces.clone();
        let each_largest = self.threads.map(of_pieces, |piece| {
            let mut most = 0.0;
            self.directions(lamb, weights, &piece, |values| most = larger(most, norms::largest(values)));
            [norms::largest(&weights[piece.range()]), most]
        });
        let mut most: Pairs<f32> = vec![[0.0; 2]; params.len()];
        for (&of, found) in places.iter().zip(each_largest) {
            most[of] = [larger(most[of][0], found[0]), larger(most[of][1], found[1])];
        }
        let scales = scales(&self.layout, &most);
        let each_sum = self.threads.map(pieces, |piece| {
            let (of, mut sum) = (scales[piece.of], 0);
            self.directions(lamb, weights, &piece, |values| sum += norms::squares(values, of[1]));
            [norms::squares(&weights[piece.range()], of[0]), sum]
        });
        let mut sums: Pairs<i64> = vec![[0; 2]; params.len()];
        for (&of, found) in places.iter().zip(each_sum) {
            sums[of] = [sums[of][0] + found[0], sums[of][1] + found[1]];
        }
        ratios(&self.settings, &self.layout, update, &sums, &scales)
    }

    /// Hands the direction of a piece's update to `each`, part by part: of LAMB what its step
    /// says, else the gradient.
    fn directions(&self, lamb: Option<LambStep>, weights: &[f32], piece: &Piece<'_>, mut each: impl FnMut(&[f32])) {
        let (Some(step), [m, v]) = (lamb, self.slots.as_slice()) else { return piece.gradient.for_each_f32(each) };
        let mut block = [0.0; 1024];
        for start in piece.range().step_by(block.len()) {
            let range = start..piece.range().end.min(start + block.len());
            let directions = &mut block[..range.len()];
            kernels::lamb_direction(&step, &weights[range.clone()], &m[range.clone()], &v[range], directions);
            each(directions);
        }
    }
}

/// The larger one, or the one that is NaN.
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// A part of a gradient, at most [`CHUNK`] values, that lies in one range of several.
#[derive(Debug, Clone, Copy)]
struct Piece<'a> {
    /// Which range.
    of: usize,
    start: usize,
    gradient: Span<'a>,
}

impl Piece<'_> {
    fn range(&self) -> Range<usize> {
        self.start..self.start + self.gradient.len()
    }
}

/// Cuts a gradient, given as buckets, where buckets end and where the numbered ranges do, which
/// cover it in order.
fn cut<'a>(gradient: &'a [impl Bucket], ranges: impl Iterator<Item = (usize, Range<usize>)>) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let (mut start, mut ranges) = (0, ranges.peekable());
    for bucket in gradient {
        let mut rest = bucket.span();
        while !rest.is_empty() {
            while ranges.next_if(|(_, range)| range.end <= start).is_some() {}
            let Some((of, range)) = ranges.peek() else { break };
            let n = rest.len().min(range.end - start).min(CHUNK);
            pieces.push(Piece { of: *of, start, gradient: rest.range(0..n) });
            (start, rest) = (start + n, rest.range(n..rest.len()));
        }
    }
    pieces
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

    /// The Euclidean norm of a gradient given as buckets, summed in f64. Its last `running`
    /// values are those of running statistics: they must be finite too, and count for nothing.
    ///
    /// # Errors
    /// The first value, in the order of the flat vector, that is not finite.
    pub fn norm(&self, gradient: &[impl Bucket], running: usize) -> Result<f64, NotFinite> {
        let total: usize = gradient.iter().map(|bucket| bucket.span().len()).sum();
        let trained = total - running;
        let (mut before, mut after, mut at) = (Vec::new(), Vec::new(), 0);
        for span in gradient.iter().map(Bucket::span) {
            let cut = trained.saturating_sub(at).min(span.len());
            before.extend((cut > 0).then(|| span.range(0..cut)));
            after.extend((cut < span.len()).then(|| span.range(cut..span.len())));
            at += span.len();
        }
        let norm = self.norm_of(&before)?;
        self.norm_of(&after).map_err(|found| NotFinite { at: trained + found.at })?;
        Ok(norm)
    }

    fn norm_of(&self, spans: &[Span<'_>]) -> Result<f64, NotFinite> {
        let chunks = spans.iter().flat_map(|span| span.chunks(CHUNK)).collect();
        let mut partial = self.map(chunks, sum_of_squares).into_iter();
        let (mut sum, mut start) = (0.0, 0);
        for &values in spans {
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

/// One chunk of everything that an update touches, and what it does there.
struct Task<'a> {
    rule: Rule,
    gradient: Span<'a>,
    weights: &'a mut [f32],
    mirror: Option<&'a mut [u16]>,
    slots: Vec<&'a mut [f32]>,
    average: Option<(&'a mut [f32], f32)>,
}

impl Task<'_> {
    fn run(self) {
        let Task { rule, gradient, weights, mirror, mut slots, average } = self;
        let mut at = 0;
        gradient.for_each_f32(|gradient| {
            let range = at..at + gradient.len();
            at = range.end;
            let weights = &mut weights[range.clone()];
            match (rule, slots.as_mut_slice()) {
                (Rule::Sgd(step), [momentum]) => kernels::sgd(&step, weights, gradient, &mut momentum[range]),
                (Rule::Adam(step), [m, v]) => kernels::adam(&step, weights, gradient, &mut m[range.clone()], &mut v[range]),
                (Rule::Lars(step), [momentum]) => kernels::lars(&step, weights, gradient, &mut momentum[range]),
                (Rule::Moments(step), [m, v]) => kernels::moments(&step, gradient, &mut m[range.clone()], &mut v[range]),
                (Rule::Lamb(step), [m, v]) => kernels::lamb(&step, weights, &m[range.clone()], &v[range]),
                (Rule::Running, _) => kernels::running(weights, gradient),
                _ => unreachable!("slots are made for the optimizer's kind"),
            }
        });
        // The chunk just written is still in the cache.
        match average {
            Some((average, _)) if rule == Rule::Running => average.copy_from_slice(weights),
            Some((average, rest)) => kernels::average(rest, weights, average),
            None => {}
        }
        if let Some(mirror) = mirror {
            f32_to_bf16(weights, mirror);
        }
    }
}
