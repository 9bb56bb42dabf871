//! The engines. An engine owns the training state of one device: parameters, master
//! weights, the optimizer's state and the gradient. One kind keeps it in host memory,
//! where the ring and the disk are; one keeps it on the device. [`device`] chooses.

#[cfg(any(feature = "flex", test))]
pub(crate) mod autodiff;
pub mod device;
#[cfg(feature = "libtorch")]
mod libtorch;
mod loss;
mod machine;

use std::borrow::Cow;
use std::time::Instant;

use common::config::{ModelConfig, TrainConfig};
use common::ring::Span;
use common::trace;

use crate::data::Inputs;
use crate::models::{DropoutGroup, InputShape};
use crate::optim::{NotFinite, Update, UpdateReport};
pub use loss::{Loss, Sums};

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("parameter `{parameter}` has no gradient: the model does not use it")]
    NoGradient { parameter: String },
    #[error("the compute device failed: {0}")]
    Compute(String),
    #[error(
        "`{device}` has too little memory to compute {samples} samples at a time ({cause}): set train.micro_batch to fewer, or to \"auto\""
    )]
    OutOfMemory { device: String, samples: usize, cause: String },
    #[error("an earlier failure left this replica without a usable model: make a new one")]
    Broken,
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    #[error("cannot start the optimizer's threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// What an engine is made for.
pub(crate) struct EngineSetup<'a> {
    pub(crate) model: &'a ModelConfig,
    pub(crate) input: InputShape,
    pub(crate) train: &'a TrainConfig,
    /// The f32 master weights, flat.
    pub(crate) weights: Vec<f32>,
    /// Threads for work on flat vectors in host memory.
    pub(crate) threads: usize,
}

/// The pictures, or numbers, of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Images<'a> {
    pub(crate) values: Inputs<'a>,
    pub(crate) n: usize,
    pub(crate) input: InputShape,
}

impl Images<'_> {
    /// As the model takes them: `[n, channels, size, size]`.
    pub(crate) fn shape(&self) -> [usize; 4] {
        [self.n, self.input.channels, self.input.image_size, self.input.image_size]
    }
}

/// A batch to train on. It has at least one sample, and every label is a class.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrainBatch<'a> {
    pub(crate) images: Images<'a>,
    /// `[n]`
    pub(crate) labels: &'a [i32],
    /// Together they cover the batch.
    pub(crate) dropout: &'a [DropoutGroup],
    /// The loss whose gradient is computed is the sum over the batch times this.
    pub(crate) scale: f32,
}

/// The name of a vector of the optimizer's state, and its values.
pub(crate) type NamedVector<'a> = (&'static str, Cow<'a, [f32]>);

/// Receives finished spans of the flat gradient: (offset, values).
pub(crate) type Sink<'a> = &'a mut dyn FnMut(usize, Span<'_>);

/// The gradient of an update.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gradient<'a> {
    /// The one that the engine holds.
    Own,
    /// Contiguous spans in host memory, which cover the flat vector in order.
    Summed(&'a [Span<'a>]),
}

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

/// Vectors are flat: in the order and of the length of [`crate::models::ParamLayout`].
pub(crate) trait Engine: Send {
    /// Forward pass, loss and backward pass of a batch, whose gradient is added to the
    /// one that the engine holds.
    ///
    /// With a sink, it is handed every value of the sum once, those of the classifier
    /// before the gradient of the features is computed, and the engine holds none any
    /// more. Without one, the engine holds the sum until the next update.
    fn gradient(&mut self, batch: TrainBatch<'_>, sink: Option<Sink<'_>>) -> Result<(Sums, Phases), EngineError>;

    /// Holds no gradient any more.
    fn forget(&mut self) -> Result<(), EngineError>;

    /// Changes the weights by one update, and holds no gradient any more.
    ///
    /// # Errors
    /// [`EngineError::NotFinite`]: the weights and the optimizer's state are unchanged.
    fn update(&mut self, gradient: Gradient<'_>, update: Update) -> Result<UpdateReport, EngineError>;

    /// Logits `[n, classes]` without dropout.
    fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, EngineError>;

    /// The f32 master weights.
    fn weights(&self) -> Result<Cow<'_, [f32]>, EngineError>;

    /// The vectors of the optimizer's state.
    fn optimizer_state(&self) -> Result<Vec<NamedVector<'_>>, EngineError>;

    /// Has `write` change the master weights, and computes with them from then on.
    fn write_weights(&mut self, write: &mut dyn FnMut(&mut [f32])) -> Result<(), EngineError>;

    /// Has `write` change each vector of the optimizer's state: (index, values).
    fn write_optimizer_state(&mut self, write: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), EngineError>;
}
