//! The command line of `worker`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use common::ui::LogArgs;

/// Trains image classifiers: alone, or as one worker of a cluster.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train on this machine alone.
    Train(TrainArgs),
    /// Join the run of a coordinator.
    Join(JoinArgs),
    /// Get a dataset.
    #[command(subcommand)]
    Data(DataCommand),
    /// Say what this machine and this build can do.
    Doctor,
}

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The run's config, a TOML file.
    pub config: PathBuf,
    /// Where the run's files go [default: runs/NAME, or runs/NAME-2 and so on].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Change one key of the config, for example train.epochs=3.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Go on from the newest checkpoint in the run directory.
    #[arg(long, requires = "run_dir")]
    pub resume: bool,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The coordinator's host:port, as its join line says.
    pub coordinator: String,
    /// The token of the coordinator's join line.
    #[arg(long, value_name = "TOKEN", required_unless_present = "token_file")]
    pub token: Option<String>,
    /// Read the token from a file instead, or from stdin if it is `-`.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// A local copy of the data; without it, samples come from the coordinator.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Where to listen for the ring (UDP); port 0 takes any free one.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:0")]
    pub ring_listen: SocketAddr,
    /// The ip:port that other workers reach this one at, if it is not the
    /// address that the coordinator sees.
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<SocketAddr>,
    /// Where streamed samples are kept [default: the user's cache directory].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The most gigabytes of streamed samples to keep on disk.
    #[arg(long, value_name = "GB", default_value_t = 20)]
    pub cache_gb: u64,
    /// This worker's place among those that join.
    #[arg(long, value_name = "RANK", hide = true)]
    pub preferred_rank: Option<u32>,
    /// End when stdin closes: how a launcher ties this process to its own life.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Fetch a public dataset; what is there already is checked and kept.
    Get {
        /// fashion-mnist
        dataset: String,
        /// The folder to put it in [default: data/NAME].
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,
    },
}
