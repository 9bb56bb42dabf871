//! `coordinator local`: the worker processes of a cluster on one machine.
//!
//! Each worker gets its token on stdin and treats the end of that pipe as its
//! own end, so that no worker outlives the coordinator, however that dies.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use common::net::Authority;
use common::run_dir::{Event, RunView};
use common::trace;
use common::ui::{LogOptions, print_stderr, visible};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::inbox::LauncherEvent;

/// How to start the workers.
#[derive(Debug, Clone)]
pub struct Launch {
    pub workers: u32,
    /// What the worker's `--devices` reads; each worker takes its share.
    pub devices: String,
    pub binary: PathBuf,
    /// The folder that workers read, except those that stream.
    pub data: Option<PathBuf>,
    pub stream_data: Vec<u32>,
    /// Where the trace of all workers goes, if there is to be one.
    pub trace: Option<PathBuf>,
    pub log: LogOptions,
    /// The run goes on without failed workers while at least this many are left.
    pub min_workers: u32,
    /// Where the coordinator keeps the run's record.
    pub run_dir: PathBuf,
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

/// Running worker processes.
pub struct Workers {
    launch: Launch,
    addr: SocketAddr,
    authority: Arc<Authority>,
    children: Vec<Worker>,
    launcher: mpsc::Sender<LauncherEvent>,
    /// The number of events in the run's journal before these workers started.
    journal: usize,
}

/// The process of one worker.
struct Worker {
    child: Child,
    /// Open for as long as the worker is to live. Kept outside of `child`, because
    /// `Child::wait` closes the pipe first and so would end a worker that is still
    /// writing its trace.
    _stdin: Option<ChildStdin>,
    started: Instant,
    /// The number of processes in a row, just before this one, that died at once.
    short_lives: u32,
    /// The last line of its stderr, which gives the reason if it fails.
    last_line: Arc<Mutex<String>>,
    output: JoinSet<()>,
    /// The process has ended and is not replaced.
    over: bool,
}

/// A worker that lives for less than `SHORT_LIFE` has died at once. After
/// `SHORT_LIVES` of these in a row another one would do no better.
const SHORT_LIFE: Duration = Duration::from_secs(1);
const SHORT_LIVES: u32 = 5;

/// How long a worker waits for a coordinator that does not answer yet.
const WAIT: &str = "10m";

/// How often the processes are polled.
const LOOK: Duration = Duration::from_millis(20);

/// How long to wait for the last lines of a process that has ended.
const LAST_LINES: Duration = Duration::from_millis(500);

/// The most bytes of a worker's line that are forwarded in one piece.
const LONGEST_LINE: usize = 8 << 10;

impl Workers {
    /// Starts all workers of `launch`; they join at `addr`. `launcher` receives an event
    /// when one fails.
    pub async fn start(launch: Launch, addr: SocketAddr, authority: Arc<Authority>, launcher: mpsc::Sender<LauncherEvent>) -> Result<Self> {
        let journal = events(&launch.run_dir).len();
        let mut workers = Self { children: Vec::new(), launch, addr, authority, launcher, journal };
        for rank in 0..workers.launch.workers {
            let worker = workers.spawn(rank, 0).await?;
            workers.children.push(worker);
        }
        Ok(workers)
    }

    async fn spawn(&self, rank: u32, short_lives: u32) -> Result<Worker> {
        let launch = &self.launch;
        let token = self.authority.tokens().standing(SystemTime::now())?;
        let mut child =
            command(launch, rank, self.addr).spawn().with_context(|| format!("could not start `{}`", launch.binary.display()))?;
        let (mut output, last_line) = (JoinSet::new(), Arc::default());
        if let Some(out) = child.stdout.take() {
            output.spawn(forward(rank, out, Arc::default()));
        }
        if let Some(err) = child.stderr.take() {
            output.spawn(forward(rank, err, Arc::clone(&last_line)));
        }
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            // `failed` notices a worker that has ended already.
            let handed = stdin.write_all(format!("{token}\n").as_bytes()).await;
            handed.unwrap_or_else(|e| tracing::debug!("could not hand the token to worker {rank}: {e}"));
        }
        Ok(Worker { child, _stdin: stdin, started: Instant::now(), short_lives, last_line, output, over: false })
    }

    /// Replaces each worker that is killed. A worker that fails by itself would fail
    /// again: it is not replaced, and the run goes on without it. Resolves, with the
    /// reason, when too few workers are left for that, or when one fails before the
    /// run has begun; otherwise it never resolves.
    pub async fn failed(&mut self) -> String {
        loop {
            for at in 0..self.children.len() {
                let worker = &mut self.children[at];
                let Ok(Some(status)) = worker.child.try_wait() else { continue };
                if std::mem::replace(&mut worker.over, true) || status.success() {
                    continue;
                }
                if let Err(reason) = self.replace(at, status).await {
                    let left = self.children.iter().filter(|worker| !worker.over).count();
                    match Course::of(events(&self.launch.run_dir).get(self.journal..).unwrap_or_default()) {
                        Course::Over => {}
                        Course::UnderWay if left >= self.launch.min_workers.max(1) as usize => {
                            tracing::warn!("{reason}: it is not replaced, and the run goes on without it");
                        }
                        _ => return reason,
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts another worker in the place of one that was killed. The error is the
    /// reason why none is started.
    async fn replace(&mut self, at: usize, status: ExitStatus) -> Result<(), String> {
        let _ = self.launcher.send(LauncherEvent::Ended { preferred_rank: at as u32 }).await;
        let worker = &mut self.children[at];
        if status.code().is_some() {
            return Err(format!("worker {at} ended with {status}{}", worker.last_words().await));
        }
        let short_lives = if worker.started.elapsed() < SHORT_LIFE { worker.short_lives + 1 } else { 0 };
        if short_lives >= SHORT_LIVES {
            return Err(format!("worker {at} ended with {status}, as the {SHORT_LIVES} before it, each at once"));
        }
        tracing::warn!("worker {at} ended with {status}: starting another in its place");
        match self.spawn(at as u32, short_lives).await {
            Ok(worker) => {
                let mut killed = std::mem::replace(&mut self.children[at], worker);
                // The last lines of the killed worker are forwarded in the background.
                tokio::spawn(async move { killed.last_lines().await });
                Ok(())
            }
            Err(e) => Err(format!("worker {at} ended with {status}, and no other could be started: {e:#}")),
        }
    }

    /// Ends all workers: those that have not exited by themselves within the
    /// grace period are killed. Returns when their last lines are forwarded.
    pub async fn end(mut self, grace: Duration) {
        let deadline = tokio::time::Instant::now() + grace;
        for (rank, Worker { child, .. }) in self.children.iter_mut().enumerate() {
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
        for worker in &mut self.children {
            worker.last_lines().await;
        }
        let Some(trace) = &self.launch.trace else { return };
        let parts: Vec<PathBuf> = (0..self.launch.workers).map(|rank| part_of(trace, rank)).collect();
        if let Err(e) = trace::merge(trace, &parts) {
            tracing::warn!("could not write the trace to `{}`: {e}", trace.display());
        }
    }
}

impl Worker {
    /// Waits until the lines of a process that has ended are forwarded. The wait is
    /// limited, because a child of that process may hold its output open for longer.
    async fn last_lines(&mut self) {
        let _ = tokio::time::timeout(LAST_LINES, async { while self.output.join_next().await.is_some() {} }).await;
    }

    /// The last line of its stderr, after a colon; empty if there is none.
    async fn last_words(&mut self) -> String {
        self.last_lines().await;
        let line = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.is_empty() { String::new() } else { format!(": {}", line.trim_start_matches("error: ")) }
    }
}

/// A run's journal; empty if it cannot be read.
fn events(run_dir: &Path) -> Vec<Event> {
    RunView::open(run_dir).and_then(|run| run.events()).unwrap_or_default()
}

/// How far a run is.
#[derive(Debug, PartialEq, Eq)]
enum Course {
    /// It waits for all of its workers.
    Gathering,
    UnderWay,
    Over,
}

impl Course {
    /// How far the run is, by the journal's events since this process started.
    fn of(events: &[Event]) -> Self {
        if events.iter().any(|e| matches!(e, Event::RunFinished { .. } | Event::RunFailed { .. })) {
            Self::Over
        } else if events.iter().any(|e| matches!(e, Event::Generation { .. })) {
            Self::UnderWay
        } else {
            Self::Gathering
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
    let mut command = Command::new(&launch.binary);
    command
        .arg("join")
        .arg(addr.to_string())
        .args(["--wait", WAIT, "--token-file", "-", "--supervised", "--preferred-rank"])
        .arg(rank.to_string());
    command.args(["--devices", &launch.devices, "--share"]).arg(format!("{}/{}", rank + 1, launch.workers));
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

/// Prints each line of a worker's output after its rank. The output is read even if
/// nobody reads the output of this process, so that the worker never waits.
async fn forward(rank: u32, mut from: impl AsyncRead + Unpin, last: Arc<Mutex<String>>) {
    let (mut chunk, mut lines) = ([0; 4096], Lines::default());
    loop {
        let n = from.read(&mut chunk).await.unwrap_or(0);
        for line in if n == 0 { lines.end() } else { lines.take(&chunk[..n]) } {
            let line = visible(&line);
            print_stderr(&format!("[rank {rank}] {line}"));
            if !line.trim().is_empty() {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = line;
            }
        }
        if n == 0 {
            return;
        }
    }
}

/// Cuts bytes into lines, and lines that are too long into pieces.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut whole = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.begun.push(byte);
            }
            if byte == b'\n' || self.begun.len() >= LONGEST_LINE {
                whole.push(self.cut());
            }
        }
        whole
    }

    fn end(&mut self) -> Vec<String> {
        if self.begun.is_empty() { Vec::new() } else { vec![self.cut()] }
    }

    fn cut(&mut self) -> String {
        let line = std::mem::take(&mut self.begun);
        String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::{Course, Event, LONGEST_LINE, Lines};

    #[test]
    fn the_journal_tells_how_far_a_run_is() {
        let started = Event::RunStarted { name: String::new(), step: 0 };
        let generation = Event::Generation {
            generation: 1,
            workers: 2,
            step: 0,
            members: Vec::new(),
            shards: Vec::new(),
            speeds: Vec::new(),
            dense: None,
        };
        let failed = Event::RunFailed { reason: String::new() };
        assert_eq!(Course::of(&[]), Course::Gathering);
        let journal = [started, generation, failed];
        for (lines, course) in [(1, Course::Gathering), (2, Course::UnderWay), (3, Course::Over)] {
            assert_eq!(Course::of(&journal[..lines]), course);
        }
    }

    #[test]
    fn output_is_cut_into_lines_of_bounded_length() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"one\ntw"), ["one"]);
        assert_eq!(lines.take(b"o\r\n\n\xff"), ["two", ""]);
        assert_eq!(lines.end(), ["\u{fffd}"]);
        assert!(lines.end().is_empty());
        let long = lines.take(&vec![b'x'; 3 * LONGEST_LINE + 5]);
        assert_eq!(long.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE; 3]);
        assert_eq!(lines.end(), ["xxxxx"]);
    }
}
