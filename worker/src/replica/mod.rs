//! A worker's copy of the training state: the model, its f32 master weights and the
//! optimizer's state. It computes gradients and applies updates; it does not
//! depend on workers, shards or files.

mod error;
#[cfg(test)]
mod golden;
mod loss;
mod state;
#[cfg(test)]
mod tests;

use common::config::{ModelConfig, TrainConfig};
use common::digest::Digest;
use common::ring::{Bucket, Span};
use common::simd::f32_to_bf16;
use common::trace;

use crate::engine::device::ComputeDevice;
use crate::engine::{Engine, Images, Phases};
use crate::models::{DropoutGroup, InputShape, Model, ParamLayout, initial_weights};
use crate::optim::{NotFinite, Optimizer};
pub use error::ReplicaError;
pub use loss::{Loss, Sums};
pub use state::State;

/// The result of an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateReport {
    /// Euclidean norm of the gradient, before clipping.
    pub grad_norm: f64,
    pub clipped: bool,
}

pub struct Replica {
    engine: Box<dyn Engine>,
    layout: ParamLayout,
    optimizer: Optimizer,
    train: TrainConfig,
    loss: Loss,
    input: InputShape,
    /// Updates applied so far.
    step: u64,
    phases: Phases,
}

/// Zeros handed to the sink at a time for an empty batch.
const ZEROS: [f32; 4096] = [0.0; 4096];

impl Replica {
    /// A replica with the initial weights of `seed`, ready for step 0.
    ///
    /// The optimizer uses `train.threads` threads, by default all cores. Set the
    /// device's own threads first: [`ComputeDevice::set_threads`].
    ///
    /// # Errors
    /// Threads could not be started.
    pub fn new(
        model: &ModelConfig,
        train: &TrainConfig,
        input: InputShape,
        seed: u64,
        device: ComputeDevice,
    ) -> Result<Self, ReplicaError> {
        let layout = ParamLayout::of(&Model::new(model, input, &device.burn()));
        let weights = initial_weights(&layout, model, seed);
        let engine = device.engine(model, input, train.precision, weights);
        let threads = train.compute_threads(std::thread::available_parallelism().map_or(1, usize::from));
        let optimizer = Optimizer::new(train, layout.total(), threads)?;
        let loss = Loss::of(model, train);
        Ok(Self { engine, layout, optimizer, train: train.clone(), loss, input, step: 0, phases: Phases::default() })
    }

    pub fn layout(&self) -> &ParamLayout {
        &self.layout
    }

    /// The f32 master weights, flat.
    pub fn weights(&self) -> &[f32] {
        self.engine.weights()
    }

    /// Updates applied so far: the step that comes next.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Where the time of the last [`gradient`](Self::gradient) went.
    pub fn phases(&self) -> Phases {
        self.phases
    }

    /// Forward and backward of one batch: `images` `[n, channels, size, size]`,
    /// `labels` `[n]`, n may be 0.
    ///
    /// The gradient of `scale` times the summed loss goes to `sink` as spans (offset in
    /// the flat vector, values) that together cover it once. The spans of the
    /// classifier go to `sink` before the gradient of the features is computed. Label
    /// smoothing and dropout are active; the groups of `dropout`, each with its seed,
    /// cover the batch. The loss may be NaN or infinite; [`update`](Self::update)
    /// refuses the gradient that results.
    ///
    /// # Errors
    /// The batch does not fit the model, or the device failed.
    pub fn gradient(
        &mut self,
        images: &[f32],
        labels: &[i32],
        scale: f32,
        dropout: &[DropoutGroup],
        sink: &mut dyn FnMut(usize, Span<'_>),
    ) -> Result<Sums, ReplicaError> {
        let images = self.batch(images, labels)?;
        let grouped: usize = dropout.iter().map(|g| g.samples).sum();
        if grouped != labels.len() {
            return Err(ReplicaError::Groups { grouped, labels: labels.len() });
        }
        if labels.is_empty() {
            let total = self.layout.total();
            (0..total).step_by(ZEROS.len()).for_each(|at| sink(at, Span::F32(&ZEROS[..ZEROS.len().min(total - at)])));
            self.phases = Phases::default();
            return Ok(Sums::default());
        }
        let loss = self.loss;
        let mut sums = Sums::default();
        let mut head = |logits: &[f32]| {
            let mut slope = vec![0.0; logits.len()];
            sums = loss.sums(logits, labels, scale, Some(&mut slope));
            slope
        };
        self.phases = self.engine.gradient(images, dropout, &mut head, sink)?;
        Ok(sums)
    }

    /// Applies update number `step` with the summed gradient of all workers, given
    /// as buckets: contiguous spans that cover the flat vector in order.
    ///
    /// # Errors
    /// The gradient has the wrong size or is not finite; the weights are unchanged.
    pub fn update(&mut self, gradient: &[impl Bucket], step: u64, lr: f64) -> Result<UpdateReport, ReplicaError> {
        let (found, expected) = (gradient.iter().map(|bucket| bucket.span().len()).sum(), self.layout.total());
        if found != expected {
            return Err(ReplicaError::GradientSize { found, expected });
        }
        let grad_norm = self.optimizer.norm(gradient).map_err(|NotFinite { bucket, at }| ReplicaError::NotFinite {
            parameter: self.layout.param_at(at).map_or_else(String::new, |p| p.name().to_owned()),
            bucket,
            step,
        })?;
        let limit = self.train.clip_norm.filter(|&limit| grad_norm > limit);
        let factor = limit.map_or(1.0, |limit| limit / grad_norm);
        let optimizer = &mut self.optimizer;
        self.engine.write(&mut |weights, mirror| optimizer.step(weights, mirror, gradient, step, lr, factor));
        self.step = step + 1;
        Ok(UpdateReport { grad_norm, clipped: limit.is_some() })
    }

    /// The sums of one batch without dropout and label smoothing; shapes as in
    /// [`gradient`](Self::gradient).
    ///
    /// # Errors
    /// The batch does not fit the model, or the device failed.
    pub fn evaluate(&self, images: &[f32], labels: &[i32]) -> Result<Sums, ReplicaError> {
        Ok(self.scores(images, labels)?.0)
    }

    /// As [`evaluate`](Self::evaluate), with the score of each class, `[n, classes]`.
    ///
    /// # Errors
    /// The batch does not fit the model, or the device failed.
    pub fn scores(&self, images: &[f32], labels: &[i32]) -> Result<(Sums, Vec<f32>), ReplicaError> {
        let images = self.batch(images, labels)?;
        if labels.is_empty() {
            return Ok((Sums::default(), Vec::new()));
        }
        let scores = self.engine.logits(images)?;
        Ok((self.loss.unsmoothed().sums(&scores, labels, 1.0, None), scores))
    }

    /// The most bytes that a file of a [`State`] of this model can have.
    pub fn largest_state_file(&self) -> u64 {
        const NAMES_AND_SHAPES: u64 = 1 << 20;
        let vectors = self.optimizer.state().count().max(1) as u64;
        4 * vectors * self.layout.total() as u64 + NAMES_AND_SHAPES
    }

    /// Weights, optimizer state and step.
    ///
    /// # Errors
    /// Serialisation failed.
    pub fn export(&self) -> Result<State, ReplicaError> {
        let _span = trace::span("export of the state", Some(self.step));
        let slots: Vec<_> = self.optimizer.state().map(|(slot, values)| (format!("{slot}/"), values)).collect();
        Ok(State {
            step: self.step,
            model: state::write(&self.layout, &[(String::new(), self.weights())], None)?,
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
        let prefixes: Vec<_> = self.optimizer.state().map(|(slot, _)| format!("{slot}/")).collect();
        let slots = state::read(&self.layout, &prefixes, &state.optimizer)?;
        import_weights(&mut *self.engine, &self.layout, &state.model)?;
        for (slot, (_, values)) in self.optimizer.state_mut().enumerate() {
            slots.copy_to(slot, values);
        }
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
    pub fn weights_blake3(&self) -> Digest {
        state::weights_blake3(&self.layout, self.weights())
    }

    fn batch<'a>(&self, images: &'a [f32], labels: &[i32]) -> Result<Images<'a>, ReplicaError> {
        let per_image = self.input.values();
        if images.len() != labels.len() * per_image {
            return Err(ReplicaError::Batch { images: images.len(), labels: labels.len(), per_image });
        }
        loss::check_labels(labels, self.input.classes)?;
        Ok(Images { values: images, n: labels.len(), input: self.input })
    }
}

/// A free function, so that a caller may borrow the other fields of a replica meanwhile.
fn import_weights(engine: &mut dyn Engine, layout: &ParamLayout, model: &[u8]) -> Result<(), ReplicaError> {
    let parts = state::read(layout, &[String::new()], model)?;
    engine.write(&mut |weights, mirror| {
        parts.copy_to(0, weights);
        if let Some(mirror) = mirror {
            f32_to_bf16(weights, mirror);
        }
    });
    Ok(())
}
