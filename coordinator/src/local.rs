//! `coordinator local`: the worker processes of a cluster on one machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use common::trace;
use common::ui::LogOptions;
use tokio::process::Command;

use crate::supervisor::{Ended, Launcher, WAIT, after_colon, log_options};

/// How to start the workers.
#[derive(Debug, Clone)]
pub struct Launch {
    pub workers: u32,
    /// Where they join.
    pub addr: SocketAddr,
    /// What the worker's `--devices` reads; each worker takes its share.
    pub devices: String,
    pub binary: PathBuf,
    /// The folder that workers read, except those that stream.
    pub data: Option<PathBuf>,
    pub stream_data: Vec<u32>,
    /// Where the trace of all workers goes, if there is to be one.
    pub trace: Option<PathBuf>,
    pub log: LogOptions,
}

/// The worker binary: `given`, else the one beside this executable.
pub fn worker_binary(given: Option<PathBuf>) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path,
        None => std::env::current_exe().context("could not find this program's own path")?.with_file_name("worker"),
    };
    if !path.is_file() {
        bail!("there is no worker binary at `{}`: build it with `make build`, or name it with --worker-binary", path.display());
    }
    Ok(path)
}

impl Launcher for Launch {
    fn workers(&self) -> u32 {
        self.workers
    }

    fn command(&self, rank: u32) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("join")
            .arg(self.addr.to_string())
            .args(["--wait", WAIT, "--token-file", "-", "--supervised", "--preferred-rank"])
            .arg(rank.to_string());
        command.args(["--devices", &self.devices, "--share"]).arg(format!("{}/{}", rank + 1, self.workers));
        if let Some(data) = self.data.as_deref().filter(|_| !self.stream_data.contains(&rank)) {
            command.arg("--data").arg(data);
        }
        if let Some(trace) = &self.trace {
            command.arg("--trace").arg(part_of(trace, rank));
        }
        command.args(log_options(self.log));
        command
    }

    fn place(&self, _rank: u32) -> String {
        String::new()
    }

    fn ended(&self, _rank: u32, status: ExitStatus, last_line: &str) -> Ended {
        if status.code().is_some() {
            Ended::ForGood(format!("ended with {status}{}", after_colon(last_line)))
        } else {
            Ended::Killed(format!("ended with {status}"))
        }
    }
}

/// Joins the traces of `workers` workers that have ended into one.
pub fn merge_traces(trace: &Path, workers: u32) {
    let parts: Vec<PathBuf> = (0..workers).map(|rank| part_of(trace, rank)).collect();
    if let Err(e) = trace::merge(trace, &parts) {
        tracing::warn!("could not write the trace to `{}`: {e}", trace.display());
    }
}

/// Where one worker's part of a trace goes.
fn part_of(trace: &Path, rank: u32) -> PathBuf {
    let mut name = trace.as_os_str().to_owned();
    name.push(format!(".rank-{rank}"));
    name.into()
}
