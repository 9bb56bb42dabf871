//! A worker's copy of the training state: it checks batches, gradients and states, and
//! has its engine, which owns the state, work with them. It does not depend on workers,
//! shards or files.

mod error;
#[cfg(test)]
mod golden;
mod state;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use common::config::{ModelConfig, OptimizerKind, TrainConfig};
use common::digest::Digest;
use common::ring::{Bucket, Span};
use common::trace;

use crate::data::{BatchName, Dropout, Inputs, MaskGroup, MaskRows, Masks};
use crate::engine::device::Devices;
use crate::engine::{Delivery, Engine, EngineError, EngineSetup, Gradient, Images, Loss, Phases, Sums, TrainBatch};
use crate::models::{InputShape, Model, ParamLayout, initial_weights};
use crate::optim::{Update, UpdateReport};
pub use error::ReplicaError;
pub use state::State;

/// A model with its training state, on the device of its engine.
pub struct Replica {
    engine: Box<dyn Engine>,
    layout: ParamLayout,
    optimizer: OptimizerKind,
    loss: Loss,
    dropouts: Vec<Dropout>,
    input: InputShape,
    /// Updates applied so far.
    step: u64,
    phases: Phases,
}

/// Neighbouring samples of a batch whose gradient is computed at once.
#[derive(Debug, Clone, Copy)]
pub struct BatchPart<'a> {
    pub inputs: Inputs<'a>,
    /// `[n]`
    pub labels: &'a [i32],
    /// Of all samples, and of the model's [`dropouts`](Replica::dropouts).
    pub masks: MaskRows<'a>,
    /// By which it is known again if it was announced as the next one.
    pub name: Option<BatchName>,
}

/// Zeros handed to the sink at a time for an empty batch.
const ZEROS: [f32; 4096] = [0.0; 4096];

impl Replica {
    /// A replica with the initial weights of `seed`, ready for step 0.
    ///
    /// The optimizer uses `train.threads` threads, by default all cores. Set the
    /// devices' own threads first: [`Devices::prepare`].
    ///
    /// # Errors
    /// Threads could not be started, or the device has no room for the state.
    pub fn new(
        model: &ModelConfig,
        train: &TrainConfig,
        input: InputShape,
        seed: u64,
        devices: impl Into<Devices>,
    ) -> Result<Self, ReplicaError> {
        let devices = devices.into();
        let layout = ParamLayout::of(&Model::new(model, input, &devices.first().burn()));
        let weights = initial_weights(&layout, model, seed);
        let threads = train.compute_threads(std::thread::available_parallelism().map_or(1, usize::from));
        let engine = devices.engine(EngineSetup { model, input, train, weights, threads })?;
        let loss = Loss::of(model, train);
        let dropouts = Model::dropouts(model);
        Ok(Self { engine, layout, optimizer: train.optimizer, loss, dropouts, input, step: 0, phases: Phases::default() })
    }

    pub fn layout(&self) -> &ParamLayout {
        &self.layout
    }

    /// The f32 master weights, flat.
    ///
    /// # Errors
    /// The device failed.
    pub fn weights(&self) -> Result<Cow<'_, [f32]>, ReplicaError> {
        Ok(self.engine.weights()?)
    }

    /// Updates applied so far: the step that comes next.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Where the time of the last [`gradients`](Self::gradients) went.
    pub fn phases(&self) -> Phases {
        self.phases
    }

    /// Forward and backward of the parts of a batch, each of n samples, which may be 0.
    ///
    /// The gradient of `scale` times the summed loss goes where `delivery` says: it stays
    /// where it was computed and is added to that of earlier batches until the next
    /// [`update_with_own`](Self::update_with_own), or it goes to `sink` as spans (number of
    /// the part, offset in the flat vector, values) that together cover it once. The spans
    /// of the classifier go to `sink` before the gradient of the features is computed.
    /// Parts may be computed at the same time, and their spans come in any order. Label
    /// smoothing and dropout are active. The loss may be NaN or infinite;
    /// [`update`](Self::update) refuses the gradient that results. `next` is the first part
    /// of the next batch, if it is known: it may be sent to the device meanwhile.
    ///
    /// # Errors
    /// A part does not fit the model, or the device failed.
    pub fn gradients(
        &mut self,
        parts: &[BatchPart<'_>],
        next: Option<&BatchPart<'_>>,
        scale: f32,
        delivery: Delivery,
        sink: &mut dyn FnMut(usize, usize, Span<'_>),
    ) -> Result<Sums, ReplicaError> {
        let mut batches = Vec::with_capacity(parts.len());
        // The engine computes what has samples; the other gradients are zeros.
        let (mut filled, mut empty) = (Vec::new(), Vec::new());
        for (number, part) in parts.iter().enumerate() {
            let batch = self.train_batch(part, scale)?;
            if part.labels.is_empty() {
                empty.push(number);
            } else {
                filled.push(number);
                batches.push(batch);
            }
        }
        let zeros = match delivery {
            Delivery::Keep => &[],
            Delivery::Sum => &empty[..if filled.is_empty() { empty.len().min(1) } else { 0 }],
            Delivery::Each => &empty[..],
        };
        let total = self.layout.total();
        for &part in zeros {
            (0..total).step_by(ZEROS.len()).for_each(|at| sink(part, at, Span::F32(&ZEROS[..ZEROS.len().min(total - at)])));
        }
        let (sums, phases) = if batches.is_empty() {
            (Sums::default(), Phases::default())
        } else {
            // What is wrong with the next batch is said when it is its turn.
            let next = next.filter(|part| !part.labels.is_empty()).and_then(|part| self.train_batch(part, scale).ok());
            self.engine.gradients(&batches, next.as_ref(), delivery, &mut |number, offset, span| sink(filled[number], offset, span))?
        };
        self.phases = phases;
        Ok(sums)
    }

    /// The places where dropout acts, of which batches need masks.
    pub fn dropouts(&self) -> &[Dropout] {
        &self.dropouts
    }

    /// How many parts of a batch are computed at the same time.
    pub fn devices(&self) -> usize {
        self.engine.devices()
    }

    /// Computes the gradient of so many black pictures and forgets it: fails as a step of
    /// so many samples would.
    ///
    /// # Errors
    /// The device failed; out of memory is [`EngineError::OutOfMemory`].
    pub fn rehearse(&mut self, samples: usize) -> Result<(), ReplicaError> {
        let numbers = vec![0.0; samples * self.input.values()];
        let masks = Masks::drawn(&self.dropouts, &[MaskGroup { seed: 0, samples }]);
        let part = BatchPart { inputs: Inputs::Numbers(&numbers), labels: &vec![0; samples], masks: masks.all(), name: None };
        let outcome = self.gradients(&[part], None, 1.0, Delivery::Keep, &mut |_, _, _| ());
        self.engine.forget()?;
        outcome.map(drop)
    }

    /// Takes a span of the summed gradient as soon as it is known, so that it can be on its
    /// way to the device before [`update`](Self::update), which is given all of it.
    ///
    /// # Errors
    /// The device failed.
    pub fn receive(&mut self, offset: usize, span: Span<'_>) -> Result<(), ReplicaError> {
        Ok(self.engine.receive(offset, span)?)
    }

    /// Applies an update with the summed gradient of all workers, given as buckets:
    /// contiguous spans that cover the flat vector in order.
    ///
    /// # Errors
    /// The gradient has the wrong size or is not finite; the weights are unchanged.
    pub fn update(&mut self, gradient: &[impl Bucket], update: Update) -> Result<UpdateReport, ReplicaError> {
        let spans: Vec<Span<'_>> = gradient.iter().map(Bucket::span).collect();
        let (found, expected) = (spans.iter().map(|span| span.len()).sum(), self.layout.total());
        if found != expected {
            return Err(ReplicaError::GradientSize { found, expected });
        }
        self.apply(Gradient::Summed(&spans), update)
    }

    /// Applies an update with the sum of the gradients that
    /// [`gradients`](Self::gradients) has computed and kept.
    ///
    /// # Errors
    /// The gradient is not finite; the weights are unchanged.
    pub fn update_with_own(&mut self, update: Update) -> Result<UpdateReport, ReplicaError> {
        self.apply(Gradient::Own, update)
    }

    fn apply(&mut self, gradient: Gradient<'_>, update: Update) -> Result<UpdateReport, ReplicaError> {
        let report = self.engine.update(gradient, update).map_err(|error| match error {
            EngineError::NotFinite(found) => ReplicaError::NotFinite {
                parameter: self.layout.param_at(found.at).map_or_else(String::new, |p| p.name().to_owned()),
                step: update.step,
            },
            other => other.into(),
        })?;
        self.step = update.step + 1;
        Ok(report)
    }

    /// The sums of one batch without dropout and label smoothing: `labels` are `[n]`.
    ///
    /// # Errors
    /// The batch does not fit the model, or the device failed.
    pub fn evaluate<'a>(&self, inputs: impl Into<Inputs<'a>>, labels: &[i32]) -> Result<Sums, ReplicaError> {
        Ok(self.scores(inputs, labels)?.0)
    }

    /// As [`evaluate`](Self::evaluate), with the score of each class, `[n, classes]`.
    ///
    /// # Errors
    /// The batch does not fit the model, or the device failed.
    pub fn scores<'a>(&self, inputs: impl Into<Inputs<'a>>, labels: &[i32]) -> Result<(Sums, Vec<f32>), ReplicaError> {
        let images = self.batch(inputs.into(), labels)?;
        if labels.is_empty() {
            return Ok((Sums::default(), Vec::new()));
        }
        let scores = self.engine.logits(images)?;
        Ok((self.loss.unsmoothed().sums(&scores, labels, 1.0, None), scores))
    }

    /// The most bytes that a file of a [`State`] of this model can have.
    pub fn largest_state_file(&self) -> u64 {
        const NAMES_AND_SHAPES: u64 = 1 << 20;
        let vectors = self.optimizer.state().len().max(1) as u64;
        4 * vectors * self.layout.total() as u64 + NAMES_AND_SHAPES
    }

    /// Weights, optimizer state and step.
    ///
    /// # Errors
    /// Serialisation or the device failed.
    pub fn export(&self) -> Result<State, ReplicaError> {
        let _span = trace::span("export of the state", Some(self.step));
        let slots: Vec<_> = self.engine.optimizer_state()?.into_iter().map(|(slot, values)| (format!("{slot}/"), values)).collect();
        Ok(State {
            step: self.step,
            model: state::write(&self.layout, &[(String::new(), self.weights()?)], None)?,
            optimizer: state::write(&self.layout, &slots, Some(self.step))?,
        })
    }

    /// Takes over another replica's state.
    ///
    /// # Errors
    /// The state is malformed, or of another model or optimizer; this replica is unchanged.
    pub fn import(&mut self, state: &State) -> Result<(), ReplicaError> {
        let step = state::step_of(&state.optimizer)?;
        if step != state.step {
            return Err(ReplicaError::State(format!("the optimizer is at step {step}, the state says {}", state.step)));
        }
        let prefixes: Vec<_> = self.optimizer.state().iter().map(|slot| format!("{slot}/")).collect();
        let slots = state::read(&self.layout, &prefixes, &state.optimizer)?;
        import_weights(&mut *self.engine, &self.layout, &state.model)?;
        self.engine.write_optimizer_state(&mut |slot, values| slots.copy_to(slot, values))?;
        self.step = step;
        Ok(())
    }

    /// Takes over weights only (safetensors, as in [`State::model`]), to evaluate or predict.
    ///
    /// # Errors
    /// The weights are malformed or of another model; this replica is unchanged.
    pub fn import_weights(&mut self, model: &[u8]) -> Result<(), ReplicaError> {
        import_weights(&mut *self.engine, &self.layout, model)
    }

    /// A fingerprint of the weights: equal on workers that hold the same bytes.
    ///
    /// # Errors
    /// The device failed.
    pub fn weights_blake3(&self) -> Result<Digest, ReplicaError> {
        Ok(state::weights_blake3(&self.layout, &self.weights()?))
    }

    fn train_batch<'a>(&self, part: &BatchPart<'a>, scale: f32) -> Result<TrainBatch<'a>, ReplicaError> {
        let BatchPart { inputs, labels, masks, name } = *part;
        let images = self.batch(inputs, labels)?;
        let fits = masks.places().map(|(dropout, _)| dropout).eq(self.dropouts.iter().copied());
        if masks.samples() != labels.len() || !fits {
            return Err(ReplicaError::Masks { masks: masks.samples(), labels: labels.len() });
        }
        Ok(TrainBatch { images, labels, masks, scale, name })
    }

    fn batch<'a>(&self, inputs: Inputs<'a>, labels: &[i32]) -> Result<Images<'a>, ReplicaError> {
        let per_image = self.input.values();
        let finished = if let Inputs::Pictures(pictures) = inputs { pictures.finishes.len() } else { labels.len() };
        if inputs.len() != labels.len() * per_image || finished != labels.len() {
            return Err(ReplicaError::Batch { images: inputs.len(), labels: labels.len(), per_image });
        }
        let classes = self.input.classes;
        if let Some(index) = labels.iter().position(|&label| usize::try_from(label).map_or(true, |l| l >= classes)) {
            return Err(ReplicaError::Label { index, label: labels[index], classes });
        }
        Ok(Images { values: inputs, n: labels.len(), input: self.input })
    }
}

/// A free function, so that a caller may borrow the other fields of a replica meanwhile.
fn import_weights(engine: &mut dyn Engine, layout: &ParamLayout, model: &[u8]) -> Result<(), ReplicaError> {
    let parts = state::read(layout, &[String::new()], model)?;
    Ok(engine.write_weights(&mut |weights| parts.copy_to(0, weights))?)
}
