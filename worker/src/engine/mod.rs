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
use std::collections::HashMap;
#[cfg(feature = "libtorch")]
use std::collections::VecDeque;
#[cfg(feature = "libtorch")]
use std::ops::Range;
use std::time::Instant;

use burn::module::ParamId;
use burn::tensor::Tensor;
use common::config::{ModelConfig, TrainConfig};
use common::dense::Factored;
#[cfg(feature = "libtorch")]
use common::dense::Regions;
use common::digest::Digest;
use common::ring::Span;
use common::trace;

use crate::data::{BatchName, Inputs, MaskRows, Second};
use crate::models::{BatchStatistics, InputShape, ModelError};
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
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("{found} of {expected} batch normalisations were passed: each goes through `Pass::batch_norm`, once")]
    BatchNorms { found: usize, expected: usize },
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
    /// How many of them, from the first, are trained.
    pub(crate) trained: usize,
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
    /// Of mixed samples, `[n]`; empty if none are mixed.
    pub(crate) seconds: &'a [Second],
    /// Of all samples.
    pub(crate) masks: MaskRows<'a>,
    /// The loss whose gradient is computed is the sum over the batch times this.
    pub(crate) scale: f32,
    /// By which it is known again; none if it comes only once.
    #[cfg_attr(not(feature = "libtorch"), allow(dead_code))]
    pub(crate) name: Option<BatchName>,
}

impl<'a> TrainBatch<'a> {
    /// How much of the global batch it is.
    pub(crate) fn share(&self) -> f32 {
        self.labels.len() as f32 * self.scale
    }

    /// The samples at these places of it.
    #[cfg(feature = "libtorch")]
    pub(crate) fn part(&self, places: &Range<usize>) -> Self {
        Self {
            images: self.images.part(places),
            labels: &self.labels[places.clone()],
            seconds: self.seconds.get(places.clone()).unwrap_or_default(),
            masks: self.masks.part(places),
            ..*self
        }
    }
}

/// The name of a vector of the optimizer's state, and its values.
pub(crate) type NamedVector<'a> = (&'static str, Cow<'a, [f32]>);

/// A finished piece of a gradient.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// Values of the flat gradient, from this offset on.
    Values(usize, Span<'a>),
    /// What the gradient of a factored layer's weights is made of.
    Factors {
        /// Its place among the factored layers.
        layer: usize,
        /// The layer's inputs: `[n, inputs]`.
        inputs: Span<'a>,
        /// The gradient of its outputs: `[n, units]`.
        slopes: Span<'a>,
    },
}

#[cfg(test)]
impl<'a> Piece<'a> {
    /// Offset and values, if it has any.
    pub(crate) fn values(self) -> Option<(usize, Span<'a>)> {
        if let Self::Values(offset, span) = self { Some((offset, span)) } else { None }
    }
}

/// Receives finished spans of the flat gradient: (offset, values).
pub(crate) type Sink<'a> = &'a mut dyn FnMut(usize, Span<'_>);

/// Receives finished pieces of gradients, with the number of the part.
pub(crate) type PartSink<'a> = &'a mut dyn FnMut(usize, Piece<'_>);

/// Where the gradients of the parts of a batch go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Nowhere: the engine holds their sum until the next update.
    Keep,
    /// Their sum, as that of the last part, to the sink.
    Sum,
    /// The same, and the gradients of the features in several pieces, where the model
    /// [cuts](crate::models::Pass::cut) them: the first ones are on their way sooner, for a
    /// backward pass that takes a little longer.
    SumInPieces,
    /// Each by itself to the sink.
    Each,
}

/// The gradient of an update.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gradient<'a> {
    /// The one that the engine holds.
    Own,
    /// Contiguous spans in host memory. With the products of the factored layers between
    /// them, they cover the flat vector in order.
    Summed(&'a [Span<'a>]),
}

/// The whole flat gradient, in order: what was summed, with products where they belong.
#[cfg(feature = "libtorch")]
pub(crate) fn whole<'a>(regions: &Regions, summed: &[Span<'a>], products: &[Span<'a>]) -> Vec<Span<'a>> {
    let mut all = Vec::with_capacity(summed.len() + 2 * products.len() + 1);
    let (mut rest, mut products) = (summed.iter().copied().collect::<VecDeque<_>>(), products.iter());
    let mut before = regions.products().iter().peekable();
    for range in regions.summed() {
        while before.next_if(|product| product.start < range.start).is_some() {
            all.extend(products.next());
        }
        let mut missing = range.len();
        while missing > 0 {
            let Some(span) = rest.pop_front() else { break };
            let n = span.len().min(missing);
            all.push(span.range(0..n));
            if n < span.len() {
                rest.push_front(span.range(n..span.len()));
            }
            missing -= n;
        }
    }
    all.extend(products);
    all
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
            Self::Sum | Self::SumInPieces => number + 1 == parts,
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

/// The statistics of a pass in the order of the flat state: mean and variance of each batch
/// normalisation, which `norms` names in that order.
pub(crate) fn in_order(norms: &[ParamId], statistics: Vec<BatchStatistics>) -> Result<Vec<Tensor<1>>, EngineError> {
    let found = statistics.len();
    let mut by_layer: HashMap<ParamId, BatchStatistics> = statistics.into_iter().map(|of| (of.layer, of)).collect();
    let in_order: Vec<_> = norms.iter().filter_map(|norm| by_layer.remove(norm)).collect();
    if in_order.len() != norms.len() || found != norms.len() {
        return Err(EngineError::BatchNorms { found, expected: norms.len() });
    }
    Ok(in_order.into_iter().flat_map(|of| [of.mean, of.variance]).collect())
}

/// [`Engine::gradients`] of an engine in host memory: one part after the other, by
/// `gradient`, which adds the gradient of a part to the one that is held and, if it is due,
/// hands the sum to its sink.
fn in_turn(
    parts: &[TrainBatch<'_>],
    delivery: Delivery,
    sink: PartSink<'_>,
    mut gradient: impl FnMut(TrainBatch<'_>, bool, &mut dyn FnMut(Piece<'_>)) -> Result<(Sums, Phases), EngineError>,
) -> Result<(Sums, Phases), EngineError> {
    let (mut all, mut time) = (Sums::default(), Phases::default());
    for (number, part) in parts.iter().enumerate() {
        let (sums, phases) = gradient(*part, delivery.is_due(number, parts.len()), &mut |piece| sink(number, piece))?;
        all += sums;
        time += phases;
    }
    Ok((all, time))
}

/// Vectors are flat: in the order of [`crate::models::ParamLayout`], and of its length if they are
/// weights. Gradients and the optimizer's state are as long as the part that is trained.
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

    /// From now on gives the factors of these layers instead of the gradient of their
    /// weights, of each part and unless it keeps the gradient; the next update takes their
    /// gradient from [`multiply`](Self::multiply). Returns false if it can give none.
    fn factor(&mut self, factored: &Factored) -> Result<bool, EngineError> {
        Ok(factored.layers.is_empty())
    }

    /// Makes the gradient of a factored layer's weights of its factors: those of all rows of
    /// the global batch.
    fn multiply(&mut self, _layer: usize, _inputs: Span<'_>, _slopes: Span<'_>) -> Result<(), EngineError> {
        Err(EngineError::Compute("this engine multiplies no factors".to_owned()))
    }

    /// A digest of the newest product of a layer. Those of two engines are the same only if
    /// they make the same weights.
    fn product(&self, _layer: usize) -> Result<Digest, EngineError> {
        Err(EngineError::Compute("this engine multiplies no factors".to_owned()))
    }

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

    /// Exchanges the weights with their moving average, if there is one, and computes with them
    /// from then on. The second call undoes the first.
    fn swap_average(&mut self) -> Result<(), EngineError>;

    /// Has `write` change the master weights, and computes with them from then on.
    fn write_weights(&mut self, write: &mut dyn FnMut(&mut [f32])) -> Result<(), EngineError>;

    /// Has `write` change each vector of the optimizer's state: (index, values).
    fn write_optimizer_state(&mut self, write: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), EngineError>;
}

#[cfg(all(test, feature = "libtorch"))]
mod tests {
    use super::*;

    #[test]
    fn products_stand_where_they_belong() {
        let numbers: Vec<f32> = (0..20).map(|n| n as f32).collect();
        for products in [&[][..], &[(0, 3)], &[(3, 5), (5, 9)], &[(0, 2), (7, 20)], &[(0, 20)]] {
            let products: Vec<Range<usize>> = products.iter().map(|&(start, end)| start..end).collect();
            let regions = Regions::new(20, products.clone());
            let summed: Vec<f32> = regions.summed().flat_map(|range| numbers[range].to_vec()).collect();
            let made: Vec<Span<'_>> = products.iter().map(|range| Span::F32(&numbers[range.clone()])).collect();
            for cut in [1, 4, 100] {
                let spans: Vec<Span<'_>> = summed.chunks(cut).map(Span::from).collect();
                let mut all = Vec::new();
                whole(&regions, &spans, &made).iter().for_each(|span| span.for_each_f32(|values| all.extend_from_slice(values)));
                assert_eq!(all, numbers, "{products:?}, {cut}");
            }
        }
    }
}
