//! Metrics of a run: its steps and its evaluations, as they are sent and recorded.

use serde::{Deserialize, Serialize};

use crate::config::Metric;

/// One committed step. Times are those of rank 0, sums those of all ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct StepMetrics {
    pub step: u64,
    pub epoch: u64,
    /// Mean loss of the step's samples.
    #[serde(with = "crate::json_number")]
    pub loss: f64,
    /// Share of the step's samples that were classified right.
    #[serde(with = "crate::json_number")]
    pub top1: f64,
    #[serde(with = "crate::json_number")]
    pub lr: f64,
    /// L2 norm of the gradient before clipping.
    #[serde(with = "crate::json_number")]
    pub grad_norm: f64,
    pub samples: u64,
    /// The [`crate::audit::checksum`] of the samples, over all ranks, in hex;
    /// empty in the record of an older version.
    #[serde(default)]
    pub samples_checksum: String,
    #[serde(with = "crate::json_number")]
    pub step_ms: f64,
    /// Waiting for the batch, forward and backward, waiting for the ring after
    /// that, applying the update: together `step_ms`.
    #[serde(with = "crate::json_number")]
    pub data_wait_ms: f64,
    #[serde(with = "crate::json_number")]
    pub compute_ms: f64,
    #[serde(with = "crate::json_number")]
    pub all_reduce_exposed_ms: f64,
    /// Multiplying factors of dense layers, while other gradients may be on their way: a part
    /// of the wait for the ring.
    #[serde(default, with = "crate::json_number")]
    pub product_ms: f64,
    #[serde(with = "crate::json_number")]
    pub update_ms: f64,
    #[serde(with = "crate::json_number")]
    pub images_per_second: f64,
}

/// Shares of a worker's own time, each from 0 to 1; together at most 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct TimeShares {
    /// Forward and backward, products of factors, the update.
    pub computing: f64,
    /// Waiting for the batch.
    pub data: f64,
    /// Waiting for what the other workers send.
    pub others: f64,
}

impl TimeShares {
    /// The shares of one step by the clock of the worker that made it; none of a step that
    /// took no time.
    pub fn of(step: &StepMetrics) -> Option<Self> {
        let others = (step.all_reduce_exposed_ms - step.product_ms).max(0.0);
        let computing = step.compute_ms + step.product_ms.min(step.all_reduce_exposed_ms) + step.update_ms;
        let all = computing + step.data_wait_ms + others;
        let share = |ms: f64| ms / all;
        (all.is_finite() && all > 0.0).then(|| Self { computing: share(computing), data: share(step.data_wait_ms), others: share(others) })
    }

    /// A running average, in which `next` weighs this much.
    pub fn towards(self, next: Self, weight: f64) -> Self {
        let mix = |old: f64, new: f64| old + weight * (new - old);
        Self { computing: mix(self.computing, next.computing), data: mix(self.data, next.data), others: mix(self.others, next.others) }
    }
}

/// One evaluation of the whole validation set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Evaluation {
    /// Steps and whole epochs committed before it.
    pub step: u64,
    pub epoch: u64,
    #[serde(with = "crate::json_number")]
    pub loss: f64,
    #[serde(with = "crate::json_number")]
    pub top1: f64,
    #[serde(with = "crate::json_number")]
    pub top5: f64,
    pub samples: u64,
}

impl StepMetrics {
    /// Its figures by the names that other programs show them under. Their steps are steps
    /// that are done: the first one is 1.
    pub fn scalars(&self) -> [(&'static str, f64); 8] {
        [
            ("train/loss", self.loss),
            ("train/top1", self.top1),
            ("train/lr", self.lr),
            ("train/grad_norm", self.grad_norm),
            ("speed/images_per_second", self.images_per_second),
            ("speed/step_ms", self.step_ms),
            ("speed/data_wait_ms", self.data_wait_ms),
            ("speed/ring_wait_ms", self.all_reduce_exposed_ms),
        ]
    }
}

impl Evaluation {
    /// Its figures by the names that other programs show them under.
    pub fn scalars(&self) -> [(&'static str, f64); 3] {
        [("val/loss", self.loss), ("val/top1", self.top1), ("val/top5", self.top5)]
    }

    pub fn value(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Top1 => self.top1,
            Metric::Top5 => self.top5,
            Metric::Loss => self.loss,
        }
    }
}

/// The best of these evaluations, which are in their order; the first of several that are
/// equal, and none whose value is NaN.
pub fn best<'a>(evaluations: impl IntoIterator<Item = &'a Evaluation>, metric: Metric) -> Option<&'a Evaluation> {
    let known = evaluations.into_iter().filter(|evaluation| !evaluation.value(metric).is_nan());
    known.reduce(|best, new| if metric.is_better(new.value(metric), best.value(metric), 0.0) { new } else { best })
}

/// What a picture of a run shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Shown {
    /// Samples of the first step as the model sees them: decoded, cut, augmented.
    FirstBatch,
    /// The weights of the first layer as small pictures.
    Filters,
    /// How often each class was predicted as each other one.
    Confusion,
}

/// The most bytes of a picture of a run.
pub const MAX_PICTURE_BYTES: usize = 4 << 20;

/// A picture of the state after so many steps, for the run's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPicture {
    pub shown: Shown,
    pub step: u64,
    /// The content of a PNG file.
    pub png: Vec<u8>,
}

impl Shown {
    /// The name that other programs show it under.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstBatch => "train/first_batch",
            Self::Filters => "model/first_layer",
            Self::Confusion => "val/confusion",
        }
    }
}

impl RunPicture {
    /// Width and height in pixels, as the PNG file's header says (Portable Network Graphics
    /// Specification, 11.2.1); none if it has no such header.
    pub fn size(&self) -> Option<(u32, u32)> {
        let header = self.png.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
        let number = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
        Some((number(0)?, number(4)?))
    }
}

/// One loss of a worker that a run survived.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// From the last sign of life of the worker until it was given up.
    pub detect_ms: f64,
    /// From there to the first step of the next generation.
    pub resume_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_the_size_that_its_file_says() {
        let picture = |png: &[u8]| RunPicture { shown: Shown::Filters, step: 0, png: png.to_vec() };
        let header = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x02\x80\0\0\x01\xe0";
        assert_eq!(picture(header).size(), Some((640, 480)));
        for bad in [&header[..23], b"GIF89a", b""] {
            assert_eq!(picture(bad).size(), None);
        }
    }
}
