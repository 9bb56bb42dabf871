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

use burn::tensor::Tensor as BurnTensor;
use common::contained::panic_message;
use tch::{Kind, Tensor, no_grad};

use super::super::{Delivery, EngineError, EngineSetup, Phases, in_order, lap};
use super::batch_norm;
use super::bridge::{inner, wrap};
use super::products::Products;
use super::shim::{Event, backward};
use crate::models::{BatchNorms, Cut, Model, NewLeaf, ParamLayout, Pass, Tap};

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

/// How a backward pass gives its gradients.
#[derive(Clone, Copy, Default)]
pub(super) struct Asked<'a> {
    /// Dense layers that give factors.
    pub(super) tapped: Option<&'a Products>,
    /// Whether the features are cut where the model says.
    pub(super) in_pieces: bool,
}

impl<'a> Asked<'a> {
    /// For this delivery. `is_due`: the gradient is delivered after this part.
    pub(super) fn of(delivery: Delivery, is_due: bool, products: &'a Products) -> Self {
        let tapped = (delivery != Delivery::Keep).then_some(products);
        Self { tapped, in_pieces: delivery == Delivery::SumInPieces && is_due }
    }
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
    /// classifier, before and after that of each part of the features.
    events: Vec<Event>,
}

impl Times {
    /// What the device took. It must have done the pass.
    pub(super) fn phases(&self) -> Result<Phases, EngineError> {
        let [start, forward, classifier, features @ ..] = &self.events[..] else { return Ok(self.phases) };
        let mut backward = forward.elapsed(classifier)?;
        for part in features.chunks_exact(2) {
            backward += part[0].elapsed(&part[1])?;
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
    /// they are complete: first of the classifier, then of the features, whose last part comes
    /// first where the model cuts them and that is asked for. Of dense layers that
    /// are `tapped`, it gets the factors first, and no gradient of their weights.
    pub(super) fn gradient<T, S>(
        &self,
        (samples, share): (usize, f32),
        asked: Asked<'_>,
        feed: impl FnOnce() -> Result<Feed<T>, EngineError>,
        loss: impl FnOnce(&Tensor, T) -> Result<(Tensor, S), EngineError>,
        take: impl FnMut(Finished) -> Result<(), EngineError>,
    ) -> Result<(S, Times), EngineError> {
        self.guarded(samples, || self.forward_and_backward(share, asked, feed, loss, take))
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
        Asked { tapped, in_pieces }: Asked<'_>,
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
        let mut pass = Pass::train(masks, share).tapping(numbers).freezing(frozen_norms);
        pass = pass.with_batch_norm(batch_norm::normalised);
        if in_pieces {
            pass = pass.with_cuts(detached);
        }
        let first = self.layout.feature_parameters();
        let trained = |places: Range<usize>| places.filter(|&param| !self.layout.params()[param].is_frozen());
        let features_params: Vec<usize> = trained(0..first).collect();
        let trains_features = !features_params.is_empty();
        let features = inner(self.model.features(wrap(images), &mut pass))?;
        let cuts = pass.take_cuts();
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
        drop(kept);
        let is_tapped = |param: &usize| tapped.is_some_and(|tapped| tapped.params.contains(param));
        let mut params: Vec<usize> = trained(first..self.layout.parameters()).filter(|param| !is_tapped(param)).collect();
        // The gradient of a tapped layer's outputs is asked for instead of its weights'.
        let inputs = tap_outputs.iter().chain(params.iter().map(|&param| &self.leaves[param])).chain(trains_features.then_some(&cut));
        let mut grads = backward(&logits, &slope, &inputs.collect::<Vec<_>>())?.into_iter();
        drop(logits);
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
            let mut parts = Parts { root: features, slope, cuts, params: features_params, taken: Vec::new() };
            while !parts.params.is_empty() {
                stamp()?;
                let start = Instant::now();
                let (params, grads) = self.backward_of_part(&mut parts)?;
                phases.backward += lap("backward of the features", start);
                stamp()?;
                let start = Instant::now();
                if !params.is_empty() {
                    take(Finished::Gradients(params, grads))?;
                }
                phases.copy += lap("gradient copy", start);
            }
        }
        Ok((sums, Times { phases, events }))
    }

    /// The gradients of the last part of the features that has none yet.
    fn backward_of_part(&self, parts: &mut Parts) -> Result<(Vec<usize>, Vec<Tensor>), EngineError> {
        let cut = parts.cuts.pop().map(|cut| Ok::<_, EngineError>((inner(cut.before)?, inner(cut.after)?))).transpose()?;
        // Those that are taken are asked for once more, to find a layer on both sides of a cut.
        let (params, after) = ([&parts.params[..], &parts.taken].concat(), cut.as_ref().map(|(_, after)| after));
        let inputs: Vec<&Tensor> = params.iter().map(|&param| &self.leaves[param]).chain(after).collect();
        let mut grads = backward(&parts.root, &parts.slope, &inputs)?;
        let again = params.iter().zip(&grads).skip(parts.params.len()).find(|(_, grad)| grad.defined());
        if let Some((&param, _)) = again {
            let name = self.layout.params()[param].name();
            return Err(EngineError::Compute(format!("`{name}` is used on both sides of a cut (docs/own-model.md)")));
        }
        let Some((before, _)) = cut else {
            // What no gradient has reached is found by whoever takes them.
            parts.root = Tensor::new();
            grads.truncate(parts.params.len());
            return Ok((std::mem::take(&mut parts.params), grads));
        };
        parts.slope = grads.pop().unwrap_or_else(Tensor::new);
        parts.root = before;
        let found = parts.params.drain(..).zip(grads);
        let (done, left): (Vec<_>, Vec<_>) = found.partition(|(_, grad)| grad.defined());
        parts.params = left.into_iter().map(|(param, _)| param).collect();
        let (params, grads): (Vec<_>, Vec<_>) = done.into_iter().unzip();
        parts.taken.extend(&params);
        Ok((params, grads))
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

/// The features during their backward pass.
struct Parts {
    /// What the part that is next has made, and the gradient of that.
    root: Tensor,
    slope: Tensor,
    /// Before that part, and before those that come after it.
    cuts: Vec<Cut>,
    /// Parameters that have no gradient yet, and those that have.
    params: Vec<usize>,
    taken: Vec<usize>,
}

/// See [`crate::models::Pass::cut`].
fn detached(x: &BurnTensor<4>) -> Option<BurnTensor<4>> {
    let x = inner(x.clone()).ok()?;
    let leaf = if x.requires_grad() { x.f_detach().ok()?.set_requires_grad(true) } else { return None };
    Some(wrap(leaf))
}

/// The values of an f32 tensor.
pub(super) fn to_host(tensor: &Tensor) -> Result<Vec<f32>, EngineError> {
    Ok(Vec::try_from(tensor.f_detach()?.f_reshape([-1])?)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use common::config::{AlexnetConfig, InputShape, ModelConfig, TrainConfig};

    use super::*;
    use crate::models::tests_of_own::normed_with;

    const INPUT: InputShape = InputShape { channels: 3, image_size: 63, classes: 4 };

    /// The layers whose gradients a backward pass gives at a time.
    fn delivered(model: &ModelConfig, train: &TrainConfig, in_pieces: bool) -> Result<Vec<Vec<String>>, EngineError> {
        let layout = ParamLayout::of(&Model::new(model, INPUT, &super::super::device(None))?, train);
        let weights = vec![0.01; layout.total()];
        let flat = Tensor::f_from_slice(&weights)?;
        let setup = EngineSetup { model, input: INPUT, train, trained: layout.trained_total(), weights, threads: 1 };
        let network = Network::new(&setup, &flat)?;
        let mut delivered = Vec::new();
        let side = INPUT.image_size as i64;
        let images = Tensor::f_ones([2, 3, side, side], (Kind::Float, tch::Device::Cpu))?;
        let feed = || Ok(Feed { images, masks: Vec::new(), target: () });
        network.gradient(
            (2, 1.0),
            Asked { tapped: None, in_pieces },
            feed,
            |logits, ()| Ok((logits.f_ones_like()?, ())),
            |finished| {
                let Finished::Gradients(params, grads) = finished else { return Ok(()) };
                assert!(grads.iter().all(Tensor::defined) && params.len() == grads.len());
                let layer = |&param: &usize| network.layout.params()[param].name().split('.').next().unwrap_or_default().to_owned();
                let mut layers: Vec<String> = params.iter().map(layer).collect();
                layers.dedup();
                delivered.push(layers);
                Ok(())
            },
        )?;
        Ok(delivered)
    }

    #[test]
    fn gradients_come_in_parts_that_the_config_knows() {
        let model = ModelConfig::Alexnet(AlexnetConfig { width: 0.05, dropout: 0.0, ..AlexnetConfig::default() });
        let [dense, after, before] = [["dense1", "dense2", "dense3"], ["conv3", "conv4", "conv5"], ["conv1", "conv2", ""]];
        let train = TrainConfig::default();
        assert_eq!(delivered(&model, &train, true).unwrap(), [&dense[..], &after, &before[..2]]);
        let whole = [&before[..2], &after].concat();
        assert_eq!(delivered(&model, &train, false).unwrap(), [&dense[..], &whole]);
        assert_eq!(model.cut(), Some(after[0]));
        // What is frozen is not passed back through.
        let freezing = |layers: &[&str]| TrainConfig { freeze: layers.iter().map(|&l| l.to_owned()).collect(), ..TrainConfig::default() };
        assert_eq!(delivered(&model, &freezing(&["conv1", "conv2"]), true).unwrap(), [&dense[..], &after]);
        assert_eq!(delivered(&model, &freezing(&after), true).unwrap(), [&dense[..], &before[..2]]);
        assert_eq!(delivered(&model, &freezing(&["features"]), true).unwrap(), [&dense[..]]);
    }

    #[test]
    fn a_layer_on_both_sides_of_a_cut_is_refused() {
        let model = normed_with("width = 2\nfault = \"sides\"", INPUT);
        let error = delivered(&model, &TrainConfig::default(), true).unwrap_err().to_string();
        assert!(error.contains("`conv.bias` is used on both sides of a cut"), "{error}");
    }
}
