//! The engines, which run a model over the flat state: one for libtorch's memory, one
//! for any burn backend. [`device`] chooses between them.

#[cfg(any(feature = "flex", test))]
pub(crate) mod autodiff;
pub mod device;
#[cfg(feature = "libtorch")]
mod libtorch;

use std::time::Instant;

use common::ring::Span;
use common::trace;

use crate::models::{DropoutGroup, InputShape};

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("parameter `{parameter}` has no gradient: the model does not use it")]
    NoGradient { parameter: String },
    #[error("the compute device failed: {0}")]
    Compute(String),
    #[error("an earlier failure left this replica without a usable model: make a new one")]
    Broken,
}

/// A batch of pictures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Images<'a> {
    /// `[n, channels, size, size]`
    pub(crate) values: &'a [f32],
    pub(crate) n: usize,
    pub(crate) input: InputShape,
}

impl Images<'_> {
    pub(crate) fn shape(&self) -> [usize; 4] {
        [self.n, self.input.channels, self.input.image_size, self.input.image_size]
    }
}

/// Turns a batch's logits `[n, classes]` into the gradient of the loss with respect to
/// them.
pub(crate) type Head<'a> = &'a mut dyn FnMut(&[f32]) -> Vec<f32>;

/// Receives finished spans of the flat gradient: (offset, values).
pub(crate) type Sink<'a> = &'a mut dyn FnMut(usize, Span<'_>);

/// Writes new master weights and, where there is one, their bf16 mirror (as bits). If
/// there is a mirror, both must be written.
pub(crate) type Write<'a> = &'a mut dyn FnMut(&mut [f32], Option<&mut [u16]>);

/// Seconds that the parts of the last `gradient` took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Phases {
    /// Input copy, forward pass and loss.
    pub forward: f64,
    pub backward: f64,
    /// Time in the sink: copies to buckets.
    pub copy: f64,
}

/// Ends a phase and records it in the trace; returns its seconds.
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
    fn gradient(&mut self, images: Images<'_>, dropout: &[DropoutGroup], head: Head<'_>, sink: Sink<'_>) -> Result<Phases, EngineError>;

    /// Logits `[n, classes]` without dropout.
    fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, EngineError>;
}
