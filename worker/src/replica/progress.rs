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
    /// The best value, and evaluations since then.
    best: Option<f64>,
    since_best: u32,
    /// For the learning rate: the best value, and evaluations since then that were no better.
    plateau_best: Option<f64>,
    plateau_bad: u32,
    /// How often the learning rate was reduced.
    reductions: u32,
}

impl Progress {
    /// Before the first evaluation.
    pub fn new(train: &TrainConfig) -> Self {
        Self { metric: train.keep_metric, best: None, since_best: 0, plateau_best: None, plateau_bad: 0, reductions: 0 }
    }

    /// How often the learning rate was reduced.
    pub fn reductions(&self) -> u32 {
        self.reductions
    }

    /// Whether the newest evaluation was better than all before it.
    pub fn is_best(&self) -> bool {
        self.best.is_some() && self.since_best == 0
    }

    /// Whether the run ends because evaluations get no better.
    pub fn is_exhausted(&self, train: &TrainConfig) -> bool {
        train.patience.is_some_and(|patience| self.since_best >= patience)
    }

    /// What one more evaluation makes of it. `reduces` says whether one more reduction than so
    /// many would change the learning rate.
    #[must_use]
    pub fn after(self, train: &TrainConfig, evaluation: &Evaluation, reduces: impl Fn(u32) -> bool) -> Self {
        // Values of another metric compare with nothing.
        let mut next = if self.metric == train.keep_metric { self } else { Self { reductions: self.reductions, ..Self::new(train) } };
        let value = evaluation.value(next.metric);
        if next.best.is_none_or(|best| next.metric.is_better(value, best, 0.0)) && !value.is_nan() {
            (next.best, next.since_best) = (Some(value), 0);
        } else {
            next.since_best += 1;
        }
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
        let (best, plateau) = (bits(self.best), bits(self.plateau_best));
        format!("{} {best} {} {plateau} {} {}", self.metric.name(), self.since_best, self.plateau_bad, self.reductions)
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
        let (best, since_best) = (value(word()?)?, count(word()?)?);
        let (plateau_best, plateau_bad, reductions) = (value(word()?)?, count(word()?)?, count(word()?)?);
        let progress = Self { metric, best, since_best, plateau_best, plateau_bad, reductions };
        if words.next().is_some() { Err(damaged()) } else { Ok(progress) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn evaluation(top1: f64, loss: f64) -> Evaluation {
        Evaluation { step: 1, epoch: 1, loss, top1, top5: 0.9, samples: 10 }
    }

    #[test]
    fn a_run_ends_when_evaluations_get_no_better() {
        let train = TrainConfig { patience: Some(2), ..TrainConfig::default() };
        let mut progress = Progress::new(&train);
        let mut seen = Vec::new();
        for top1 in [0.1, 0.3, 0.3, 0.4, f64::NAN, 0.4] {
            progress = progress.after(&train, &evaluation(top1, 1.0), |_| true);
            seen.push((progress.is_best(), progress.is_exhausted(&train)));
            assert_eq!(Progress::decode(&progress.encode()).unwrap(), progress);
        }
        assert_eq!(seen, [(true, false), (true, false), (false, false), (true, false), (false, false), (false, true)]);
        assert!(!progress.is_exhausted(&TrainConfig { patience: Some(3), ..train }), "a run may go on with more patience");
    }

    #[test]
    fn another_metric_begins_anew() {
        let train = TrainConfig { patience: Some(1), ..TrainConfig::default() };
        let before = Progress::new(&train).after(&train, &evaluation(0.9, 0.5), |_| true);
        let by_loss = TrainConfig { keep_metric: Metric::Loss, ..train };
        let first = before.after(&by_loss, &evaluation(0.1, 2.0), |_| true);
        assert!(first.is_best());
        assert!(first.after(&by_loss, &evaluation(0.1, 1.9), |_| true).is_best(), "a lower loss is better");
    }
}
