//! Measures gradient and update of a model on random pictures.
//!
//! `cargo run --release -p worker --example step -- --size 128 --batch 64 --threads 1 --precision bf16`
//! `cargo run --release -p worker --example step -- --config configs/lenet.toml --channels 1 --size 28 --classes 10 --batch 256`

use std::time::Instant;

use clap::Parser;
use common::config::{AlexnetConfig, AlexnetPreset, Config, ModelConfig, Precision, TrainConfig};
use common::seed;
use worker::device::ComputeDevice;
use worker::models::{DropoutGroup, InputShape};
use worker::replica::Replica;

#[derive(Parser)]
struct Args {
    /// Take the model of this config instead of AlexNet
    #[arg(long)]
    config: Option<std::path::PathBuf>,
    /// 3 for colour, 1 for grey
    #[arg(long, default_value_t = 3)]
    channels: usize,
    /// notes, original or torchvision
    #[arg(long, default_value = "notes")]
    preset: String,
    /// Image size in pixels
    #[arg(long, default_value_t = 224)]
    size: usize,
    #[arg(long, default_value_t = 32)]
    batch: usize,
    #[arg(long, default_value_t = 1000)]
    classes: usize,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// f32 or bf16
    #[arg(long, default_value = "f32")]
    precision: String,
    #[arg(long, default_value_t = 5)]
    steps: u64,
    #[arg(long, default_value = "auto")]
    device: String,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // On a thread of its own, as in training.
    match std::thread::spawn(move || measure(args)).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn measure(args: Args) -> anyhow::Result<()> {
    let preset = match args.preset.as_str() {
        "notes" => AlexnetPreset::Notes,
        "original" => AlexnetPreset::Original,
        "torchvision" => AlexnetPreset::Torchvision,
        other => anyhow::bail!("unknown preset `{other}`"),
    };
    let precision = match args.precision.as_str() {
        "f32" => Precision::F32,
        "bf16" => Precision::Bf16,
        other => anyhow::bail!("unknown precision `{other}`"),
    };
    let device = ComputeDevice::parse(&args.device)?;
    device.set_threads(args.threads);
    let train = TrainConfig { precision, threads: Some(args.threads as u32), ..TrainConfig::default() };
    let model = match &args.config {
        Some(path) => Config::load(path, &[])?.model,
        None => ModelConfig::Alexnet(AlexnetConfig { preset, ..AlexnetConfig::default() }),
    };
    let input = InputShape { channels: args.channels, image_size: args.size, classes: args.classes };
    let start = Instant::now();
    let mut replica = Replica::new(&model, &train, input, 1, device)?;
    println!("{}; {} parameters made in {:.2} s", device.describe(), replica.layout().total(), start.elapsed().as_secs_f64());

    let mut rng = seed::stream(1, "bench", &[]);
    let images: Vec<f32> = (0..args.batch * input.values()).map(|_| seed::unit(&mut rng) - 0.5).collect();
    let labels: Vec<i32> = (0..args.batch).map(|_| seed::below(&mut rng, args.classes as u32) as i32).collect();
    let mut bucket = vec![vec![0.0; replica.layout().total()]];
    let mut seconds = Vec::new();
    for step in 0..=args.steps {
        let start = Instant::now();
        let scale = 1.0 / args.batch as f32;
        let sums = replica.gradient(&images, &labels, scale, &[DropoutGroup { seed: step, samples: labels.len() }], &mut |at, span| {
            bucket[0][at..at + span.len()].copy_from_slice(span)
        })?;
        let phases = replica.phases();
        let gradient = start.elapsed().as_secs_f64();
        let report = replica.update(&bucket, step, 1e-3)?;
        let total = start.elapsed().as_secs_f64();
        println!(
            "step {step}: {total:.4} s = forward {:.4} + backward {:.4} + copy {:.4} + update {:.4}; loss {:.4}, gradient norm {:.3}",
            phases.forward,
            phases.backward,
            phases.copy,
            total - gradient,
            sums.loss / f64::from(sums.count),
            report.grad_norm
        );
        // The first step allocates memory and compiles oneDNN's kernels.
        if step > 0 {
            seconds.push(total);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!("median {median:.4} s, {:.1} images/s", args.batch as f64 / median);
    Ok(())
}
