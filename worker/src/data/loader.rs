//! The loaders of training and of evaluation: the batches of coming steps, and the
//! parts of a range of validation samples.

use std::ops::Range;
use std::sync::Arc;

use common::config::{CorruptPolicy, Pixels};
use common::dataset::{Sample, SampleFormat, SampleSource, Split};
use common::plan::Plan;
use common::seed;

use super::augment::Recipe;
use super::decode::SampleFile;
use super::masks::{Dropout, MaskGroup};
use super::mix::Mix;
use super::picture::{Part, union};
use super::pipeline::{Batch, BatchName, LoadError, LoaderOptions, Make, Pipeline, Skipped};
use super::render::Renderer;

/// Samples from an object store are fetched so many steps before they are decoded.
const AHEAD: u64 = 4;

/// The training batches of some shards, step after step.
pub struct TrainLoader(Pipeline);

/// Where a loader's samples come from and what is done to them.
#[derive(Clone)]
pub struct Input {
    pub source: Arc<dyn SampleSource>,
    pub pixels: Pixels,
}

impl TrainLoader {
    /// Starts to make the batches of steps `steps` for `shards`. Augmentation is
    /// drawn from `seed`, step, shard and place in the shard's part of the step; what is mixed
    /// and the masks for `dropouts` from seed, step and shard.
    pub fn start(
        input: Input,
        plan: Plan,
        shards: Range<u32>,
        seed: u64,
        steps: Range<u64>,
        options: LoaderOptions,
        dropouts: Vec<Dropout>,
    ) -> Result<Self, LoadError> {
        let make = || {
            let mut maker = Maker { input: input.clone(), renderer: Renderer::default() };
            let (plan, shards, dropouts) = (plan.clone(), shards.clone(), dropouts.clone());
            let mut orders: (Option<u64>, Vec<Vec<u32>>) = (None, Vec::new());
            Box::new(move |step: u64, batch: &mut Batch| {
                let at = plan.position(step);
                if orders.0 != Some(at.epoch) {
                    orders = (Some(at.epoch), shards.clone().map(|shard| plan.shard_order(at.epoch, shard)).collect());
                }
                let parts: Vec<(u32, &[u32])> =
                    shards.clone().zip(&orders.1).map(|(shard, order)| (shard, &order[plan.span(at.step_in_epoch, shard)])).collect();
                let ids: Vec<u32> = parts.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
                maker.read_ahead(&plan, step + AHEAD, shards.clone(), &orders);
                let mut samples = maker.input.source.read(Split::Train, &ids)?.into_iter();
                for (shard, ids) in parts {
                    let from = batch.labels.len();
                    for (place, sample) in samples.by_ref().take(ids.len()).enumerate() {
                        let stream = || seed::stream(seed, "augment", &[step, shard.into(), place as u64]);
                        maker.add(batch, Split::Train, &sample, |pixels, width, height, whole| {
                            vec![Recipe::draw(pixels, width, height, whole, stream)]
                        })?;
                    }
                    let places = from..batch.labels.len();
                    let pixels = &maker.input.pixels;
                    if let Some(mix) = Mix::draw(pixels, || seed::stream(seed, "mix", &[step, shard.into()])) {
                        mix.apply(&mut batch.inputs, &mut batch.labels, &mut batch.seconds, &places, pixels.image_size as usize);
                    }
                    batch.shards.push((shard, places));
                }
                let group = |(shard, places): &(u32, Range<usize>)| MaskGroup {
                    seed: seed::derive(seed, "dropout", &[step, (*shard).into()]),
                    samples: places.len(),
                };
                batch.masks.draw(&dropouts, &batch.shards.iter().map(group).collect::<Vec<_>>());
                Ok(())
            }) as Make
        };
        Pipeline::start(steps.start, steps.end, options, make).map(Self)
    }

    /// The name of a part of one of its batches.
    pub fn name(&self, step: u64, part: usize) -> BatchName {
        BatchName { loader: self.0.number(), step, part }
    }

    /// The batch of the next step.
    pub fn next_batch(&mut self) -> Result<Batch, LoadError> {
        self.next_batch_unless(|| false)
    }

    /// The same, but if the batch does not come, it is awaited only until `stop` is true.
    pub fn next_batch_unless(&mut self, stop: impl Fn() -> bool) -> Result<Batch, LoadError> {
        self.0.next_batch(stop)?.ok_or(LoadError::Ended)
    }

    /// The batch of the next step, if it is made.
    pub fn made_batch(&mut self) -> Option<Batch> {
        self.0.made_batch()
    }

    /// Gives a used batch back; without this the loader runs out of buffers.
    pub fn recycle(&self, batch: Batch) {
        self.0.recycle(batch);
    }
}

/// A range of a split in parts of `batch` samples, without augmentation: of each sample as
/// many crops as the config's `eval_crops` says.
pub struct EvalLoader(Pipeline);

impl EvalLoader {
    pub fn start(input: Input, split: Split, ids: Range<u32>, batch: u32, options: LoaderOptions) -> Result<Self, LoadError> {
        let parts = ids.len().div_ceil(batch as usize) as u64;
        let make = || {
            let mut maker = Maker { input: input.clone(), renderer: Renderer::default() };
            let ids = ids.clone();
            Box::new(move |part: u64, out: &mut Batch| {
                let start = ids.start + part as u32 * batch;
                let own: Vec<u32> = (start..start.saturating_add(batch).min(ids.end)).collect();
                for sample in maker.input.source.read(split, &own)? {
                    maker.add(out, split, &sample, Recipe::evaluations)?;
                }
                Ok(())
            }) as Make
        };
        Pipeline::start(0, parts, options, make).map(Self)
    }

    /// The next part; none after the last.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, LoadError> {
        self.next_batch_unless(|| false)
    }

    /// The same, but if the part does not come, it is awaited only until `stop` is true.
    pub fn next_batch_unless(&mut self, stop: impl Fn() -> bool) -> Result<Option<Batch>, LoadError> {
        self.0.next_batch(stop)
    }

    /// Gives a used batch back; without this the loader runs out of buffers.
    pub fn recycle(&self, batch: Batch) {
        self.0.recycle(batch);
    }
}

/// A batch of samples that were read, without augmentation, made on this thread.
///
/// # Errors
/// A sample does not decode, and `input.pixels.on_corrupt` does not have it left out.
pub fn evaluation_batch(input: Input, split: Split, samples: &[Sample]) -> Result<Batch, LoadError> {
    let (mut maker, mut batch) = (Maker { input, renderer: Renderer::default() }, Batch::default());
    for sample in samples {
        maker.add(&mut batch, split, sample, Recipe::evaluations)?;
    }
    Ok(batch)
}

/// Decodes and renders samples into a batch.
struct Maker {
    input: Input,
    renderer: Renderer,
}

impl Maker {
    /// Has the samples of a later step of the same epoch fetched.
    fn read_ahead(&self, plan: &Plan, step: u64, shards: Range<u32>, orders: &(Option<u64>, Vec<Vec<u32>>)) {
        let at = plan.position(step);
        if orders.0 == Some(at.epoch) {
            let parts = shards.zip(&orders.1).flat_map(|(shard, order)| &order[plan.span(at.step_in_epoch, shard)]);
            self.input.source.read_ahead(Split::Train, &parts.copied().collect::<Vec<_>>());
        }
    }

    fn add(
        &mut self,
        batch: &mut Batch,
        split: Split,
        sample: &Sample,
        recipes: impl FnOnce(&Pixels, u32, u32, bool) -> Vec<Recipe>,
    ) -> Result<(), LoadError> {
        let (source, pixels) = (&self.input.source, &self.input.pixels);
        let format = source.info().format;
        if let SampleFormat::Features { count } = format {
            let (values, rest) = sample.bytes.as_chunks::<4>();
            if values.len() != count as usize || !rest.is_empty() {
                let problem = format!("has {} bytes where {count} features were announced", sample.bytes.len());
                return Err(LoadError::Corrupt { name: source.name(split, sample.id), problem });
            }
            batch.inputs.add_numbers(values.iter().map(|v| f32::from_le_bytes(*v)));
            batch.labels.push(sample.label as i32);
            batch.ids.push(sample.id);
            return Ok(());
        }
        let size = pixels.image_size as usize;
        let drawn = SampleFile::open(format, &sample.bytes).and_then(|file| {
            // Raw datasets (MNIST) are cropped already; their edges have content.
            let whole = matches!(format, SampleFormat::Raw { .. });
            let (width, height) = file.size();
            let recipes = recipes(pixels, width, height, whole);
            let region = recipes.iter().map(|recipe| recipe.region(pixels.image_size)).reduce(union);
            let Part { picture, left, top } = file.decode(region)?;
            Ok((picture, recipes.into_iter().map(move |recipe| recipe.within(left, top))))
        });
        let before = batch.inputs.pictures();
        let outcome = drawn.map_err(|e| e.to_string()).and_then(|(picture, mut recipes)| {
            let bytes = format.channels() as usize * size * size;
            recipes.try_for_each(|recipe| batch.inputs.add_picture(bytes, |out| self.renderer.render(&picture, &recipe, pixels, out)))
        });
        if outcome.is_err() {
            // A sample has all of its crops or none.
            batch.inputs.truncate(before);
        }
        match (outcome, pixels.on_corrupt) {
            (Ok(()), _) => {
                batch.labels.push(sample.label as i32);
                batch.ids.push(sample.id);
                Ok(())
            }
            (Err(problem), CorruptPolicy::Stop) => Err(LoadError::Corrupt { name: source.name(split, sample.id), problem }),
            (Err(problem), CorruptPolicy::Skip) => {
                batch.skipped.push(Skipped { id: sample.id, name: source.name(split, sample.id), problem });
                Ok(())
            }
        }
    }
}
