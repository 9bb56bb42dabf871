//! A worker's copy of the training state: it checks batches, gradients and states, and
//! has its engine, which owns the state, work with them. It does not depend on workers,
//! shards or files.

mod batch;
mod error;
#[cfg(all(test, feature = "libtorch"))]
mod factors;
#[cfg(test)]
mod golden;
mod progress;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_batch_norm;
#[cfg(test)]
mod tests_of_batches;
#[cfg(test)]
mod tests_of_freezing;
#[cfg(all(test, feature = "libtorch"))]
mod tests_of_updates;

use std::borrow::Cow;
use std::collections::HashMap;

use common::config::{AVERAGE, ModelConfig, Precision, TrainConfig};
use common::dense::Factored;
use common::digest::Digest;
use common::ring::{Bucket, Span, Values};
use common::seed;
use common::trace;

use crate::data::{Dropout, Inputs, MaskGroup, Masks};
use crate::engine::device::Devices;
use crate::engine::{Delivery, Engine, EngineError, EngineSetup, Gradient, Loss, Phases, Piece, Sums};
use crate::models::{InputShape, Model, ParamLayout, initial_weights};
use crate::optim::{Update, UpdateReport};
use crate::weights::{Loaded, ORDER, OWN_ORDER, WeightsFile};
pub use batch::BatchPart;
pub use error::ReplicaError;
pub use progress::Progress;
pub use state::State;

/// A model with its training state, on the device of its engine.
pub struct Replica {
    engine: Box<dyn Engine>,
    layout: ParamLayout,
    /// What of the gradient the engine gives as factors.
    factored: Factored,
    train: TrainConfig,
    loss: Loss,
    dropouts: Vec<Dropout>,
    input: InputShape,
    /// Updates applied so far.
    step: u64,
    progress: Progress,
    phases: Phases,
    /// Changes a product of this step, to test that others notice.
    #[cfg(all(test, feature = "libtorch"))]
    flips: Option<u64>,
}

/// The seed of the factors by whose products workers find out whether they make the same.
const SEEDED_FACTORS: u64 = 1;

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
        let network = Model::new(model, input, &devices.first().burn())?;
        let (layout, dropouts) = (ParamLayout::of(&network, train), network.dropouts());
        let weights = initial_weights(&layout, model, seed);
        let threads = train.compute_threads(std::thread::available_parallelism().map_or(1, usize::from));
        let engine = devices.engine(EngineSetup { model, input, train, weights, trained: layout.trained_total(), threads })?;
        let loss = Loss::of(model, train);
        let factored = Factored::nothing(layout.trained_total());
        Ok(Self {
            engine,
            layout,
            factored,
            train: train.clone(),
            loss,
            dropouts,
            input,
            step: 0,
            progress: Progress::new(train),
            phases: Phases::default(),
            #[cfg(all(test, feature = "libtorch"))]
            flips: None,
        })
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

    /// What the evaluations before the newest step have decided.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The newest step was made after evaluations that have decided this.
    pub fn set_progress(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// Where the time of the last [`gradients`](Self::gradients) went.
    pub fn phases(&self) -> Phases {
        self.phases
    }

    /// Forward and backward of the parts of a batch, each of n samples, which may be 0.
    ///
    /// The gradient of `scale` times the summed loss goes where `delivery` says: it stays
    /// where it was computed and is added to that of earlier batches until the next
    /// [`update_with_own`](Self::update_with_own), or it goes to `sink` as pieces, with the
    /// number of the part: values that together cover it once, and of each part that has
    /// samples the factors of [the factored layers](Self::factor) instead of their weights'.
    /// The pieces of the classifier go to `sink` before the gradient of the features is computed.
    /// Parts may be computed at the same time, and their pieces come in any order. Label
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
        sink: &mut dyn FnMut(usize, Piece<'_>),
    ) -> Result<Sums, ReplicaError> {
        let mut batches = Vec::with_capacity(parts.len());
        // The engine computes what has samples; the other gradients are zeros.
        let (mut filled, mut empty) = (Vec::new(), Vec::new());
        for (number, part) in parts.iter().enumerate() {
            let batch = batch::train_batch(self.input, &self.dropouts, part, scale)?;
            if part.labels.is_empty() {
                empty.push(number);
            } else {
                filled.push(number);
                batches.push(batch);
            }
        }
        let zeros = match delivery {
            Delivery::Keep => &[],
            Delivery::Sum | Delivery::SumInPieces => &empty[..if filled.is_empty() { empty.len().min(1) } else { 0 }],
            Delivery::Each => &empty[..],
        };
        for (&part, range) in zeros.iter().flat_map(|part| self.factored.regions.summed().map(move |range| (part, range))) {
            let zeros = |at: usize| Span::F32(&ZEROS[..ZEROS.len().min(range.end - at)]);
            range.clone().step_by(ZEROS.len()).for_each(|at| sink(part, Piece::Values(at, zeros(at))));
        }
        let (sums, phases) = if batches.is_empty() {
            (Sums::default(), Phases::default())
        } else {
            // What is wrong with the next batch is said when it is its turn.
            let next = next
                .filter(|part| !part.labels.is_empty())
                .and_then(|part| batch::train_batch(self.input, &self.dropouts, part, scale).ok());
            self.engine.gradients(&batches, next.as_ref(), delivery, &mut |number, piece| sink(filled[number], piece))?
        };
        self.phases = phases;
        Ok(sums)
    }

    /// From now on, gradients of the weights of these layers are given as factors, and made by
    /// [`multiply`](Self::multiply). Returns false, and changes nothing, if the engine can
    /// give none.
    ///
    /// # Errors
    /// The device has no room for the products.
    pub fn factor(&mut self, factored: &Factored) -> Result<bool, ReplicaError> {
        let gives = self.engine.factor(factored)?;
        if gives {
            self.factored = factored.clone();
        }
        Ok(gives)
    }

    /// Makes the gradient of a factored layer's weights, for the next update, of the factors
    /// of all rows of the global batch: inputs `[rows, inputs]`, and the gradient of the
    /// outputs `[rows, units]`.
    ///
    /// # Errors
    /// The factors do not fit the layer, or the device failed.
    pub fn multiply(&mut self, layer: usize, inputs: Span<'_>, slopes: Span<'_>) -> Result<(), ReplicaError> {
        #[cfg(all(test, feature = "libtorch"))]
        if self.flips == Some(self.step) {
            let mut other = vec![0.0; inputs.len()];
            inputs.read(&mut other);
            // In the middle of some value that is not zero.
            if let Some(value) = other.iter_mut().find(|value| **value != 0.0) {
                *value = f32::from_bits(value.to_bits() ^ 1 << 16);
            }
            return Ok(self.engine.multiply(layer, Span::F32(&other), slopes)?);
        }
        Ok(self.engine.multiply(layer, inputs, slopes)?)
    }

    /// The product of a layer at this step is made with a wrong bit.
    #[cfg(all(test, feature = "libtorch"))]
    pub(crate) fn flip_a_bit_of_a_product_at(&mut self, step: u64) {
        self.flips = Some(step);
    }

    /// A digest of the products that this replica makes of seeded factors, at the shapes of
    /// these layers in a run: equal digests mean equal weights. None if there is no such
    /// layer, or the engine cannot multiply factors.
    ///
    /// # Errors
    /// The device failed.
    pub fn products_of_seeded_factors(&mut self, factored: &Factored, train: &TrainConfig) -> Result<Option<Digest>, ReplicaError> {
        let (rows, bf16) = (train.global_batch as usize, train.precision == Precision::Bf16);
        if factored.layers.is_empty() || !self.factor(factored)? {
            return Ok(None);
        }
        let mut digests = Vec::new();
        for (number, layer) in factored.layers.iter().enumerate() {
            let seeded = |width: usize, which: u64| {
                let mut rng = seed::stream(SEEDED_FACTORS, "factors", &[number as u64, which]);
                let mut values = Values::zeros(bf16, rows * width);
                let numbers: Vec<f32> = (0..rows * width).map(|_| seed::unit(&mut rng) - 0.5).collect();
                values.write(0, Span::F32(&numbers));
                values
            };
            let (inputs, slopes) = (seeded(layer.inputs, 0), seeded(layer.units, 1));
            self.multiply(number, inputs.span(), slopes.span())?;
            digests.extend(self.engine.product(number)?.to_string().into_bytes());
        }
        self.factor(&Factored::nothing(self.layout.trained_total()))?;
        Ok(Some(Digest::of(&digests)))
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
        let part = BatchPart { inputs: Inputs::Numbers(&numbers), labels: &vec![0; samples], seconds: &[], masks: masks.all(), name: None };
        let outcome = self.gradients(&[part], None, 1.0, Delivery::Keep, &mut |_, _| ());
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
    /// contiguous spans that, with the products of [`multiply`](Self::multiply) between them,
    /// cover what is trained of the flat vector, in order.
    ///
    /// # Errors
    /// The gradient has the wrong size or is not finite; the weights are unchanged.
    pub fn update(&mut self, gradient: &[impl Bucket], update: Update) -> Result<UpdateReport, ReplicaError> {
        let spans: Vec<Span<'_>> = gradient.iter().map(Bucket::span).collect();
        let (found, expected) = (spans.iter().map(|span| span.len()).sum(), self.factored.regions.summed_len());
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
        self.scores_of_crops(inputs, labels, 1)
    }

    /// As [`scores`](Self::scores), of samples that have so many inputs each, one after the
    /// other: crops of a picture, whose predictions are averaged.
    ///
    /// # Errors
    /// The batch does not fit the model, or the device failed.
    pub fn scores_of_crops<'a>(
        &self,
        inputs: impl Into<Inputs<'a>>,
        labels: &[i32],
        crops: usize,
    ) -> Result<(Sums, Vec<f32>), ReplicaError> {
        let images = batch::images(self.input, inputs.into(), labels, crops)?;
        if images.n == 0 {
            return Ok((Sums::default(), Vec::new()));
        }
        let scores = self.loss.averaged(self.engine.logits(images)?, crops, self.input.classes);
        Ok((self.loss.unsmoothed().sums(&scores, labels, 1.0, None), scores))
    }

    /// The most bytes that a file of a [`State`] of this model can have.
    pub fn largest_state_file(&self) -> u64 {
        const NAMES_AND_SHAPES: u64 = 1 << 20;
        let vectors = self.train.state().len().max(1) as u64;
        4 * vectors * self.layout.total() as u64 + NAMES_AND_SHAPES
    }

    /// Weights, optimizer state and step.
    ///
    /// # Errors
    /// Serialisation or the device failed.
    pub fn export(&self) -> Result<State, ReplicaError> {
        let _span = trace::span("export of the state", Some(self.step));
        let slots: Vec<_> = self.engine.optimizer_state()?.into_iter().map(|(slot, values)| (format!("{slot}/"), values)).collect();
        let mut metadata = HashMap::from([(state::STEP.to_owned(), self.step.to_string())]);
        if self.train.follows_evaluations() {
            metadata.insert(state::PROGRESS.to_owned(), self.progress.encode());
        }
        let own_order = HashMap::from([(ORDER.to_owned(), OWN_ORDER.to_owned())]);
        Ok(State {
            step: self.step,
            model: state::write(self.layout.params().iter(), &[(String::new(), self.weights()?)], own_order)?,
            optimizer: state::write(self.layout.trained_params(), &slots, metadata)?,
        })
    }

    /// Takes over another replica's state.
    ///
    /// # Errors
    /// The state is malformed, or of another model or optimizer; this replica is unchanged.
    pub fn import(&mut self, state: &State) -> Result<(), ReplicaError> {
        let metadata = state::metadata(&state.optimizer)?;
        let step = state::step_of(&metadata)?;
        let progress = metadata.get(state::PROGRESS).map_or_else(|| Ok(Progress::new(&self.train)), |text| Progress::decode(text))?;
        if step != state.step {
            return Err(ReplicaError::State(format!("the optimizer is at step {step}, the state says {}", state.step)));
        }
        let slots = state::read(self.layout.trained_params(), &self.prefixes(), &state.optimizer)?;
        import_weights(&mut *self.engine, &self.layout, &state.model)?;
        self.engine.write_optimizer_state(&mut |slot, values| slots.copy_to(slot, values))?;
        (self.step, self.progress) = (step, progress);
        Ok(())
    }

    /// Takes over weights only (safetensors, as in [`State::model`]), to evaluate or predict.
    ///
    /// # Errors
    /// The weights are malformed or of another model; this replica is unchanged.
    pub fn import_weights(&mut self, model: &[u8]) -> Result<(), ReplicaError> {
        import_weights(&mut *self.engine, &self.layout, model)
    }

    /// Begins with the weights of a file instead of the seed's, except for an output layer of
    /// another size. For a replica at step 0.
    ///
    /// # Errors
    /// The file does not fit the model, or its values cannot be read, or the device failed;
    /// this replica is unchanged.
    pub fn begin_with(&mut self, model: &ModelConfig, file: &WeightsFile) -> Result<Loaded, ReplicaError> {
        let mut weights = self.engine.weights()?.into_owned();
        let loaded = file.fill(model, &self.layout, &mut weights)?;
        self.engine.write_weights(&mut |place| place.copy_from_slice(&weights))?;
        Ok(loaded)
    }

    /// Takes over the moving average of the weights that are trained, from
    /// [`State::optimizer`].
    ///
    /// # Errors
    /// The state has no average, is malformed or of another model; this replica is unchanged.
    pub fn import_average(&mut self, optimizer: &[u8]) -> Result<(), ReplicaError> {
        let Some(part) = self.train.state().iter().position(|name| *name == AVERAGE) else {
            return Err(ReplicaError::State("it was trained without train.ema, so it has no average".to_owned()));
        };
        let parts = state::read(self.layout.trained_params(), &self.prefixes(), optimizer)?;
        Ok(self.engine.write_weights(&mut |weights| parts.copy_to(part, weights))?)
    }

    /// Has `work` compute with the moving average of the weights, if there is one, and then
    /// goes back to the weights.
    ///
    /// # Errors
    /// The device failed.
    pub fn averaged<T>(&mut self, work: impl FnOnce(&Self) -> T) -> Result<T, ReplicaError> {
        if self.train.ema.is_none() {
            return Ok(work(self));
        }
        self.engine.swap_average()?;
        let result = work(self);
        self.engine.swap_average()?;
        Ok(result)
    }

    /// The names of the optimizer's vectors as they stand before those of parameters.
    fn prefixes(&self) -> Vec<String> {
        self.train.state().iter().map(|slot| format!("{slot}/")).collect()
    }

    /// A fingerprint of the weights, and of their moving average if there is one: equal on
    /// workers that hold the same bytes.
    ///
    /// # Errors
    /// The device failed.
    pub fn weights_blake3(&self) -> Result<Digest, ReplicaError> {
        let average = self.train.ema.and(self.engine.optimizer_state()?.pop()).map(|(_, values)| values);
        Ok(state::weights_blake3(&self.layout, &self.weights()?, average.as_deref()))
    }
}

/// A free function, so that a caller may borrow the other fields of a replica meanwhile.
fn import_weights(engine: &mut dyn Engine, layout: &ParamLayout, model: &[u8]) -> Result<(), ReplicaError> {
    let parts = state::read(layout.params().iter(), &[String::new()], model)?;
    Ok(engine.write_weights(&mut |weights| parts.copy_to(0, weights))?)
}
