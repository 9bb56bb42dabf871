//! `worker bench ring-sim`: how long data-parallel training would take in other
//! clusters, simulated by [`common::ring::sim`]; and which bucket size and number
//! format on the wire would be best in each.

pub mod arguments;
mod check;

use anyhow::Result;
use clap::ValueEnum as _;
use common::config::{WireEncoding, name_of};
use common::ring::sim::{Costs, Machines, Work, simulate, slowest};
use indicatif::HumanCount;
use rayon::prelude::*;
use serde::Serialize;

use arguments::RingSimArgs;

use super::report::show;

/// Bucket sizes that are tried.
const BUCKETS: [u64; 8] = [2 << 20, 4 << 20, 8 << 20, 16 << 20, 32 << 20, 64 << 20, 128 << 20, 256 << 20];
/// Steps within this factor of the fastest one count as equally fast. Among these, f32,
/// which is exact, is preferred to bf16, and a small bucket, which takes less memory,
/// to a large one.
const AS_GOOD: f64 = 1.01;

/// One step in a world of some size: means over several steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub world: u32,
    pub step_ms: f64,
    /// Pictures a second, as a share of what as many separate workers would train.
    pub efficiency: f64,
    /// Time spent waiting for the all-reduce after the backward pass.
    pub exposed_ms: f64,
    /// The share of the step that is due to fixed costs of messages: latency, and CPU
    /// time that does not depend on their size.
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

/// The simulated clusters and the results.
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

    /// Means over the steps, in ms: of the step, and of the exposed all-reduce.
    fn mean(&self, world: u32, work: &Work, costs: &Costs) -> (f64, f64) {
        let machines = self.machines();
        let (mut step_ms, mut exposed_ms) = (0.0, 0.0);
        // Without random delays all steps are the same.
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
        let planned = self.step.with(world, self.step.bucket_bytes, self.step.wire);
        let (step_ms, exposed_ms) = self.mean(world, &planned, &self.costs);
        let (without_ms, _) = self.mean(world, &planned, &Costs { latency_us: 0.0, local_latency_us: 0.0, message_us: 0.0, ..self.costs });
        let tried: Vec<Choice> = WireEncoding::value_variants()
            .into_par_iter()
            .flat_map(|&wire| BUCKETS.into_par_iter().map(move |bucket_bytes| (wire, bucket_bytes)))
            .map(|(wire, bucket_bytes)| {
                let (step_ms, _) = self.mean(world, &self.step.with(world, bucket_bytes, wire), &self.costs);
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
    let planned = args.step.with(1, args.step.bucket_bytes, args.step.wire);
    let (alone_ms, _) = args.mean(1, &planned, &args.costs);
    let worlds = args.worlds.iter().map(|&world| args.row(world, alone_ms)).collect();
    Forecast { parameters: planned.layout.elements(), costs: args.costs, machines: args.machines(), worlds }
}

fn text(forecast: &Forecast) -> String {
    let mut lines = vec![
        format!(
            "simulated: {} parameters; machines of {} cores with {} workers, each computing on {} cores",
            HumanCount(forecast.parameters as u64),
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
            name_of(row.best.wire),
            row.best.step_ms,
            100.0 * row.best.efficiency
        ));
    }
    lines.join("\n")
}
