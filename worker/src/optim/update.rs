//! One update's settings and its result, and what clipping does to it.

/// The settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Its number, from 0.
    pub step: u64,
    pub lr: f64,
    /// The gradient is multiplied by this first.
    pub factor: f64,
}

/// The result of an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateReport {
    /// Euclidean norm of the gradient, before clipping.
    pub grad_norm: f64,
    pub clipped: bool,
}

/// By how much a gradient is multiplied in all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clipped {
    pub factor: f64,
    pub report: UpdateReport,
}

impl Update {
    /// `norm` is that of the gradient before it is multiplied by anything.
    pub fn clip(&self, limit: Option<f64>, norm: f64) -> Clipped {
        let grad_norm = norm * self.factor;
        let limit = limit.filter(|&limit| grad_norm > limit);
        let factor = limit.map_or(self.factor, |limit| limit / grad_norm * self.factor);
        Clipped { factor, report: UpdateReport { grad_norm, clipped: limit.is_some() } }
    }
}
