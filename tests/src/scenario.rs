//! A run to be disturbed: small, reproducible, with the product's own timeouts.
//! Whatever is done to it, it must end with the bits of [`Scenario::quiet`].

use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Finished, LocalCluster, Running};

const CONFIG: &str = "configs/alexnet-synthetic.toml";

/// A small model in four shards.
const SETS: [&str; 8] = [
    "train.reproducible=true",
    "train.schedule=constant",
    "train.shards=4",
    "train.global_batch=32",
    "model.width=0.125",
    "data.train=6400",
    "data.val=50",
    "cluster.timeout_ms=1000",
];

/// A run of some steps, with a folder of its own that vanishes with it.
pub struct Scenario {
    pub folder: TempDir,
    pub steps: usize,
    sets: Vec<String>,
}

impl Scenario {
    pub fn new(steps: usize) -> Self {
        let folder = TempDir::new().unwrap_or_else(|e| panic!("no temporary folder: {e}"));
        // An epoch has 200 steps.
        let own = [
            format!("train.max_steps={steps}"),
            format!("train.epochs={}", steps.div_ceil(200).max(4)),
            "train.checkpoint_steps=1000".to_owned(),
        ];
        Self { folder, steps, sets: SETS.iter().map(|s| (*s).to_owned()).chain(own).collect() }
    }

    /// Changes one key of the config.
    pub fn set(mut self, pair: &str) -> Self {
        self.sets.push(pair.to_owned());
        self
    }

    /// Where the run's files go, unless `coordinator local` has them elsewhere.
    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn arguments<'a>(&'a self, first: &[&'a str]) -> Vec<&'a str> {
        first.iter().copied().chain(self.sets.iter().flat_map(|set| ["--set", set.as_str()])).collect()
    }

    /// The digest of the same run in one process, undisturbed.
    pub fn quiet(&self) -> String {
        let run = self.folder.path().join("quiet");
        let path = run.display().to_string();
        Running::start("worker", &self.arguments(&["train", CONFIG, "-q", "--run-dir", &path])).wait().succeeded();
        digest(&run)
    }

    /// `worker train`, into the folder of the run.
    pub fn single(&self) -> Running {
        let path = self.run_dir().display().to_string();
        let mut running = Running::start("worker", &self.arguments(&["train", CONFIG, "--run-dir", &path]));
        running.path = self.run_dir();
        running
    }

    /// `coordinator local` with so many workers.
    pub fn local(&self, workers: u32) -> LocalCluster {
        let cluster = LocalCluster::new(CONFIG).workers(workers).run_dir(&self.run_dir());
        self.sets.iter().fold(cluster, |cluster, set| cluster.set(set))
    }

    /// `coordinator serve` on a port of this machine, for so many workers.
    pub fn serve(&self, port: u16, workers: u32, more: &[&str]) -> Running {
        let (listen, path, workers) = (format!("127.0.0.1:{port}"), self.run_dir().display().to_string(), workers.to_string());
        let mut arguments = self.arguments(&["serve", CONFIG, "--listen", &listen, "--run-dir", &path, "--workers", &workers]);
        arguments.extend(more);
        let mut coordinator = Running::start("coordinator", &arguments);
        coordinator.path = self.run_dir();
        coordinator
    }

    /// Asserts that nothing of the run was lost or changed: every step is on the
    /// record once, the audit is clean, and the weights are `expected`.
    pub fn assert_whole(&self, run: &Finished, expected: &str) {
        assert_eq!(run.digest(), expected, "{}", run.stderr);
        assert_eq!(run.column("step"), (0..self.steps).map(|s| s as f64).collect::<Vec<_>>());
        let path = run.path.display().to_string();
        let audit = Running::start("coordinator", &["audit", &path]).wait().succeeded();
        assert!(audit.stdout.contains("every sample of every step"), "{}", audit.stdout);
    }
}

/// The digest in a run's summary.
pub fn digest(run: &Path) -> String {
    let text = std::fs::read_to_string(run.join("summary.json")).unwrap_or_else(|e| panic!("{}: {e}", run.display()));
    let summary: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", run.display()));
    summary["weights_blake3"].as_str().filter(|d| d.len() == 64).unwrap_or_else(|| panic!("no digest: {text}")).to_owned()
}

/// `worker join`.
pub fn join(addr: &str, token: &str, more: &[&str]) -> Running {
    Running::start("worker", &[&["join", addr, "--token", token], more].concat())
}

/// A UDP port of this machine that nobody uses now.
pub fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("no free port: {e}"));
    socket.local_addr().unwrap_or_else(|e| panic!("{e}")).port()
}

/// How often an event is in a run's journal.
pub fn events(run: &Path, kind: &str) -> usize {
    let text = std::fs::read_to_string(run.join("journal.jsonl")).unwrap_or_default();
    text.lines().filter(|line| line.contains(&format!("\"event\":\"{kind}\""))).count()
}
