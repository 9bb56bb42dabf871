//! The command line of `coordinator`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use common::run_dir::Resume;
use common::ui::{CompletionsArgs, LogArgs, ManArgs};

use crate::check::CheckArgs;
use crate::doctor::DoctorArgs;
use crate::init::InitArgs;
use crate::page::Http;
use crate::runs::RunsArgs;
use crate::slurm::SlurmArgs;
use crate::token::TokenCommand;

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
    /// Start a coordinator here and workers on other machines over ssh, and train.
    Ssh(SshArgs),
    /// Write a batch file that trains on the nodes of a Slurm cluster.
    Slurm(SlurmArgs),
    /// Write a commented config that fits the data at a place.
    Init(InitArgs),
    /// Validate a config and its data, and print the plan. Changes nothing.
    Check(CheckArgs),
    /// Say what keeps a coordinator on this machine from being reached, or from working.
    Doctor(DoctorArgs),
    /// List the runs of a folder: state, best accuracy, size.
    Runs(RunsArgs),
    /// Show that each epoch of a run used every sample exactly once.
    Audit(AuditArgs),
    /// Show runs on a page, finished ones too, and compare several. Changes nothing.
    Page(ShowArgs),
    /// Make, list and revoke the tokens that admit workers to a run.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print the JSON schema of a config, for editors.
    Schema,
    /// Print what a shell needs to complete commands and options.
    Completions(CompletionsArgs),
    /// Write manual pages.
    Man(ManArgs),
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
    /// Go on from the newest checkpoint in the run directory; with `auto`, start a
    /// run there if it holds none yet.
    #[arg(long, requires = "run_dir", num_args = 0..=1, require_equals = true, default_missing_value = "always", value_name = "WHEN")]
    pub resume: Option<Resume>,
    /// With --resume, go on although the data is not what the run was started with.
    #[arg(long, requires = "resume")]
    pub accept_data: bool,
}

/// Where the page of a run is.
#[derive(Debug, Args)]
pub struct PageArgs {
    /// Where to serve a page that shows the run, /metrics and /status.json: IP:PORT, or off. If
    /// the port is taken, a free one is used.
    #[arg(long, value_name = "ADDR", default_value = Http::DEFAULT)]
    pub http: Http,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The directories of the runs; several are compared.
    #[arg(required = true, value_name = "RUN", num_args = 1..=32)]
    pub runs: Vec<PathBuf>,
    #[command(flatten)]
    pub page: PageArgs,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub page: PageArgs,
    /// Where to listen (UDP); 0.0.0.0 and :: are all addresses of this machine, IPv4 and IPv6.
    #[arg(long, value_name = "ADDR", default_value = "[::]:7474")]
    pub listen: SocketAddr,
    /// Start when this many workers have joined [default: cluster.min_workers].
    #[arg(long, value_name = "N")]
    pub workers: Option<u32>,
    /// The hosts that the join line names; each worker must be able to reach one of them
    /// [default: the addresses of this machine that others may use].
    #[arg(long, value_name = "HOST,...", value_delimiter = ',')]
    pub advertise: Vec<String>,
    /// The worker binary that has the config's model, if that is one of your own: it is asked
    /// what the model consists of.
    #[arg(long, value_name = "FILE")]
    pub worker_binary: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LocalArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub page: PageArgs,
    /// How many worker processes to start.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub workers: u32,
    /// The devices, between commas, of which each worker takes its share: cuda:N, cpu or
    /// flex; auto is every GPU that there is, else the CPU.
    #[arg(long, value_name = "DEVICE,...", default_value = "auto")]
    pub devices: String,
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
pub struct SshArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub page: PageArgs,
    /// The hosts, as ssh knows them, between commas: host, user@host, or host:N for N
    /// workers there; or a file with one in each line.
    #[arg(long, value_name = "FILE|HOST,...")]
    pub hosts: String,
    /// The archive of `make dist` that is copied to hosts which lack it, once for each
    /// content [default: the unpacked archive in which this program lies].
    #[arg(long, value_name = "FILE")]
    pub archive: Option<PathBuf>,
    /// The devices of each host, between commas, of which its workers take their shares:
    /// cuda:N, cpu or flex; auto is every GPU that there is, else the CPU.
    #[arg(long, value_name = "DEVICE,...", default_value = "auto")]
    pub devices: String,
    /// Where the data is on the hosts; workers of a host without it get their samples
    /// from here [default: the path of the config].
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Have all workers get their samples from here.
    #[arg(long, conflicts_with = "data")]
    pub stream_data: bool,
    /// Where to listen (UDP); port 0 takes any free one.
    #[arg(long, value_name = "ADDR", default_value = "[::]:0")]
    pub listen: SocketAddr,
    /// The hosts by which workers reach this machine [default: the address by which each host
    /// sees it, and the others of this machine].
    #[arg(long, value_name = "HOST,...", value_delimiter = ',')]
    pub advertise: Vec<String>,
    /// The configuration for ssh, instead of ~/.ssh/config.
    #[arg(long, value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,
    /// One more option for ssh, as in ~/.ssh/config, for example Port=2222.
    #[arg(long = "ssh-option", value_name = "KEY=VALUE")]
    pub ssh_options: Vec<String>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn resume(arguments: &[&str]) -> Result<Option<Resume>, String> {
        let command = ["coordinator", "serve", "a.toml"].iter().chain(arguments);
        match Cli::try_parse_from(command).map_err(|e| e.to_string())?.command {
            Command::Serve(args) => Ok(args.run.resume),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn a_run_is_resumed_if_it_must_be_or_if_it_is_there() {
        assert_eq!(resume(&["--run-dir", "r"]), Ok(None));
        assert_eq!(resume(&["--run-dir", "r", "--resume"]), Ok(Some(Resume::Always)));
        assert_eq!(resume(&["--resume", "--run-dir", "r"]), Ok(Some(Resume::Always)));
        assert_eq!(resume(&["--run-dir", "r", "--resume=auto"]), Ok(Some(Resume::Auto)));
        assert!(resume(&["--run-dir", "r", "--resume=never"]).unwrap_err().contains("auto"));
        assert!(resume(&["--resume"]).unwrap_err().contains("--run-dir"));
        assert!(resume(&["--accept-data", "--run-dir", "r"]).unwrap_err().contains("--resume"));
        assert_eq!(resume(&["--accept-data", "--resume", "--run-dir", "r"]), Ok(Some(Resume::Always)));
    }

    #[test]
    fn tokens_last_ten_years_at_most() {
        let made = |expires: &str| Cli::try_parse_from(["coordinator", "token", "new", "r", "--expires", expires]);
        for good in ["1s", "24h", "10y"] {
            assert!(made(good).is_ok(), "{good}");
        }
        for bad in ["10000y", "11y", "much"] {
            assert!(made(bad).is_err(), "{bad}");
        }
        assert!(made("10000y").unwrap_err().to_string().contains("10y"));
    }

    /// The first start of the service and every start after a reboot use one command line.
    #[test]
    fn the_service_starts_and_goes_on_by_one_line_and_is_started_again() {
        let unit = include_str!("../../../deploy/ringleader-coordinator.service");
        let line = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap();
        let parsed = Cli::try_parse_from(line.split_whitespace()).unwrap();
        assert!(matches!(parsed.command, Command::Serve(args) if args.run.resume == Some(Resume::Auto)), "{line}");
        for unit in [unit, include_str!("../../../deploy/ringleader-worker.service")] {
            for key in ["Restart=on-failure", "RestartSec=", "StartLimitIntervalSec=", "StartLimitBurst="] {
                assert!(unit.lines().any(|l| l.starts_with(key)), "{key} is not in\n{unit}");
            }
        }
    }
}
