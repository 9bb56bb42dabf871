//! The validation pictures of which each evaluation shows what the model says: a few, the same
//! ones for all of a run, whoever draws them. They decide nothing.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use common::config::{CorruptPolicy, EvalCrops, Pixels};
use common::dataset::{Sample, SampleFormat, SampleSource, Split};
use common::predictions::{GUESSES, Guess, MAX_BYTES, MAX_SIDE, MOST, PredictedPicture, Predictions};
use common::seed::{below, stream};

use super::confusion::{likeliest, softmax};
use super::job::Job;
use crate::data::{Batch, Input, Inputs, Picture, evaluation_batch, png_of};
use crate::replica::{Replica, ReplicaError};

/// Pictures are drawn until they are of different classes, but no more than these.
const CANDIDATES: u32 = 64;

/// Pixels on a side of what is shown: the first with which all files fit.
const SIDES: [u32; 3] = [MAX_SIDE, 64, 48];

/// The pictures, as the model sees them and as people do.
pub(super) struct Examples {
    batch: Batch,
    pngs: Vec<Vec<u8>>,
}

impl Examples {
    /// Reads and renders them; none of a table. Pictures that do not decode are left out.
    pub(super) fn choose(job: &Job, source: &Arc<dyn SampleSource>) -> Result<Option<Self>> {
        if matches!(job.info.format, SampleFormat::Features { .. }) {
            return Ok(None);
        }
        let wanted = MOST.min(job.info.classes.len());
        let mut samples: Vec<Sample> = Vec::new();
        for ids in candidates(job.config.seed, job.info.val).chunks(MOST) {
            samples.extend(source.read(Split::Val, ids)?);
            let labels: Vec<u32> = samples.iter().map(|sample| sample.label).collect();
            let (kept, different) = of_different_classes(&labels);
            samples = kept.into_iter().map(|place| samples[place].clone()).collect();
            if samples.len() == MOST && different == wanted {
                break;
            }
        }
        samples.sort_by_key(|sample| (sample.label, sample.id));
        let made = |pixels: Pixels| {
            let pixels = Pixels { on_corrupt: CorruptPolicy::Skip, ..pixels };
            evaluation_batch(Input { source: Arc::clone(source), pixels }, Split::Val, &samples)
        };
        let pixels = &job.config.data.pixels;
        let batch = made(pixels.clone())?;
        let channels = job.info.format.channels();
        let mut pngs = Vec::new();
        for side in SIDES {
            let side = side.min(pixels.image_size);
            let shown = made(Pixels { image_size: side, eval_crops: EvalCrops::Centre, ..pixels.clone() })?;
            let Inputs::Pictures(pictures) = shown.inputs.all() else { bail!("the samples are no pictures") };
            if shown.ids != batch.ids {
                bail!("a picture decodes in part only");
            }
            let file = |pixels: &[u8]| png_of(&Picture { width: side, height: side, channels, pixels: pixels.to_vec() });
            pngs = pictures
                .bytes
                .chunks_exact((side * side * channels) as usize)
                .map(file)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| anyhow!(e))?;
            if pngs.iter().map(Vec::len).sum::<usize>() <= MAX_BYTES {
                break;
            }
        }
        Ok(Some(Self { batch, pngs }))
    }

    /// What the weights of `replica` say of them after `step` steps.
    pub(super) fn predictions(&self, job: &Job, replica: &Replica, step: u64) -> Result<Predictions, ReplicaError> {
        let Batch { inputs, labels, .. } = &self.batch;
        let (_, scores) = replica.scores_of_crops(inputs.all(), labels, job.config.data.pixels.eval_crops.count())?;
        let picture = |((png, &label), scores): ((&Vec<u8>, &i32), &[f32])| {
            let probabilities = softmax(scores);
            let guess = |class: usize| Guess { class: class as u32, probability: probabilities[class] as f32 };
            let guesses = likeliest(scores, GUESSES).into_iter().map(guess).collect();
            PredictedPicture { label: label as u32, guesses, png: png.clone() }
        };
        let each = self.pngs.iter().zip(labels).zip(scores.chunks_exact(job.info.classes.len()));
        Ok(Predictions { step, pictures: each.map(picture).collect() })
    }
}

/// The ids of validation samples among which to choose, in the order in which to read them.
fn candidates(seed: u64, val: u32) -> Vec<u32> {
    let mut rng = stream(seed, "examples", &[]);
    let mut ids = Vec::new();
    while ids.len() < CANDIDATES.min(val) as usize {
        let id = below(&mut rng, val);
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// The places of the samples to keep: the first of each class, then others. And how many
/// classes they have.
fn of_different_classes(labels: &[u32]) -> (Vec<usize>, usize) {
    let (firsts, others): (Vec<usize>, Vec<usize>) = (0..labels.len()).partition(|&at| !labels[..at].contains(&labels[at]));
    let classes = firsts.len().min(MOST);
    (firsts.into_iter().chain(others).take(MOST).collect(), classes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use common::config::Config;
    use common::dataset;
    use common::plan::Ownership;

    use super::*;

    fn job(data: &str) -> (Job, Arc<dyn SampleSource>) {
        let text = format!("name = \"t\"\nseed = 3\n[model]\nkind = \"softmax\"\n[data]\n{data}\n[train]\nglobal_batch = 4\nshards = 1\n");
        let config = Config::parse(&text, "test", &[]).unwrap();
        let source = dataset::open(&config.data, config.seed, &|_| {}).unwrap();
        let job = Job::new(config, source.info().clone(), 0, Ownership::equal(1, 1)).unwrap();
        (job, source)
    }

    #[test]
    fn examples_are_of_different_classes_where_they_can_be() {
        for (labels, kept, classes) in [
            (&[][..], &[][..], 0),
            (&[4, 4, 1], &[0, 2, 1], 2),
            (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[0, 9, 1, 2, 3, 4, 5, 6], 2),
            (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[0, 1, 2, 3, 4, 5, 6, 7], 8),
        ] {
            assert_eq!(of_different_classes(labels), (kept.to_vec(), classes));
        }
        for val in [1, 3, 64, 65, 100_000] {
            let mut drawn = candidates(3, val);
            assert_eq!(drawn, candidates(3, val));
            assert!(drawn.len() == val.min(CANDIDATES) as usize && drawn.iter().all(|id| *id < val));
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn.len(), val.min(CANDIDATES) as usize);
        }
        assert_ne!(candidates(3, 100_000), candidates(4, 100_000));
    }

    #[test]
    fn a_run_has_the_same_few_examples_each_time_and_they_are_bounded() {
        for (classes, val, size, expected) in [(10, 500, 28, 8), (3, 500, 130, 8), (3, 5, 28, 5)] {
            let (job, source) = job(&format!(
                "kind = \"synthetic\"\nclasses = {classes}\ntrain = 16\nval = {val}\nimage_size = {size}\neval_crops = \"five\""
            ));
            let (chosen, again) = (Examples::choose(&job, &source).unwrap().unwrap(), Examples::choose(&job, &source).unwrap().unwrap());
            assert_eq!((&chosen.batch.ids, &chosen.pngs), (&again.batch.ids, &again.pngs));
            let mut labels = chosen.batch.labels.clone();
            assert_eq!((labels.len(), chosen.pngs.len()), (expected, expected));
            labels.dedup();
            assert_eq!(labels.len(), expected.min(classes), "of as many classes as there are");
            let guesses = vec![Guess { class: 0, probability: 1.0 }];
            let picture = |png: &Vec<u8>| PredictedPicture { label: 0, guesses: guesses.clone(), png: png.clone() };
            Predictions { step: 0, pictures: chosen.pngs.iter().map(picture).collect() }.check(classes).unwrap();
        }
        let (table, source) = job("kind = \"xor\"\ntrain = 16\nval = 4");
        assert!(Examples::choose(&table, &source).unwrap().is_none());
    }
}
