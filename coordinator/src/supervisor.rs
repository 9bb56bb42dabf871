//! Supervises the worker processes of a launcher: starts them, prefixes their lines,
//! starts others in the place of those that die, and ends them with the run.
//!
//! Each worker gets its token on stdin and treats the end of that pipe as its own end,
//! so that no worker outlives the coordinator, however that dies.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use common::net::Authority;
use common::run_dir::{Event, RunView};
use common::ui::{LogOptions, print_stderr, visible};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::inbox::LauncherEvent;

/// Says how a kind of launcher starts its workers.
pub trait Launcher {
    /// How many workers there are.
    fn workers(&self) -> u32;

    /// Starts the worker that prefers `rank`, with the token as the first line of its stdin.
    fn command(&self, rank: u32) -> Command;

    /// Where this worker runs, as in `worker 2 on node7`: " on node7", or nothing.
    fn place(&self, rank: u32) -> String;

    /// What the end of a worker's process means; `last_line` is the last one of its stderr.
    fn ended(&self, rank: u32, status: ExitStatus, last_line: &str) -> Ended;
}

/// Why a worker's process ended without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was killed: another one is started at once, unless several in a row died at once.
    Killed(String),
    /// It failed by itself, and another may do better. Once the run is under way, one is
    /// started after a pause, unless several in a row failed soon.
    Failed(String),
    /// It failed by itself, and so would another.
    ForGood(String),
    /// It cannot be reached at present: another one is started after a pause. Once the run
    /// is under way, however often that fails; before, `TRIES` times.
    OutOfReach(String),
}

/// What a run asks of the supervision of its workers.
#[derive(Debug, Clone)]
pub struct Supervision {
    /// The run goes on without failed workers while at least this many are left.
    pub min_workers: u32,
    /// Where the coordinator keeps the run's record.
    pub run_dir: PathBuf,
}

/// Running worker processes.
pub struct Workers<L> {
    launcher: L,
    rules: Supervision,
    authority: Arc<Authority>,
    children: Vec<Worker>,
    events: mpsc::Sender<LauncherEvent>,
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
    /// The number of processes in a row, just before this one, that ended soon.
    short_lives: u32,
    /// The last line of its stderr, which gives the reason if it fails.
    last_line: Arc<Mutex<String>>,
    output: JoinSet<()>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Runs,
    /// The process has ended; another one is started at that time.
    Again(Instant),
    /// The process has ended and is not replaced.
    Over,
}

/// A worker that lives for less than this has died at once, if it was killed; one that
/// failed by itself has done so soon if it lived for less than `SOON`. After `SHORT_LIVES`
/// of these in a row another one would do no better.
const AT_ONCE: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(60);
const SHORT_LIVES: u32 = 5;

/// How often a worker that is out of reach is started again before the run has begun: an
/// ssh server refuses some of many connections that begin at a time.
const TRIES: u32 = 3;

/// The pause before a worker is started that failed or could not be reached: doubled
/// for each such end in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a worker waits for a coordinator that does not answer yet.
pub(crate) const WAIT: &str = "10m";

/// How often the processes are polled.
const LOOK: Duration = Duration::from_millis(20);

/// How long to wait for the last lines of a process that has ended.
const LAST_LINES: Duration = Duration::from_millis(500);

/// The most bytes of a worker's line that are forwarded in one piece.
const LONGEST_LINE: usize = 8 << 10;

impl<L: Launcher> Workers<L> {
    /// Starts all workers. `events` receives one when a process ends.
    ///
    /// # Errors
    /// A process could not be started, or no token could be made for it.
    pub async fn start(launcher: L, rules: Supervision, authority: Arc<Authority>, events: mpsc::Sender<LauncherEvent>) -> Result<Self> {
        let journal = journal(&rules.run_dir).len();
        let mut workers = Self { launcher, rules, authority, children: Vec::new(), events, journal };
        for rank in 0..workers.launcher.workers() {
            let worker = workers.spawn(rank, 0).await?;
            workers.children.push(worker);
        }
        Ok(workers)
    }

    /// A worker as messages name it.
    fn name(&self, rank: u32) -> String {
        format!("worker {rank}{}", self.launcher.place(rank))
    }

    async fn spawn(&self, rank: u32, short_lives: u32) -> Result<Worker> {
        let token = self.authority.tokens().standing(SystemTime::now())?;
        let mut command = self.launcher.command(rank);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let program = command.as_std().get_program().to_owned();
        let mut child = command.spawn().with_context(|| format!("could not start `{}`", program.display()))?;
        let (mut output, last_line) = (JoinSet::new(), Arc::default());
        let before = format!("rank {rank}{}", self.launcher.place(rank));
        if let Some(out) = child.stdout.take() {
            output.spawn(forward(before.clone(), out, Arc::default()));
        }
        if let Some(err) = child.stderr.take() {
            output.spawn(forward(before, err, Arc::clone(&last_line)));
        }
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            // `failed` notices a worker that has ended already.
            let handed = stdin.write_all(format!("{token}\n").as_bytes()).await;
            handed.unwrap_or_else(|e| tracing::debug!("could not hand the token to {}: {e}", self.name(rank)));
        }
        Ok(Worker { child, _stdin: stdin, started: Instant::now(), short_lives, last_line, output, state: State::Runs })
    }

    /// Replaces each worker whose end another one may make good (see [`Ended`]); the run
    /// goes on without the others. Resolves, with the reason, when too few workers are
    /// left for that, or when one fails before the run has begun; otherwise it never
    /// resolves.
    pub async fn failed(&mut self) -> String {
        loop {
            for at in 0..self.children.len() {
                let worker = &mut self.children[at];
                let refused = match worker.state {
                    State::Over => continue,
                    State::Again(when) if Instant::now() < when => continue,
                    State::Again(_) => self.replace(at).await,
                    State::Runs => {
                        let Ok(Some(status)) = worker.child.try_wait() else { continue };
                        worker.state = State::Over;
                        if status.success() {
                            continue;
                        }
                        self.after(at, status).await
                    }
                };
                let Err(reason) = refused else { continue };
                let left = self.children.iter().filter(|worker| worker.state != State::Over).count();
                match self.course() {
                    Course::Over => {}
                    Course::UnderWay if left >= self.rules.min_workers.max(1) as usize => {
                        tracing::warn!("{reason}: it is not replaced, and the run goes on without it");
                    }
                    _ => return reason,
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn course(&self) -> Course {
        Course::of(journal(&self.rules.run_dir).get(self.journal..).unwrap_or_default())
    }

    /// Has another worker take the place of one that ended, now or later. The error is
    /// the reason why none does.
    async fn after(&mut self, at: usize, status: ExitStatus) -> Result<(), String> {
        let _ = self.events.send(LauncherEvent::Ended { preferred_rank: at as u32 }).await;
        let lived = self.children[at].started.elapsed();
        let last_line = self.children[at].last_words().await;
        let ended = self.launcher.ended(at as u32, status, &last_line);
        let name = self.name(at as u32);
        let short = if ended.is_killed() { AT_ONCE } else { SOON };
        let worker = &mut self.children[at];
        worker.short_lives = if lived < short { worker.short_lives + 1 } else { 0 };
        let short_lives = worker.short_lives;
        let too_often = |reason| Err(format!("{name} {reason}, as the {SHORT_LIVES} before it, each at once"));
        let may_come = matches!(ended, Ended::OutOfReach(_)) && short_lives <= TRIES;
        let (reason, pause) = match ended {
            Ended::ForGood(reason) => return Err(format!("{name} {reason}")),
            Ended::Killed(reason) | Ended::Failed(reason) if short_lives > SHORT_LIVES => return too_often(reason),
            Ended::Killed(reason) => {
                tracing::warn!("{name} {reason}: starting another in its place");
                return self.replace(at).await;
            }
            Ended::Failed(reason) | Ended::OutOfReach(reason) => (reason, pause(short_lives)),
        };
        match self.course() {
            Course::Over => Ok(()),
            Course::Gathering if !may_come => Err(format!("{name} {reason}")),
            Course::Gathering | Course::UnderWay => {
                tracing::warn!("{name} {reason}: starting another in {pause:?}");
                self.children[at].state = State::Again(Instant::now() + pause);
                Ok(())
            }
        }
    }

    /// Starts another worker in the place of one that has ended.
    async fn replace(&mut self, at: usize) -> Result<(), String> {
        self.children[at].state = State::Over;
        match self.spawn(at as u32, self.children[at].short_lives).await {
            Ok(worker) => {
                let mut ended = std::mem::replace(&mut self.children[at], worker);
                // The last lines of the process that ended are forwarded in the background.
                tokio::spawn(async move { ended.last_lines().await });
                Ok(())
            }
            Err(e) => Err(format!("{} has ended, and no other could be started: {e:#}", self.name(at as u32))),
        }
    }

    /// Ends all workers: those that have not exited by themselves within the
    /// grace period are killed. Returns when their last lines are forwarded.
    pub async fn end(mut self, grace: Duration) {
        let deadline = tokio::time::Instant::now() + grace;
        for at in 0..self.children.len() {
            let name = self.name(at as u32);
            let child = &mut self.children[at].child;
            if tokio::time::timeout_at(deadline, child.wait()).await.is_err() {
                tracing::warn!("{name} did not end by itself and is killed");
                if let Err(e) = child.kill().await {
                    tracing::warn!("could not kill {name}: {e}");
                }
            }
        }
        for worker in &mut self.children {
            worker.last_lines().await;
        }
    }
}

impl Ended {
    fn is_killed(&self) -> bool {
        matches!(self, Self::Killed(_))
    }
}

/// The pause after this many short lives in a row.
fn pause(short_lives: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << short_lives.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

impl Worker {
    /// Waits until the lines of a process that has ended are forwarded. The wait is
    /// limited, because a child of that process may hold its output open for longer.
    async fn last_lines(&mut self) {
        let _ = tokio::time::timeout(LAST_LINES, async { while self.output.join_next().await.is_some() {} }).await;
    }

    /// The last line of its stderr; empty if there is none.
    async fn last_words(&mut self) -> String {
        self.last_lines().await;
        let line = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        line.trim_start_matches("error: ").to_owned()
    }
}

/// What follows a reason: the last line of a worker, if it wrote one.
pub(crate) fn after_colon(last_line: &str) -> String {
    if last_line.is_empty() { String::new() } else { format!(": {last_line}") }
}

/// A run's journal; empty if it cannot be read.
fn journal(run_dir: &Path) -> Vec<Event> {
    RunView::open(run_dir).and_then(|run| run.events()).unwrap_or_default()
}

/// Has a worker's command log as this process does.
pub(crate) fn log_options(log: LogOptions) -> Vec<&'static str> {
    let quiet = log.quiet.then_some("--quiet");
    quiet.into_iter().chain((0..log.verbose).map(|_| "--verbose")).collect()
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

/// Prints each line of a worker's output after `before` in brackets. The output is read even if
/// nobody reads the output of this process, so that the worker never waits.
async fn forward(before: String, mut from: impl AsyncRead + Unpin, last: Arc<Mutex<String>>) {
    let (mut chunk, mut lines) = ([0; 4096], Lines::default());
    loop {
        let n = from.read(&mut chunk).await.unwrap_or(0);
        for line in if n == 0 { lines.end() } else { lines.take(&chunk[..n]) } {
            let line = visible(&line);
            print_stderr(&format!("[{before}] {line}"));
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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

    /// Starts shells for workers, in place of binaries.
    struct Shells {
        scripts: Vec<&'static str>,
        folder: PathBuf,
    }

    impl Launcher for Shells {
        fn workers(&self) -> u32 {
            self.scripts.len() as u32
        }

        fn command(&self, rank: u32) -> Command {
            let mut command = Command::new("sh");
            command.args(["-c", self.scripts[rank as usize]]).current_dir(&self.folder);
            command
        }

        fn place(&self, rank: u32) -> String {
            format!(" on host{rank}")
        }

        fn ended(&self, _rank: u32, status: ExitStatus, last_line: &str) -> Ended {
            match status.code() {
                Some(255) => Ended::OutOfReach(format!("is out of reach{}", after_colon(last_line))),
                Some(_) => Ended::ForGood(format!("ended with {status}{}", after_colon(last_line))),
                None => Ended::Killed(format!("ended with {status}")),
            }
        }
    }

    async fn shells(folder: &Path, scripts: Vec<&'static str>) -> (Workers<Shells>, mpsc::Receiver<LauncherEvent>) {
        let (events, received) = mpsc::channel(64);
        let rules = Supervision { min_workers: 1, run_dir: folder.join("run") };
        let authority = Arc::new(Authority::open(&folder.join("keys")).unwrap());
        (Workers::start(Shells { scripts, folder: folder.to_owned() }, rules, authority, events).await.unwrap(), received)
    }

    #[tokio::test]
    async fn before_the_run_a_worker_out_of_reach_is_tried_again_and_one_that_fails_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        // The first is refused once; the second is given its token, and fails when the first has come.
        let first = "if [ -e came ]; then read token; touch up; sleep 60; else touch came; exit 255; fi";
        let second = "read token; until [ -e up ]; do sleep 0.05; done; echo error: no device >&2; exit 3";
        let (mut workers, mut events) = shells(dir.path(), vec![first, second]).await;
        let reason = tokio::time::timeout(Duration::from_secs(20), workers.failed()).await.unwrap();
        assert_eq!(reason, "worker 1 on host1 ended with exit status: 3: no device");
        assert_eq!(events.recv().await, Some(LauncherEvent::Ended { preferred_rank: 0 }));
        workers.end(Duration::from_millis(100)).await;
    }

    #[tokio::test]
    async fn a_worker_that_is_killed_at_once_time_and_again_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (mut workers, _events) = shells(dir.path(), vec!["echo >> lives; kill -9 $$"]).await;
        let reason = tokio::time::timeout(Duration::from_secs(20), workers.failed()).await.unwrap();
        assert!(reason.contains("as the 5 before it, each at once"), "{reason}");
        assert_eq!(std::fs::read_to_string(dir.path().join("lives")).unwrap().len(), 6);
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        assert_eq!([0, 1, 2, 3, 9, 90].map(|n| pause(n).as_secs()), [1, 1, 2, 4, 30, 30]);
    }
}
