//! What one update does to each weight, and to which weights it does the same.

use std::ops::Range;

use common::config::{OptimizerKind, TrainConfig};

use super::kernels::{AdamStep, LambStep, LarsStep, MomentsStep, SgdStep};
use super::norms;
use super::update::Update;
use crate::models::{ParamLayout, ParamSpec};

/// What one update does to each weight, its gradient and its state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rule {
    Sgd(SgdStep),
    Adam(AdamStep),
    Lars(LarsStep),
    /// The first part of an update of LAMB: norms of what it gives decide the second part.
    Moments(MomentsStep),
    Lamb(LambStep),
    /// Running statistics are reduced by what stands in the gradient's place, which neither a
    /// learning rate nor clipping scales. Their moving average is a copy of them.
    Running,
}

impl Rule {
    /// The rule of an update whose factor is the whole one, with clipping. `decays`: weight
    /// decay acts on these weights. `ratio`: by which the learning rate is multiplied.
    fn new(settings: &TrainConfig, update: Update, decays: bool, ratio: f64) -> Self {
        let Update { step, lr, factor } = update;
        let decay = if decays { settings.weight_decay } else { 0.0 };
        let updates = (step + 1) as f64;
        let (correct1, correct2) = (1.0 - settings.beta1.powf(updates), 1.0 - settings.beta2.powf(updates));
        match settings.optimizer {
            OptimizerKind::Sgd => Self::Sgd(SgdStep {
                lr: lr as f32,
                factor: factor as f32,
                momentum: settings.momentum as f32,
                weight_decay: decay as f32,
                nesterov: settings.nesterov,
            }),
            OptimizerKind::Adam | OptimizerKind::Adamw => {
                let decoupled = settings.optimizer == OptimizerKind::Adamw;
                Self::Adam(AdamStep {
                    rate: (lr / correct1) as f32,
                    factor: factor as f32,
                    beta1: settings.beta1 as f32,
                    rest1: (1.0 - settings.beta1) as f32,
                    beta2: settings.beta2 as f32,
                    rest2: (1.0 - settings.beta2) as f32,
                    root_correct2: correct2.sqrt() as f32,
                    epsilon: settings.epsilon as f32,
                    weight_decay: if decoupled { 0.0 } else { decay as f32 },
                    shrink: if decoupled { (1.0 - lr * decay) as f32 } else { 1.0 },
                })
            }
            OptimizerKind::Lars => Self::Lars(LarsStep {
                rate: (lr * ratio) as f32,
                factor: factor as f32,
                momentum: settings.momentum as f32,
                weight_decay: decay as f32,
            }),
            OptimizerKind::Lamb => Self::Lamb(LambStep {
                rate: (lr * ratio) as f32,
                correct1: (1.0 / correct1) as f32,
                root_correct2: correct2.sqrt() as f32,
                epsilon: settings.epsilon as f32,
                weight_decay: decay as f32,
            }),
        }
    }

    /// How much of the way to the new weights their moving average goes, if there is one. After
    /// the first update it is the weights.
    pub(crate) fn average(settings: &TrainConfig, update: Update) -> Option<f32> {
        settings.ema.map(|ema| if update.step == 0 { 1.0 } else { (1.0 - ema) as f32 })
    }

    /// What an update does before its norms are known, if it does anything.
    pub(crate) fn first(settings: &TrainConfig, update: Update) -> Option<Self> {
        let moments = MomentsStep {
            factor: update.factor as f32,
            beta1: settings.beta1 as f32,
            rest1: (1.0 - settings.beta1) as f32,
            beta2: settings.beta2 as f32,
            rest2: (1.0 - settings.beta2) as f32,
        };
        (settings.optimizer == OptimizerKind::Lamb).then_some(Self::Moments(moments))
    }

    /// The direction of an update of LAMB, of weights that decay: what it multiplies by the
    /// learning rate is measured of it. That of LARS is the gradient.
    pub(crate) fn direction(settings: &TrainConfig, update: Update) -> Option<LambStep> {
        if let Self::Lamb(step) = Self::new(settings, update, true, 1.0) { Some(step) } else { None }
    }

    /// The ranges of the flat vector, in order, and the rule of each. Parameters with the same
    /// one are in one range. `ratios` has one for each parameter, or is empty where all are 1.
    pub(crate) fn runs(settings: &TrainConfig, layout: &ParamLayout, update: Update, ratios: &[f64]) -> Vec<(Range<usize>, Self)> {
        let mut runs: Vec<(Range<usize>, Self)> = Vec::new();
        for (number, param) in layout.trained() {
            let decays = settings.decay_bias || !param.is_vector();
            let rule = match param.role().is_running() {
                true => Self::Running,
                false => Self::new(settings, update, decays, ratios.get(number).copied().unwrap_or(1.0)),
            };
            match runs.last_mut() {
                Some((range, last)) if *last == rule => range.end = param.range().end,
                _ => runs.push((param.range(), rule)),
            }
        }
        runs
    }
}

/// Something of each parameter: of its weights, and of the direction of their update.
pub(crate) type Pairs<T> = Vec<[T; 2]>;

/// Whether a parameter has a learning rate of its own. Those of one dimension have not, as in
/// TensorFlow's `LARSOptimizer` (`skip_list`, by which MLPerf's ResNet-50 leaves out biases and
/// norms) and in the `LAMBOptimizer` of the paper's authors (`exclude_from_layer_adaptation`).
pub(crate) fn is_adapted(param: &ParamSpec) -> bool {
    !param.is_vector() && !param.is_frozen()
}

/// The [`norms::scale`] of each norm, from the largest absolute values.
pub(crate) fn scales(layout: &ParamLayout, largest: &[[f32; 2]]) -> Pairs<f64> {
    let params = layout.params().iter().zip(largest);
    params.map(|(param, largest)| largest.map(|largest| norms::scale(largest, param.range().len()))).collect()
}

/// By what the learning rate of each parameter is multiplied, from the sums of the
/// [`norms::squares`]. It is 1 where a norm is 0 or not known.
///
/// LARS: `trust_coefficient * |w| / (|g| + weight_decay * |w|)`. LAMB: `|w| / |u|`, where u is
/// the update with its weight decay.
pub(crate) fn ratios(settings: &TrainConfig, layout: &ParamLayout, update: Update, sums: &[[i64; 2]], scales: &[[f64; 2]]) -> Vec<f64> {
    let ratio = |((param, sums), scales): ((&ParamSpec, &[i64; 2]), &[f64; 2])| {
        let [weights, direction] = [0, 1].map(|of| norms::norm(sums[of], scales[of]));
        if !is_adapted(param) || weights == 0.0 || direction == 0.0 {
            return 1.0;
        }
        match settings.optimizer {
            OptimizerKind::Lars => {
                settings.trust_coefficient * weights / (direction * update.factor.abs() + settings.weight_decay * weights)
            }
            _ => weights / direction,
        }
    };
    layout.params().iter().zip(sums).zip(scales).map(ratio).collect()
}
