//! Output of a single-node run at its end, besides its record: curves, the decision
//! regions of two-dimensional data, and the report of a perceptron.

use std::path::Path;

use anyhow::{Context, Result};
use common::config::ModelConfig;
use common::dataset::SampleSource;
use common::run_dir::{RunView, Which};
use safetensors::SafeTensors;

use crate::analysis::perceptron::{Point, report};
use crate::analysis::plot;
use crate::analysis::show::rows;
use crate::engine::device::ComputeDevice;
use crate::figures::save;

/// Draws the figures of the run in `run`; returns lines for stdout that report on it.
pub fn results(run: &Path, source: &dyn SampleSource, device: ComputeDevice) -> Result<Vec<String>> {
    let view = RunView::open(run)?;
    let mut lines = Vec::new();
    if let ModelConfig::Perceptron(_) = view.config().model
        && let columns @ [_, ..] = source.columns()
    {
        lines.push(perceptron(&view, source, columns.iter().map(|c| c.name.clone()).collect())?.trim_end().to_owned());
    }
    let file = run.join("curves.png");
    save(&plot::curves(&[run.to_owned()])?, &file)?;
    lines.push(format!("curves: {}", file.display()));
    if let Some(figure) = plot::regions(run, device)? {
        let file = run.join("regions.png");
        save(&figure, &file)?;
        lines.push(format!("decision regions: {}", file.display()));
    }
    Ok(lines)
}

fn perceptron(view: &RunView, source: &dyn SampleSource, features: Vec<String>) -> Result<String> {
    let (_, bytes) = view.weights(Which::Last)?;
    let tensors = SafeTensors::deserialize(&bytes).context("the newest checkpoint is damaged")?;
    let values = |name: &str| -> Result<Vec<f64>> {
        Ok(tensors.tensor(name)?.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect())
    };
    let (w, b) = (values("dense.weight")?, values("dense.bias")?);
    let point = |(row, label): (Vec<f32>, u32)| (row.into_iter().map(f64::from).collect(), if label == 1 { 1.0 } else { -1.0 });
    let points: Vec<Point> = rows(source)?.into_iter().map(point).collect();
    let (steps, _) = view.metrics()?;
    // A step trains on one sample: a step whose sample was misclassified is an update.
    let updates = steps.iter().filter(|m| m.top1 == 0.0).count() as u64;
    let epochs = steps.last().map_or(0, |m| m.epoch + 1);
    let bias = b.first().copied().unwrap_or_default();
    Ok(report(&points, &w, bias, updates, epochs, (&features, &source.info().classes)))
}
