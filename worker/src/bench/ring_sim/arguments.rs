//! The arguments of `worker bench ring-sim`.

use clap::Args;
use common::config::{AlexnetConfig, AlexnetPreset, ClusterConfig, DenseExchange, ModelConfig, Precision, TrainConfig, WireEncoding};
use common::ring::sim::{Compute, Costs, Work, not_negative, positive, work};

use crate::models::InputShape;

#[derive(Debug, Clone, Args)]
pub struct RingSimArgs {
    /// Numbers of workers, each a line of the table.
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
    /// Measure rings on this machine, fit the costs to some of them, and compare the
    /// simulation with all of them.
    #[arg(long)]
    pub check: bool,
    /// Sizes of the gradients that --check reduces.
    #[arg(long, value_name = "BYTES,BYTES...", value_delimiter = ',', default_value = "33554432,124756688,249513376", requires = "check", value_parser = clap::value_parser!(u64).range(4096..=1 << 32))]
    pub check_bytes: Vec<u64>,
    /// Rounds of each ring of --check; seven rings of each kind are measured.
    #[arg(long, value_name = "N", default_value_t = 8, requires = "check", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub check_rounds: u64,
    /// Print the result as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// The workers' machines, and how evenly the workers compute.
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
    /// The share of the backward pass after which the gradients of the dense layers are
    /// ready; those of the convolutions are ready at its end.
    #[arg(long, value_name = "SHARE", default_value_t = 0.33, value_parser = share)]
    pub dense_at: f64,
    /// The time from the summed gradient to the next step.
    #[arg(long, value_name = "MS", default_value_t = 25.0, value_parser = not_negative)]
    pub update_ms: f64,
    /// Bytes of f32 gradient in one bucket.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, value_parser = clap::value_parser!(u64).range(1 << 16..=1 << 30))]
    pub bucket_bytes: u64,
    /// The number format between workers.
    #[arg(long, value_enum, default_value = "f32")]
    pub wire: WireEncoding,
    /// What is exchanged of dense layers.
    #[arg(long, value_enum, default_value = "auto")]
    pub dense: DenseExchange,
    /// Samples of a worker in a step.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// The number format of forward and backward, and of factors.
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: Precision,
    /// QUIC connections side by side from each worker to the next.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub connections: u32,
}

impl StepFlags {
    /// The step in a world of this size, with another bucket size and number format.
    pub(super) fn with(&self, world: u32, bucket_bytes: u64, wire: WireEncoding) -> Work {
        let model = ModelConfig::Alexnet(AlexnetConfig { preset: self.preset, ..AlexnetConfig::default() });
        let input = InputShape { channels: 3, image_size: self.size as usize, classes: self.classes as usize };
        let train = TrainConfig { global_batch: self.batch * world, precision: self.precision, ..TrainConfig::default() };
        let (bucket_bytes, connections, dense) = (bucket_bytes as usize, self.connections, self.dense);
        let cluster = ClusterConfig { wire, bucket_bytes, connections, dense, ..ClusterConfig::default() };
        let Self { forward_ms, backward_ms, dense_at, update_ms, .. } = *self;
        work(&model, input, &train, &cluster, world, Compute { forward_ms, backward_ms, dense_at, update_ms })
    }
}

fn share(text: &str) -> Result<f64, String> {
    match not_negative(text)? {
        number if number <= 1.0 => Ok(number),
        _ => Err("it must be between 0 and 1".to_owned()),
    }
}
