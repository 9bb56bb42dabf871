//! `worker bench step`: gradient and update of a model on random pictures, with
//! neither data nor ring.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use common::config::{AlexnetConfig, AlexnetPreset, Config, ConfigError, ModelConfig, Precision, TrainConfig};
use common::run_dir::peak_rss_bytes;
use common::seed;
use serde::Serialize;

use super::report::{cores, median, print_line, show};
use crate::analysis::summary;
use crate::data::{BatchName, Finish, Inputs, MaskGroup, Masks, Pictures};
use crate::engine::Delivery;
use crate::engine::device::{Devices, Share};
use crate::models::{self, InputShape};
use crate::optim::Update;
use crate::replica::{BatchPart, Replica};

#[derive(Debug, Clone, Args)]
pub struct StepArgs {
    /// Take model, optimizer and input from this config instead of AlexNet.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The widths of AlexNet's layers.
    #[arg(long, value_enum, default_value = "notes", conflicts_with = "config")]
    pub preset: AlexnetPreset,
    /// Image size in pixels [default: 224, or the config's].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub size: Option<u32>,
    /// Pictures in one step.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Classes [default: 1000, or what the config's data has].
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub classes: Option<u32>,
    /// 3 for colour, 1 for grey [default: 3, or what the config's data has].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub channels: Option<u32>,
    /// Compute threads [default: all cores].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// The number format of forward and backward [default: f32, or the config's].
    #[arg(long, value_enum)]
    pub precision: Option<Precision>,
    /// Steps before those that are counted.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub warm_up: u64,
    /// Steps that are counted.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub steps: u64,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value = "auto", alias = "device", value_parser = |text: &str| Devices::parse(text, Share::WHOLE))]
    pub devices: Devices,
    /// Leave the input on the device, as a benchmark that loads nothing does.
    #[arg(long)]
    pub resident: bool,
    /// Print the result as one line of JSON, and nothing else.
    #[arg(long)]
    pub json: bool,
}

/// The times of the steps: medians, except for the best.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepResult {
    pub images_per_second: f64,
    pub best_images_per_second: f64,
    pub step_ms: f64,
    pub forward_ms: f64,
    pub backward_ms: f64,
    /// Conversion of the gradient, and its copy into a bucket.
    pub copy_ms: f64,
    pub update_ms: f64,
    pub peak_rss_bytes: u64,
    pub parameters: u64,
    pub device: String,
}

/// `worker bench step`.
///
/// # Errors
/// The config is not valid or does not go with the input, or the device failed.
pub fn run(args: StepArgs) -> Result<()> {
    let json = args.json;
    // On a thread of its own, as in training.
    let result = match std::thread::spawn(move || measure(&args)).join() {
        Ok(result) => result?,
        Err(panic) => std::panic::resume_unwind(panic),
    };
    show(json, &result, |r| {
        format!(
            "median {:.1} ms, {:.1} images/s (best {:.1}): forward {:.1} + backward {:.1} + copy {:.1} + update {:.1} ms; {} MB at most",
            r.step_ms,
            r.images_per_second,
            r.best_images_per_second,
            r.forward_ms,
            r.backward_ms,
            r.copy_ms,
            r.update_ms,
            r.peak_rss_bytes >> 20
        )
    })
}

/// The model, its training settings and its input.
fn subject(args: &StepArgs) -> Result<(ModelConfig, TrainConfig, InputShape)> {
    let (mut model, train, mut input) = match &args.config {
        Some(path) => {
            let config = Config::load(path, &[])?;
            let input = summary::input_of(&config, None).input;
            (config.model, config.train, input)
        }
        None => {
            let model = ModelConfig::Alexnet(AlexnetConfig { preset: args.preset, ..AlexnetConfig::default() });
            (model, TrainConfig::default(), InputShape { channels: 3, image_size: 224, classes: 1000 })
        }
    };
    let given = [(&mut input.image_size, args.size), (&mut input.channels, args.channels), (&mut input.classes, args.classes)];
    for (place, value) in given {
        *place = value.map_or(*place, |n| n as usize);
    }
    let least = model.smallest_image() as usize;
    if input.image_size < least {
        let problem = format!("is {}: this model needs at least {least} pixels", input.image_size);
        return Err(ConfigError::Invalid { key: "--size", problem }.into());
    }
    model
        .check_classes(input.classes)
        .map_err(|problem| ConfigError::Invalid { key: "--classes", problem: format!("is {}: {problem}", input.classes) })?;
    models::describe(&mut model, input, &args.devices.first().burn())?;
    let threads = args.threads.unwrap_or_else(cores);
    let train = TrainConfig { precision: args.precision.unwrap_or(train.precision), threads: Some(threads), ..train };
    Ok((model, train, input))
}

/// Seconds of one step's phases.
struct Step {
    total: f64,
    forward: f64,
    backward: f64,
    copy: f64,
    update: f64,
}

fn measure(args: &StepArgs) -> Result<StepResult> {
    let (model, train, input) = subject(args)?;
    args.devices.prepare(&train)?;
    let mut replica = Replica::new(&model, &train, input, 1, args.devices.clone())?;
    let parameters = replica.layout().total();
    if !args.json {
        print_line(&format!("{}; {parameters} parameters", args.devices.describe()))?;
    }
    let batch = args.batch as usize;
    let mut rng = seed::stream(1, "bench", &[]);
    let bytes: Vec<u8> = (0..batch * input.values()).map(|_| seed::below(&mut rng, 256) as u8).collect();
    let finishes = vec![Finish { affine: [[1.0 / 255.0, -0.5, -1.0, 1.0]; 3], erased: None }; batch];
    let inputs = Inputs::Pictures(Pictures { bytes: &bytes, finishes: &finishes });
    let labels: Vec<i32> = (0..batch).map(|_| seed::below(&mut rng, input.classes as u32) as i32).collect();
    // As in training, masks come from other threads, and the next batch is known.
    let masks = [0, 1].map(|seed| Masks::drawn(replica.dropouts(), &[MaskGroup { seed, samples: batch }]));
    let name = |step: u64| BatchName { loader: u64::MAX, step: if args.resident { 0 } else { step }, part: 0 };
    let part = |step: u64| BatchPart {
        inputs,
        labels: &labels,
        seconds: &[],
        masks: masks[(name(step).step % 2) as usize].all(),
        name: Some(name(step)),
    };
    let mut steps = Vec::new();
    for step in 0..args.warm_up + args.steps {
        let start = Instant::now();
        let scale = 1.0 / batch as f32;
        let sums = replica.gradients(&[part(step)], Some(&part(step + 1)), scale, Delivery::Keep, &mut |_, _| ())?;
        let (phases, gradient) = (replica.phases(), start.elapsed().as_secs_f64());
        // The learning rate is small enough for the weights to stay finite on random
        // pictures.
        let report = replica.update_with_own(Update { step, lr: 1e-3, factor: 1.0 })?;
        let total = start.elapsed().as_secs_f64();
        let one = Step { total, forward: phases.forward, backward: phases.backward, copy: phases.copy, update: total - gradient };
        if !args.json {
            print_line(&format!(
                "step {step}: {:.4} s = forward {:.4} + backward {:.4} + copy {:.4} + update {:.4}; loss {:.4}, gradient norm {:.3}",
                one.total,
                one.forward,
                one.backward,
                one.copy,
                one.update,
                sums.loss / f64::from(sums.count.max(1)),
                report.grad_norm
            ))?;
        }
        // The first step allocates memory and chooses kernels.
        if step >= args.warm_up {
            steps.push(one);
        }
    }
    let ms = |phase: fn(&Step) -> f64| median(steps.iter().map(phase)) * 1e3;
    let best = steps.iter().map(|s| s.total).fold(f64::INFINITY, f64::min);
    let step_ms = ms(|s| s.total);
    Ok(StepResult {
        images_per_second: batch as f64 / step_ms * 1e3,
        best_images_per_second: batch as f64 / best,
        step_ms,
        forward_ms: ms(|s| s.forward),
        backward_ms: ms(|s| s.backward),
        copy_ms: ms(|s| s.copy),
        update_ms: ms(|s| s.update),
        peak_rss_bytes: peak_rss_bytes(),
        parameters: parameters as u64,
        device: args.devices.to_string(),
    })
}
