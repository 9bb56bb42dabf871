//! `worker export`: the weights of a run for other programs.

use std::path::Path;

use anyhow::{Context, Result, bail};
use common::dataset::SampleFormat;
use common::files::replace;
use common::run_dir::{RunView, Which};

use crate::analysis::trained::{TrainedModel, Weights};
use crate::engine::device::ComputeDevice;
use crate::models::{InputShape, ParamLayout};
use crate::weights::{OnnxModel, Scaling, named, onnx_bytes, pth_bytes, safetensors_bytes};

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A safetensors file with PyTorch's names and order.
    Safetensors,
    /// A state dict, as torch.save writes it.
    Pth,
    /// The whole model, for ONNX Runtime and others.
    Onnx,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub step: u64,
    pub tensors: usize,
    pub parameters: usize,
}

/// Which weights of a run, and where they go.
#[derive(Debug)]
pub struct Options<'a> {
    pub run: &'a Path,
    pub to: Format,
    pub checkpoint: Which,
    /// If not said, the average of a run that has one, as for evaluation.
    pub weights: Option<Weights>,
    /// Has an ONNX model scale its input itself.
    pub normalize: bool,
    /// Is replaced as a whole.
    pub out: &'a Path,
}

/// Writes the weights of a checkpoint.
pub fn run(options: &Options) -> Result<Written> {
    let Options { to, normalize, out, .. } = *options;
    if normalize && to != Format::Onnx {
        bail!("--normalize belongs to --to onnx: the other formats hold weights only");
    }
    let trained = TrainedModel::load(options.run, options.checkpoint, options.weights, ComputeDevice::parse("auto")?)?;
    let (view, layout, weights) = (&trained.view, trained.replica.layout(), trained.replica.weights()?);
    let model = &view.config().model;
    let bytes = match to {
        Format::Safetensors => safetensors_bytes(&named(model, layout, &weights))?,
        Format::Pth => pth_bytes(&named(model, layout, &weights))?,
        Format::Onnx => onnx(view, trained.step, trained.input(), layout, &weights, normalize)?,
    };
    replace(out, &bytes).with_context(|| format!("could not write `{}`: name another file with --out", out.display()))?;
    Ok(Written { step: trained.step, tensors: layout.params().len(), parameters: layout.total() })
}

fn onnx(view: &RunView, step: u64, input: InputShape, layout: &ParamLayout, weights: &[f32], normalize: bool) -> Result<Vec<u8>> {
    let (config, data) = (view.config(), view.data());
    let rows = matches!(data.info.format, SampleFormat::Features { .. });
    let scaling = if rows {
        let of = |number: fn(&common::dataset::Column) -> f64| data.columns.iter().map(|c| number(c) as f32).collect();
        Scaling { means: of(|c| c.mean), deviations: of(|c| c.deviation) }
    } else {
        let pixels = &config.data.pixels;
        Scaling { means: pixels.mean[..input.channels].to_vec(), deviations: pixels.std[..input.channels].to_vec() }
    };
    let raw = if rows { "Rows of a table" } else { "Pictures with values of 0 to 1, by channel, then row, then column" };
    let kind = match (rows, input.channels) {
        (false, 1) => "; grey",
        (false, _) => "; red, green, blue",
        (true, _) => "",
    };
    let scaled = if normalize { "" } else { "; less the metadata's mean, divided by its std" };
    let text = |value: serde_json::Value| value.to_string();
    let mut metadata = vec![
        ("classes".to_owned(), text(serde_json::json!(data.info.classes))),
        ("mean".to_owned(), text(serde_json::json!(scaling.means))),
        ("std".to_owned(), text(serde_json::json!(scaling.deviations))),
        ("normalized_inside".to_owned(), normalize.to_string()),
        ("step".to_owned(), step.to_string()),
    ];
    if rows {
        let columns: Vec<&str> = data.columns.iter().map(|c| c.name.as_str()).collect();
        metadata.push(("columns".to_owned(), text(serde_json::json!(columns))));
    }
    let onnx = OnnxModel {
        name: &config.name,
        model: &config.model,
        input,
        rows,
        scaling: normalize.then_some(&scaling),
        input_text: &format!("{raw}{kind}{scaled}."),
        metadata,
    };
    Ok(onnx_bytes(&onnx, layout, weights)?)
}
