//! Where the time of a step goes.

use std::collections::VecDeque;
use std::time::Instant;

use common::metrics::StepMetrics;
use common::trace;

use crate::training::totals::StepTotals;

/// Marks the phases of one step as they end. The first phase, waiting for data,
/// begins where the step before it ended, so no stall goes uncounted.
pub struct StepClock {
    step: u64,
    started: Instant,
    last: Instant,
    data_wait_ms: f64,
    compute_ms: f64,
    all_reduce_exposed_ms: f64,
    product_ms: f64,
    update_ms: f64,
}

impl StepClock {
    pub fn start(step: u64) -> Self {
        let now = Instant::now();
        Self {
            step,
            started: now,
            last: now,
            data_wait_ms: 0.0,
            compute_ms: 0.0,
            all_reduce_exposed_ms: 0.0,
            product_ms: 0.0,
            update_ms: 0.0,
        }
    }

    pub fn data_arrived(&mut self) {
        self.data_wait_ms = self.lap("data wait");
    }

    pub fn gradient_computed(&mut self) {
        self.compute_ms = self.lap("compute");
    }

    /// Ends the phase of waiting for the ring after the backward pass, in which factors were
    /// multiplied for so many seconds.
    pub fn gradient_summed(&mut self, multiplied: f64) {
        self.all_reduce_exposed_ms = self.lap("all-reduce exposed");
        self.product_ms = 1e3 * multiplied;
    }

    pub fn updated(&mut self) {
        self.update_ms = self.lap("update");
    }

    fn lap(&mut self, phase: &'static str) -> f64 {
        let now = Instant::now();
        trace::record(phase, Some(self.step), self.last, now);
        let elapsed = now.duration_since(self.last).as_secs_f64() * 1e3;
        self.last = now;
        elapsed
    }

    /// The samples of its own that this rank computed in a second of this step; `None` if
    /// it had none. Time in which it waited for other ranks does not count. Waiting for data
    /// does: a worker that reads slowly is slow. So do the products and the update, which
    /// take as long for any number of samples: shares by this speed are right once all ranks
    /// have the same time of their own, whatever part of it depends on the samples.
    pub fn own_speed(&self, samples: usize) -> Option<f64> {
        let own_ms = self.data_wait_ms + self.compute_ms + self.product_ms + self.update_ms;
        (samples > 0 && own_ms > 0.0).then(|| samples as f64 / own_ms * 1e3)
    }

    /// The step's line in metrics.jsonl. `all` are the sums over all ranks.
    pub fn metrics(&self, epoch: u64, all: StepTotals, lr: f64, grad_norm: f64) -> StepMetrics {
        let step_ms = self.last.duration_since(self.started).as_secs_f64() * 1e3;
        let samples = all.count.max(1) as f64;
        StepMetrics {
            step: self.step,
            epoch,
            loss: all.loss / samples,
            top1: all.top1 as f64 / samples,
            lr,
            grad_norm,
            samples: all.count,
            samples_checksum: format!("{:016x}", all.checksum),
            step_ms,
            data_wait_ms: self.data_wait_ms,
            compute_ms: self.compute_ms,
            all_reduce_exposed_ms: self.all_reduce_exposed_ms,
            product_ms: self.product_ms,
            update_ms: self.update_ms,
            images_per_second: all.count as f64 / step_ms.max(1e-9) * 1e3,
        }
    }
}

/// The steps over which a rank's own speed is taken.
const RECENT: usize = 20;

/// A rank's own speed: the median over its last steps, which a few that were disturbed do
/// not change.
#[derive(Debug, Default)]
pub struct OwnSpeed {
    recent: VecDeque<f64>,
}

impl OwnSpeed {
    /// Adds the speed of one step. Returns the median of the last 20; `None` while there
    /// are fewer, since the first steps of a process are slow.
    pub fn add(&mut self, speed: f64) -> Option<f64> {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(speed);
        let mut sorted: Vec<f64> = self.recent.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        (sorted.len() == RECENT).then(|| (sorted[RECENT / 2 - 1] + sorted[RECENT / 2]) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(data_wait_ms: f64, compute_ms: f64) -> StepClock {
        StepClock { data_wait_ms, compute_ms, all_reduce_exposed_ms: 1e6, ..StepClock::start(0) }
    }

    #[test]
    fn a_rank_is_as_fast_as_it_computes_whatever_it_waits_for() {
        assert_eq!(clock(10.0, 40.0).own_speed(32), Some(640.0));
        assert_eq!(StepClock { product_ms: 20.0, update_ms: 10.0, ..clock(10.0, 40.0) }.own_speed(32), Some(400.0));
        assert_eq!((clock(10.0, 40.0).own_speed(0), clock(0.0, 0.0).own_speed(32)), (None, None));
    }

    #[test]
    fn a_few_disturbed_steps_do_not_change_the_speed() {
        let mut speed = OwnSpeed::default();
        assert!((1..RECENT).all(|_| speed.add(100.0).is_none()), "too few steps say nothing");
        assert!((0..9).all(|_| speed.add(1.0) == Some(100.0)));
        // Ten more change it for good, and the old steps are forgotten.
        let last = (0..50).filter_map(|_| speed.add(40.0)).last();
        assert_eq!((last, speed.recent.len()), (Some(40.0), RECENT));
    }
}
