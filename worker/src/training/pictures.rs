//! Pictures for the run's record: what is trained on, and what comes of it. They decide
//! nothing: one that cannot be drawn is missing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use common::dataset::SampleSource;
use common::metrics::{Evaluation, RunPicture, Shown};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::confusion::Confusions;
use super::examples::Examples;
use super::job::Job;
use super::record::Record;
use crate::data::{Batch, Inputs};
use crate::figures::{self, Confusion, Figure, Tile, Tiles};
use crate::replica::{Replica, ReplicaError};

/// Drawing takes at most one in so many parts of the time, and predictions for the page one
/// in so many, but for the last evaluation.
const DRAWING: u32 = 20;
const PREDICTIONS: u32 = 100;

/// Classes on the sheet of the first batch, samples of each, and the side of a sample.
const CLASSES: usize = 10;
const SAMPLES: usize = 8;
const SIDE: u32 = 96;

/// How long an evaluation waits for the examples to be read. They come sooner, except from a
/// store that does not answer, and then the predictions of that evaluation are missing.
const EXAMPLES_AWAITED: Duration = Duration::from_secs(2);

/// Draws the pictures of a generation.
pub(super) struct RunPictures {
    draws: bool,
    drawing: Pace,
    source: Arc<dyn SampleSource>,
    examples: Choice,
    predicting: Pace,
}

impl RunPictures {
    /// `draws`: whether this rank is the one that does.
    pub(super) fn new(draws: bool, source: &Arc<dyn SampleSource>) -> Self {
        let source = Arc::clone(source);
        Self { draws, drawing: Pace::of(DRAWING), source, examples: Choice::Unread, predicting: Pace::of(PREDICTIONS) }
    }

    /// Shows the samples of the run's first step, as far as this rank has them.
    pub(super) fn first_batch(&self, job: &Job, batch: &Batch, record: &mut dyn Record) {
        if self.draws && batch.step == 0 {
            let sheet = sheet(job, batch).map(|sheet| picture(&sheet, Shown::FirstBatch, 1)).transpose();
            hand_over(sheet, record);
        }
    }

    /// Shows what an evaluation found, what the model says of the examples, and the first
    /// layer's weights. Evaluations that follow each other fast are left out, but not the
    /// `last` one.
    ///
    /// # Errors
    /// The device failed. Nothing else is one: what cannot be drawn is missing.
    pub(super) fn evaluation(
        &mut self,
        job: &Job,
        replica: &mut Replica,
        evaluation: &Evaluation,
        confusions: &Confusions,
        last: bool,
        record: &mut dyn Record,
    ) -> Result<(), ReplicaError> {
        if !self.draws {
            return Ok(());
        }
        let start = Instant::now();
        if self.predicting.is_due(start, last) {
            self.predict(job, replica, evaluation.step, record)?;
            self.predicting.took(start, Instant::now());
        }
        let start = Instant::now();
        if !self.drawing.is_due(start, last) {
            return Ok(());
        }
        let matrix = matrix(job, evaluation, confusions);
        hand_over(matrix.map(|matrix| picture(&matrix, Shown::Confusion, evaluation.step)).transpose(), record);
        let filters = filters(job, replica, evaluation.step);
        let filters = filters.and_then(|filters| filters.map(|tiles| picture(&tiles, Shown::Filters, evaluation.step)).transpose());
        hand_over(filters, record);
        self.drawing.took(start, Instant::now());
        Ok(())
    }

    /// Hands over what the model says of the examples: of the average of its weights where
    /// that is evaluated.
    fn predict(&mut self, job: &Job, replica: &mut Replica, step: u64, record: &mut dyn Record) -> Result<(), ReplicaError> {
        let left_out = |e: String| tracing::debug!("the predictions of step {step} are left out of the record: {e}");
        let examples = match self.examples.read(job, &self.source) {
            Ok(Some(examples)) => examples,
            Ok(None) => return Ok(()),
            Err(e) => {
                left_out(format!("{e:#}"));
                return Ok(());
            }
        };
        let predictions = replica.averaged(|replica| examples.predictions(job, replica, step))??;
        match predictions.check(job.info.classes.len()) {
            Ok(()) => record.predictions(predictions),
            Err(problem) => left_out(problem),
        }
        Ok(())
    }
}

/// The examples, read by a thread of its own from the first evaluation on.
enum Choice {
    Unread,
    Coming(Receiver<Result<Option<Examples>>>),
    Read(Option<Box<Examples>>),
}

impl Choice {
    /// The examples; none of a table.
    fn read(&mut self, job: &Job, source: &Arc<dyn SampleSource>) -> Result<Option<&Examples>> {
        if let Self::Unread = self {
            let (give, coming) = bounded(1);
            let (job, source) = (job.clone(), Arc::clone(source));
            std::thread::Builder::new().name("examples".to_owned()).spawn(move || _ = give.send(Examples::choose(&job, &source)))?;
            *self = Self::Coming(coming);
        }
        if let Self::Coming(coming) = self {
            match coming.recv_timeout(EXAMPLES_AWAITED) {
                Ok(Ok(examples)) => *self = Self::Read(examples.map(Box::new)),
                Ok(Err(e)) => {
                    *self = Self::Unread;
                    return Err(e);
                }
                Err(RecvTimeoutError::Timeout) => bail!("their files are not read yet"),
                Err(RecvTimeoutError::Disconnected) => {
                    *self = Self::Unread;
                    bail!("the thread that reads their files panicked");
                }
            }
        }
        let Self::Read(examples) = self else { return Ok(None) };
        Ok(examples.as_deref())
    }
}

/// Has something take at most its share of the time.
struct Pace {
    /// One in so many parts of it.
    parts: u32,
    /// When it may be done again.
    next: Option<Instant>,
}

impl Pace {
    fn of(parts: u32) -> Self {
        Self { parts, next: None }
    }

    fn is_due(&self, now: Instant, last: bool) -> bool {
        last || self.next.is_none_or(|next| now >= next)
    }

    fn took(&mut self, start: Instant, end: Instant) {
        let took = end.saturating_duration_since(start).max(Duration::from_millis(1));
        self.next = Some(end + took * (self.parts - 1));
    }
}

fn hand_over(picture: Result<Option<RunPicture>>, record: &mut dyn Record) {
    match picture {
        Ok(Some(picture)) => record.picture(picture),
        Ok(None) => {}
        Err(e) => tracing::debug!("a picture is left out of the record: {e:#}"),
    }
}

fn picture(figure: &impl Figure, shown: Shown, step: u64) -> Result<RunPicture> {
    Ok(RunPicture { shown, step, png: figures::png(figure)? })
}

/// Samples by class; none of a table.
fn sheet(job: &Job, batch: &Batch) -> Option<Tiles> {
    let Inputs::Pictures(pictures) = batch.inputs.all() else { return None };
    let input = Job::input(&job.config, &job.info);
    let (size, channels) = (input.image_size, input.channels);
    let pixels = &job.config.data.pixels;
    let mut numbers = vec![0.0; input.values()];
    let mut rows: Vec<(i32, Vec<Tile>)> = Vec::new();
    for ((bytes, finish), &label) in pictures.bytes.chunks_exact(input.values()).zip(pictures.finishes).zip(&batch.labels) {
        let row = match rows.iter().position(|(class, _)| *class == label) {
            Some(row) => row,
            None if rows.len() < CLASSES => {
                rows.push((label, Vec::new()));
                rows.len() - 1
            }
            None => continue,
        };
        if rows[row].1.len() == SAMPLES {
            continue;
        }
        finish.write_f32(bytes, size, channels, &mut numbers);
        // As colours again: what normalisation made of them is undone.
        let byte = |at: usize, c: usize| (255.0 * (numbers[at + c] * pixels.std[c] + pixels.mean[c])).round().clamp(0.0, 255.0) as u8;
        let colours = (0..numbers.len()).step_by(channels).flat_map(|at| [0, 1, 2].map(|c| byte(at, if channels == 3 { c } else { 0 })));
        rows[row].1.push(Tile { width: size as u32, height: size as u32, pixels: colours.collect() });
    }
    rows.sort_by_key(|(label, _)| *label);
    let name = |label: i32| job.info.classes.get(label as usize).cloned().unwrap_or_default();
    let rows: Vec<_> = rows.into_iter().map(|(label, tiles)| (name(label), tiles)).collect();
    (!rows.is_empty()).then(|| Tiles { title: format!("{}: samples of step 1", job.config.name), rows, side: SIDE })
}

fn matrix(job: &Job, evaluation: &Evaluation, confusions: &Confusions) -> Option<Confusion> {
    let title = format!("{} after step {}: top-1 {:.2}%", job.config.name, evaluation.step, 100.0 * evaluation.top1);
    Some(Confusion { title, classes: job.info.classes.clone(), counts: confusions.rows()? })
}

/// The filters of the first layer; none if it sees no pictures.
fn filters(job: &Job, replica: &Replica, step: u64) -> Result<Option<Tiles>> {
    let input = Job::input(&job.config, &job.info);
    let Some(layer) = job.config.model.layers(input).into_iter().find(|layer| layer.parameters > 0) else { return Ok(None) };
    let weight = format!("{}.weight", layer.name);
    let Some(spec) = replica.layout().params().iter().find(|spec| spec.name() == weight) else { return Ok(None) };
    let weights = replica.weights()?;
    Ok(figures::filter_sheet(&job.config.name, &layer.name, step, spec.shape(), &weights[spec.range()], input))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use common::config::Config;
    use common::dataset;
    use common::plan::Ownership;

    use super::*;
    use crate::data::TrainLoader;

    #[test]
    fn the_sheet_shows_the_colours_that_the_model_sees_and_tables_have_none() {
        let text = |data: &str| {
            format!("name = \"t\"\n[model]\nkind = \"softmax\"\n[data]\n{data}\n[train]\nglobal_batch = 64\nshards = 1\nepochs = 1\n")
        };
        let made = |data: &str| {
            let config = Config::parse(&text(data), "test", &[]).unwrap();
            let source = dataset::open(&config.data, config.seed, &|_| {}).unwrap();
            let job = Job::new(config, source.info().clone(), 0, Ownership::equal(1, 1)).unwrap();
            let options = job.loader_options();
            let mut loader =
                TrainLoader::start(job.samples(&source), job.plan.clone(), job.shards(), job.config.seed, 0..1, options, Vec::new())
                    .unwrap();
            let batch = loader.next_batch().unwrap();
            sheet(&job, &batch)
        };
        let plain = "kind = \"synthetic\"\nclasses = 3\ntrain = 64\nval = 8\nimage_size = 12\n";
        let normalised = format!("{plain}mean = [0.3, 0.4, 0.5]\nstd = [0.2, 0.3, 0.4]\n");
        let (sheet, other) = (made(plain).unwrap(), made(&normalised).unwrap());
        assert_eq!((sheet.rows.len(), sheet.rows[0].1.len(), sheet.rows[0].1[0].width), (3, SAMPLES, 12));
        for ((name, tiles), (_, others)) in sheet.rows.iter().zip(&other.rows) {
            let near = |(a, b): (&Tile, &Tile)| a.pixels.iter().zip(&b.pixels).all(|(a, b)| a.abs_diff(*b) <= 1);
            assert!(tiles.iter().zip(others).all(near), "{name}: normalisation shows");
            assert!(tiles[0].pixels.iter().max() > Some(&100), "{name} is black");
        }
        assert!(made("kind = \"xor\"\ntrain = 64\nval = 4\n").is_none());
    }

    #[test]
    fn drawing_takes_a_twentieth_of_the_time_at_most_and_predictions_a_hundredth() {
        let start = Instant::now();
        for (parts, seconds) in [(DRAWING, 1), (PREDICTIONS, 5)] {
            let mut pace = Pace::of(parts);
            assert!(pace.is_due(start, false));
            pace.took(start, start + Duration::from_millis(50));
            let again = start + Duration::from_secs(seconds);
            assert!(pace.is_due(again, false) && !pace.is_due(again - Duration::from_nanos(1), false));
            assert!(pace.is_due(start, true));
            pace.took(start, start);
            assert!(!pace.is_due(start, false), "what takes no time is not done all the time");
        }
    }
}
