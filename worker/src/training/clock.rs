//! Where the time of a step goes.

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
