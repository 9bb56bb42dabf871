//! The engine for any burn backend, by burn's own automatic differentiation.
//! Parameters and gradients pass through host memory.

use std::ops::Range;
use std::time::Instant;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType, Gradients, Tensor, TensorData};
use common::config::{ModelConfig, Precision};
use common::ring::Span;

use super::{Engine, EngineError, Head, Images, Phases, Sink, Write, lap};
use crate::models::{DropoutGroup, InputShape, Model, ParamLayout, Pass};

pub(crate) struct AutodiffEngine {
    /// `None` only while parameters are being replaced.
    model: Option<Model>,
    layout: ParamLayout,
    weights: Vec<f32>,
    precision: FloatDType,
    device: Device,
}

impl AutodiffEngine {
    pub(crate) fn new(config: &ModelConfig, input: InputShape, precision: Precision, weights: Vec<f32>, device: Device) -> Self {
        let device = device.autodiff();
        let model = Model::new(config, input, &device);
        let layout = ParamLayout::of(&model);
        let precision = match precision {
            Precision::F32 => FloatDType::F32,
            Precision::Bf16 => FloatDType::BF16,
        };
        let mut engine = Self { model: Some(model), layout, weights, precision, device };
        engine.write(&mut |_, _| ());
        engine
    }

    fn model(&self) -> Result<&Model, EngineError> {
        self.model.as_ref().ok_or(EngineError::Broken)
    }

    fn images(&self, images: Images<'_>, device: &Device) -> Tensor<4> {
        let data = TensorData::new(images.values.to_vec(), images.shape());
        Tensor::<4>::from_data(data, device).cast(self.precision)
    }
}

impl Engine for AutodiffEngine {
    fn weights(&self) -> &[f32] {
        &self.weights
    }

    fn write(&mut self, write: Write<'_>) {
        write(&mut self.weights, None);
        let mut loader = Loader { next: 0, engine: self };
        let model = loader.engine.model.take().map(|model| model.map(&mut loader));
        self.model = model;
    }

    fn gradient(&mut self, images: Images<'_>, dropout: &[DropoutGroup], head: Head<'_>, sink: Sink<'_>) -> Result<Phases, EngineError> {
        let mut phases = Phases::default();
        let start = Instant::now();
        let model = self.model()?;
        let mut pass = Pass::train(dropout);
        let features = model.features(self.images(images, &self.device), &mut pass);
        // The graph is cut here, so that the classifier's gradients are final before
        // the backward pass of the features begins.
        let cut = features.clone().detach().require_grad();
        let logits = model.classifier(cut.clone(), &mut pass).cast(FloatDType::F32);
        let slope = head(&values(logits.clone())?);
        let slope = Tensor::<2>::from_data(TensorData::new(slope, logits.shape()), &self.device);
        phases.forward = lap("forward", start);

        let start = Instant::now();
        let grads = (logits * slope).sum().backward();
        phases.backward = lap("backward of the classifier", start);
        let split = self.layout.feature_parameters();
        phases.copy = collect(model, &self.layout, &grads, split..usize::MAX, sink)?;
        if split > 0 {
            let start = Instant::now();
            let slope = cut.grad(&grads).ok_or(EngineError::Broken)?;
            drop(grads);
            let grads = (features * Tensor::from_inner(slope)).sum().backward();
            phases.backward += lap("backward of the features", start);
            phases.copy += collect(model, &self.layout, &grads, 0..split, sink)?;
        }
        Ok(phases)
    }

    fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, EngineError> {
        let logits = self.model()?.forward(self.images(images, &self.device), &mut Pass::evaluate());
        values(logits.cast(FloatDType::F32))
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, EngineError> {
    tensor.into_data().try_to_vec().map_err(|error| EngineError::Compute(format!("{error:?}")))
}

/// Hands the gradients of the parameters in `range` to `sink`; returns the seconds it took.
fn collect(model: &Model, layout: &ParamLayout, grads: &Gradients, range: Range<usize>, sink: Sink<'_>) -> Result<f64, EngineError> {
    let start = Instant::now();
    let mut collector = Collector { next: 0, range, layout, grads, sink, result: Ok(()) };
    model.visit(&mut collector);
    collector.result.map(|()| lap("gradient copy", start))
}

struct Collector<'a> {
    next: usize,
    range: Range<usize>,
    layout: &'a ParamLayout,
    grads: &'a Gradients,
    sink: Sink<'a>,
    result: Result<(), EngineError>,
}

impl ModuleVisitor for Collector<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let index = self.next;
        self.next += 1;
        if !self.range.contains(&index) || self.result.is_err() {
            return;
        }
        let spec = &self.layout.params()[index];
        let Some(grad) = param.val().grad(self.grads) else {
            self.result = Err(EngineError::NoGradient { parameter: spec.name().to_owned() });
            return;
        };
        match values(grad.cast(FloatDType::F32)) {
            Ok(grad) => (self.sink)(spec.range().start, Span::F32(&grad)),
            Err(error) => self.result = Err(error),
        }
    }
}

/// Makes tensors of the flat weights, parameter by parameter.
struct Loader<'a> {
    next: usize,
    engine: &'a mut AutodiffEngine,
}

impl ModuleMapper for Loader<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let spec = &self.engine.layout.params()[self.next];
        self.next += 1;
        let data = TensorData::new(self.engine.weights[spec.range()].to_vec(), spec.shape().to_vec());
        let tensor = Tensor::<D>::from_data(data, &self.engine.device).cast(self.engine.precision);
        Param::initialized(param.id, tensor.require_grad())
    }
}
