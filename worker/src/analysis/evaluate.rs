//! `worker eval`: how good a trained model is, class by class.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use common::dataset::Split;
use common::run_dir::Which;
use serde::Serialize;

use crate::analysis::trained::{TrainedModel, Weights};
use crate::engine::device::ComputeDevice;
use crate::figures::{Confusion, save};
use crate::training::confusion::predictions;

/// What to evaluate.
#[derive(Debug)]
pub struct Options {
    pub run: PathBuf,
    /// Data to evaluate instead of the run's own.
    pub data: Option<PathBuf>,
    pub split: Split,
    pub checkpoint: Which,
    pub weights: Option<Weights>,
    pub device: ComputeDevice,
    /// The folder for confusion.png and eval.json.
    pub out: PathBuf,
}

/// Precision and recall of one class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassReport {
    pub class: String,
    pub samples: u64,
    /// The share of the samples predicted as this class that belong to it; none if no
    /// sample was predicted as this class.
    pub precision: Option<f64>,
    /// The share of this class's samples that were predicted as it; none without samples.
    pub recall: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluationReport {
    pub step: u64,
    pub samples: u64,
    #[serde(with = "common::json_number")]
    pub loss: f64,
    pub top1: f64,
    pub top5: f64,
    pub classes: Vec<ClassReport>,
    /// `[true class][predicted class]`
    pub confusion: Vec<Vec<u64>>,
}

impl EvaluationReport {
    fn new(step: u64, sums: crate::engine::Sums, names: &[String], confusion: Vec<Vec<u64>>) -> Self {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let samples = u64::from(sums.count);
        let classes = names.iter().enumerate().map(|(n, class)| {
            let given = confusion.iter().map(|row| row[n]).sum();
            let own = confusion[n].iter().sum();
            ClassReport {
                class: class.clone(),
                samples: own,
                precision: share(confusion[n][n], given),
                recall: share(confusion[n][n], own),
            }
        });
        Self {
            step,
            samples,
            loss: sums.loss / samples.max(1) as f64,
            top1: share(sums.top1.into(), samples).unwrap_or_default(),
            top5: share(sums.top5.into(), samples).unwrap_or_default(),
            classes: classes.collect(),
            confusion,
        }
    }

    /// The report for a terminal. With more than `MAX_MATRIX` classes it lists the most
    /// frequent mistakes instead of the whole confusion matrix.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} samples after step {}: loss {:.4}, top-1 {:.2}%, top-5 {:.2}%\n\n",
            self.samples,
            self.step,
            self.loss,
            100.0 * self.top1,
            100.0 * self.top5
        );
        let width = self.classes.iter().map(|c| c.class.chars().count()).max().unwrap_or(0).max(5);
        let percent = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |s| format!("{:.2}%", 100.0 * s));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:>width$}  {:>8}  {:>9}  {:>7}", "class", "samples", "precision", "recall");
        for c in &self.classes {
            let _ = writeln!(text, "{:>width$}  {:>8}  {:>9}  {:>7}", c.class, c.samples, percent(c.precision), percent(c.recall));
        }
        if self.classes.len() <= MAX_MATRIX {
            text += "\nconfusion (rows: true class, columns: predicted class, in the same order)\n";
            let cell = self.confusion.iter().flatten().max().map_or(1, |n| n.to_string().len()).max(4);
            for (c, row) in self.classes.iter().zip(&self.confusion) {
                let cells: Vec<String> = row.iter().map(|n| format!("{n:>cell$}")).collect();
                let _ = writeln!(text, "{:>width$}  {}", c.class, cells.join(" "));
            }
        }
        let mistakes = self.worst();
        if !mistakes.is_empty() {
            text += "\nmistaken most\n";
            for (from, to, n) in mistakes {
                let _ = writeln!(text, "{n:>8}  {} for {}", self.classes[from].class, self.classes[to].class);
            }
        }
        text
    }

    /// The most frequent mistakes: (true class, predicted class, count).
    fn worst(&self) -> Vec<(usize, usize, u64)> {
        let cells = self.confusion.iter().enumerate().flat_map(|(r, row)| row.iter().enumerate().map(move |(c, &n)| (r, c, n)));
        let mut mistakes: Vec<_> = cells.filter(|&(r, c, n)| r != c && n > 0).collect();
        mistakes.sort_by_key(|&(r, c, n)| (std::cmp::Reverse(n), r, c));
        mistakes.truncate(5);
        mistakes
    }
}

/// The most classes for which the whole matrix is printed.
const MAX_MATRIX: usize = 20;

/// Evaluates and writes confusion.png and eval.json into `out`.
pub fn run(options: &Options) -> Result<EvaluationReport> {
    let trained = TrainedModel::load(&options.run, options.checkpoint, options.weights, options.device)?;
    let source = trained.open_data(options.data.as_deref())?;
    if source.info().len(options.split) == 0 {
        bail!("the data has no {} samples", options.split);
    }
    let classes = trained.classes().len();
    let mut confusion = vec![vec![0u64; classes]; classes];
    let sums = trained.score(&source, options.split, |_, labels, scores| {
        predictions(labels, scores, classes).for_each(|(label, predicted)| confusion[label][predicted] += 1);
    })?;
    let report = EvaluationReport::new(trained.step, sums, trained.classes(), confusion);
    std::fs::create_dir_all(&options.out).with_context(|| format!("could not create `{}`", options.out.display()))?;
    let file = options.out.join("eval.json");
    std::fs::write(&file, serde_json::to_string_pretty(&report)?).with_context(|| format!("could not write `{}`", file.display()))?;
    let figure = Confusion {
        title: format!("{}: top-1 {:.2}%", trained.view.config().name, 100.0 * report.top1),
        classes: trained.classes().to_vec(),
        counts: report.confusion.clone(),
    };
    save(&figure, &options.out.join("confusion.png"))?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Sums;

    #[test]
    fn precision_and_recall_follow_the_matrix() {
        let names = ["a", "b", "never"].map(str::to_owned);
        let confusion = vec![vec![6, 2, 0], vec![1, 3, 0], vec![0, 0, 0]];
        let sums = Sums { loss: 6.0, top1: 9, top5: 12, count: 12 };
        let report = EvaluationReport::new(7, sums, &names, confusion);
        assert_eq!((report.classes[0].precision, report.classes[0].recall), (Some(6.0 / 7.0), Some(0.75)));
        assert_eq!((report.classes[1].precision, report.classes[1].recall), (Some(0.6), Some(0.75)));
        assert_eq!((report.classes[2].precision, report.classes[2].recall), (None, None));
        assert_eq!((report.loss, report.top1, report.samples), (0.5, 0.75, 12));
        let text = report.text();
        assert!(text.contains("2  a for b") && text.contains("top-1 75.00%"), "{text}");
    }
}
