//! The model on one of libtorch's devices: forward pass and backward pass over flat
//! weights.
//!
//! The model runs on burn's libtorch backend without burn's automatic
//! differentiation: its parameters are libtorch leaves that require a gradient,
//! so libtorch records the operations itself and uses its native backward
//! kernels (burn's backward of a convolution goes through forward convolutions,
//! which are slower).

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::backend::LibTorch;
use burn::backend::libtorch::TchTensor;
use burn::module::{ModuleMapper, Param};
use burn::tensor::Tensor as BurnTensor;
use common::config::ModelConfig;
use tch::{Kind, Tensor, no_grad};

use super::super::{EngineError, Images, Phases, TrainBatch, lap};
use super::input;
use crate::data::{Inputs, panic_message};
use crate::models::{InputShape, Model, ParamLayout, Pass};
use crate::optim::Threads;

pub(super) struct Network {
    model: Model,
    pub(super) layout: ParamLayout,
    /// The model's parameters, in the order of the layout: views of the flat weights.
    leaves: Vec<Tensor>,
    kind: Kind,
    device: tch::Device,
    /// Where numbers are made of pictures: by these threads of the host, or else on the
    /// device.
    threads: Option<Threads>,
}

impl Network {
    /// `flat`: the weights that the model computes with. Whoever writes into them
    /// changes the model. With `threads`, the device must be the CPU.
    pub(super) fn new(config: &ModelConfig, input: InputShape, flat: &Tensor, threads: Option<Threads>) -> Result<Self, EngineError> {
        let (kind, device) = (flat.kind(), flat.device());
        let cuda = if let tch::Device::Cuda(index) = device { Some(index) } else { None };
        let model = Model::new(config, input, &super::device(cuda));
        let layout = ParamLayout::of(&model);
        let leaf = |param: &crate::models::ParamSpec| -> Result<Tensor, tch::TchError> {
            let range = param.range();
            let view = flat.f_narrow(0, range.start as i64, range.len() as i64)?;
            let shape: Vec<i64> = param.shape().iter().map(|&n| n as i64).collect();
            Ok(view.f_view(shape.as_slice())?.f_detach()?.set_requires_grad(true))
        };
        let leaves = layout.params().iter().map(leaf).collect::<Result<Vec<_>, _>>()?;
        let model = model.map(&mut Loader { next: 0, leaves: &leaves });
        Ok(Self { model, layout, leaves, kind, device, threads })
    }

    /// The batch on the device, in the run's precision, stored with the channels
    /// last: libtorch's CPU pools are vectorised over channels only, and all later
    /// layers keep the order of their input.
    fn images(&self, images: Images<'_>) -> Result<Tensor, EngineError> {
        let channels_last = match (images.values, &self.threads) {
            (Inputs::Numbers(numbers), _) => {
                let host = Tensor::f_from_slice(numbers)?.f_view(images.shape().map(|n| n as i64))?;
                let device = host.f_to_device(self.device)?.f_to_kind(self.kind)?;
                device.f_permute([0, 2, 3, 1])?.f_contiguous()?
            }
            (Inputs::Pictures(pictures), Some(threads)) => input::on_host(pictures, images.input, self.kind, threads)?,
            (Inputs::Pictures(pictures), None) => input::on_device(pictures, images.input, self.kind, self.device)?,
        };
        Ok(channels_last.f_permute([0, 3, 1, 2])?)
    }

    /// Forward pass, `loss` and backward pass. `loss` turns f32 logits `[n, classes]`
    /// into the gradient of the loss with respect to them, and something to return.
    /// `take` gets the gradients of a range of parameters as soon as they are complete:
    /// first of the classifier, then of the features.
    pub(super) fn gradient<S>(
        &self,
        batch: TrainBatch<'_>,
        loss: impl FnOnce(&Tensor) -> Result<(Tensor, S), EngineError>,
        take: impl FnMut(Range<usize>, Vec<Tensor>) -> Result<(), EngineError>,
    ) -> Result<(S, Phases), EngineError> {
        self.guarded(batch.labels.len(), || self.forward_and_backward(batch, loss, take))
    }

    /// A failure of libtorch within `work` as an error, also where burn makes a panic of
    /// it.
    fn guarded<T>(&self, samples: usize, work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
        let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(EngineError::Compute(panic_message(&*panic))));
        outcome.map_err(|error| match error {
            EngineError::Compute(cause) => self.explained(&cause, samples),
            other => other,
        })
    }

    /// libtorch's messages go on with a list of C++ functions, which helps nobody here.
    fn explained(&self, cause: &str, samples: usize) -> EngineError {
        let cause = cause.split("Exception raised from").next().unwrap_or_default().trim().to_owned();
        let device = match self.device {
            tch::Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        };
        if cause.contains("out of memory") || cause.contains("can't allocate memory") {
            EngineError::OutOfMemory { device, samples, cause }
        } else {
            EngineError::Compute(format!("{device}: {cause}"))
        }
    }

    fn forward_and_backward<S>(
        &self,
        batch: TrainBatch<'_>,
        loss: impl FnOnce(&Tensor) -> Result<(Tensor, S), EngineError>,
        mut take: impl FnMut(Range<usize>, Vec<Tensor>) -> Result<(), EngineError>,
    ) -> Result<(S, Phases), EngineError> {
        let mut phases = Phases::default();
        let start = Instant::now();
        let mut pass = Pass::train(batch.dropout);
        let split = self.layout.feature_parameters();
        let features = inner(self.model.features(wrap(self.images(batch.images)?), &mut pass))?;
        // The graph is cut here, so that the classifier's gradients are final before
        // the backward pass of the features begins.
        let cut = features.f_detach()?.set_requires_grad(split > 0);
        let input = wrap(cut.shallow_clone());
        // While this clone lives, burn does not write into the leaf in place.
        let kept = input.clone();
        let logits = inner(self.model.classifier(input, &mut pass))?.f_to_kind(Kind::Float)?;
        let (slope, sums) = loss(&logits.f_detach()?)?;
        phases.forward = lap("forward", start);

        let start = Instant::now();
        let root = logits.f_mul(&slope)?.f_sum(Kind::Float)?;
        drop((logits, kept));
        let mut inputs: Vec<&Tensor> = self.leaves[split..].iter().collect();
        if split > 0 {
            inputs.push(&cut);
        }
        let mut grads = backward(&root, &inputs)?;
        drop(root);
        phases.backward = lap("backward of the classifier", start);
        let slope = grads.drain(self.leaves.len() - split..).next();
        let start = Instant::now();
        take(split..self.leaves.len(), grads)?;
        phases.copy = lap("gradient copy", start);

        if let Some(slope) = slope {
            let start = Instant::now();
            let root = features.f_mul(&slope)?.f_sum(Kind::Float)?;
            drop(features);
            let grads = backward(&root, &self.leaves[..split].iter().collect::<Vec<_>>())?;
            phases.backward += lap("backward of the features", start);
            let start = Instant::now();
            take(0..split, grads)?;
            phases.copy += lap("gradient copy", start);
        }
        Ok((sums, phases))
    }

    /// f32 logits `[n, classes]` without dropout, in host memory.
    pub(super) fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, EngineError> {
        self.guarded(images.n, || {
            no_grad(|| {
                let logits = self.model.forward(wrap(self.images(images)?), &mut Pass::evaluate());
                to_host(&inner(logits)?.f_to_kind(Kind::Float)?)
            })
        })
    }
}

fn backward(root: &Tensor, inputs: &[&Tensor]) -> Result<Vec<Tensor>, EngineError> {
    Ok(Tensor::f_run_backward(&[root], inputs, false, false)?)
}

/// The values of an f32 tensor.
pub(super) fn to_host(tensor: &Tensor) -> Result<Vec<f32>, EngineError> {
    Ok(Vec::try_from(tensor.f_detach()?.f_reshape([-1])?)?)
}

/// A libtorch tensor as burn's.
fn wrap<const D: usize>(tensor: Tensor) -> BurnTensor<D> {
    BurnTensor::from_primitive::<LibTorch>(TchTensor::new(tensor))
}

/// The libtorch tensor that burn holds.
fn inner<const D: usize>(tensor: BurnTensor<D>) -> Result<Tensor, EngineError> {
    match tensor.try_into_primitive::<LibTorch>() {
        Ok(primitive) => Ok(primitive.tensor),
        Err(error) => Err(EngineError::Compute(format!("{error:?}"))),
    }
}

/// Puts the leaves in the place of the model's parameters.
struct Loader<'a> {
    next: usize,
    leaves: &'a [Tensor],
}

impl ModuleMapper for Loader<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<BurnTensor<D>>) -> Param<BurnTensor<D>> {
        let leaf = self.leaves[self.next].shallow_clone();
        self.next += 1;
        Param::initialized(param.id, wrap(leaf))
    }
}
