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
#[cfg(feature = "libtorch")]
use std::ops::Range;
use std::time::Instant;

use common::config::{ModelConfig, TrainConfig};
use common::ring::Span;
use common::trace;

use crate::data::{BatchName, Inputs, MaskRows};
use crate::models::InputShape;
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
    #[error(
        "{layer} has no deterministic kernel on CUDA, which train.reproducible needs: set data.image_size to one after which it has nothing to do, such as 224, take another model, or compute on the CPU"
    )]
    NotDeterministic { layer: &'static str },
    #[error("an earlier failure left this replica without a usable model: make a new one")]
    Broken,
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    #[error("cannot start the optimizer's threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// What an engine is made for.
#[derive(Clone)]
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

    /// Those of these places.
    #[cfg(feature = "libtorch")]
    pub(crate) fn part(&self, places: &Range<usize>) -> Self {
        Self { values: self.values.part(places, self.n), n: places.len(), ..*self }
    }
}

/// A batch to train on, or a part of one. It has at least one sample, and every label is a
/// class.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrainBatch<'a> {
    pub(crate) images: Images<'a>,
    /// `[n]`
    pub(crate) labels: &'a [i32],
    /// Of all samples.
    pub(crate) masks: MaskRows<'a>,
    /// The loss whose gradient is computed is the sum over the batch times this.
    pub(crate) scale: f32,
    /// By which it is known again; none if it comes only once.
    #[cfg_attr(not(feature = "libtorch"), allow(dead_code))]
    pub(crate) name: Option<BatchName>,
}

impl<'a> TrainBatch<'a> {
    /// The samples at these places of it.
    #[cfg(feature = "libtorch")]
    pub(crate) fn part(&self, places: &Range<usize>) -> Self {
        Self { images: self.images.part(places), labels: &self.labels[places.clone()], masks: self.masks.part(places), ..*self }
    }
}

/// The name of a vector of the optimizer's state, and its values.
pub(crate) type NamedVector<'a> = (&'static str, Cow<'a, [f32]>);

/// Receives finished spans of the flat gradient: (offset, values).
pub(crate) type Sink<'a> = &'a mut dyn FnMut(usize, Span<'_>);

/// Receives finished spans of gradients: (number of the part, offset, values).
pub(crate) type PartSink<'a> = &'a mut dyn FnMut(usize, usize, Span<'_>);

/// Where the gradients of the parts of a batch go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Nowhere: the engine holds their sum until the next update.
    Keep,
    /// Their sum, as that of the last part, to the sink.
    Sum,
    /// Each by itself to the sink.
    Each,
}

/// The gradient of an update.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gradient<'a> {
    /// The one that the engine holds.
    Own,
    /// Contiguous spans in host memory, which cover the flat vector in order.
    Summed(&'a [Span<'a>]),
}

/// Seconds that the parts of a gradient took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Phases {
    /// Input copy, forward pass and loss.
    pub forward: f64,
    pub backward: f64,
    /// Time in the sink: copies to buckets.
    pub copy: f64,
}

impl Delivery {
    /// Whether the gradient after part `number` of `parts` goes to the sink.
    fn is_due(self, number: usize, parts: usize) -> bool {
        match self {
            Self::Keep => false,
            Self::Sum => number + 1 == parts,
            Self::Each => true,
        }
    }
}

impl Phases {
    /// The longer one of each.
    #[cfg(feature = "libtorch")]
    pub(crate) fn max(self, other: Self) -> Self {
        Self { forward: self.forward.max(other.forward), backward: self.backward.max(other.backward), copy: self.copy.max(other.copy) }
    }
}

impl std::ops::AddAssign for Phases {
    fn add_assign(&mut self, other: Self) {
        self.forward += other.forward;
        self.backward += other.backward;
        self.copy += other.copy;
    }
}

/// Ends a phase and records it in the trace; returns its seconds.
pub(crate) fn lap(phase: &'static str, start: Instant) -> f64 {
    let end = Instant::now();
    trace::record(phase, None, start, end);
    end.duration_since(start).as_secs_f64()
}

/// [`Engine::gradients`] of an engine in host memory: one part after the other, by
/// `gradient`, which adds the gradient of a part to the one that is held and hands the sum
/// to its sink, if it has one.
fn in_turn(
    parts: &[TrainBatch<'_>],
    delivery: Delivery,
    sink: PartSink<'_>,
    mut gradient: impl FnMut(TrainBatch<'_>, Option<Sink<'_>>) -> Result<(Sums, Phases), EngineError>,
) -> Result<(Sums, Phases), EngineError> {
    let (mut all, mut time) = (Sums::default(), Phases::default());
    for (number, part) in parts.iter().enumerate() {
        let mut to = |offset: usize, span: Span<'_>| sink(number, offset, span);
        let (sums, phases) = gradient(*part, if delivery.is_due(number, parts.len()) { Some(&mut to) } else { None })?;
        all += sums;
        time += phases;
    }
    Ok((all, time))
}

/// Vectors are flat: in the order and of the length of [`crate::models::ParamLayout`].
pub(crate) trait Engine: Send {
    /// Forward pass, loss and backward pass of the parts of a batch, one after the other
    /// or, with several devices, at the same time. Their gradients are added to the one
    /// that the engine holds, unless each is delivered by itself.
    ///
    /// What is delivered goes to the sink, every value once, those of the classifier before
    /// the gradient of the features is computed, and the engine holds it no more. `next` is
    /// the first part of the next batch, if it is known: its way to the device may begin.
    fn gradients(
        &mut self,
        parts: &[TrainBatch<'_>],
        next: Option<&TrainBatch<'_>>,
        delivery: Delivery,
        sink: PartSink<'_>,
    ) -> Result<(Sums, Phases), EngineError>;

    /// How many parts it computes at the same time.
    fn devices(&self) -> usize {
        1
    }

    /// Takes a span of the summed gradient as soon as it is known, before the update with
    /// all of it.
    fn receive(&mut self, _offset: usize, _span: Span<'_>) -> Result<(), EngineError> {
        Ok(())
    }

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
