//! summary.json: the results of a finished run. An infinite number is written as the
//! string "inf" or "-inf", NaN as "nan".

use crate::digest::Digest;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::journal::Dense;
use crate::config::Metric;
use crate::dense::{DenseLayer, Way};
use crate::metrics::{Evaluation, Recovery, StepMetrics};

/// Steps that are left out of the medians: caches fill and threads start in them.
const WARM_UP: usize = 5;

/// Steps that are kept for the medians; from more, an even selection.
const MAX_KEPT: usize = 1 << 15;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub name: String,
    pub model: String,
    /// Workers in the last generation.
    pub world: u32,
    /// How many shards each of them owned, by rank.
    #[serde(default)]
    pub shards: Vec<u32>,
    pub generations: u64,
    /// Steps, epochs and samples of the whole run, resumed parts included.
    pub steps: u64,
    pub epochs: u64,
    pub samples: u64,
    /// Median over the steps after the first five.
    #[serde(with = "crate::json_number")]
    pub images_per_second: f64,
    pub step_ms: StepTimes,
    /// Medians of the parts of a step, in milliseconds.
    pub parts: Parts,
    /// Mean training loss of the last step.
    #[serde(with = "crate::json_number")]
    pub train_loss: f64,
    /// Mean loss of the last evaluation, and accuracy as shares.
    #[serde(default, with = "crate::json_number::optional")]
    pub loss: Option<f64>,
    #[serde(default, with = "crate::json_number::optional")]
    pub top1: Option<f64>,
    #[serde(default, with = "crate::json_number::optional")]
    pub top5: Option<f64>,
    /// With `train.keep = "best"`: the best evaluation of which there is a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Gradient bytes that all workers together sent.
    pub bytes_sent: u64,
    /// What is exchanged of each dense layer, in the order of the forward pass.
    #[serde(default)]
    pub dense: Vec<DenseSummary>,
    /// Why gradients were summed in the last generation although the config has factors of
    /// some layers exchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums_because: Option<String>,
    /// Different samples that were left out because they do not decode.
    #[serde(default)]
    pub skipped: u64,
    pub recoveries: Vec<Recovery>,
    /// From the last sign of life of a lost worker to the first step without it, in
    /// milliseconds, over all recoveries; 0 if there were none.
    #[serde(default)]
    pub recovery_ms: StepTimes,
    /// The largest of all workers.
    pub peak_rss_bytes: u64,
    pub wall_seconds: f64,
    pub weights_blake3: Digest,
}

/// The best evaluation of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// By this figure.
    pub metric: Metric,
    #[serde(flatten)]
    pub evaluation: Evaluation,
}

/// What is exchanged of a dense layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DenseSummary {
    pub layer: String,
    pub inputs: u64,
    pub units: u64,
    pub exchanges: Way,
    /// Bytes that a worker sends of it in a step, in the last generation.
    pub bytes_sent: u64,
}

/// Quantiles of times in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StepTimes {
    #[serde(with = "crate::json_number")]
    pub p50: f64,
    #[serde(with = "crate::json_number")]
    pub p95: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    #[serde(with = "crate::json_number")]
    pub data_wait: f64,
    #[serde(with = "crate::json_number")]
    pub compute: f64,
    #[serde(with = "crate::json_number")]
    pub all_reduce_exposed: f64,
    #[serde(with = "crate::json_number")]
    /// Of that, multiplying factors of dense layers.
    #[serde(default)]
    pub product: f64,
    pub update: f64,
}

/// Collects what the summary needs while a run goes on.
#[derive(Debug)]
pub struct SummaryBuilder {
    name: String,
    model: String,
    world: u32,
    shards: Vec<u32>,
    generations: u64,
    started: Instant,
    samples: u64,
    last: Option<StepMetrics>,
    kept: Kept,
    last_evaluation: Option<Evaluation>,
    recoveries: Vec<Recovery>,
    /// The dense layers, and the rows of a global batch.
    layers: Vec<DenseLayer>,
    rows: u64,
    dense: Option<Dense>,
}

/// Recoveries that are kept one by one.
const MAX_RECOVERIES: usize = 10_000;

impl SummaryBuilder {
    pub fn new(name: &str, model: &str, world: u32) -> Self {
        Self {
            name: name.to_owned(),
            model: model.to_owned(),
            world,
            shards: Vec::new(),
            generations: 0,
            started: Instant::now(),
            samples: 0,
            last: None,
            kept: Kept::default(),
            last_evaluation: None,
            recoveries: Vec::new(),
            layers: Vec::new(),
            rows: 0,
            dense: None,
        }
    }

    /// Of a run with these dense layers, and so many samples in a step.
    pub fn with_dense(self, layers: Vec<DenseLayer>, rows: u32) -> Self {
        Self { layers, rows: rows.into(), ..self }
    }

    fn dense(&self) -> Vec<DenseSummary> {
        let summary = |layer: &DenseLayer| {
            let factors = layer.way == Way::Factors && matches!(self.dense, Some(Dense::Factors(_)));
            let world = u64::from(self.world.max(1));
            let bytes = if factors { layer.bytes_of_factors(world, self.rows) } else { layer.bytes_of_sum(world) };
            DenseSummary {
                layer: layer.name.clone(),
                inputs: layer.inputs,
                units: layer.units,
                exchanges: if factors { Way::Factors } else { Way::Sum },
                bytes_sent: bytes as u64,
            }
        };
        self.layers.iter().map(summary).collect()
    }

    /// Replaces the steps and evaluations reported so far by the recorded ones.
    pub fn reload(&mut self, steps: &[StepMetrics], evaluations: &[Evaluation]) {
        (self.samples, self.last, self.kept, self.last_evaluation) = (0, None, Kept::default(), None);
        steps.iter().for_each(|s| self.step(s));
        evaluations.iter().for_each(|e| self.evaluation(e));
    }

    /// A generation of `world` workers starts, that own these shards and exchange this of
    /// dense layers.
    pub fn generation(&mut self, world: u32, shards: Vec<u32>, dense: Option<&Dense>) {
        self.generations += 1;
        (self.world, self.shards, self.dense) = (world, shards, dense.cloned());
    }

    /// Adds a committed step; a step that was reported before counts once.
    pub fn step(&mut self, metrics: &StepMetrics) {
        if self.last.as_ref().is_some_and(|last| metrics.step <= last.step) {
            return;
        }
        self.samples = self.samples.saturating_add(metrics.samples);
        self.kept.add(metrics);
        self.last = Some(metrics.clone());
    }

    pub fn recovery(&mut self, recovery: Recovery) {
        if self.recoveries.len() < MAX_RECOVERIES {
            self.recoveries.push(recovery);
        }
    }

    pub fn evaluation(&mut self, evaluation: &Evaluation) {
        if self.last_evaluation.as_ref().is_none_or(|last| evaluation.step >= last.step) {
            self.last_evaluation = Some(evaluation.clone());
        }
    }

    /// The summary of a run that has committed `steps` steps.
    pub fn finish(&self, steps: u64, weights_blake3: Digest, bytes_sent: u64, peak_rss_bytes: u64) -> Summary {
        let steps_kept = &self.kept.steps;
        let warm = if steps_kept.len() > WARM_UP { &steps_kept[WARM_UP..] } else { &steps_kept[..] };
        let column = |f: fn(&StepMetrics) -> f64| {
            let mut values: Vec<f64> = warm.iter().map(f).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let step_ms = column(|m| m.step_ms);
        let mut recovery_ms: Vec<f64> = self.recoveries.iter().map(|r| r.detect_ms + r.resume_ms).collect();
        recovery_ms.sort_by(f64::total_cmp);
        let last = self.last.as_ref();
        let eval = self.last_evaluation.as_ref();
        Summary {
            name: self.name.clone(),
            model: self.model.clone(),
            world: self.world,
            shards: self.shards.clone(),
            generations: self.generations,
            steps,
            epochs: last.map_or(0, |m| m.epoch.saturating_add(1)),
            samples: self.samples,
            images_per_second: quantile(&column(|m| m.images_per_second), 0.5),
            step_ms: StepTimes { p50: quantile(&step_ms, 0.5), p95: quantile(&step_ms, 0.95) },
            parts: Parts {
                data_wait: quantile(&column(|m| m.data_wait_ms), 0.5),
                compute: quantile(&column(|m| m.compute_ms), 0.5),
                all_reduce_exposed: quantile(&column(|m| m.all_reduce_exposed_ms), 0.5),
                product: quantile(&column(|m| m.product_ms), 0.5),
                update: quantile(&column(|m| m.update_ms), 0.5),
            },
            train_loss: last.map_or(0.0, |m| m.loss),
            loss: eval.map(|e| e.loss),
            top1: eval.map(|e| e.top1),
            top5: eval.map(|e| e.top5),
            best: None,
            bytes_sent,
            dense: self.dense(),
            sums_because: if let Some(Dense::Sum(reason)) = &self.dense { Some(reason.clone()) } else { None },
            skipped: 0,
            recoveries: self.recoveries.clone(),
            recovery_ms: StepTimes { p50: quantile(&recovery_ms, 0.5), p95: quantile(&recovery_ms, 0.95) },
            peak_rss_bytes,
            wall_seconds: self.started.elapsed().as_secs_f64(),
            weights_blake3,
        }
    }
}

#[cfg(test)]
impl SummaryBuilder {
    pub(super) fn kept_steps(&self) -> usize {
        self.kept.steps.len()
    }
}

/// The first steps, and an even selection of the others in bounded space: when it is
/// full, every second one is removed, and from then on half as many are taken.
#[derive(Debug)]
struct Kept {
    steps: Vec<StepMetrics>,
    seen: usize,
    stride: usize,
}

impl Default for Kept {
    fn default() -> Self {
        Self { steps: Vec::new(), seen: 0, stride: 1 }
    }
}

impl Kept {
    fn add(&mut self, metrics: &StepMetrics) {
        let after_warm_up = self.seen.checked_sub(WARM_UP);
        self.seen += 1;
        if after_warm_up.is_none_or(|n| n.is_multiple_of(self.stride)) {
            self.steps.push(metrics.clone());
        }
        if self.steps.len() == WARM_UP + MAX_KEPT {
            let mut place = 0;
            self.steps.retain(|_| {
                place += 1;
                place <= WARM_UP || (place - 1 - WARM_UP).is_multiple_of(2)
            });
            self.stride *= 2;
        }
    }
}

/// The value at `share` of sorted values; 0 if there are none.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (share * (sorted.len().max(1) - 1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

/// The most memory this process has held, from /proc; 0 where /proc is missing.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
