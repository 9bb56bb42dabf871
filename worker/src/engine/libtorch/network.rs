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

use common::contained::panic_message;
use tch::{Kind, Tensor, no_grad};

use super::super::{EngineError, EngineSetup, Phases, in_order, lap};
use super::batch_norm;
use super::bridge::{inner, wrap};
use super::products::Products;
use super::shim::Event;
use crate::models::{BatchNorms, Model, NewLeaf, ParamLayout, Pass, Tap};

pub(super) struct Network {
    model: Model,
    pub(super) layout: ParamLayout,
    norms: BatchNorms,
    /// The model's parameters, in the order of the layout: views of the flat weights.
    leaves: Vec<Tensor>,
    device: tch::Device,
}

/// What a pass over a batch needs, on the device and in the number format of the pass.
pub(super) struct Feed<T> {
    /// `[n, channels, size, size]`, stored with the channels last: libtorch's CPU pools are
    /// vectorised over channels only, and all later layers keep the order of their input.
    pub(super) images: Tensor,
    /// For each dropout, what it multiplies by: `[n, values]`.
    pub(super) masks: Vec<Tensor>,
    /// What the loss needs.
    pub(super) target: T,
}

/// What a backward pass has completed.
pub(super) enum Finished {
    /// The gradients of these parameters, which are numbered as in the layout. Of running
    /// statistics it is by how much they are to be reduced.
    Gradients(Vec<usize>, Vec<Tensor>),
    /// The factors of a tapped layer, by its place among those: its inputs `[n, inputs]` and
    /// the gradient of its outputs `[n, units]`.
    Factors(usize, Tensor, Tensor),
}

/// How long the phases of a pass took.
pub(super) struct Times {
    /// By the host's clock: on a CUDA device, the time that it took to give the device its
    /// work.
    phases: Phases,
    /// On a CUDA device: before and after the forward pass, after the backward pass of the
    /// classifier, before and after that of the features.
    events: Vec<Event>,
}

impl Times {
    /// What the device took. It must have done the pass.
    pub(super) fn phases(&self) -> Result<Phases, EngineError> {
        let [start, forward, classifier, features @ ..] = &self.events[..] else { return Ok(self.phases) };
        let mut backward = forward.elapsed(classifier)?;
        if let [before, after] = features {
            backward += before.elapsed(after)?;
        }
        Ok(Phases { forward: start.elapsed(forward)?, backward, ..self.phases })
    }
}

impl Network {
    /// `flat`: the weights that the model computes with. Whoever writes into them
    /// changes the model.
    pub(super) fn new(setup: &EngineSetup<'_>, flat: &Tensor) -> Result<Self, EngineError> {
        let device = flat.device();
        let cuda = if let tch::Device::Cuda(index) = device { Some(index) } else { None };
        let model = Model::new(setup.model, setup.input, &super::device(cuda))?;
        let layout = ParamLayout::of(&model, setup.train);
        let leaf = |param: &crate::models::ParamSpec| -> Result<Tensor, tch::TchError> {
            let range = param.range();
            let view = flat.f_narrow(0, range.start as i64, range.len() as i64)?;
            let shape: Vec<i64> = param.shape().iter().map(|&n| n as i64).collect();
            Ok(view.f_view(shape.as_slice())?.f_detach()?.set_requires_grad(param.has_gradient()))
        };
        let leaves = layout.params().iter().map(leaf).collect::<Result<Vec<_>, _>>()?;
        let mut next = leaves.iter();
        let model =
            model.map(&mut || NewLeaf::Tensor(wrap::<1>(next.next().map_or_else(Tensor::new, Tensor::shallow_clone)).into_dispatch()));
        let norms = layout.batch_norms(&model);
        Ok(Self { model, layout, norms, leaves, device })
    }

    /// Forward pass, `loss` and backward pass over `samples` samples, which are this `share` of
    /// the global batch. `loss` turns f32
    /// logits `[n, classes]` and the target into the gradient of the loss with respect to
    /// the logits, and something to return. `take` gets gradients as soon as
    /// they are complete: first of the classifier, then of the features. Of dense layers that
    /// are `tapped`, it gets the factors first, and no gradient of their weights.
    pub(super) fn gradient<T, S>(
        &self,
        (samples, share): (usize, f32),
        tapped: Option<&Products>,
        feed: impl FnOnce() -> Result<Feed<T>, EngineError>,
        loss: impl FnOnce(&Tensor, T) -> Result<(Tensor, S), EngineError>,
        take: impl FnMut(Finished) -> Result<(), EngineError>,
    ) -> Result<(S, Times), EngineError> {
        self.guarded(samples, || self.forward_and_backward(share, tapped, feed, loss, take))
    }

    /// A failure of libtorch within `work` as an error, also where burn makes a panic of
    /// it.
    pub(super) fn guarded<T>(&self, samples: usize, work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
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
        if cause.contains("modified by an inplace operation") {
            let rule = "a sum or an activation of the model has overwritten what the backward pass needs: keep a clone of the tensor until after it (docs/own-model.md)";
            return EngineError::Compute(format!("{device}: {rule}; {cause}"));
        }
        if cause.contains("out of memory") || cause.contains("can't allocate memory") {
            EngineError::OutOfMemory { device, samples, cause }
        } else {
            EngineError::Compute(format!("{device}: {cause}"))
        }
    }

    fn forward_and_backward<T, S>(
        &self,
        share: f32,
        tapped: Option<&Products>,
        feed: impl FnOnce() -> Result<Feed<T>, EngineError>,
        loss: impl FnOnce(&Tensor, T) -> Result<(Tensor, S), EngineError>,
        mut take: impl FnMut(Finished) -> Result<(), EngineError>,
    ) -> Result<(S, Times), EngineError> {
        let mut phases = Phases::default();
        let mut events = Vec::new();
        let mut stamp = || -> Result<(), EngineError> {
            if let tch::Device::Cuda(index) = self.device {
                events.push(Event::timed(index)?);
            }
            Ok(())
        };
        stamp()?;
        let start = Instant::now();
        let Feed { images, masks, target } = feed()?;
        let numbers = tapped.map_or_else(Vec::new, |tapped| tapped.factored.layers.iter().map(|layer| layer.number).collect());
        let masks = masks.into_iter().map(wrap).collect();
        let frozen_norms = self.norms.frozen.clone();
        let mut pass = Pass::train(masks, share).tapping(numbers).freezing(frozen_norms).with_batch_norm(batch_norm::normalised);
        let first = self.layout.feature_parameters();
        let trained = |places: Range<usize>| places.filter(|&param| !self.layout.params()[param].is_frozen());
        let features_params: Vec<usize> = trained(0..first).collect();
        let trains_features = !features_params.is_empty();
        let features = inner(self.model.features(wrap(images), &mut pass))?;
        // The graph is cut here, so that the classifier's gradients are final before
        // the backward pass of the features begins.
        let cut = features.f_detach()?.set_requires_grad(trains_features);
        let input = wrap(cut.shallow_clone());
        // While this clone lives, burn does not write into the leaf in place.
        let kept = input.clone();
        let logits = inner(self.model.classifier(input, &mut pass))?.f_to_kind(Kind::Float)?;
        let tap = |tap: Tap| Ok::<_, EngineError>((inner(tap.input)?.f_detach()?.f_contiguous()?, inner(tap.output)?));
        let (taps, statistics) = pass.into_found();
        let statistics = in_order(&self.norms.trained, statistics)?.into_iter().map(inner).collect::<Result<Vec<_>, _>>()?;
        let (tap_inputs, tap_outputs): (Vec<_>, Vec<_>) = taps.into_iter().map(tap).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let expected = tapped.map_or(0, |tapped| tapped.params.len());
        if tap_inputs.len() != expected {
            let problem =
                format!("{} of {expected} factored layers were passed: each dense layer goes through `Pass::dense`", tap_inputs.len());
            return Err(EngineError::Compute(problem));
        }
        let (slope, sums) = loss(&logits.f_detach()?, target)?;
        phases.forward = lap("forward", start);
        stamp()?;

        let start = Instant::now();
        let root = logits.f_mul(&slope)?.f_sum(Kind::Float)?;
        drop((logits, kept));
        let is_tapped = |param: &usize| tapped.is_some_and(|tapped| tapped.params.contains(param));
        let mut params: Vec<usize> = trained(first..self.layout.parameters()).filter(|param| !is_tapped(param)).collect();
        // The gradient of a tapped layer's outputs is asked for instead of its weights'.
        let inputs = tap_outputs.iter().chain(params.iter().map(|&param| &self.leaves[param])).chain(trains_features.then_some(&cut));
        let mut grads = backward(&root, &inputs.collect::<Vec<_>>())?.into_iter();
        drop(root);
        phases.backward = lap("backward of the classifier", start);
        stamp()?;
        let start = Instant::now();
        for (layer, (inputs, slopes)) in tap_inputs.into_iter().zip(grads.by_ref()).enumerate() {
            take(Finished::Factors(layer, inputs, slopes.f_contiguous()?))?;
        }
        let of_params = grads.by_ref().take(params.len()).chain(statistics).collect();
        let slope = grads.next();
        params.extend(trained(self.layout.parameters()..self.leaves.len()));
        take(Finished::Gradients(params, of_params))?;
        phases.copy = lap("gradient copy", start);

        if let Some(slope) = slope {
            stamp()?;
            let start = Instant::now();
            let root = features.f_mul(&slope)?.f_sum(Kind::Float)?;
            drop(features);
            let grads = backward(&root, &features_params.iter().map(|&param| &self.leaves[param]).collect::<Vec<_>>())?;
            phases.backward += lap("backward of the features", start);
            stamp()?;
            let start = Instant::now();
            take(Finished::Gradients(features_params, grads))?;
            phases.copy += lap("gradient copy", start);
        }
        Ok((sums, Times { phases, events }))
    }

    /// f32 logits `[n, classes]` without dropout, in host memory.
    pub(super) fn logits(&self, samples: usize, images: impl FnOnce() -> Result<Tensor, EngineError>) -> Result<Vec<f32>, EngineError> {
        self.guarded(samples, || {
            no_grad(|| {
                let logits = self.model.forward(wrap(images()?), &mut Pass::evaluate());
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
