//! The Python packages that tests compare with.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::project;

/// A Python that has packages, which are installed into the user's cache once.
#[derive(Debug, Clone)]
pub struct Python {
    program: PathBuf,
    /// What PYTHONPATH says.
    packages: OsString,
}

/// Where things are kept that tests and benchmarks fetch.
fn cache() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    Some(cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))?.join("ringleader"))
}

impl Python {
    /// The packages of tests/python/requirements.txt. `None`, and a word about it, where
    /// Python or the packages cannot be had.
    pub fn with_packages() -> Option<Self> {
        Some(Self { program: "python3".into(), packages: installed("requirements.txt")?.into() })
    }

    /// Those of tests/python/requirements-records.txt.
    pub fn with_records() -> Option<Self> {
        Some(Self { program: "python3".into(), packages: installed("requirements-records.txt")?.into() })
    }

    /// Those of tests/python/requirements-kubernetes.txt.
    pub fn with_kubernetes() -> Option<Self> {
        Some(Self { program: "python3".into(), packages: installed("requirements-kubernetes.txt")?.into() })
    }

    /// These and PyTorch with torchvision: those of the benchmarks if they are there, else of
    /// tests/python/requirements-torch.txt.
    pub fn with_torch() -> Option<Self> {
        let packages = installed("requirements.txt")?;
        let benchmarks = cache()?.join("bench-venv/bin/python");
        let own = Self { program: benchmarks, packages: packages.clone().into() };
        if own.imports("torch, torchvision") {
            return Some(own);
        }
        let packages = std::env::join_paths([packages, installed("requirements-torch.txt")?]).ok()?;
        Some(Self { program: "python3".into(), packages })
    }

    /// The packages of tests/python/requirements-browser.txt, and the path of a headless
    /// Chromium.
    pub fn with_browser() -> Option<(Self, PathBuf)> {
        let python = Self { program: "python3".into(), packages: installed("requirements-browser.txt")?.into() };
        let mut command = Command::new(&python.program);
        let found = command.arg(project().join("tests/python/chromium.py")).env("PYTHONPATH", &python.packages);
        let path = printed(found.output(), "chromium.py")?;
        Some((python, path))
    }

    fn imports(&self, modules: &str) -> bool {
        let mut python = Command::new(&self.program);
        let output = python.args(["-c", &format!("import {modules}")]).env("PYTHONPATH", &self.packages).output();
        output.is_ok_and(|output| output.status.success())
    }

    /// Starts a script of tests/python that serves something until its stdin ends, and waits
    /// until it says `ready`.
    pub fn serve(&self, script: &str, arguments: &[&Path]) -> Served {
        let mut process = Command::new("python3")
            .arg(project().join("tests/python").join(script))
            .args(arguments)
            .env("PYTHONPATH", &self.packages)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{script}: {e}"));
        let said = process.stdout.take().and_then(|out| BufReader::new(out).lines().next()).and_then(Result::ok);
        assert_eq!(said.as_deref(), Some("ready"), "{script} did not start");
        Served(process)
    }

    /// Runs a script of tests/python and returns what it printed.
    pub fn run(&self, script: &str, arguments: &[&Path]) -> String {
        let path = project().join("tests/python").join(script);
        let output: Output = Command::new(&self.program)
            .arg(&path)
            .args(arguments)
            .env("PYTHONPATH", &self.packages)
            .output()
            .unwrap_or_else(|e| panic!("{script}: {e}"));
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// How long a script may take to end what it has started.
const CLOSING: Duration = Duration::from_secs(10);

/// A process that serves something until this is dropped.
pub struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // A script ends what it has started once its stdin ends.
        drop(self.0.stdin.take());
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && start.elapsed() < CLOSING {
            std::thread::sleep(Duration::from_millis(20));
        }
        // At the end of a test: one that has ended by itself is no fault here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder with the packages that a file of tests/python names. `None`, and a word about
/// it, where they cannot be had.
fn installed(requirements: &str) -> Option<PathBuf> {
    let outcome = Command::new("python3").arg(project().join("tests/python/install.py")).arg(requirements).output();
    printed(outcome, "install.py")
}

/// The path that a script has printed. `None`, and a word about it, where it failed.
fn printed(outcome: std::io::Result<Output>, script: &str) -> Option<PathBuf> {
    match outcome {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).trim().into()),
        outcome => {
            let why = outcome.map_or_else(|e| e.to_string(), |output| String::from_utf8_lossy(&output.stderr).into_owned());
            eprintln!("skipped: {script}: {why}");
            None
        }
    }
}
