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
//! Every cluster has a run directory of its own that is removed with the value, and
//! no process of it outlives the value.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

pub mod chaos;
pub mod hostile;
pub mod netns;
pub mod page;
pub mod pictures;
mod process;
pub mod python;
pub mod record;
pub mod scenario;

pub use process::{Finished, Running, Slowed, aside, cpu_seconds, gone, join_line, resident_mb, signal, until, until_or_tell};

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
        // Tests share few cores: a test that is not about failures must not fail
        // because it is slow.
        Self { config: project().join(config), arguments: Vec::new(), run_dir: RunDirectory::Own(run_dir) }
            .workers(1)
            .set("cluster.timeout_ms=10000")
    }

    /// Sets the number of workers; 1 by default.
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

    /// Starts the cluster and returns at once.
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
