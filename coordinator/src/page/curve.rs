//! The curves of a run in bounded space: whatever the number of its steps, each curve has
//! at most [`MOST`] points, each of which averages equally many steps. Pure.

use common::metrics::{StepMetrics, TimeShares};
use serde::Serialize;

/// The most points of a curve: about as many as a plot is wide.
pub(super) const MOST: usize = 512;

/// The mean of some steps in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    /// The first of its steps, and how many there are.
    first: u64,
    steps: f64,
    loss: f64,
    /// The least and the largest loss of its steps.
    range: (f64, f64),
    top1: f64,
    lr: f64,
    images_per_second: f64,
    data: f64,
    others: f64,
}

impl Point {
    fn of(m: &StepMetrics) -> Self {
        let shares = TimeShares::of(m);
        Self {
            first: m.step,
            steps: 1.0,
            loss: m.loss,
            range: (m.loss, m.loss),
            top1: m.top1,
            lr: m.lr,
            images_per_second: m.images_per_second,
            data: shares.map_or(0.0, |shares| shares.data),
            others: shares.map_or(0.0, |shares| shares.others),
        }
    }

    /// The mean of the steps of both; `next` follows.
    fn with(self, next: Self) -> Self {
        let steps = self.steps + next.steps;
        let mean = |a: f64, b: f64| (a * self.steps + b * next.steps) / steps;
        Self {
            first: self.first,
            steps,
            loss: mean(self.loss, next.loss),
            range: (self.range.0.min(next.range.0), self.range.1.max(next.range.1)),
            top1: mean(self.top1, next.top1),
            lr: mean(self.lr, next.lr),
            images_per_second: mean(self.images_per_second, next.images_per_second),
            data: mean(self.data, next.data),
            others: mean(self.others, next.others),
        }
    }
}

/// The curves of a run.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    points: Vec<Point>,
    /// How many steps a point has; the last may have fewer.
    stride: u64,
    /// Raised whenever points change that are not the last.
    revision: u64,
}

impl Default for Curve {
    fn default() -> Self {
        Self { points: Vec::new(), stride: 1, revision: 0 }
    }
}

/// Points of all curves, in columns. What is not finite is null.
#[derive(Debug, Serialize)]
pub(super) struct Columns {
    /// Points of another revision do not belong to these.
    pub revision: u64,
    /// The place of the first of these points.
    pub from: usize,
    /// How many steps a point averages.
    pub stride: u64,
    /// The last step of each point, counted from 1.
    step: Vec<u64>,
    loss: Vec<Option<f64>>,
    loss_min: Vec<Option<f64>>,
    loss_max: Vec<Option<f64>>,
    top1: Vec<Option<f64>>,
    lr: Vec<Option<f64>>,
    images_per_second: Vec<Option<f64>>,
    data_wait: Vec<Option<f64>>,
    others_wait: Vec<Option<f64>>,
}

impl Curve {
    /// Adds a step. Steps come in their order.
    pub(super) fn add(&mut self, step: &StepMetrics) {
        let place = step.step / self.stride;
        let new = Point::of(step);
        match self.points.last_mut() {
            Some(last) if last.first / self.stride == place => *last = last.with(new),
            _ => self.points.push(new),
        }
        if self.points.len() > MOST {
            self.stride *= 2;
            self.revision += 1;
            let halved = std::mem::take(&mut self.points);
            for point in halved {
                match self.points.last_mut() {
                    Some(last) if last.first / self.stride == point.first / self.stride => *last = last.with(point),
                    _ => self.points.push(point),
                }
            }
        }
    }

    /// Forgets all points.
    pub(super) fn clear(&mut self) {
        *self = Self { revision: self.revision + 1, ..Self::default() };
    }

    pub(super) fn len(&self) -> usize {
        self.points.len()
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The points from the place `from` on.
    pub(super) fn columns(&self, from: usize) -> Columns {
        let points = self.points.get(from..).unwrap_or_default();
        let column = |of: fn(&Point) -> f64| points.iter().map(|point| short(of(point))).collect();
        Columns {
            revision: self.revision,
            from,
            stride: self.stride,
            step: points.iter().map(|point| point.first + point.steps as u64).collect(),
            loss: column(|p| p.loss),
            loss_min: column(|p| p.range.0),
            loss_max: column(|p| p.range.1),
            top1: column(|p| p.top1),
            lr: column(|p| p.lr),
            images_per_second: column(|p| p.images_per_second),
            data_wait: column(|p| p.data),
            others_wait: column(|p| p.others),
        }
    }
}

/// The number to four digits, which is more than a plot shows and a third of the bytes.
fn short(value: f64) -> Option<f64> {
    if !value.is_finite() {
        return None;
    }
    format!("{value:.3e}").parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    pub(in crate::page) fn step(step: u64, loss: f64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: 0,
            loss,
            top1: 0.5,
            lr: 0.1,
            grad_norm: 1.0,
            samples: 40,
            samples_checksum: String::new(),
            step_ms: 100.0,
            data_wait_ms: 10.0,
            compute_ms: 60.0,
            all_reduce_exposed_ms: 20.0,
            product_ms: 0.0,
            update_ms: 10.0,
            images_per_second: 400.0,
        }
    }

    #[test]
    fn half_a_million_steps_fit_a_screen_and_keep_their_means_and_extremes() {
        let mut curve = Curve::default();
        for n in 0..500_000 {
            curve.add(&step(n, if n == 77_777 { 1000.0 } else { n as f64 }));
        }
        let columns = curve.columns(0);
        assert!((MOST / 2..=MOST).contains(&columns.step.len()), "{} points", columns.step.len());
        assert!(columns.step.is_sorted() && columns.step.last() == Some(&500_000));
        assert_eq!(columns.stride, 1024);
        // The mean of the steps 0 to 1023, to four digits.
        assert_eq!((columns.step[0], columns.loss[0], columns.loss_max[0]), (1024, Some(511.5), Some(1023.0)));
        let spike = 77_777 / 1024;
        assert_eq!((columns.loss_min[spike], columns.others_wait[spike]), (Some(1000.0), Some(0.2)));
        let text = serde_json::to_string(&columns).unwrap();
        assert!(text.len() < 40_000, "{} bytes", text.len());
    }

    #[test]
    fn readers_know_which_points_they_have() {
        let mut curve = Curve::default();
        (0..MOST as u64).for_each(|n| curve.add(&step(n, 1.0)));
        assert_eq!((curve.revision(), curve.len()), (0, MOST));
        assert_eq!(curve.columns(MOST - 1).step, [MOST as u64]);
        assert!(curve.columns(MOST + 5).step.is_empty());
        curve.add(&step(MOST as u64, 1.0));
        assert_eq!((curve.revision(), curve.len()), (1, MOST / 2 + 1));
        curve.clear();
        assert_eq!((curve.revision(), curve.len()), (2, 0));
    }

    #[test]
    fn what_json_lacks_is_null() {
        let mut curve = Curve::default();
        curve.add(&step(0, f64::NAN));
        curve.add(&step(1, f64::INFINITY));
        let text = serde_json::to_string(&curve.columns(0)).unwrap();
        assert!(text.contains(r#""loss":[null,null]"#), "{text}");
    }
}
