//! A run in a folder of its own, and processes that do not outlive their test.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster_tests::{binary, record, signal};
use serde_json::Value;
use tempfile::TempDir;

/// Steps of a millisecond; an epoch has ten of them.
pub(crate) const CONFIG: &str = r#"
name = "signals"
[model]
kind = "mlp"
hidden = [64]
[data]
kind = "synthetic"
classes = 3
train = 160
val = 8
image_size = 16
[train]
epochs = 1000000
global_batch = 16
shards = 4
threads = 1
checkpoint_steps = 1000000
[cluster]
timeout_ms = 10000
"#;

const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with the config and the run.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        // A test that was started by `nohup` passes the ignored SIGHUP on to its
        // children. SAFETY: no handler is set; the signal gets its default action
        // back.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
        std::fs::write(folder.path().join("config.toml"), CONFIG).unwrap_or_else(|e| panic!("{e}"));
        Self { folder }
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// A command that trains, in an environment of its own.
    pub(crate) fn command(&self, words: &[&str], sets: &[&str]) -> Command {
        let mut command = Command::new(binary(words[0]));
        command.args(&words[1..2]).arg(self.folder.path().join("config.toml")).arg("--run-dir").arg(self.run()).args(&words[2..]);
        command.args(sets.iter().flat_map(|set| ["--set", set]));
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(&self, words: &[&str], sets: &[&str]) -> Process {
        Process(self.command(words, sets).spawn().unwrap_or_else(|e| panic!("{e}")))
    }

    /// Lines of metrics.jsonl.
    pub(crate) fn metrics(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.run().join("metrics.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub(crate) fn steps(&self) -> u64 {
        record::committed(&self.run())
    }

    pub(crate) fn evaluated(&self, step: u64) -> bool {
        self.metrics().iter().any(|line| line["eval"]["step"] == step)
    }

    pub(crate) fn wait_for_steps(&self, steps: u64) {
        wait(&format!("step {steps}"), || self.steps() >= steps);
    }

    /// Steps of the checkpoints that are whole, newest last.
    pub(crate) fn checkpoints(&self) -> Vec<u64> {
        let folder = std::fs::read_dir(self.run().join("checkpoints")).into_iter().flatten().flatten();
        let whole = folder.filter(|entry| entry.path().join("manifest.json").is_file());
        let mut steps: Vec<u64> = whole.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    }
}

pub(crate) fn wait(what: &str, until: impl Fn() -> bool) {
    let start = Instant::now();
    while !until() {
        assert!(start.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A child that does not outlive its test.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn signal(&self, number: i32) {
        signal(self.0.id() as i32, number);
    }

    pub(crate) fn code(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return status.code(),
                _ => assert!(start.elapsed() < PATIENCE, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Code, stdout and stderr at its end.
    pub(crate) fn end(mut self) -> (Option<i32>, String, String) {
        let read = |from: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                let _ = from.map(|mut from| from.read_to_end(&mut text));
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let out = read(self.0.stdout.take().map(|out| Box::new(out) as Box<dyn Read + Send>));
        let err = read(self.0.stderr.take().map(|err| Box::new(err) as Box<dyn Read + Send>));
        let code = self.code();
        (code, out.join().unwrap_or_default(), err.join().unwrap_or_default())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
