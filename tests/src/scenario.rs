//! A run to be disturbed: small, reproducible, with the product's own timeouts.
//! Whatever fault is injected, it must end with the weights of [`Scenario::quiet`],
//! to the bit.

use std::ffi::OsString;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Finished, LocalCluster, Running};

const CONFIG: &str = "configs/alexnet-synthetic.toml";

/// More steps than any machine gets through in a test.
pub const ENDLESS: usize = 1_000_000;

/// A small model in four shards, which do not move because tests beside this one take cores
/// from a worker.
const SETS: [&str; 9] = [
    "train.reproducible=true",
    "train.schedule=constant",
    "train.shards=4",
    "train.global_batch=32",
    "model.width=0.125",
    "data.train=6400",
    "data.val=50",
    "cluster.timeout_ms=1000",
    "cluster.balance=equal",
];

/// What makes `configs/alexnet-synthetic.toml` small, and so long that no test sees its end.
pub const SMALL_AND_LONG: [&str; 5] =
    ["train.max_steps=100000", "train.epochs=10000", "data.train=640", "data.val=64", "model.width=0.0625"];

/// A run of some steps, with a folder of its own that is removed with it.
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

    /// A run that ends when it is stopped and not before, however fast the machine is: for
    /// tests in which something must happen before its end. It has no checkpoint and no
    /// evaluation before that.
    pub fn endless() -> Self {
        Self::new(ENDLESS).set("train.checkpoint_steps=1000000").set("train.eval_epochs=1000000")
    }

    /// A run that lets a hostile peer in. One that exchanges factors would not: the peer does
    /// not make the products that it has to name.
    pub fn open_to_hostile_peers() -> Self {
        Self::endless().set("cluster.dense=sum")
    }

    /// Changes one key of the config.
    pub fn set(mut self, pair: &str) -> Self {
        self.sets.push(pair.to_owned());
        self
    }

    /// What it changes in its config.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        self.sets.iter().map(String::as_str)
    }

    /// The same run, with another number of steps.
    pub fn of_steps(&self, steps: usize) -> Self {
        let sets = self.sets.iter().cloned().chain([format!("train.max_steps={steps}")]).collect();
        Self { steps, sets, ..Self::new(steps) }
    }

    /// Where the run's files go, unless `coordinator local` is told to put them elsewhere.
    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn arguments<'a>(&'a self, first: &[&'a str]) -> Vec<&'a str> {
        first.iter().copied().chain(self.sets.iter().flat_map(|set| ["--set", set.as_str()])).collect()
    }

    /// The digest of the same run in one process, undisturbed.
    pub fn quiet(&self) -> String {
        let run = self.folder.path().join("quiet");
        // Checkpoints change no weights, and take disk time.
        let few = ["-q", "--set", "train.checkpoint_steps=1000000000"];
        Running::start("worker", &self.train(&run.display().to_string(), &few)).wait().succeeded();
        digest(&run)
    }

    /// The arguments of `worker train` into the folder `path`.
    pub fn train<'a>(&'a self, path: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = self.arguments(&["train", CONFIG, "--run-dir", path]);
        arguments.extend(more);
        arguments
    }

    /// `worker train`, into the folder of the run.
    pub fn single(&self) -> Running {
        let path = self.run_dir().display().to_string();
        let mut running = Running::start("worker", &self.train(&path, &[]));
        running.path = self.run_dir();
        running
    }

    /// `coordinator local` with this many workers.
    pub fn local(&self, workers: u32) -> LocalCluster {
        let cluster = LocalCluster::new(CONFIG).workers(workers).run_dir(&self.run_dir());
        self.sets.iter().fold(cluster, |cluster, set| cluster.set(set))
    }

    /// `coordinator serve` on a port of this machine, for this many workers.
    pub fn serve(&self, port: u16, workers: u32, more: &[&str]) -> Running {
        self.serve_in(port, workers, more, &[])
    }

    /// The same, with further environment variables.
    pub fn serve_in(&self, port: u16, workers: u32, more: &[&str], environment: &[(&str, OsString)]) -> Running {
        self.serve_on(&format!("127.0.0.1:{port}"), workers, more, environment)
    }

    /// The same, at any address.
    pub fn serve_on(&self, listen: &str, workers: u32, more: &[&str], environment: &[(&str, OsString)]) -> Running {
        self.serve_by(listen, workers, more, |arguments| Running::start_in("coordinator", arguments, environment))
    }

    /// The same, in a network namespace.
    pub fn serve_within(&self, namespace: &str, listen: &str, workers: u32) -> Running {
        self.serve_by(listen, workers, &[], |arguments| Running::start_within(namespace, "coordinator", arguments))
    }

    fn serve_by(&self, listen: &str, workers: u32, more: &[&str], start: impl FnOnce(&[&str]) -> Running) -> Running {
        let (path, workers) = (self.run_dir().display().to_string(), workers.to_string());
        let mut arguments = self.arguments(&["serve", CONFIG, "--listen", listen, "--run-dir", &path, "--workers", &workers]);
        arguments.extend(more);
        let mut coordinator = start(&arguments);
        coordinator.path = self.run_dir();
        coordinator
    }

    /// Ends a run as Ctrl-C does, after the step in flight, and waits for it.
    pub fn stop(coordinator: Running) -> Finished {
        coordinator.signal(libc::SIGINT);
        coordinator.wait().succeeded()
    }

    /// Asserts that a run that was stopped is, so far, what an undisturbed run of as many
    /// steps is.
    pub fn assert_undisturbed(&self, run: &Finished) {
        let undisturbed = self.of_steps(run.steps().len());
        undisturbed.assert_whole(run, &undisturbed.quiet());
    }

    /// Asserts that nothing of the run was lost or changed: every step is on the
    /// record once, the audit is clean, and the weights are `expected`.
    pub fn assert_whole(&self, run: &Finished, expected: &str) {
        assert_eq!(run.digest(), expected, "{}", run.stderr);
        assert_eq!(run.column("step"), (0..self.steps).map(|s| s as f64).collect::<Vec<_>>());
        assert_audited(&run.path);
    }
}

/// Asserts that every step on the record of a run used each of its samples once.
pub fn assert_audited(run: &Path) {
    let audit = Running::start("coordinator", &["audit", &run.display().to_string()]).wait().succeeded();
    assert!(audit.stdout.contains("every sample of every step"), "{}", audit.stdout);
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

/// A UDP port of this machine that is not in use now.
pub fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("no free port: {e}"));
    socket.local_addr().unwrap_or_else(|e| panic!("{e}")).port()
}

/// How often an event occurs in a run's journal.
pub fn events(run: &Path, kind: &str) -> usize {
    let text = std::fs::read_to_string(run.join("journal.jsonl")).unwrap_or_default();
    text.lines().filter(|line| line.contains(&format!("\"event\":\"{kind}\""))).count()
}
