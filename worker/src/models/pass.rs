//! Whether a forward pass is for training or evaluation, and what it needs for that.

use burn::module::ParamId;
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear, PaddingConfig2d};
use burn::tensor::module::{batch_norm, batch_norm_train, conv2d};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{FloatDType, Tensor, s};
use common::config::LayerKind;

use crate::data::Dropout;

/// Training or evaluation. In training, dropout multiplies by masks that were drawn on the
/// host, so that a seed means the same mask on every device.
#[derive(Debug)]
pub struct Pass {
    /// Of a pass in training: what batch normalisation needs.
    training: Option<Training>,
    /// What each dropout of the pass multiplies by, in order; none in evaluation.
    masks: std::vec::IntoIter<Tensor<2>>,
    /// Dense layers that have been passed.
    dense: usize,
    /// The numbers of those that are tapped, and what was found there.
    tapped: Vec<usize>,
    taps: Vec<Tap>,
    statistics: Vec<BatchStatistics>,
    /// Takes a tensor out of the graph behind it, if a gradient flows into that; none where the
    /// backward pass is not cut.
    detach: Option<Detach>,
    cuts: Vec<Cut>,
    /// Batch normalisations, each by its scale, that go by their running statistics in training
    /// too.
    frozen: Vec<ParamId>,
    record: Option<Record>,
}

/// A dense layer as a batch passed it.
#[derive(Debug)]
pub struct Tap {
    /// `[n, inputs]`
    pub input: Tensor<2>,
    /// `[n, units]`, before any activation.
    pub output: Tensor<2>,
}

/// A place where the backward pass is cut: what the layers before it have made, and what those
/// after it go on with, of the same values.
#[derive(Debug)]
pub(crate) struct Cut {
    #[cfg_attr(not(feature = "libtorch"), allow(dead_code))]
    pub(crate) before: Tensor<4>,
    #[cfg_attr(not(feature = "libtorch"), allow(dead_code))]
    pub(crate) after: Tensor<4>,
}

/// Gives the same values without what they were made of, as a leaf of the graph; none if no
/// parameter before them is trained.
pub(crate) type Detach = fn(&Tensor<4>) -> Option<Tensor<4>>;

#[derive(Debug, Clone, Copy)]
struct Training {
    /// How much of the global batch this pass computes.
    share: f32,
    kernel: BatchNormKernel,
}

/// By what the running statistics of a batch normalisation are to be reduced, `[channels]`
/// each, in f32: the momentum times their distance from the batch's, times the share that
/// these rows have of the global batch. Summed over the parts of a batch and over all ranks,
/// these make `running = (1 - momentum) * running + momentum * mean over the parts`.
#[derive(Debug)]
pub struct BatchStatistics {
    /// Of its scale.
    pub(crate) layer: ParamId,
    pub(crate) mean: Tensor<1>,
    pub(crate) variance: Tensor<1>,
}

/// What batch normalisation makes of a batch.
#[derive(Debug)]
pub(crate) struct Normalised {
    pub(crate) output: Tensor<4>,
    /// `[channels]` in f32: the mean, and the unbiased variance, which PyTorch keeps too.
    pub(crate) mean: Tensor<1>,
    pub(crate) variance: Tensor<1>,
}

/// Normalises `[n, channels, height, width]` by its own statistics. Takes scale, shift and
/// epsilon, and computes in f32 whatever the format of the values.
pub(crate) type BatchNormKernel = fn(Tensor<4>, Tensor<1>, Tensor<1>, f64) -> Normalised;

/// What a pass has met, to describe a model.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) layers: Vec<Passed>,
    pub(crate) dropouts: Vec<Dropout>,
}

/// A layer that a pass has met.
#[derive(Debug)]
pub(crate) struct Passed {
    /// Of its weights, or its scale.
    pub(crate) id: ParamId,
    pub(crate) kind: LayerKind,
    /// `[n, ...]`
    pub(crate) output: Vec<usize>,
}

impl Pass {
    /// A pass in which dropout does nothing, and batch normalisation goes by its running
    /// statistics.
    pub fn evaluate() -> Self {
        Self {
            training: None,
            masks: Vec::new().into_iter(),
            dense: 0,
            tapped: Vec::new(),
            taps: Vec::new(),
            statistics: Vec::new(),
            detach: None,
            cuts: Vec::new(),
            frozen: Vec::new(),
            record: None,
        }
    }

    /// A pass in which dropout is active. `masks` are `[n, values]` for each of
    /// [`super::Model::dropouts`]: zero, or what keeps the mean. `share`: how much of the
    /// global batch this pass computes.
    pub fn train(masks: Vec<Tensor<2>>, share: f32) -> Self {
        Self { training: Some(Training { share, kernel: portable }), masks: masks.into_iter(), ..Self::evaluate() }
    }

    /// An evaluation that keeps a record.
    pub(crate) fn recording() -> Self {
        Self { record: Some(Record::default()), ..Self::evaluate() }
    }

    /// Has a backend's own kernel normalise batches.
    #[cfg(feature = "libtorch")]
    pub(crate) fn with_batch_norm(self, kernel: BatchNormKernel) -> Self {
        Self { training: self.training.map(|training| Training { kernel, ..training }), ..self }
    }

    /// Cuts the backward pass where the model says [`Self::cut`].
    #[cfg(feature = "libtorch")]
    pub(crate) fn with_cuts(self, detach: Detach) -> Self {
        Self { detach: Some(detach), ..self }
    }

    /// The cuts so far, in the order of the pass.
    #[cfg(feature = "libtorch")]
    pub(crate) fn take_cuts(&mut self) -> Vec<Cut> {
        std::mem::take(&mut self.cuts)
    }

    /// Keeps input and output of the dense layers with these numbers, in the order of the
    /// pass.
    pub fn tapping(self, tapped: Vec<usize>) -> Self {
        Self { tapped, ..self }
    }

    /// Leaves these batch normalisations as they are, each of which its scale stands for.
    pub(crate) fn freezing(self, frozen: Vec<ParamId>) -> Self {
        Self { frozen, ..self }
    }

    /// What was kept of the layers that are tapped, in their order, and the statistics of
    /// the batch, in the order of the pass.
    pub fn into_found(self) -> (Vec<Tap>, Vec<BatchStatistics>) {
        (self.taps, self.statistics)
    }

    /// What a [`recording`](Self::recording) pass has met so far.
    pub(crate) fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// All that it has met.
    pub(crate) fn into_record(self) -> Record {
        self.record.unwrap_or_default()
    }

    /// A dense layer. All of a model's go through here, so that they can be tapped.
    pub fn dense(&mut self, layer: &Linear, input: Tensor<2>) -> Tensor<2> {
        let number = self.dense;
        self.dense += 1;
        if !self.tapped.contains(&number) {
            let output = layer.forward(input);
            let [inputs, units] = layer.weight.dims().map(|n| n as u64);
            self.met(layer.weight.id, LayerKind::Dense { inputs, units }, &output);
            return output;
        }
        let output = layer.forward(input.clone());
        self.taps.push(Tap { input, output: output.clone() });
        output
    }

    /// A convolution. One that does not go through here is trained as well, but a
    /// description of the model lacks its arithmetic.
    pub fn convolution(&mut self, layer: &Conv2d, input: Tensor<4>) -> Tensor<4> {
        let output = forward(layer, input);
        let padding = if let PaddingConfig2d::Explicit(top, ..) = layer.padding { top } else { 0 };
        let [kernel, stride, padding] = [layer.kernel_size[0], layer.stride[0], padding].map(|n| n as u64);
        self.met(layer.weight.id, LayerKind::Convolution { kernel, stride, padding }, &output);
        output
    }

    /// Has the gradients of the layers after `x` travel while those of the layers before it are
    /// still computed, where the engine can: for use in `features`, before layers that have
    /// many weights for their arithmetic. No layer may be passed on both sides. The values are
    /// `x`'s.
    pub fn cut(&mut self, x: Tensor<4>) -> Tensor<4> {
        let Some(after) = self.detach.and_then(|detach| detach(&x)) else { return x };
        // The clone keeps the backend from writing into values that `x` shares.
        self.cuts.push(Cut { before: x, after: after.clone() });
        after
    }

    /// Batch normalisation (Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network
    /// Training by Reducing Internal Covariate Shift", 2015) of `[n, channels, ...]`. In
    /// training it goes by the statistics of the rows that are computed at a time, and never
    /// those of other ranks, as PyTorch's `BatchNorm2d` within `DistributedDataParallel`; in
    /// evaluation, and where the layer is frozen, by the running ones. Computed in f32.
    pub fn batch_norm<const D: usize>(&mut self, layer: &BatchNorm, input: Tensor<D>) -> Tensor<D> {
        let (scale, shift) = (layer.gamma.val(), layer.beta.val());
        let (mean, variance) = (layer.running_mean.value().cast(FloatDType::F32), layer.running_var.value().cast(FloatDType::F32));
        let training = self.training.filter(|_| !self.frozen.contains(&layer.gamma.id));
        let Some(Training { share, kernel }) = training else {
            let dtype = input.dtype();
            let [scale, shift] = [scale, shift].map(|tensor| tensor.cast(FloatDType::F32));
            let output = batch_norm(input.cast(FloatDType::F32), scale, shift, mean, variance, layer.epsilon).cast(dtype);
            self.met(layer.gamma.id, LayerKind::BatchNorm, &output);
            return output;
        };
        let shape = input.shape();
        let (rows, channels) = (shape[0], shape[1]);
        let rest = shape.num_elements() / (rows * channels).max(1);
        // Pictures keep the order in which they lie in memory.
        let four = if D == 4 { [rows, channels, shape[2], shape[3]] } else { [rows, channels, rest, 1] };
        let normalised = kernel(input.reshape(four), scale, shift, layer.epsilon);
        let by = layer.momentum as f32 * share;
        self.statistics.push(BatchStatistics {
            layer: layer.gamma.id,
            mean: (mean - normalised.mean) * by,
            variance: (variance - normalised.variance) * by,
        });
        normalised.output.reshape(shape)
    }

    /// Inverted dropout (Srivastava et al., "Dropout: A Simple Way to Prevent Neural
    /// Networks from Overfitting", 2014): each value becomes zero with `probability`,
    /// the others are scaled up so that the expected sum stays the same.
    pub fn dropout<const D: usize>(&mut self, x: Tensor<D>, probability: f64) -> Tensor<D> {
        if let Some(record) = &mut self.record {
            let values = x.shape().num_elements() / x.shape()[0].max(1);
            record.dropouts.extend((probability > 0.0).then_some(Dropout { values, probability }));
        }
        let mask = if probability == 0.0 { None } else { self.masks.next() };
        let Some(mask) = mask else { return x };
        let mask = mask.reshape(x.shape()).cast(x.dtype());
        // The clone keeps the backend from multiplying in place: the values of x
        // are still needed by the backward pass of the layer that made them.
        let kept = x.clone();
        let y = x * mask.clone();
        drop((kept, mask));
        y
    }

    fn met<const D: usize>(&mut self, id: ParamId, kind: LayerKind, output: &Tensor<D>) {
        if let Some(record) = &mut self.record {
            record.layers.push(Passed { id, kind, output: output.shape().iter().copied().collect() });
        }
    }
}

/// A convolution of 1x1 that strides sees every so many pixels only: here it is given those,
/// and strides no more. In libtorch 2.9 on CPUs, oneDNN's gradient of the weights of one that
/// strides writes past its memory if channels are no multiple of 8.
fn forward(layer: &Conv2d, input: Tensor<4>) -> Tensor<4> {
    let [down, across] = layer.stride.map(|stride| stride as isize);
    let unpadded = matches!(layer.padding, PaddingConfig2d::Valid | PaddingConfig2d::Explicit(0, 0, 0, 0));
    if layer.kernel_size != [1, 1] || layer.stride == [1, 1] || !unpadded {
        return layer.forward(input);
    }
    let seen = input.slice(s![.., .., ..;down, ..;across]);
    let options = ConvOptions::new([1, 1], [0, 0], [1, 1], layer.groups);
    conv2d(seen, layer.weight.val(), layer.bias.as_ref().map(|bias| bias.val()), options)
}

/// Batch normalisation by burn's own operations.
fn portable(input: Tensor<4>, scale: Tensor<1>, shift: Tensor<1>, epsilon: f64) -> Normalised {
    let (dtype, [n, _, height, width]) = (input.dtype(), input.dims());
    let found = batch_norm_train(input.cast(FloatDType::F32), scale.cast(FloatDType::F32), shift.cast(FloatDType::F32), epsilon);
    Normalised { output: found.output.cast(dtype), mean: found.mean, variance: found.variance * unbiased(n * height * width) }
}

/// What makes an unbiased variance of that of so many values. The variance of one is 0.
fn unbiased(values: usize) -> f64 {
    values as f64 / values.saturating_sub(1).max(1) as f64
}
