//! The optimizers' element-wise loops.

use common::vectorised;

/// Constants of one SGD update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SgdStep {
    pub(crate) lr: f32,
    pub(crate) factor: f32,
    pub(crate) momentum: f32,
    pub(crate) weight_decay: f32,
    pub(crate) nesterov: bool,
}

/// Constants of one Adam or AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AdamStep {
    /// The learning rate over the first moment's bias correction.
    pub(crate) rate: f32,
    pub(crate) factor: f32,
    pub(crate) beta1: f32,
    pub(crate) rest1: f32,
    pub(crate) beta2: f32,
    pub(crate) rest2: f32,
    pub(crate) root_correct2: f32,
    pub(crate) epsilon: f32,
    /// Adam: its product with the weight is added to the gradient.
    pub(crate) weight_decay: f32,
    /// AdamW: the factor by which weights are multiplied first.
    pub(crate) shrink: f32,
}

/// Constants of one update by LARS.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LarsStep {
    /// The learning rate times the layer's ratio.
    pub(crate) rate: f32,
    pub(crate) factor: f32,
    pub(crate) momentum: f32,
    pub(crate) weight_decay: f32,
}

/// Constants of the first part of an update by LAMB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MomentsStep {
    pub(crate) factor: f32,
    pub(crate) beta1: f32,
    pub(crate) rest1: f32,
    pub(crate) beta2: f32,
    pub(crate) rest2: f32,
}

/// Constants of the second part of an update by LAMB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LambStep {
    /// The learning rate times the layer's ratio.
    pub(crate) rate: f32,
    /// What the first moment's bias correction multiplies by.
    pub(crate) correct1: f32,
    pub(crate) root_correct2: f32,
    pub(crate) epsilon: f32,
    pub(crate) weight_decay: f32,
}

vectorised! {
    /// PyTorch's rule: `buf = momentum * buf + (g + weight_decay * w)`, `w -= lr * buf`.
    fn plain_sgd(step: &SgdStep, weights: &mut [f32], gradient: &[f32], momentum: &mut [f32]) {
        for ((w, g), buf) in weights.iter_mut().zip(gradient).zip(momentum) {
            let direction = g * step.factor + step.weight_decay * *w;
            *buf = step.momentum * *buf + direction;
            *w -= step.lr * *buf;
        }
    }
}

vectorised! {
    /// The same, but `w -= lr * (g + weight_decay * w + momentum * buf)`.
    fn nesterov_sgd(step: &SgdStep, weights: &mut [f32], gradient: &[f32], momentum: &mut [f32]) {
        for ((w, g), buf) in weights.iter_mut().zip(gradient).zip(momentum) {
            let direction = g * step.factor + step.weight_decay * *w;
            *buf = step.momentum * *buf + direction;
            *w -= step.lr * (direction + step.momentum * *buf);
        }
    }
}

pub(super) fn sgd(step: &SgdStep, weights: &mut [f32], gradient: &[f32], momentum: &mut [f32]) {
    if step.nesterov { nesterov_sgd(step, weights, gradient, momentum) } else { plain_sgd(step, weights, gradient, momentum) }
}

vectorised! {
    /// You, Gitman and Ginsburg 2017, algorithm 1: the learning rate is part of the momentum.
    pub(super) fn lars(step: &LarsStep, weights: &mut [f32], gradient: &[f32], momentum: &mut [f32]) {
        for ((w, g), buf) in weights.iter_mut().zip(gradient).zip(momentum) {
            let direction = g * step.factor + step.weight_decay * *w;
            *buf = step.momentum * *buf + step.rate * direction;
            *w -= *buf;
        }
    }
}

vectorised! {
    /// The moments of Adam.
    pub(super) fn moments(step: &MomentsStep, gradient: &[f32], m: &mut [f32], v: &mut [f32]) {
        for ((g, m), v) in gradient.iter().zip(m).zip(v) {
            let g = g * step.factor;
            *m = step.beta1 * *m + step.rest1 * g;
            *v = step.beta2 * *v + step.rest2 * g * g;
        }
    }
}

vectorised! {
    /// Kingma and Ba 2014 in PyTorch's form: `w -= lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)`.
    pub(super) fn adam(step: &AdamStep, weights: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((w, g), m), v) in weights.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * step.factor + step.weight_decay * *w;
            *m = step.beta1 * *m + step.rest1 * g;
            *v = step.beta2 * *v + step.rest2 * g * g;
            *w = step.shrink * *w - step.rate * *m / (v.sqrt() / step.root_correct2 + step.epsilon);
        }
    }
}

vectorised! {
    /// `running -= reduction`.
    pub(super) fn running(statistics: &mut [f32], reduction: &[f32]) {
        for (s, r) in statistics.iter_mut().zip(reduction) {
            *s -= r;
        }
    }
}

vectorised! {
    /// An exponential moving average: `average += rest * (w - average)`.
    pub(super) fn average(rest: f32, weights: &[f32], average: &mut [f32]) {
        for (e, w) in average.iter_mut().zip(weights) {
            *e += rest * (w - *e);
        }
    }
}

/// The direction of You et al. 2019, algorithm 2, with its weight decay:
/// `m / c1 / (sqrt(v) / sqrt(c2) + eps) + weight_decay * w`.
#[inline(always)]
fn direction(step: &LambStep, w: f32, m: f32, v: f32) -> f32 {
    step.correct1 * m / (v.sqrt() / step.root_correct2 + step.epsilon) + step.weight_decay * w
}

vectorised! {
    /// `w -= rate * direction`, after [`moments`].
    pub(super) fn lamb(step: &LambStep, weights: &mut [f32], m: &[f32], v: &[f32]) {
        for ((w, m), v) in weights.iter_mut().zip(m).zip(v) {
            *w -= step.rate * direction(step, *w, *m, *v);
        }
    }
}

vectorised! {
    pub(super) fn lamb_direction(step: &LambStep, weights: &[f32], m: &[f32], v: &[f32], directions: &mut [f32]) {
        for (((w, m), v), u) in weights.iter().zip(m).zip(v).zip(directions) {
            *u = direction(step, *w, *m, *v);
        }
    }
}

/// Independent partial sums: enough for the loop to use whole vector registers.
const LANES: usize = 16;

vectorised! {
    pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            for (lane, &value) in lanes.iter_mut().zip(values) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        let rest: f64 = rest.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        lanes.iter().sum::<f64>() + rest
    }
}
