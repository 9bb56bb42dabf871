//! The optimizers' element-wise loops.

use common::vectorised;

/// Constants of one SGD update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SgdStep {
    pub(crate) lr: f32,
    pub(crate) factor: f32,
    pub(crate) momentum: f32,
    pub(crate) weight_decay: f32,
}

/// Constants of one Adam or AdamW update.
#[derive(Debug, Clone, Copy)]
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

vectorised! {
    /// PyTorch's rule: `buf = momentum * buf + (g + weight_decay * w)`, `w -= lr * buf`.
    pub(super) fn sgd(step: &SgdStep, weights: &mut [f32], gradient: &[f32], momentum: &mut [f32]) {
        for ((w, g), buf) in weights.iter_mut().zip(gradient).zip(momentum) {
            let direction = g * step.factor + step.weight_decay * *w;
            *buf = step.momentum * *buf + direction;
            *w -= step.lr * *buf;
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
