//! Pictures of runs, made from their directories, for `worker plot` and for the end of
//! `worker train`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::{Tensor, TensorData};
use common::config::Activation;
use common::recorder::plan;
use common::run_dir::{RunView, Which};
use safetensors::SafeTensors;

use crate::analysis::show::rows;
use crate::analysis::trained::TrainedModel;
use crate::engine::device::ComputeDevice;
use crate::figures::{Activations, Curve, Curves, Format, Regions, Tiles, filter_sheet, save};
use crate::models::activate;
use crate::training::confusion::best;

/// What can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FigureKind {
    /// Loss, accuracy and learning rate; several runs share one picture.
    Curves,
    /// The weights of the first layer as small pictures.
    Filters,
    /// Which class the model gives to each point, for data of two features.
    Regions,
    /// The activation functions and their slopes; needs no run.
    Activations,
}

/// Draws `what` of `runs` into the folder `out` and returns the files.
pub fn run(runs: &[PathBuf], what: &[FigureKind], out: &Path, format: Format, device: ComputeDevice) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(out).with_context(|| format!("could not create `{}`", out.display()))?;
    let file = |name: &str| out.join(format!("{name}.{}", format.ending()));
    let mut written = Vec::new();
    // With one run, a figure whose data the run lacks is skipped unless it was asked for.
    let asked = |w: FigureKind| what.contains(&w);
    let wanted = |w: FigureKind, by_default: bool| if what.is_empty() { by_default } else { asked(w) };
    if wanted(FigureKind::Curves, !runs.is_empty()) {
        save(&curves(runs)?, &file("curves"))?;
        written.push(file("curves"));
    }
    for (n, run) in runs.iter().enumerate() {
        let own = |name: &str| if runs.len() == 1 { file(name) } else { file(&format!("{name}-{}", n + 1)) };
        if wanted(FigureKind::Filters, runs.len() == 1) {
            match first_layer(run)? {
                Some(tiles) => {
                    save(&tiles, &own("filters"))?;
                    written.push(own("filters"));
                }
                None if asked(FigureKind::Filters) => {
                    bail!("the first layer of the run in `{}` does not see pictures: it has no filters to show", run.display())
                }
                None => {}
            }
        }
        if wanted(FigureKind::Regions, runs.len() == 1) {
            match regions(run, device)? {
                Some(figure) => {
                    save(&figure, &own("regions"))?;
                    written.push(own("regions"));
                }
                None if asked(FigureKind::Regions) => {
                    bail!("the data of the run in `{}` does not have two features: regions need a plane", run.display())
                }
                None => {}
            }
        }
    }
    if wanted(FigureKind::Activations, runs.is_empty()) {
        save(&activations(device)?, &file("activations"))?;
        written.push(file("activations"));
    }
    Ok(written)
}

/// The curves of some runs. Runs with the same name are labelled by their folders.
pub fn curves(runs: &[PathBuf]) -> Result<Curves> {
    let views = runs.iter().map(|run| RunView::open(run)).collect::<Result<Vec<_>, _>>()?;
    let mut curves = Vec::new();
    for view in &views {
        let name = view.config().name.clone();
        let twice = views.iter().filter(|v| v.config().name == name).count() > 1;
        let folder = view.path().file_name().map(|f| f.to_string_lossy().into_owned());
        let (steps, evaluations) = view.metrics()?;
        if steps.is_empty() {
            bail!("the run in `{}` has no steps yet", view.path().display());
        }
        let plan = plan(view.config(), &view.data().info).map_err(anyhow::Error::msg)?;
        let name = if twice { folder.unwrap_or(name) } else { name };
        curves.push(Curve::new(name, &steps, &evaluations, plan.steps_per_epoch()));
    }
    if curves.is_empty() {
        bail!("curves need a run: give its directory");
    }
    Ok(Curves(curves))
}

fn first_layer(run: &Path) -> Result<Option<Tiles>> {
    let view = RunView::open(run)?;
    let (step, bytes) = view.weights(Which::Last)?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(|| format!("the newest checkpoint in `{}` is damaged", run.display()))?;
    let input = view.data().info.input(view.config().data.pixels.image_size);
    let Some(layer) = view.config().model.layers(input).into_iter().find(|l| l.parameters > 0) else { return Ok(None) };
    let weight = tensors.tensor(&format!("{}.weight", layer.name))?;
    let values: Vec<f32> = weight.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Ok(filter_sheet(&view.config().name, &layer.name, step, weight.shape(), &values, input))
}

/// Points along each side of the plane at which the model is evaluated.
const GRID: usize = 240;

/// The class that the model gives to each point around its data; none unless the data
/// has two features.
pub fn regions(run: &Path, device: ComputeDevice) -> Result<Option<Regions>> {
    let columns = RunView::open(run)?.data().columns.clone();
    let [first, second] = &columns[..] else { return Ok(None) };
    let trained = TrainedModel::load(run, Which::Last, None, device)?;
    let source = trained.open_data(None)?;
    let rows = rows(source.as_ref())?;
    let at = |n: usize, v: f32| columns[n].raw(v);
    let points: Vec<(f64, f64, usize)> = rows.iter().map(|(row, label)| (at(0, row[0]), at(1, row[1]), *label as usize)).collect();
    let (x, y) = (Regions::range(points.iter().map(|p| p.0)), Regions::range(points.iter().map(|p| p.1)));
    let place = |range: &std::ops::Range<f64>, n: usize| range.start + (range.end - range.start) * (n as f64 + 0.5) / GRID as f64;
    let scaled = |n: usize, v: f64| columns[n].scaled(v);
    let mut classes = Vec::with_capacity(GRID);
    for r in 0..GRID {
        let inputs: Vec<f32> = (0..GRID).flat_map(|c| [scaled(0, place(&x, c)), scaled(1, place(&y, r))]).collect();
        let (_, scores) = trained.replica.scores(&inputs, &[0; GRID])?;
        classes.push(scores.chunks_exact(trained.classes().len()).map(best).collect());
    }
    Ok(Some(Regions {
        title: format!("{} after step {}", trained.view.config().name, trained.step),
        axes: [first.name.clone(), second.name.clone()],
        x,
        y,
        classes,
        points,
        names: trained.classes().to_vec(),
    }))
}

/// The activation functions, as the device computes them.
pub fn activations(device: ComputeDevice) -> Result<Activations> {
    let kinds =
        [("relu", Activation::Relu), ("sigmoid", Activation::Sigmoid), ("tanh", Activation::Tanh), ("identity", Activation::Identity)];
    let n = 101;
    let x = |i: usize| 10.0 * i as f32 / (n - 1) as f32 - 5.0;
    let values = |kind, shift: f32| -> Result<Vec<f64>> {
        let inputs: Vec<f32> = (0..n).map(|i| x(i) + shift).collect();
        let tensor = Tensor::<1>::from_data(TensorData::new(inputs, [n]), &device.burn());
        let values: Result<Vec<f32>, _> = activate(kind, tensor).into_data().try_to_vec();
        Ok(values.map_err(|e| anyhow::anyhow!("the device failed: {e:?}"))?.into_iter().map(f64::from).collect())
    };
    let mut functions = Vec::new();
    for (name, kind) in kinds {
        // The slope is a central difference over a short interval, which keeps the kink
        // of ReLU sharp.
        let half = 0.005;
        let (below, here, above) = (values(kind, -half)?, values(kind, 0.0)?, values(kind, half)?);
        let slope = |i: usize| (above[i] - below[i]) / f64::from(2.0 * half);
        functions.push((name, (0..n).map(|i| (x(i).into(), here[i])).collect(), (0..n).map(|i| (x(i).into(), slope(i))).collect()));
    }
    Ok(Activations(functions))
}
