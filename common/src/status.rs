//! The current status of a run, in one place: displays (a progress bar, a page) watch
//! it and cannot delay the run.

use crate::metrics::Recovery;
use crate::metrics::{Evaluation, StepMetrics, TimeShares};
use crate::plan::Ownership;

/// Weight of the newest step in the running averages.
const SMOOTH: f64 = 0.1;

/// The visible state of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// Steps of the whole run, and epochs.
    pub steps: u64,
    pub epochs: u64,
    /// The newest generation; 0 before the first, and in a single-node run.
    pub generation: u64,
    /// Its members, by rank; none in a single-node run.
    pub members: Vec<MemberStatus>,
    /// The newest step on the record.
    pub step: Option<StepMetrics>,
    pub rates: Option<Rates>,
    pub evaluation: Option<Evaluation>,
    /// The newest checkpoint holds the state after this many steps.
    pub checkpoint: Option<u64>,
    /// Losses of workers that the run has survived, and the last of them.
    pub recoveries: u64,
    pub recovery: Option<Recovery>,
    /// Different samples that were left out because they do not decode.
    pub skipped: u64,
}

/// A member of the newest generation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemberStatus {
    pub name: String,
    /// Where it listens for its predecessor in the ring.
    pub address: String,
    /// The worker's own description; empty until it is known.
    pub device: String,
    /// The first of its shards, and the first shard after them.
    pub shards: (u32, u32),
    /// Steps that it has committed, according to its last heartbeat.
    pub step: u64,
    /// Its own samples of the last step, per second.
    pub images_per_second: f64,
    /// The samples that it computes in a second, waiting for others left out, according
    /// to its last heartbeat.
    pub speed: Option<f64>,
    /// Where its time goes, according to its last heartbeat.
    pub shares: Option<TimeShares>,
}

/// Running averages of the steps' metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    pub loss: f64,
    pub top1: f64,
    pub images_per_second: f64,
    /// Shares of a step spent waiting for data, and for gradients.
    pub data_wait: f64,
    pub gradient_wait: f64,
    /// How long a step takes.
    pub step_ms: f64,
    images: f64,
    data_ms: f64,
    reduce_ms: f64,
}

impl Rates {
    fn of(m: &StepMetrics) -> Self {
        let rates = Self {
            loss: m.loss,
            top1: m.top1,
            images_per_second: 0.0,
            data_wait: 0.0,
            gradient_wait: 0.0,
            step_ms: m.step_ms,
            images: m.samples as f64,
            data_ms: m.data_wait_ms,
            reduce_ms: m.all_reduce_exposed_ms,
        };
        rates.with_shares()
    }

    fn after(mut self, m: &StepMetrics) -> Self {
        for (average, now) in [
            (&mut self.loss, m.loss),
            (&mut self.top1, m.top1),
            (&mut self.step_ms, m.step_ms),
            (&mut self.images, m.samples as f64),
            (&mut self.data_ms, m.data_wait_ms),
            (&mut self.reduce_ms, m.all_reduce_exposed_ms),
        ] {
            *average += SMOOTH * (now - *average);
        }
        self.with_shares()
    }

    fn with_shares(self) -> Self {
        let step_ms = self.step_ms.max(1e-9);
        Self {
            images_per_second: 1000.0 * self.images / step_ms,
            data_wait: self.data_ms / step_ms,
            gradient_wait: self.reduce_ms / step_ms,
            ..self
        }
    }
}

impl Status {
    /// A step was recorded.
    pub fn stepped(&mut self, metrics: &StepMetrics) {
        self.rates = Some(self.rates.map_or_else(|| Rates::of(metrics), |rates| rates.after(metrics)));
        let shards = self.members.iter().map(|m| m.shards.1).max().unwrap_or(1).max(1);
        for member in &mut self.members {
            let own = f64::from(member.shards.1.saturating_sub(member.shards.0)) / f64::from(shards);
            member.images_per_second = own * metrics.images_per_second;
        }
        self.step = Some(metrics.clone());
    }

    /// The seconds that the steps which are left take at the present rate, evaluations not
    /// counted; none before a step was recorded.
    pub fn seconds_left(&self) -> Option<f64> {
        let done = self.step.as_ref()?.step.saturating_add(1);
        Some(self.steps.saturating_sub(done) as f64 * self.rates?.step_ms / 1e3)
    }

    /// How many shards each member owns, if not all own equally many.
    pub fn unequal_shards(&self) -> Option<Ownership> {
        let counts: Vec<u32> = self.members.iter().map(|m| m.shards.1.saturating_sub(m.shards.0)).collect();
        let ownership = Ownership::of(&counts, counts.len(), self.members.last()?.shards.1).ok()?;
        (!ownership.is_equal()).then_some(ownership)
    }

    /// The run has continued after the loss of a worker.
    pub fn recovered(&mut self, recovery: Recovery) {
        self.recoveries += 1;
        self.recovery = Some(recovery);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, step_ms: f64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: 0,
            loss: 2.0,
            top1: 0.5,
            lr: 0.1,
            grad_norm: 1.0,
            samples: 40,
            samples_checksum: String::new(),
            step_ms,
            data_wait_ms: 0.1 * step_ms,
            compute_ms: 0.5 * step_ms,
            all_reduce_exposed_ms: 0.3 * step_ms,
            product_ms: 0.0,
            update_ms: 0.1 * step_ms,
            images_per_second: 40_000.0 / step_ms,
        }
    }

    #[test]
    fn rates_are_averages_and_members_share_them_by_their_shards() {
        let member = |shards| MemberStatus { shards, ..MemberStatus::default() };
        let mut status = Status { members: vec![member((0, 3)), member((3, 4))], ..Status::default() };
        status.stepped(&step(0, 100.0));
        let rates = status.rates.unwrap_or_else(|| panic!("there are rates after a step"));
        assert!((rates.images_per_second - 400.0).abs() < 1e-9 && (rates.gradient_wait - 0.3).abs() < 1e-9);
        assert_eq!(status.members.iter().map(|m| m.images_per_second).collect::<Vec<_>>(), [300.0, 100.0]);
        status.stepped(&step(1, 200.0));
        let rates = status.rates.unwrap_or_else(|| panic!("there are rates after a step"));
        assert!((rates.images_per_second - 40_000.0 / 110.0).abs() < 1e-9, "a tenth of the way: {rates:?}");
        assert_eq!(status.step.as_ref().map(|m| m.step), Some(1));
        status.steps = 12;
        assert!(status.seconds_left().is_some_and(|left| (left - 1.1).abs() < 1e-9), "ten steps of 110 ms");
        assert_eq!(status.unequal_shards().map(|shards| shards.to_string()), Some("3, 1".to_owned()));
        status.members = vec![member((0, 2)), member((2, 3))];
        assert_eq!(status.unequal_shards(), None);
    }
}
