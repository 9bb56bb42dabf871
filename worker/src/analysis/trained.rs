//! The model of a finished or unfinished run, loaded for evaluation and prediction.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use common::config::DataSource;
use common::dataset::{self, SampleFormat, SampleSource, Split, Table, Unlabelled};
use common::run_dir::{RunView, Which};
use common::ui::counter;

use crate::data::{EvalLoader, Input, LoaderOptions};
use crate::engine::Sums;
use crate::engine::device::ComputeDevice;
use crate::models::InputShape;
use crate::replica::Replica;
use crate::training::job::Job;

/// A checkpoint of a run, loaded onto a device.
pub struct TrainedModel {
    pub view: RunView,
    pub replica: Replica,
    /// The step after which its weights were saved.
    pub step: u64,
}

/// Which weights of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Weights {
    /// Their moving average, of a run with `train.ema`.
    Ema,
    /// Those after the last update.
    Raw,
}

/// Pictures, or rows, that are scored at once.
const BATCH: u32 = 128;

impl TrainedModel {
    /// `weights`: if not said, the average if there is one.
    pub fn load(run: &Path, which: Which, weights: Option<Weights>, device: ComputeDevice) -> Result<Self> {
        let view = RunView::open(run)?;
        let weights = weights.unwrap_or(if view.config().train.ema.is_some() { Weights::Ema } else { Weights::Raw });
        if weights == Weights::Ema && view.config().train.ema.is_none() {
            bail!("the run in `{}` was trained without train.ema, so it has no averaged weights: leave out --weights ema", run.display());
        }
        let (step, bytes) = view.weights(which)?;
        let config = view.config();
        device.set_threads(Job::threads(config));
        let input = Self::input_of(&view);
        let mut replica = Replica::new(&config.model, &config.train, input, config.seed, device)?;
        let odd = || format!("the checkpoint in `{}` does not fit its config", run.display());
        replica.import_weights(&bytes).with_context(odd)?;
        if weights == Weights::Ema {
            // Frozen weights have no average.
            replica.import_average(&view.optimizer(Which::Step(step))?.1).with_context(odd)?;
        }
        Ok(Self { view, replica, step })
    }

    pub fn input(&self) -> InputShape {
        Self::input_of(&self.view)
    }

    fn input_of(view: &RunView) -> InputShape {
        view.data().info.input(view.config().data.pixels.image_size)
    }

    pub fn classes(&self) -> &[String] {
        &self.view.data().info.classes
    }

    /// The run's own data, or other data of the same kind at `path`: all of a table, or
    /// of pictures that are not divided, is the validation set.
    pub fn open_data(&self, path: Option<&Path>) -> Result<Arc<dyn SampleSource>> {
        let (config, data) = (self.view.config(), self.view.data());
        let source: Arc<dyn SampleSource> = match (path, &config.data.source) {
            (None, _) => dataset::open(&config.data, config.seed, &|_| {})?,
            (Some(path), DataSource::Csv { label, .. }) => {
                Arc::new(Table::open_like(path, label, &data.columns, &data.info.classes, Unlabelled::LeaveOut)?)
            }
            (Some(_), _) if config.data.path().is_none() => bail!("this run's data is generated from its seed: leave out --data"),
            (Some(path), _) => {
                let mut other = config.data.clone();
                other.set_path(path.to_owned());
                // That data need not be laid out as the run's own.
                if let DataSource::Images { val_fraction, .. } = &mut other.source {
                    *val_fraction = None;
                }
                match dataset::open_for_validation(&other, &|_| {})? {
                    Some(source) => source,
                    None => dataset::open(&other, config.seed, &|_| {})?,
                }
            }
        };
        source.passed_over().warn();
        let found = source.info();
        let same = match (found.format, data.info.format) {
            (SampleFormat::Raw { channels: a, .. }, SampleFormat::Raw { channels: b, .. }) => a == b,
            (a, b) => a == b,
        };
        if !same {
            bail!("the data is {:?}, and the model was trained on {:?}", found.format, data.info.format);
        }
        if let Some(odd) = found.classes.iter().find(|c| !data.info.classes.contains(c)) {
            bail!("the data has a class `{odd}`, which the model does not know: it knows {}", data.info.classes.join(", "));
        }
        Ok(source)
    }

    /// Scores every sample of a split: `each` is called with a batch's ids, true
    /// classes (as the model numbers them) and scores `[n, classes]`. Returns the sums.
    pub fn score(&self, source: &Arc<dyn SampleSource>, split: Split, mut each: impl FnMut(&[u32], &[i32], &[f32])) -> Result<Sums> {
        let config = self.view.config();
        let labels: Vec<i32> =
            source.info().classes.iter().map(|c| self.classes().iter().position(|k| k == c).unwrap_or(0) as i32).collect();
        let input = Input { source: Arc::clone(source), pixels: config.data.pixels.clone() };
        let options = LoaderOptions::new(Job::threads(config), 2, BATCH as usize * self.input().values());
        let crops = config.data.pixels.eval_crops.count();
        let mut loader = EvalLoader::start(input, split, 0..source.info().len(split), BATCH / crops as u32, options)?;
        let mut sums = Sums::default();
        let bar = counter("evaluating", Some(source.info().len(split).into()));
        while let Some(mut batch) = loader.next_batch()? {
            batch.labels.iter_mut().for_each(|label| *label = labels[*label as usize]);
            let (own, scores) = self.replica.scores_of_crops(batch.inputs.all(), &batch.labels, crops)?;
            sums += own;
            each(&batch.ids, &batch.labels, &scores);
            for skipped in &batch.skipped {
                tracing::warn!("skipped `{}`: {}", skipped.name, skipped.problem);
            }
            bar.inc((batch.labels.len() + batch.skipped.len()) as u64);
            loader.recycle(batch);
        }
        bar.finish_and_clear();
        Ok(sums)
    }
}
