//! Decides whether training is over before its last step.

use super::job::Job;

/// Ends training after an epoch in which every sample was classified correctly when it
/// was trained on, if the model is one that stops then.
#[derive(Debug, Clone)]
pub struct EarlyStop {
    applies: bool,
    steps_per_epoch: u64,
    /// Mistakes in this epoch; none if training started or resumed within the epoch.
    mistakes: Option<u64>,
}

impl EarlyStop {
    /// Training starts or resumes at step `first`.
    pub fn new(job: &Job, first: u64) -> Self {
        let steps_per_epoch = job.length.steps_per_epoch;
        let mistakes = first.is_multiple_of(steps_per_epoch).then_some(0);
        Self { applies: job.config.model.stops_when_right(), steps_per_epoch, mistakes }
    }

    /// Adds the sums of a step over all ranks, after which `steps` steps are committed.
    /// True when training is over.
    pub fn reached(&mut self, steps: u64, right: u64, count: u64) -> bool {
        self.mistakes = self.mistakes.map(|n| n + count.saturating_sub(right));
        if !steps.is_multiple_of(self.steps_per_epoch) {
            return false;
        }
        let faultless = self.mistakes.replace(0) == Some(0);
        self.applies && faultless
    }
}
