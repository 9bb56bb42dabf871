//! The engine for any burn backend, by burn's own automatic differentiation.
//! Parameters and gradients pass through host memory.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Instant;

use burn::tensor::{Device, FloatDType, Gradients, Tensor, TensorData};
use common::config::Precision;
use common::ring::Span;

use super::{
    Delivery, Engine, EngineError, EngineSetup, Gradient, Images, Loss, NamedVector, PartSink, Phases, Piece, Sink, Sums, TrainBatch,
    in_order, in_turn, lap,
};
use crate::data::{Dropout, Inputs};
use crate::models::{BatchNorms, InputShape, Model, NewLeaf, ParamLayout, Pass};
use crate::optim::{Optimizer, Threads, Update, UpdateReport};

pub(crate) struct AutodiffEngine {
    /// `None` only while parameters are being replaced.
    model: Option<Model>,
    layout: ParamLayout,
    norms: BatchNorms,
    loss: Loss,
    optimizer: Optimizer,
    weights: Vec<f32>,
    /// How many weights, from the first, are trained.
    trained: usize,
    /// The gradient that waits for an update, or for more to be added; empty if there is
    /// none.
    kept: Vec<f32>,
    precision: FloatDType,
    device: Device,
}

impl AutodiffEngine {
    pub(crate) fn new(setup: EngineSetup<'_>, device: Device) -> Result<Self, EngineError> {
        let device = device.autodiff();
        let model = Model::new(setup.model, setup.input, &device)?;
        let layout = ParamLayout::of(&model, setup.train);
        let norms = layout.batch_norms(&model);
        let precision = match setup.train.precision {
            Precision::F32 | Precision::Tf32 => FloatDType::F32,
            Precision::Bf16 => FloatDType::BF16,
        };
        let optimizer = Optimizer::new(setup.train, &layout, Threads::new(setup.threads)?);
        let loss = Loss::of(setup.model, setup.train);
        let mut engine = Self {
            model: Some(model),
            layout,
            norms,
            loss,
            optimizer,
            weights: setup.weights,
            trained: setup.trained,
            kept: Vec::new(),
            precision,
            device,
        };
        engine.load();
        Ok(engine)
    }

    /// Makes the model compute with the current weights.
    fn load(&mut self) {
        let Some(model) = self.model.take() else { return };
        let mut params = self.layout.params().iter();
        let mut make = || {
            let param = params.next();
            NewLeaf::Values {
                values: param.map_or(&[], |param| &self.weights[param.range()]),
                shape: param.map_or(&[], |param| param.shape()),
                device: &self.device,
                precision: self.precision,
                learns: param.is_some_and(|param| param.has_gradient()),
            }
        };
        self.model = Some(model.map(&mut make));
    }

    fn model(&self) -> Result<&Model, EngineError> {
        self.model.as_ref().ok_or(EngineError::Broken)
    }

    fn images(&self, images: Images<'_>, device: &Device) -> Tensor<4> {
        let numbers = match images.values {
            Inputs::Numbers(numbers) => numbers.to_vec(),
            Inputs::Pictures(pictures) => {
                let InputShape { channels, image_size, .. } = images.input;
                let each = images.input.values();
                let mut numbers = vec![0.0; images.n * each];
                let parts = pictures.finishes.iter().zip(pictures.bytes.chunks_exact(each)).zip(numbers.chunks_exact_mut(each));
                parts.for_each(|((finish, bytes), numbers)| finish.write_planes(bytes, image_size, channels, numbers));
                numbers
            }
        };
        let data = TensorData::new(numbers, images.shape());
        Tensor::<4>::from_data(data, device).cast(self.precision)
    }
}

impl Engine for AutodiffEngine {
    fn gradients(
        &mut self,
        parts: &[TrainBatch<'_>],
        _next: Option<&TrainBatch<'_>>,
        delivery: Delivery,
        sink: PartSink<'_>,
    ) -> Result<(Sums, Phases), EngineError> {
        in_turn(parts, delivery, sink, |part, is_due, sink| {
            let mut values = |offset: usize, span: Span<'_>| sink(Piece::Values(offset, span));
            self.gradient(part, if is_due { Some(&mut values) } else { None })
        })
    }

    fn forget(&mut self) -> Result<(), EngineError> {
        self.kept = Vec::new();
        Ok(())
    }

    fn update(&mut self, gradient: Gradient<'_>, update: Update) -> Result<UpdateReport, EngineError> {
        let mut kept = std::mem::take(&mut self.kept);
        kept.resize(self.trained, 0.0);
        let own = [Span::F32(&kept)];
        let spans = if let Gradient::Summed(spans) = gradient { spans } else { &own };
        let report = self.optimizer.update(&mut self.weights[..self.trained], None, spans, update)?;
        self.load();
        Ok(report)
    }

    fn logits(&self, images: Images<'_>) -> Result<Vec<f32>, EngineError> {
        let logits = self.model()?.forward(self.images(images, &self.device), &mut Pass::evaluate());
        values(logits.cast(FloatDType::F32))
    }

    fn weights(&self) -> Result<Cow<'_, [f32]>, EngineError> {
        Ok(Cow::Borrowed(&self.weights))
    }

    fn optimizer_state(&self) -> Result<Vec<NamedVector<'_>>, EngineError> {
        Ok(self.optimizer.state().map(|(name, values)| (name, Cow::Borrowed(values))).collect())
    }

    fn swap_average(&mut self) -> Result<(), EngineError> {
        self.optimizer.swap_average(&mut self.weights[..self.trained], None);
        self.load();
        Ok(())
    }

    fn write_weights(&mut self, write: &mut dyn FnMut(&mut [f32])) -> Result<(), EngineError> {
        write(&mut self.weights);
        self.load();
        Ok(())
    }

    fn write_optimizer_state(&mut self, write: &mut dyn FnMut(usize, &mut [f32])) -> Result<(), EngineError> {
        self.optimizer.state_mut().enumerate().for_each(|(slot, (_, values))| write(slot, values));
        Ok(())
    }
}

impl AutodiffEngine {
    /// Adds the gradient of a part to the one that is held; hands the sum to the sink, if
    /// there is one.
    fn gradient(&mut self, batch: TrainBatch<'_>, sink: Option<Sink<'_>>) -> Result<(Sums, Phases), EngineError> {
        let mut kept = std::mem::take(&mut self.kept);
        let add = !kept.is_empty();
        let sink = match sink {
            Some(sink) if !add => return self.pass(batch, sink),
            sink => sink,
        };
        kept.resize(self.trained, 0.0);
        let result = self.pass(batch, &mut |at, span| {
            let place = &mut kept[at..at + span.len()];
            let mut values = vec![0.0; span.len()];
            span.read(&mut values);
            place.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value);
        });
        match sink {
            Some(sink) => sink(0, Span::F32(&kept)),
            None => self.kept = kept,
        }
        result
    }

    /// What dropout multiplies by.
    fn masks(&self, batch: TrainBatch<'_>) -> Vec<Tensor<2>> {
        let tensor = |(dropout, mask): (Dropout, &[u8])| {
            let values: Vec<f32> = mask.iter().map(|&kept| f32::from(kept) * dropout.scale()).collect();
            Tensor::<2>::from_data(TensorData::new(values, [batch.labels.len(), dropout.values]), &self.device).cast(self.precision)
        };
        batch.masks.places().map(tensor).collect()
    }

    /// Forward pass, loss and backward pass.
    fn pass(&self, batch: TrainBatch<'_>, sink: Sink<'_>) -> Result<(Sums, Phases), EngineError> {
        let mut phases = Phases::default();
        let start = Instant::now();
        let model = self.model()?;
        let mut pass = Pass::train(self.masks(batch), batch.share()).freezing(self.norms.frozen.clone());
        let features = model.features(self.images(batch.images, &self.device), &mut pass);
        // The graph is cut here, so that the classifier's gradients are final before
        // the backward pass of the features begins.
        let cut = features.clone().detach().require_grad();
        let logits = model.classifier(cut.clone(), &mut pass).cast(FloatDType::F32);
        let scores = values(logits.clone())?;
        let mut slope = vec![0.0; scores.len()];
        let sums = self.loss.mixed_sums(&scores, batch.labels, batch.seconds, batch.scale, Some(&mut slope));
        let slope = Tensor::<2>::from_data(TensorData::new(slope, logits.shape()), &self.device);
        phases.forward = lap("forward", start);

        let start = Instant::now();
        let grads = (logits * slope).sum().backward();
        phases.backward = lap("backward of the classifier", start);
        let split = self.layout.feature_parameters();
        let statistics = in_order(&self.norms.trained, pass.into_found().1)?;
        for (param, reduction) in self.layout.trained_params().filter(|param| param.role().is_running()).zip(statistics) {
            sink(param.range().start, Span::F32(&values(reduction)?));
        }
        phases.copy = collect(model, &self.layout, &grads, split..self.layout.parameters(), sink)?;
        if self.layout.params()[..split].iter().any(|param| !param.is_frozen()) {
            let start = Instant::now();
            let slope = cut.grad(&grads).ok_or(EngineError::Broken)?;
            drop(grads);
            let grads = (features * Tensor::from_inner(slope)).sum().backward();
            phases.backward += lap("backward of the features", start);
            phases.copy += collect(model, &self.layout, &grads, 0..split, sink)?;
        }
        Ok((sums, phases))
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, EngineError> {
    tensor.into_data().try_to_vec().map_err(|error| EngineError::Compute(format!("{error:?}")))
}

/// Hands the gradients of the parameters in `range` to `sink`; returns the seconds it took.
fn collect(model: &Model, layout: &ParamLayout, grads: &Gradients, range: Range<usize>, sink: Sink<'_>) -> Result<f64, EngineError> {
    let start = Instant::now();
    let (mut index, mut result) = (0, Ok(()));
    model.visit(&mut |leaf| {
        let (number, spec) = (index, &layout.params()[index]);
        index += 1;
        if !range.contains(&number) || spec.is_frozen() || result.is_err() {
            return;
        }
        let Some(grad) = leaf.tensor.gradient(grads) else {
            result = Err(EngineError::NoGradient { parameter: spec.name().to_owned() });
            return;
        };
        match values(grad.cast(FloatDType::F32)) {
            Ok(grad) => sink(spec.range().start, Span::F32(&grad)),
            Err(error) => result = Err(error),
        }
    });
    result.map(|()| lap("gradient copy", start))
}
