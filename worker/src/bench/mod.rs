//! `worker bench`: how fast the parts of training are on this machine, each by
//! itself ([`step`], [`data`], [`ring`]), and what a cluster would make of them
//! ([`ring_sim`]).

pub mod data;
pub mod ring;
pub mod ring_sim;
pub mod step;

use std::io::Write;

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Gradient and update of a model, on random pictures.
    Step(step::StepArgs),
    /// The input pipeline alone: reading, decoding, augmenting.
    Data(data::DataArgs),
    /// All-reduce of a gradient between processes of this machine.
    Ring(ring::RingArgs),
    /// What the ring takes in clusters of 2 to 1024 workers, simulated.
    RingSim(ring_sim::RingSimArgs),
    /// One process of `bench ring`, which says on stdin what to do.
    #[command(hide = true)]
    RingRank,
}

/// Carries out one of the commands.
pub fn run(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Step(args) => step::run(args),
        BenchCommand::Data(args) => data::run(&args),
        BenchCommand::Ring(args) => ring::run(&args),
        BenchCommand::RingSim(args) => ring_sim::run(&args),
        BenchCommand::RingRank => ring::rank::run(),
    }
}

/// Prints a result: as one line of JSON, or as `text`.
fn show<T: Serialize>(json: bool, result: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    say(&if json { serde_json::to_string(result)? } else { text(result) })
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("could not write to stdout")
}

/// The word for a choice on the command line.
fn name(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Cores that this process may use.
fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// The middle one of some values, the higher one of two; 0 of none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
