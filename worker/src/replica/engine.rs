//! What runs a model over the flat state: one implementation for libtorch's
//! memory, one for any burn backend.

use std::time::Instant;

use common::ring::Span;
use common::trace;

use super::{Images, ReplicaError};
use crate::models::DropoutGroup;

/// Turns a batch's logits `[n, classes]` into the gradient of the loss by them.
pub(crate) type Head<'a> = &'a mut dyn FnMut(&[f32]) -> Vec<f32>;

/// Receives finished spans of the flat gradient: (offset, values).
pub(crate) type Sink<'a> = &'a mut dyn FnMut(usize, Span<'_>);

/// Writes new master weights and, where there is one, their bf16 mirror (as bits).
/// Whoever writes the one must write the other.
pub(crate) type Write<'a> = &'a mut dyn FnMut(&mut [f32], Option<&mut [u16]>);

/// Seconds that the parts of the last `gradient` took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Phases {
    /// Input copy, forward pass and loss.
    pub forward: f64,
    pub backward: f64,
    /// What the sink takes: copies to buckets.
    pub copy: f64,
}

/// Ends a phase, for the trace too: its seconds.
pub(crate) fn lap(phase: &'static str, start: Instant) -> f64 {
    let end = Instant::now();
    trace::record(phase, None, start, end);
    end.duration_since(start).as_secs_f64()
}

pub(crate) trait Engine: Send {
    /// The f32 master weights, flat.
    fn weights(&self) -> &[f32];

    /// Lets `write` change the weights in place, then makes the model use them.
    fn write(&mut self, write: Write<'_>);

    /// Forward, `head`, backward; hands every value of the gradient to `sink` once.
    fn gradient(&mut self, images: Images<'_>, dropout: &[DropoutGroup], head: Head<'_>, sink: Sink<'_>) -> Result<Phases, ReplicaError>;

    /// Logits `[n, classes]` without dropout.
    fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, ReplicaError>;
}
