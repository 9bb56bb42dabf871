//! The Python packages that tests compare with.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::project;

/// A Python that has the packages of tests/python/requirements.txt, which are installed
/// into the user's cache once.
#[derive(Debug, Clone)]
pub struct Python {
    packages: PathBuf,
}

impl Python {
    /// `None`, and a word about it, where Python or the packages cannot be had.
    pub fn with_packages() -> Option<Self> {
        let requirements = project().join("tests/python/requirements.txt");
        let text = std::fs::read(&requirements).unwrap_or_else(|e| panic!("{}: {e}", requirements.display()));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))?.join("ringleader");
        let packages = cache.join(format!("tests-python-{}", &blake3::hash(&text).to_hex()[..12]));
        let (done, this) = (packages.join(".complete"), Self { packages: packages.clone() });
        std::fs::create_dir_all(&cache).ok()?;
        // Tests run side by side; one of them installs.
        let lock = File::create(cache.join("tests-python.lock")).ok()?;
        lock.lock().ok()?;
        if done.exists() {
            return Some(this);
        }
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&packages)
            .arg("-r")
            .arg(&requirements);
        match pip.output() {
            Ok(output) if output.status.success() => {
                File::create(&done).ok()?;
                Some(this)
            }
            outcome => {
                let why = outcome.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stderr).into_owned());
                eprintln!("skipped: Python's packages cannot be installed: {why}");
                None
            }
        }
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
        let output: Output = Command::new("python3")
            .arg(&path)
            .args(arguments)
            .env("PYTHONPATH", &self.packages)
            .output()
            .unwrap_or_else(|e| panic!("{script}: {e}"));
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// A process that serves something until this is dropped.
pub struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // At the end of a test: one that has ended by itself is no fault here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
