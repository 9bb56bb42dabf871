//! `coordinator local`: the worker processes of a cluster on one machine.
//!
//! Each worker gets its token on stdin and treats the end of that pipe as its
//! own end, so that no worker outlives the coordinator, however that dies.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use common::net::Authority;
use common::trace;
use common::ui::{LogOptions, screen};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::serve::Told;

/// How to start the workers.
#[derive(Debug, Clone)]
pub struct Launch {
    pub workers: u32,
    pub devices: Vec<String>,
    pub binary: PathBuf,
    /// The folder that workers read, except those that stream.
    pub data: Option<PathBuf>,
    pub stream_data: Vec<u32>,
    /// Where the trace of all workers goes, if there is to be one.
    pub trace: Option<PathBuf>,
    pub log: LogOptions,
}

/// The worker binary: as told, or the one beside this executable.
pub fn worker_binary(told: Option<PathBuf>) -> Result<PathBuf> {
    let path = match told {
        Some(path) => path,
        None => std::env::current_exe().context("could not find this program's own path")?.with_file_name("worker"),
    };
    if !path.is_file() {
        bail!("there is no worker binary at `{}`: build it with `make build`, or name it with --worker-binary", path.display());
    }
    Ok(path)
}

/// Running worker processes.
pub struct Workers {
    launch: Launch,
    addr: SocketAddr,
    authority: Arc<Authority>,
    children: Vec<Child>,
    /// When each was started, and how many before it died at once.
    started: Vec<(Instant, u32)>,
    output: JoinSet<()>,
    told: mpsc::Sender<Told>,
}

/// A worker that lives less long has died at once; after so many of these in a
/// row another one would do no better.
const SHORT_LIFE: Duration = Duration::from_secs(1);
const SHORT_LIVES: u32 = 5;

impl Workers {
    /// Starts all workers of `launch`; they join at `addr`. When one is killed,
    /// `told` hears of it.
    pub async fn start(launch: Launch, addr: SocketAddr, authority: Arc<Authority>, told: mpsc::Sender<Told>) -> Result<Self> {
        let mut workers = Self { children: Vec::new(), started: Vec::new(), output: JoinSet::new(), launch, addr, authority, told };
        for rank in 0..workers.launch.workers {
            let child = workers.spawn(rank).await?;
            workers.children.push(child);
            workers.started.push((Instant::now(), 0));
        }
        Ok(workers)
    }

    async fn spawn(&mut self, rank: u32) -> Result<Child> {
        let launch = &self.launch;
        let token = self.authority.tokens().standing(SystemTime::now())?;
        let mut child =
            command(launch, rank, self.addr).spawn().with_context(|| format!("could not start `{}`", launch.binary.display()))?;
        if let Some(stdin) = &mut child.stdin {
            stdin.write_all(format!("{token}\n").as_bytes()).await.context("could not hand the token to a worker")?;
        }
        if let Some(out) = child.stdout.take() {
            self.output.spawn(forward(rank, out));
        }
        if let Some(err) = child.stderr.take() {
            self.output.spawn(forward(rank, err));
        }
        Ok(child)
    }

    /// Puts another worker in the place of each that is killed. Resolves when
    /// some worker has failed by itself, which another one would do too; never
    /// if none does.
    pub async fn failed(&mut self) -> String {
        loop {
            for at in 0..self.children.len() {
                let Ok(Some(status)) = self.children[at].try_wait() else { continue };
                if status.success() {
                    continue;
                }
                if status.code().is_some() {
                    return format!("worker {at} ended with {status}");
                }
                let (since, short) = self.started[at];
                let short = if since.elapsed() < SHORT_LIFE { short + 1 } else { 0 };
                if short >= SHORT_LIVES {
                    return format!("worker {at} ended with {status}, as the {SHORT_LIVES} before it, each at once");
                }
                tracing::warn!("worker {at} ended with {status}: starting another in its place");
                let _ = self.told.send(Told::Ended { preferred_rank: at as u32 }).await;
                match self.spawn(at as u32).await {
                    Ok(child) => (self.children[at], self.started[at]) = (child, (Instant::now(), short)),
                    Err(e) => return format!("worker {at} ended with {status}, and no other could be started: {e:#}"),
                }
            }
            while self.output.try_join_next().is_some() {}
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends all workers: those that have not exited by themselves within the
    /// grace period are killed. Returns when their last lines are forwarded.
    pub async fn end(mut self, grace: Duration) {
        let deadline = tokio::time::Instant::now() + grace;
        for (rank, child) in self.children.iter_mut().enumerate() {
            match tokio::time::timeout_at(deadline, child.wait()).await {
                Ok(_) => {}
                Err(_) => {
                    tracing::warn!("worker {rank} did not end by itself and is killed");
                    if let Err(e) = child.kill().await {
                        tracing::warn!("could not kill worker {rank}: {e}");
                    }
                }
            }
        }
        while self.output.join_next().await.is_some() {}
        let Some(trace) = &self.launch.trace else { return };
        let parts: Vec<PathBuf> = (0..self.launch.workers).map(|rank| part_of(trace, rank)).collect();
        if let Err(e) = trace::merge(trace, &parts) {
            tracing::warn!("could not write the trace to `{}`: {e}", trace.display());
        }
    }
}

/// Where one worker's part of a trace goes.
fn part_of(trace: &Path, rank: u32) -> PathBuf {
    let mut name = trace.as_os_str().to_owned();
    name.push(format!(".rank-{rank}"));
    name.into()
}

fn command(launch: &Launch, rank: u32, addr: SocketAddr) -> Command {
    let device = launch.devices.get(rank as usize % launch.devices.len().max(1)).map_or("auto", String::as_str);
    let mut command = Command::new(&launch.binary);
    command.arg("join").arg(addr.to_string()).args(["--token-file", "-", "--supervised", "--preferred-rank"]).arg(rank.to_string());
    command.args(["--device", device]);
    if let Some(data) = data_for(launch, rank) {
        command.arg("--data").arg(data);
    }
    if let Some(trace) = &launch.trace {
        command.arg("--trace").arg(part_of(trace, rank));
    }
    if launch.log.quiet {
        command.arg("--quiet");
    }
    for _ in 0..launch.log.verbose {
        command.arg("--verbose");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn data_for(launch: &Launch, rank: u32) -> Option<&Path> {
    launch.data.as_deref().filter(|_| !launch.stream_data.contains(&rank))
}

/// Prints each line of a worker's output behind its rank.
async fn forward(rank: u32, from: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        screen().suspend(|| eprintln!("[rank {rank}] {line}"));
    }
}
