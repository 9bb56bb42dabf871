//! The bounds of what a worker can truthfully report in a run. A message outside of
//! them is a lie, or from another program, and ends its connection. Pure.

use common::config::Config;
use common::dataset::DatasetInfo;
use common::metrics::{StepMetrics, TimeShares};
use common::wire::messages::ToCoordinator;

/// A generation may be this much newer than the newest one in the journal: a damaged
/// disk may have lost the journal's end.
pub const LEAP: u64 = 1000;

/// The most bytes of a name or a reason; longer ones say nothing more.
const TEXT: usize = 4096;

/// The least and the most samples a second: from one in a day to more than any machine has
/// the memory bandwidth for.
const SPEEDS: (f64, f64) = (1e-5, 1e9);

/// The bounds of one run.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub steps: u64,
    pub shards: u32,
    pub global_batch: u32,
    /// Samples of the training set.
    pub train: u32,
    /// The most bytes that one file of a checkpoint can have.
    pub checkpoint_bytes: u64,
    /// The approximate bytes of the weights and the optimizer state.
    pub state_bytes: u64,
}

/// The most bytes of names and shapes in a checkpoint's files, beside the values.
const HEADERS: u64 = 16 << 20;

impl Limits {
    /// The bounds of a run of `steps` steps over this data.
    pub fn new(config: &Config, info: &DatasetInfo, steps: u64) -> Self {
        let values = config.model.values(info.input(config.data.pixels.image_size));
        let state = config.train.state().len() as u64;
        // Four bytes a number.
        let vectors = |n: u64| values.saturating_mul(4 * n);
        Self {
            steps,
            shards: config.train.shards,
            global_batch: config.train.global_batch,
            train: info.train,
            // A checkpoint's file has the weights, or the optimizer's state.
            checkpoint_bytes: vectors(state.max(1)).saturating_add(HEADERS),
            state_bytes: vectors(1 + state),
        }
    }

    /// The error is what is wrong with the message.
    pub fn check(&self, message: &ToCoordinator) -> Result<(), String> {
        match message {
            ToCoordinator::Hello { .. } | ToCoordinator::Leaving => Ok(()),
            ToCoordinator::Heartbeat { step, speed, shares, .. } => {
                self.step(*step).and_then(|()| credible(*speed)).and_then(|()| whole(*shares))
            }
            ToCoordinator::Ready { device, step, .. } => self.step(*step).and_then(|()| text(device)),
            ToCoordinator::Step { metrics, .. } => self.metrics(metrics),
            ToCoordinator::Evaluation(evaluation) => self.step(evaluation.step),
            ToCoordinator::Skipped { step, name, problem } => self.step(*step).and_then(|()| text(name)).and_then(|()| text(problem)),
            ToCoordinator::Trained(trained) => {
                if trained.rank >= self.shards {
                    return Err(format!("rank {} of at most {}", trained.rank, self.shards));
                }
                let (ids, skipped) = (trained.ids.len(), trained.skipped.len());
                if ids + skipped > self.global_batch as usize {
                    return Err(format!("{} samples in a step of {}", ids + skipped, self.global_batch));
                }
                if let Some(id) = trained.ids.iter().chain(&trained.skipped).find(|id| **id >= self.train) {
                    return Err(format!("sample {id} of {}", self.train));
                }
                self.step(trained.step)
            }
            ToCoordinator::Finished(report) => self.step(report.step),
            ToCoordinator::Failed { reason, .. } => text(reason),
            ToCoordinator::Probed { peer, problem, .. } => text(peer).and_then(|()| text(problem.as_deref().unwrap_or_default())),
            ToCoordinator::Missed { peer, reason, .. } => text(peer).and_then(|()| text(reason)),
            ToCoordinator::Relayed { peer, .. } => text(peer),
        }
    }

    /// Checks a number of committed steps.
    pub fn step(&self, step: u64) -> Result<(), String> {
        if step > self.steps { Err(format!("step {step} of a run of {} steps", self.steps)) } else { Ok(()) }
    }

    fn metrics(&self, metrics: &StepMetrics) -> Result<(), String> {
        if metrics.samples > u64::from(self.global_batch) {
            return Err(format!("{} samples in a step of {}", metrics.samples, self.global_batch));
        }
        text(&metrics.samples_checksum)?;
        // Steps are counted from 0, so the last one is one less than their number.
        self.step(metrics.step.saturating_add(1))
    }
}

/// Checks a worker's own speed in samples a second. One that is false within these bounds
/// makes steps as slow as its worker could make them anyhow.
fn credible(speed: Option<f64>) -> Result<(), String> {
    match speed {
        Some(speed) if !(SPEEDS.0..=SPEEDS.1).contains(&speed) => Err(format!("a speed of {speed} samples a second")),
        _ => Ok(()),
    }
}

/// Checks the shares of a worker's time: parts of a whole, but for rounding.
fn whole(shares: Option<TimeShares>) -> Result<(), String> {
    let Some(TimeShares { computing, data, others }) = shares else { return Ok(()) };
    let parts = [computing, data, others];
    if parts.iter().all(|part| (0.0..=1.0).contains(part)) && parts.iter().sum::<f64>() <= 1.0 + 1e-6 {
        Ok(())
    } else {
        Err(format!("shares of its time of {computing}, {data} and {others}"))
    }
}

fn text(text: &str) -> Result<(), String> {
    if text.len() > TEXT { Err(format!("a text of {} bytes", text.len())) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use common::audit::TrainedSamples;
    use common::digest::Digest;
    use common::wire::messages::Finished;

    use super::*;

    const LIMITS: Limits = Limits { steps: 100, shards: 4, global_batch: 8, train: 50, checkpoint_bytes: 1000, state_bytes: 900 };

    fn trained(step: u64, rank: u32, ids: &[u32]) -> ToCoordinator {
        ToCoordinator::Trained(TrainedSamples { generation: 1, step, rank, ids: ids.to_vec(), skipped: vec![] })
    }

    fn finished(step: u64) -> ToCoordinator {
        ToCoordinator::Finished(Finished { step, weights_blake3: Digest::of(&[]), bytes_sent: 0, peak_rss_bytes: 0 })
    }

    #[test]
    fn the_truth_passes() {
        let ready = ToCoordinator::Ready { device: "CPU".to_owned(), generation: 7, step: 100, committed: 7, products: None };
        let thirds = TimeShares { computing: 0.5, data: 0.25, others: 0.25 };
        let beat = |speed| ToCoordinator::Heartbeat { step: 100, waiting: true, speed, shares: Some(thirds) };
        for message in
            [trained(99, 3, &[0, 49]), finished(100), ToCoordinator::Leaving, ready, beat(None), beat(Some(1e-4)), beat(Some(1e6))]
        {
            assert_eq!(LIMITS.check(&message), Ok(()), "{message:?}");
        }
    }

    #[test]
    fn lies_are_named() {
        let beat = |step, speed| ToCoordinator::Heartbeat { step, waiting: false, speed, shares: None };
        let shares = |computing, data, others| ToCoordinator::Heartbeat {
            step: 1,
            waiting: false,
            speed: None,
            shares: Some(TimeShares { computing, data, others }),
        };
        let skipped = |name: String| ToCoordinator::Skipped { step: 1, name, problem: String::new() };
        let cases = [
            (trained(1, 4, &[]), "rank 4"),
            (trained(1, 0, &[50]), "sample 50"),
            (trained(1, 0, &[1; 9]), "9 samples"),
            (trained(101, 0, &[1]), "step 101"),
            (finished(u64::MAX), "of a run of 100"),
            (beat(101, None), "step 101"),
            (beat(1, Some(0.0)), "a speed of 0 samples"),
            (beat(1, Some(-5.0)), "a speed of -5"),
            (beat(1, Some(1e-9)), "a speed of 0.000000001"),
            (beat(1, Some(1e10)), "a speed of 10000000000"),
            (beat(1, Some(f64::INFINITY)), "a speed of inf"),
            (beat(1, Some(f64::NAN)), "a speed of NaN"),
            (shares(0.9, 0.9, 0.0), "shares of its time of 0.9, 0.9 and 0"),
            (shares(f64::NAN, 0.0, 0.0), "shares of its time of NaN"),
            (shares(0.0, -0.1, 0.0), "-0.1"),
            (skipped("x".repeat(5000)), "5000 bytes"),
        ];
        for (message, word) in cases {
            assert!(LIMITS.check(&message).unwrap_err().contains(word), "{message:?}");
        }
    }
}
