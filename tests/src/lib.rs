//! Spins up local clusters from the built binaries, for tests.
//!
//! ```no_run
//! use cluster_tests::LocalCluster;
//!
//! let cluster = LocalCluster::new("configs/alexnet-synthetic.toml").workers(3).set("train.max_steps=6");
//! let run = cluster.run().succeeded();
//! assert_eq!(run.summary()["world"], 3);
//! ```
//!
//! Every cluster has a run directory of its own that vanishes with the value,
//! and no process of it outlives the value.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub mod chaos;
pub mod pictures;
pub mod scenario;

/// The longest that any run of a test may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// A binary of this workspace: the one built into the profile that the tests
/// were built with.
pub fn binary(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_else(|e| panic!("a test has no path: {e}"));
    let beside = exe.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let folder = beside.unwrap_or_else(|| panic!("{} lies in no target folder", exe.display()));
    let path = folder.join(name);
    assert!(path.is_file(), "{} is missing: run `make test`, which builds the binaries first", path.display());
    path
}

/// The root of the project.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}

/// A cluster to start on this machine: a coordinator and its workers.
pub struct LocalCluster {
    config: PathBuf,
    arguments: Vec<OsString>,
    run_dir: RunDirectory,
}

enum RunDirectory {
    Own(TempDir),
    Shared(PathBuf),
}

impl LocalCluster {
    /// `config` is relative to the project's root.
    pub fn new(config: impl AsRef<Path>) -> Self {
        let run_dir = TempDir::new().unwrap_or_else(|e| panic!("no temporary folder: {e}"));
        // Tests share few cores; what is not about failures must not fail by slowness.
        Self { config: project().join(config), arguments: Vec::new(), run_dir: RunDirectory::Own(run_dir) }
            .workers(1)
            .set("cluster.timeout_ms=10000")
    }

    /// How many workers; 1 unless told.
    pub fn workers(self, n: u32) -> Self {
        self.arg("--workers").arg(n.to_string())
    }

    /// Changes one key of the config.
    pub fn set(self, pair: impl AsRef<str>) -> Self {
        self.arg("--set").arg(pair.as_ref())
    }

    /// Changes several keys.
    pub fn set_all(self, pairs: &[&str]) -> Self {
        pairs.iter().fold(self, |cluster, pair| cluster.set(pair))
    }

    /// Any other argument of `coordinator local`.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        // A later --workers replaces the default.
        let argument = argument.into();
        if argument == "--workers"
            && let Some(at) = self.arguments.iter().position(|a| *a == argument)
        {
            self.arguments.drain(at..at + 2);
        }
        self.arguments.push(argument);
        self
    }

    /// Uses a run directory that outlives this cluster, as a resumed run needs.
    pub fn run_dir(mut self, path: &Path) -> Self {
        self.run_dir = RunDirectory::Shared(path.to_owned());
        self
    }

    /// Where the run's files go.
    pub fn path(&self) -> PathBuf {
        match &self.run_dir {
            RunDirectory::Own(dir) => dir.path().join("run"),
            RunDirectory::Shared(path) => path.clone(),
        }
    }

    /// Starts the cluster and goes on at once.
    pub fn start(self) -> Running {
        let path = self.path();
        let child = Command::new(binary("coordinator"))
            .arg("local")
            .arg(&self.config)
            .arg("--run-dir")
            .arg(&path)
            .args(&self.arguments)
            .current_dir(project())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("could not start the coordinator: {e}"));
        Running::new(child, path, Some(self))
    }

    /// Runs the cluster to its end.
    pub fn run(self) -> Finished {
        self.start().wait()
    }
}

/// A process that was started, with its output collected as it comes.
pub struct Running {
    child: Child,
    pub path: PathBuf,
    readers: Vec<std::thread::JoinHandle<String>>,
    /// Keeps the run directory while the process runs.
    _cluster: Option<LocalCluster>,
}

impl Running {
    /// Starts a binary of the workspace with `arguments`, in the project's root.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let child = Command::new(binary(name))
            .args(arguments)
            .current_dir(project())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("could not start {name}: {e}"));
        Self::new(child, PathBuf::new(), None)
    }

    fn new(mut child: Child, path: PathBuf, cluster: Option<LocalCluster>) -> Self {
        let mut readers = Vec::new();
        if let Some(out) = child.stdout.take() {
            readers.push(collect(out));
        }
        if let Some(err) = child.stderr.take() {
            readers.push(collect(err));
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

    /// Steps in the metrics of the run.
    pub fn step_count(&self) -> usize {
        step_lines(&self.path).len()
    }

    /// Waits until `steps` steps are in the metrics of the run.
    pub fn wait_for_steps(&mut self, steps: usize) {
        let start = Instant::now();
        while step_lines(&self.path).len() < steps {
            assert!(start.elapsed() < PATIENCE, "no {steps} steps within {PATIENCE:?}");
            if let Ok(Some(status)) = self.child.try_wait() {
                let output = self.readers.drain(..).map(|r| r.join().unwrap_or_default()).collect::<String>();
                panic!("ended with {status} before step {steps}:\n{output}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the process has ended, of which it was given reason.
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
                    let output = self.readers.drain(..).map(|r| r.join().unwrap_or_default()).collect::<String>();
                    panic!("did not end within {PATIENCE:?} ({other:?}):\n{output}");
                }
            }
        };
        let mut outputs = std::mem::take(&mut self.readers).into_iter().map(|r| r.join().unwrap_or_default());
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

/// Whether all of these have ended.
pub fn gone(pids: &[i32]) -> bool {
    pids.iter().all(|pid| match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(_) => true,
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
    })
}

/// Waits for a run's address and token, which the coordinator leaves in its run
/// directory.
pub fn join_line(run_dir: &Path) -> (String, String) {
    let path = run_dir.join("keys/join");
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if let Some((addr, token)) = text.strip_suffix('\n').and_then(|line| line.split_once(' ')) {
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

fn collect(from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            text.push_str(&line);
            text.push('\n');
        }
        text
    })
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
    /// Asserts that it ended well.
    pub fn succeeded(self) -> Self {
        assert!(self.status.success(), "ended with {}:\n{}\n{}", self.status, self.stdout, self.stderr);
        self
    }

    /// Asserts that it failed with `code`, and that its last line of stderr
    /// holds each of `words`.
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

fn step_lines(run_dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|v| v.get("step").is_some()).collect()
}
