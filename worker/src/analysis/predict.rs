//! `worker predict`: the classes of single pictures, or of the rows of a table.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use common::dataset::{SampleFormat, Split, Table, Unlabelled};
use common::ui::counter;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::analysis::trained::TrainedModel;
use crate::data::{Picture, Recipe, Renderer, decode};
use crate::training::confusion::{likeliest, softmax};

/// One class, its score (the model's output, or what several crops make of it), and the
/// softmax of the scores, which is a probability if the model was trained with cross-entropy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassProbability {
    pub class: String,
    pub probability: f64,
    pub score: f32,
}

/// The model's answer for one input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// The picture's path, or the table's path with the number of the line.
    pub input: String,
    /// The likeliest classes, best first.
    pub top: Vec<ClassProbability>,
}

/// Predicts the classes of each of `paths`: pictures, or CSV files if the model was
/// trained on a table. `invert` swaps black and white first.
pub fn run(trained: &TrainedModel, paths: &[PathBuf], top: usize, invert: bool) -> Vec<Result<Vec<Prediction>>> {
    let mut renderer = Renderer::default();
    let table = matches!(trained.view.data().info.format, SampleFormat::Features { .. });
    let bar = if table { ProgressBar::hidden() } else { counter("predicting", Some(paths.len() as u64)) };
    let one = |path: &PathBuf| {
        bar.inc(1);
        if table { rows(trained, path, top) } else { picture(trained, path, top, invert, &mut renderer).map(|p| vec![p]) }
    };
    let predictions = paths.iter().map(one).collect();
    bar.finish_and_clear();
    predictions
}

fn picture(trained: &TrainedModel, path: &Path, top: usize, invert: bool, renderer: &mut Renderer) -> Result<Prediction> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).with_context(|| format!("could not read `{name}`"))?;
    let picture = decode(SampleFormat::Encoded, &bytes).map_err(|e| anyhow::anyhow!("`{name}` {e}"))?;
    let mut picture = if trained.input().channels == 1 { grey(picture) } else { picture };
    if invert {
        picture.pixels.iter_mut().for_each(|p| *p = 255 - *p);
    }
    let pixels = &trained.view.config().data.pixels;
    // As in evaluation: by the same crops, or, of raw datasets, whole.
    let whole = trained.view.data().info.format != SampleFormat::Encoded;
    let recipes = Recipe::evaluations(pixels, picture.width, picture.height, whole);
    let crops = recipes.iter().map(|recipe| renderer.numbers(&picture, recipe, pixels)).collect::<Result<Vec<_>, _>>();
    let values = crops.map_err(|e| anyhow::anyhow!("`{name}`: {e}"))?.concat();
    let (_, scores) = trained.replica.scores_of_crops(&values, &[0], recipes.len())?;
    Ok(Prediction { input: name, top: guesses(trained.classes(), &scores, top) })
}

/// Rec. 601 luma.
fn grey(picture: Picture) -> Picture {
    let luma = |p: &[u8; 3]| ((299 * u32::from(p[0]) + 587 * u32::from(p[1]) + 114 * u32::from(p[2]) + 500) / 1000) as u8;
    Picture { channels: 1, pixels: picture.pixels.as_chunks::<3>().0.iter().map(luma).collect(), ..picture }
}

fn rows(trained: &TrainedModel, path: &Path, top: usize) -> Result<Vec<Prediction>> {
    let label = match &trained.view.config().data.source {
        common::config::DataSource::Csv { label, .. } => label.as_str(),
        _ => "label",
    };
    let data = trained.view.data();
    let table: std::sync::Arc<dyn common::dataset::SampleSource> =
        std::sync::Arc::new(Table::open_like(path, label, &data.columns, &data.info.classes, Unlabelled::Keep)?);
    let mut predictions = Vec::new();
    trained.score(&table, Split::Val, |ids, _, scores| {
        for (&id, scores) in ids.iter().zip(scores.chunks_exact(trained.classes().len())) {
            predictions.push(Prediction { input: table.name(Split::Val, id), top: guesses(trained.classes(), scores, top) });
        }
    })?;
    Ok(predictions)
}

fn guesses(classes: &[String], scores: &[f32], top: usize) -> Vec<ClassProbability> {
    let probabilities = softmax(scores);
    let guess = |n: usize| ClassProbability { class: classes[n].clone(), probability: probabilities[n], score: scores[n] };
    likeliest(scores, top).into_iter().map(guess).collect()
}

/// A line for a terminal.
pub fn describe(prediction: &Prediction) -> String {
    let guesses: Vec<String> = prediction.top.iter().map(|g| format!("{} {:.1}%", g.class, 100.0 * g.probability)).collect();
    format!("{}: {}", prediction.input, guesses.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_ordered_and_add_up() {
        let classes = ["a", "b", "c"].map(str::to_owned);
        let all = guesses(&classes, &[1.0, 3.0, 1.0], 3);
        assert_eq!(all.iter().map(|g| g.class.as_str()).collect::<Vec<_>>(), ["b", "a", "c"]);
        assert!((all.iter().map(|g| g.probability).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((all[0].probability - 1.0 / (1.0 + 2.0 * (-2.0f64).exp())).abs() < 1e-7);
        assert_eq!(all.iter().map(|g| g.score).collect::<Vec<_>>(), [3.0, 1.0, 1.0]);
        assert_eq!(guesses(&classes, &[1.0, 3.0, 1.0], 1).len(), 1);
    }

    #[test]
    fn grey_is_luma() {
        let picture = Picture { width: 2, height: 1, channels: 3, pixels: vec![255, 255, 255, 255, 0, 0] };
        assert_eq!(grey(picture).pixels, [255, 76]);
    }
}
