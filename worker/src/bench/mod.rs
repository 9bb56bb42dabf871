//! `worker bench`: measures how fast the parts of training are on this machine, each by
//! itself ([`step`], [`data`], [`ring`]), and simulates clusters ([`ring_sim`]).

pub mod data;
mod report;
pub mod ring;
pub mod ring_sim;
pub mod step;

use anyhow::Result;
use clap::Subcommand;
use common::ui::busy;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Gradient and update of a model, on random pictures.
    Step(step::StepArgs),
    /// The input pipeline alone: reading, decoding, augmenting.
    Data(data::DataArgs),
    /// All-reduce of a gradient between processes of this machine.
    Ring(ring::RingArgs),
    /// How long the ring takes in clusters of 2 to 1024 workers, simulated.
    RingSim(ring_sim::arguments::RingSimArgs),
    /// One process of `bench ring`, which sends it its task on stdin.
    #[command(hide = true)]
    RingRank,
}

/// Carries out one of the commands.
pub fn run(command: BenchCommand) -> Result<()> {
    let _busy = (!matches!(command, BenchCommand::RingRank)).then(|| busy("measuring"));
    match command {
        BenchCommand::Step(args) => step::run(args),
        BenchCommand::Data(args) => data::run(&args),
        BenchCommand::Ring(args) => ring::run(&args),
        BenchCommand::RingSim(args) => ring_sim::run(&args),
        BenchCommand::RingRank => ring::rank::run(),
    }
}
