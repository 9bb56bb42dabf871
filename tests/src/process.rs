//! Processes of the project's binaries: started, watched, signalled, waited for.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::record::{committed, step_lines};
use crate::{LocalCluster, binary, project};

/// The longest that any run of a test may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// Waits until `there` returns something, for `within` at most; `what` names it in
/// the panic.
pub fn until<T>(what: &str, within: Duration, there: impl FnMut() -> Option<T>) -> T {
    until_or_tell(what, within, String::new, there)
}

/// The same; the panic tells `log` too.
pub fn until_or_tell<T>(what: &str, within: Duration, log: impl Fn() -> String, mut there: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = there() {
            return found;
        }
        assert!(start.elapsed() < within, "within {within:?} there was no {what}\n{}", log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process that was started, with its output collected as it comes.
pub struct Running {
    child: Child,
    pub path: PathBuf,
    readers: Vec<Reader>,
    /// Keeps the run directory while the process runs.
    _cluster: Option<LocalCluster>,
}

impl Running {
    /// Starts a binary of the workspace with `arguments`, in the project's root.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        Self::start_in(name, arguments, &[])
    }

    /// The same, with further environment variables.
    pub fn start_in(name: &str, arguments: &[&str], environment: &[(&str, OsString)]) -> Self {
        let mut command = Command::new(binary(name));
        command.args(arguments).envs(environment.iter().map(|(key, value)| (key, value)));
        Self::of(name, command)
    }

    /// The same, in this network namespace.
    pub fn start_within(namespace: &str, name: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(binary(name)).args(arguments);
        Self::of(name, command)
    }

    fn of(name: &str, mut command: Command) -> Self {
        let child = command
            .current_dir(project())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("could not start {name}: {e}"));
        Self::new(child, PathBuf::new(), None)
    }

    /// A process that was started in another way, with its outputs piped; the record of its
    /// run is at `path`.
    pub fn spawned(child: Child, path: PathBuf) -> Self {
        Self::new(child, path, None)
    }

    pub(crate) fn new(mut child: Child, path: PathBuf, cluster: Option<LocalCluster>) -> Self {
        let mut readers = Vec::new();
        if let Some(out) = child.stdout.take() {
            readers.push(Reader::start(out));
        }
        if let Some(err) = child.stderr.take() {
            readers.push(Reader::start(err));
        }
        Self { child, path, readers, _cluster: cluster }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to this one process.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill(2) takes plain numbers; the process is ours and not yet waited for.
        let sent = unsafe { libc::kill(self.child.id() as i32, signal) };
        assert_eq!(sent, 0, "could not signal the process");
    }

    /// The running children of this process: a local cluster's workers, in the
    /// order in which they were started.
    pub fn children(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap_or_else(|e| panic!("{e}")).flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            // pid (name) state ppid ...; a zombie has ended.
            let Some((_, rest)) = stat.rsplit_once(')') else { continue };
            let mut fields = rest.split_whitespace();
            let (state, parent) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            if parent == self.id().to_string() && state != "Z" {
                found.push(pid);
            }
        }
        found.sort_unstable();
        found
    }

    /// What it has written to stdout so far.
    pub fn output(&self) -> String {
        self.readers.first().map(Reader::so_far).unwrap_or_default()
    }

    /// What it has written to stderr so far.
    pub fn log(&self) -> String {
        self.readers.get(1).map(Reader::so_far).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Steps on the record of the run.
    pub fn step_count(&self) -> usize {
        committed(&self.path) as usize
    }

    /// Waits until `steps` steps are on the record of the run.
    pub fn wait_for_steps(&mut self, steps: usize) {
        let start = Instant::now();
        while self.step_count() < steps {
            assert!(start.elapsed() < PATIENCE, "no {steps} steps within {PATIENCE:?}:\n{}", self.log());
            if let Ok(Some(status)) = self.child.try_wait() {
                let output = self.readers.drain(..).map(Reader::whole).collect::<String>();
                panic!("ended with {status} before step {steps}:\n{output}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end of a process that was killed or told to stop.
    pub fn await_end(&mut self) {
        let _ = self.child.wait();
    }

    /// Lets it end by itself until `deadline`; kills it after that.
    pub fn end_by(mut self, deadline: Instant) {
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Finished {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
                other => {
                    let _ = self.child.kill();
                    let output = self.readers.drain(..).map(Reader::whole).collect::<String>();
                    panic!("did not end within {PATIENCE:?} ({other:?}):\n{output}");
                }
            }
        };
        let mut outputs = std::mem::take(&mut self.readers).into_iter().map(Reader::whole);
        let stdout = outputs.next().unwrap_or_default();
        let stderr = outputs.next().unwrap_or_default();
        Finished { status, stdout, stderr, path: self.path.clone(), _running: self }
    }
}

/// Sends a signal to a process that a test has started.
pub fn signal(pid: i32, signal: i32) {
    // SAFETY: kill(2) takes plain numbers; the process is a child of our child.
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0, "process {pid} is not there to be signalled");
}

/// How long a slowed process runs, and how long it then stands still: short against a step.
const RUNS: Duration = Duration::from_millis(4);
const STANDS: Duration = Duration::from_millis(8);

/// A process that is stopped two thirds of the time, until this is dropped: a third as fast
/// where it has a core to itself, and slower than the others where cores are short.
pub struct Slowed {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slowed {
    pub fn to_a_third(pid: i32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            // SAFETY: kill(2) takes plain numbers; the process is a child of our child.
            let send = |signal| unsafe { libc::kill(pid, signal) } == 0;
            while !ends.load(Ordering::Relaxed) && send(libc::SIGSTOP) {
                std::thread::sleep(STANDS);
                send(libc::SIGCONT);
                std::thread::sleep(RUNS);
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Whether all of these processes have ended.
pub fn gone(pids: &[i32]) -> bool {
    pids.iter().all(|pid| match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(_) => true,
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
    })
}

/// Waits for a run's addresses and token, which the coordinator leaves in its run
/// directory.
pub fn join_line(run_dir: &Path) -> (String, String) {
    let path = run_dir.join("keys/join");
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if let Some((addr, token)) = text.strip_suffix('\n').and_then(|line| line.rsplit_once(' ')) {
            return (addr.to_owned(), token.to_owned());
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects what a process writes.
struct Reader {
    text: Arc<Mutex<String>>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn start(from: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let into = Arc::clone(&text);
        let thread = std::thread::spawn(move || {
            // Split at newlines only, so that no other character of a line is lost.
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                let mut text = into.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&line));
                text.push('\n');
            }
        });
        Self { text, thread }
    }

    fn so_far(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn whole(self) -> String {
        let _ = self.thread.join();
        std::mem::take(&mut *self.text.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A process that has ended.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub path: PathBuf,
    _running: Running,
}

impl Finished {
    /// Asserts that it ended with success.
    pub fn succeeded(self) -> Self {
        assert!(self.status.success(), "ended with {}:\n{}\n{}", self.status, self.stdout, self.stderr);
        self
    }

    /// Asserts that it failed with `code`, and that its stderr holds each of `words`.
    pub fn failed(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}\n{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in:\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// summary.json of the run.
    pub fn summary(&self) -> Value {
        let path = self.path.join("summary.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}\n{}", path.display(), self.stderr));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub fn digest(&self) -> String {
        self.summary()["weights_blake3"].as_str().map(str::to_owned).unwrap_or_else(|| panic!("the summary has no digest"))
    }

    /// The step lines of metrics.jsonl.
    pub fn steps(&self) -> Vec<Value> {
        step_lines(&self.path)
    }

    /// One number of each step.
    pub fn column(&self, key: &str) -> Vec<f64> {
        self.steps().iter().map(|line| line[key].as_f64().unwrap_or_else(|| panic!("a step has no {key}: {line}"))).collect()
    }
}

/// Memory that a process holds, in megabytes.
pub fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_else(|| panic!("process {pid} is gone"));
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or_else(|| panic!("{line}")) / 1024.0
}

/// Seconds of processor time that all threads of a process have used.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_else(|e| panic!("process {pid}: {e}"));
    // The name, in parentheses, may hold spaces; what follows begins with field 3.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = [11, 12].map(|at| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or_else(|| panic!("{stat}")));
    ticks.iter().sum::<f64>() / rustix::param::clock_ticks_per_second() as f64
}

/// Gives this thread, and the threads it starts, the lowest priority: strangers
/// compute on machines of their own, and a test measures only what they cost others.
pub fn aside() {
    let _ = rustix::process::setpriority_process(None, 19);
}
