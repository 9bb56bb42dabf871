//! `worker export`: the weights of a run for other programs.

use std::path::Path;

use anyhow::{Context, Result, bail};
use common::dataset::SampleFormat;
use common::files::replace;
use common::run_dir::{CHECKPOINT_FILES, RunView, Which};

use crate::engine::device::ComputeDevice;
use crate::models::{InputShape, Model, ParamLayout};
use crate::weights::{OnnxModel, Scaling, WeightsFile, named, onnx_bytes, pth_bytes, safetensors_bytes};

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

/// Writes the weights of a checkpoint of the run in `run` to `out`, which is replaced as a
/// whole. With `normalize`, an ONNX model scales its input itself.
pub fn run(run: &Path, to: Format, which: Which, normalize: bool, out: &Path) -> Result<Written> {
    if normalize && to != Format::Onnx {
        bail!("--normalize belongs to --to onnx: the other formats hold weights only");
    }
    let view = RunView::open(run)?;
    let checkpoint = view.checkpoint(which)?;
    let model = &view.config().model;
    let input = view.data().info.input(view.config().data.pixels.image_size);
    let layout = ParamLayout::of(&Model::new(model, input, &ComputeDevice::parse("auto")?.burn()));
    let file = checkpoint.path.join(CHECKPOINT_FILES[0]);
    let mut weights = vec![0.0; layout.total()];
    let loaded = WeightsFile::open(&file, &file)?.fill(model, &layout, &mut weights)?;
    if loaded.new_head.is_some() {
        bail!("the checkpoint `{}` has another number of classes than the run's data", file.display());
    }
    let bytes = match to {
        Format::Safetensors => safetensors_bytes(&named(model, &layout, &weights))?,
        Format::Pth => pth_bytes(&named(model, &layout, &weights))?,
        Format::Onnx => onnx(&view, checkpoint.step, input, &layout, &weights, normalize)?,
    };
    replace(out, &bytes).with_context(|| format!("could not write `{}`: name another file with --out", out.display()))?;
    Ok(Written { step: checkpoint.step, tensors: loaded.tensors, parameters: loaded.values })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_the_last_one_or_that_of_a_step() {
        assert_eq!(("last".parse(), "120".parse()), (Ok(Which::Last), Ok(Which::Step(120))));
        assert!("best".parse::<Which>().is_err_and(|e| e.contains("no run keeps its best checkpoint")));
        assert!("step-3".parse::<Which>().is_err());
    }
}
