//! The commands that look at runs, models and data, and train nothing.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use common::config::{Config, Described, name_of};
use common::dataset::Split;
use common::ui::{print_result, print_stderr, print_stdout};
use indicatif::{HumanBytes, HumanCount};

use super::arguments::{DescribeArgs, EvalArgs, ExportArgs, FilterArgs, PlotArgs, PredictArgs, SummaryArgs};
use crate::analysis::trained::TrainedModel;
use crate::analysis::{evaluate, export, filter, pack, plot, predict, show, summary};
use crate::engine::device::ComputeDevice;
use crate::models::{self, InputShape};

pub(super) fn eval(args: EvalArgs) -> Result<()> {
    let out = args.out.unwrap_or_else(|| args.run.clone());
    let split = if args.train { Split::Train } else { Split::Val };
    let device = ComputeDevice::parse(&args.device)?;
    let report = evaluate::run(&evaluate::Options {
        run: args.run,
        data: args.data,
        split,
        checkpoint: args.checkpoint,
        weights: args.weights,
        device,
        out: out.clone(),
    })?;
    if args.json {
        print_result(&serde_json::to_string_pretty(&report)?)
    } else {
        print_result(&format!("{}\nconfusion matrix: {}", report.text(), out.join("confusion.png").display()))
    }
}

pub(super) fn predict(args: PredictArgs) -> Result<()> {
    let trained = TrainedModel::load(&args.run, args.checkpoint, args.weights, ComputeDevice::parse(&args.device)?)?;
    if args.top == 0 {
        bail!("--top must be at least 1");
    }
    let outcomes = predict::run(&trained, &args.inputs, args.top, args.invert);
    let failed = outcomes.iter().filter(|o| o.is_err()).count();
    let mut predictions = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(found) => predictions.extend(found),
            Err(e) => print_stderr(&format!("{e:#}")),
        }
    }
    if args.json {
        print_result(&serde_json::to_string_pretty(&predictions)?)?;
    } else if !predictions.is_empty() {
        print_result(&predictions.iter().map(predict::describe).collect::<Vec<_>>().join("\n"))?;
    }
    if failed > 0 {
        bail!("{failed} of {} inputs could not be read", args.inputs.len());
    }
    Ok(())
}

pub(super) fn export(args: ExportArgs) -> Result<()> {
    let out = args.out.unwrap_or_else(|| args.run.join(format!("model.{}", name_of(args.to))));
    let written = export::run(&export::Options {
        run: &args.run,
        to: args.to,
        checkpoint: args.checkpoint,
        weights: args.weights,
        normalize: args.normalize,
        out: &out,
    })?;
    print_result(&format!(
        "{}: the weights after step {}, {} parameters in {} tensors",
        out.display(),
        written.step,
        HumanCount(written.parameters as u64),
        written.tensors
    ))
}

pub(super) fn plot(args: PlotArgs) -> Result<()> {
    let out = match (&args.out, &args.runs[..]) {
        (Some(out), _) => out.clone(),
        (None, [run]) => run.clone(),
        (None, _) => PathBuf::from("."),
    };
    let device = ComputeDevice::parse(&args.device)?;
    for file in plot::run(&args.runs, &args.what, &out, args.format, device)? {
        print_stdout(&file.display().to_string());
    }
    Ok(())
}

pub(super) fn summary(args: SummaryArgs) -> Result<()> {
    let load = |path: &PathBuf| -> Result<_> {
        let mut config = Config::load(path, &args.overrides)?;
        let assumed = summary::input_of(&config, args.classes);
        models::describe(&mut config.model, assumed.input, &ComputeDevice::any_cpu()?.burn())?;
        Ok((config, assumed))
    };
    if let Some(path) = &args.config {
        let (config, assumed) = load(path)?;
        print_result(&summary::table(&config, &assumed))?;
    }
    if let [first, second] = &args.compare[..] {
        let (first, second) = (load(first)?, load(second)?);
        print_result(&summary::compare((&first.0, &first.1), (&second.0, &second.1)))?;
    }
    if let Some(megapixels) = args.megapixels {
        if !(megapixels > 0.0 && megapixels <= 1e6) || args.hidden == 0 {
            bail!("--megapixels must be above 0 and --hidden at least 1");
        }
        print_result(&summary::megapixels(megapixels, args.hidden.min(1 << 32), args.classes.unwrap_or(2) as u64))?;
    }
    Ok(())
}

pub(super) fn describe(args: DescribeArgs) -> Result<()> {
    let mut config = Config::load(&args.config, &args.overrides)?;
    let number = |n: Option<u32>| n.map(|n| n as usize);
    let input = match (number(args.channels), number(args.size), number(args.classes)) {
        (Some(channels), Some(image_size), Some(classes)) => InputShape { channels, image_size, classes },
        (channels, image_size, classes) => {
            let of_data = summary::input_of(&config, classes).input;
            let (channels, image_size) = (channels.unwrap_or(of_data.channels), image_size.unwrap_or(of_data.image_size));
            InputShape { channels, image_size, ..of_data }
        }
    };
    models::describe(&mut config.model, input, &ComputeDevice::any_cpu()?.burn())?;
    print_result(&serde_json::to_string(&Described { input, layers: config.model.layers(input) })?)
}

pub(super) fn filter(args: FilterArgs) -> Result<()> {
    let options = filter::Options { kernel: args.kernel, flip: args.flip, padding: args.padding, stride: args.stride, column: args.column };
    let device = ComputeDevice::parse(&args.device)?;
    print_stdout(&filter::run(&args.input, &args.output, &options, &device.burn())?);
    Ok(())
}

pub(super) fn show(data: &Path, label: &str, out: Option<PathBuf>) -> Result<()> {
    let source = show::open(data, label)?;
    print_result(&show::text(source.as_ref())?)?;
    let name = data.file_stem().map_or_else(|| "data".to_owned(), |n| n.to_string_lossy().into_owned());
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{name}-sheet.png")));
    if show::picture(source.as_ref(), &name, &out)? {
        print_result(&out.display().to_string())?;
    }
    Ok(())
}

pub(super) fn pack(source: &Path, out: &Path, options: pack::Options) -> Result<()> {
    let (source, _, undivided) = show::open_as_it_lies(source, "label", &common::ui::index_progress(false))?;
    let done = pack::pack(&source, !undivided, out, options)?;
    let mut text =
        format!("{} samples in {} shards, {}, in `{}`", HumanCount(done.samples), done.shards, HumanBytes(done.bytes), out.display());
    if done.kept > 0 {
        text += &format!("; {} shards were there", done.kept);
    }
    if done.skipped > 0 {
        text += &format!("; {} pictures do not decode, skipped.txt names them", HumanCount(done.skipped));
    }
    print_result(&text)
}

pub(super) fn verify(data: &Path, label: &str) -> Result<()> {
    let report = if pack::verify::is_pack(data) {
        pack::verify::pack(data)?
    } else {
        pack::verify::samples(&show::open_as_it_lies(data, label, &common::ui::index_progress(false))?.0)?
    };
    print_result(&report.text())?;
    if report.bad > 0 {
        bail!("{} of {} samples of `{}` are bad", report.bad, report.samples, data.display());
    }
    Ok(())
}
