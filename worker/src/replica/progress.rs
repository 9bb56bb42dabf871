//! What the evaluations of a run have decided: a part of the training state, so that it is the
//! same on all ranks, and in a run that goes on.

use common::config::{Metric, ScheduleKind, TrainConfig};
use common::metrics::Evaluation;

use super::error::ReplicaError;

/// By how much an evaluation has to be better, as a share, to end a plateau: PyTorch's default.
const THRESHOLD: f64 = 1e-4;

/// How evaluations have gone so far. The state after a step holds what those before that step
/// have decided: one that follows the step counts with the next one, since a ring that breaks
/// there makes it again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    metric: Metric,
    /// For the learning rate: the best value, and evaluations since then that were no better.
    plateau_best: Option<f64>,
    plateau_bad: u32,
    /// How often the learning rate was reduced.
    reductions: u32,
}

impl Progress {
    /// Before the first evaluation.
    pub fn new(train: &TrainConfig) -> Self {
        Self { metric: train.keep_metric, plateau_best: None, plateau_bad: 0, reductions: 0 }
    }

    /// How often the learning rate was reduced.
    pub fn reductions(&self) -> u32 {
        self.reductions
    }

    /// What one more evaluation makes of it. `reduces` says whether one more reduction than so
    /// many would change the learning rate.
    #[must_use]
    pub fn after(self, train: &TrainConfig, evaluation: &Evaluation, reduces: impl Fn(u32) -> bool) -> Self {
        // Values of another metric compare with nothing.
        let mut next = if self.metric == train.keep_metric { self } else { Self { reductions: self.reductions, ..Self::new(train) } };
        let value = next.metric.of(evaluation);
        if train.schedule == ScheduleKind::Plateau {
            if next.plateau_best.is_none_or(|best| next.metric.is_better(value, best, THRESHOLD)) {
                (next.plateau_best, next.plateau_bad) = (Some(value), 0);
            } else {
                next.plateau_bad += 1;
            }
            if next.plateau_bad > train.plateau_patience {
                next.plateau_bad = 0;
                next.reductions += u32::from(reduces(next.reductions));
            }
        }
        next
    }

    /// As text, exactly: numbers by their bits.
    pub(super) fn encode(&self) -> String {
        let bits = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{:016x}", value.to_bits()));
        format!("{} {} {} {}", self.metric.name(), bits(self.plateau_best), self.plateau_bad, self.reductions)
    }

    pub(super) fn decode(text: &str) -> Result<Self, ReplicaError> {
        let damaged = || ReplicaError::State(format!("the optimizer's metadata has the progress `{text}`, which is none"));
        let mut words = text.split(' ');
        let mut word = || words.next().ok_or_else(damaged);
        let name = word()?;
        let metric = [Metric::Top1, Metric::Top5, Metric::Loss].into_iter().find(|metric| metric.name() == name).ok_or_else(damaged)?;
        let value = |word: &str| match word {
            "-" => Ok(None),
            bits => u64::from_str_radix(bits, 16).map(|bits| Some(f64::from_bits(bits))).map_err(|_| damaged()),
        };
        let count = |word: &str| word.parse::<u32>().map_err(|_| damaged());
        let progress = Self { metric, plateau_best: value(word()?)?, plateau_bad: count(word()?)?, reductions: count(word()?)? };
        if words.next().is_some() { Err(damaged()) } else { Ok(progress) }
    }
}
