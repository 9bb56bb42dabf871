//! `worker bench ring-sim`: what data-parallel training takes in clusters that
//! are not at hand, by [`common::ring::sim`]; and which bucket size and which
//! number format on the wire would serve each best.

mod check;

use anyhow::Result;
use clap::Args;
use common::config::{AlexnetConfig, AlexnetPreset, ModelConfig, WireEncoding};
use common::net::transport::STREAMS_IN_FLIGHT;
use common::ring::BucketLayout;
use common::ring::sim::{Costs, Machines, Part, Work, not_negative, positive, simulate, slowest};
use common::ui::group;
use rayon::prelude::*;
use serde::Serialize;

use super::{name, show};
use crate::models::InputShape;

#[derive(Debug, Clone, Args)]
pub struct RingSimArgs {
    /// Workers, for a line of the table each.
    #[arg(
        long,
        value_name = "N,N...",
        value_delimiter = ',',
        default_value = "2,4,8,16,32,64,128,256,512,1024",
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    pub worlds: Vec<u32>,
    #[command(flatten, next_help_heading = "A worker's step")]
    pub step: StepFlags,
    #[command(flatten, next_help_heading = "What messages cost")]
    pub costs: Costs,
    #[command(flatten, next_help_heading = "The cluster")]
    pub cluster: ClusterFlags,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Measure rings on this machine, fit the costs to some of them, and compare
    /// what the simulation makes of all.
    #[arg(long)]
    pub check: bool,
    /// Sizes of the gradients that --check reduces.
    #[arg(long, value_name = "BYTES,BYTES...", value_delimiter = ',', default_value = "33554432,124756688,249513376", requires = "check", value_parser = clap::value_parser!(u64).range(4096..=1 << 32))]
    pub check_bytes: Vec<u64>,
    /// Rounds of each ring of --check, of which there are seven of a kind.
    #[arg(long, value_name = "N", default_value_t = 8, requires = "check", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub check_rounds: u64,
    /// Print the result as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// What the workers run on, and how evenly.
#[derive(Debug, Clone, Args)]
pub struct ClusterFlags {
    /// Cores of a machine.
    #[arg(long, value_name = "N", default_value_t = 8.0, value_parser = positive)]
    pub cores: f64,
    /// Workers on a machine.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers_per_machine: u32,
    /// Cores that the compute of one worker keeps busy, 0 for a GPU [default: its
    /// share of the machine's].
    #[arg(long, value_name = "N", value_parser = not_negative)]
    pub compute_cores: Option<f64>,
    /// Each worker computes 1 + SPREAD |n| times as long as planned, n normal.
    #[arg(long, value_name = "SPREAD", default_value_t = 0.05, value_parser = not_negative)]
    pub straggler_spread: f64,
    /// Steps over which those delays are averaged.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub steps: u64,
}

/// One step of AlexNet, and how its gradient travels.
#[derive(Debug, Clone, Args)]
pub struct StepFlags {
    /// The widths of AlexNet's layers.
    #[arg(long, value_enum, default_value = "original")]
    pub preset: AlexnetPreset,
    /// Image size in pixels.
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u32).range(63..=4096))]
    pub size: u32,
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub classes: u32,
    /// A worker's forward pass: see `worker bench step`.
    #[arg(long, value_name = "MS", default_value_t = 100.0, value_parser = not_negative)]
    pub forward_ms: f64,
    /// A worker's backward pass.
    #[arg(long, value_name = "MS", default_value_t = 200.0, value_parser = not_negative)]
    pub backward_ms: f64,
    /// The share of the backward pass after which the gradients of the dense
    /// layers are there; those of the convolutions are at its end.
    #[arg(long, value_name = "SHARE", default_value_t = 0.33, value_parser = share)]
    pub dense_at: f64,
    /// From the summed gradient to the next step.
    #[arg(long, value_name = "MS", default_value_t = 25.0, value_parser = not_negative)]
    pub update_ms: f64,
    /// Bytes of f32 gradient that are reduced as one.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, value_parser = clap::value_parser!(u64).range(1 << 16..=1 << 30))]
    pub bucket_bytes: u64,
    /// The number format between workers.
    #[arg(long, value_enum, default_value = "f32")]
    pub wire: WireEncoding,
    /// QUIC connections side by side from each worker to the next.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub connections: u32,
}

impl StepFlags {
    /// The step with another bucket size and number format.
    fn with(&self, bucket_bytes: u64, wire: WireEncoding) -> Work {
        let model = ModelConfig::Alexnet(AlexnetConfig { preset: self.preset, ..AlexnetConfig::default() });
        let input = InputShape { channels: 3, image_size: self.size as usize, classes: self.classes as usize };
        let layers = model.layers(input);
        let count =
            |dense: bool| -> usize { layers.iter().filter(|l| l.name.starts_with("dense") == dense).map(|l| l.parameters as usize).sum() };
        let compute_ms = self.forward_ms + self.backward_ms;
        let dense_ms = self.forward_ms + self.dense_at * self.backward_ms;
        let parts = vec![Part { elements: count(false), ready_ms: compute_ms }, Part { elements: count(true), ready_ms: dense_ms }];
        let elements = parts.iter().map(|p| p.elements).sum();
        Work {
            parts,
            compute_ms,
            update_ms: self.update_ms,
            layout: BucketLayout::new(elements, bucket_bytes as usize),
            encoding: wire.into(),
            in_flight: (STREAMS_IN_FLIGHT * self.connections) as usize,
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    match not_negative(text)? {
        number if number <= 1.0 => Ok(number),
        _ => Err("it must be between 0 and 1".to_owned()),
    }
}

/// Bucket sizes that are tried.
const BUCKETS: [u64; 8] = [2 << 20, 4 << 20, 8 << 20, 16 << 20, 32 << 20, 64 << 20, 128 << 20, 256 << 20];
/// What is this close to the best counts as good: then f32, which is exact, goes
/// before bf16, and a small bucket, which takes less memory, before a large one.
const AS_GOOD: f64 = 1.01;

/// What a step of some workers is like: means over several steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub world: u32,
    pub step_ms: f64,
    /// Pictures a second, of what as many workers by themselves would do.
    pub efficiency: f64,
    /// What is left to wait for after the backward pass.
    pub exposed_ms: f64,
    /// The part of the step that would not be there if messages cost nothing by
    /// themselves: neither latency nor CPU time, whatever they hold.
    pub latency_share: f64,
    pub best: Choice,
}

/// The bucket size and number format to use.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    pub bucket_bytes: u64,
    pub wire: WireEncoding,
    pub step_ms: f64,
    pub efficiency: f64,
}

/// What was simulated, and how it went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    pub parameters: usize,
    pub costs: Costs,
    pub machines: Machines,
    pub worlds: Vec<Row>,
}

/// `worker bench ring-sim`.
///
/// # Errors
/// With `--check`: a ring could not be measured.
pub fn run(args: &RingSimArgs) -> Result<()> {
    if args.check {
        return check::run(args);
    }
    show(args.json, &forecast(args), text)
}

impl RingSimArgs {
    fn machines(&self) -> Machines {
        let workers = self.cluster.workers_per_machine as usize;
        Machines {
            cores: self.cluster.cores,
            workers_each: workers,
            compute_cores: self.cluster.compute_cores.unwrap_or(self.cluster.cores / workers as f64),
        }
    }

    /// Means over the steps: of the step and of what was exposed, in ms.
    fn mean(&self, world: u32, work: &Work, costs: &Costs) -> (f64, f64) {
        let machines = self.machines();
        let (mut step_ms, mut exposed_ms) = (0.0, 0.0);
        // Without delays all steps are alike.
        let steps = if self.cluster.straggler_spread == 0.0 { 1 } else { self.cluster.steps };
        for step in 0..steps {
            let outcome =
                simulate(world as usize, work, costs, &machines, slowest(self.seed, step, world as usize, self.cluster.straggler_spread));
            step_ms += outcome.step_ms / steps as f64;
            exposed_ms += outcome.exposed_ms / steps as f64;
        }
        (step_ms, exposed_ms)
    }

    fn row(&self, world: u32, alone_ms: f64) -> Row {
        let planned = self.step.with(self.step.bucket_bytes, self.step.wire);
        let (step_ms, exposed_ms) = self.mean(world, &planned, &self.costs);
        let (without_ms, _) = self.mean(world, &planned, &Costs { latency_us: 0.0, local_latency_us: 0.0, message_us: 0.0, ..self.costs });
        let tried: Vec<Choice> = [WireEncoding::F32, WireEncoding::Bf16]
            .into_par_iter()
            .flat_map(|wire| BUCKETS.into_par_iter().map(move |bucket_bytes| (wire, bucket_bytes)))
            .map(|(wire, bucket_bytes)| {
                let (step_ms, _) = self.mean(world, &self.step.with(bucket_bytes, wire), &self.costs);
                Choice { bucket_bytes, wire, step_ms, efficiency: alone_ms / step_ms }
            })
            .collect();
        let limit = tried.iter().map(|c| c.step_ms).fold(f64::INFINITY, f64::min) * AS_GOOD;
        let planned = Choice { bucket_bytes: self.step.bucket_bytes, wire: self.step.wire, step_ms, efficiency: alone_ms / step_ms };
        let best = tried.into_iter().find(|c| c.step_ms <= limit).unwrap_or(planned);
        Row { world, step_ms, efficiency: alone_ms / step_ms, exposed_ms, latency_share: (step_ms - without_ms).max(0.0) / step_ms, best }
    }
}

fn forecast(args: &RingSimArgs) -> Forecast {
    let planned = args.step.with(args.step.bucket_bytes, args.step.wire);
    let (alone_ms, _) = args.mean(1, &planned, &args.costs);
    let worlds = args.worlds.iter().map(|&world| args.row(world, alone_ms)).collect();
    Forecast { parameters: planned.layout.elements(), costs: args.costs, machines: args.machines(), worlds }
}

fn text(forecast: &Forecast) -> String {
    let mut lines = vec![
        format!(
            "simulated: {} parameters; machines of {} cores with {} workers, each computing on {} cores",
            group(forecast.parameters as u64),
            forecast.machines.cores,
            forecast.machines.workers_each,
            forecast.machines.compute_cores
        ),
        format!("{:>6}  {:>9}  {:>10}  {:>10}  {:>7}   best", "world", "step ms", "efficiency", "exposed ms", "latency"),
    ];
    for row in &forecast.worlds {
        lines.push(format!(
            "{:>6}  {:>9.1}  {:>9.1}%  {:>10.1}  {:>6.1}%   {} MiB, {}: {:.1} ms, {:.1}%",
            row.world,
            row.step_ms,
            100.0 * row.efficiency,
            row.exposed_ms,
            100.0 * row.latency_share,
            row.best.bucket_bytes >> 20,
            name(row.best.wire),
            row.best.step_ms,
            100.0 * row.best.efficiency
        ));
    }
    lines.join("\n")
}
