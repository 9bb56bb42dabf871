//! The command line of `coordinator`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use common::ui::LogArgs;

/// Shards a dataset across workers, forms their ring and keeps the run's files.
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
    /// Wait for workers on this machine or others, and train.
    Serve(ServeArgs),
    /// Start a coordinator and N worker processes here, and train.
    Local(LocalArgs),
    /// Validate a config and its data, and print the plan. Changes nothing.
    Check(CheckArgs),
    /// Show that each epoch of a run used every sample exactly once.
    Audit(AuditArgs),
    /// Make, list and revoke the tokens that admit workers to a run.
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it.
    New {
        /// The run's directory.
        run: PathBuf,
        /// How long it admits workers, for example 30m, 24h or 7d.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
        expires: Duration,
    },
    /// List the run's tokens, without their secrets.
    List {
        /// The run's directory.
        run: PathBuf,
    },
    /// Revoke a token: whoever came with it has to go.
    Revoke {
        /// The run's directory.
        run: PathBuf,
        /// The token's id, as `list` shows it.
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// The run's directory.
    pub run: PathBuf,
}

/// What every run needs.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The run's config, a TOML file.
    pub config: PathBuf,
    /// Where the run's files go [default: runs/NAME, or runs/NAME-2 and so on].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Change one key of the config, for example train.epochs=3.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Go on from the newest checkpoint in the run directory.
    #[arg(long, requires = "run_dir")]
    pub resume: bool,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Where to listen (UDP).
    #[arg(long, value_name = "ADDR", default_value = "[::]:7474")]
    pub listen: SocketAddr,
    /// Start when this many workers have joined [default: cluster.min_workers].
    #[arg(long, value_name = "N")]
    pub workers: Option<u32>,
    /// The host that the join line names; workers must be able to reach it
    /// [default: this machine's address].
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<String>,
}

#[derive(Debug, Args)]
pub struct LocalArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// How many worker processes to start.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub workers: u32,
    /// The device of each worker: auto, cpu, cuda:N or flex; a shorter list is
    /// repeated.
    #[arg(long, value_name = "DEVICE,...", value_delimiter = ',', default_value = "auto")]
    pub devices: Vec<String>,
    /// Write where the workers' time goes, a row for each thread and rank, for
    /// ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// The worker binary [default: beside this one].
    #[arg(long, value_name = "FILE")]
    pub worker_binary: Option<PathBuf>,
    /// Have these workers (by rank) stream their data from the coordinator
    /// instead of reading the folder.
    #[arg(long, value_name = "RANK,...", value_delimiter = ',')]
    pub stream_data: Vec<u32>,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The config to check, a TOML file.
    pub config: PathBuf,
    /// Change one key of the config, for example train.epochs=3.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print the plan for this many workers.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub workers: u32,
}
