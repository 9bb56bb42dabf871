//! Runs the commands of one document, one after the other, as a person would paste them.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster_tests::page::Page;
use cluster_tests::{Finished, Running};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::markdown::{program, words};

/// The longest that a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The programs that a test may start. Any other is not even tried.
const KNOWN: [&str; 6] = ["worker", "coordinator", "own-model", "make", "alias", "export"];

/// A shell in the folder of a document.
pub(super) struct Shell {
    folder: PathBuf,
    /// What PATH says.
    path: String,
    /// The document's `alias` and `export` lines so far.
    said: String,
    serving: Option<Serving>,
}

/// A coordinator that waits for workers.
struct Serving {
    job: Job,
    /// What it has printed for other machines.
    join: String,
    workers: usize,
}

impl Shell {
    pub(super) fn new(folder: &Path, path: String) -> Self {
        Self { folder: folder.to_owned(), path, said: String::new(), serving: None }
    }

    /// Runs a command to its end and returns what it has printed, or what is wrong with it.
    pub(super) fn run(&mut self, command: &str) -> Result<String, String> {
        let (name, arguments) = program(command).ok_or("is no command")?;
        if !KNOWN.contains(&name.as_str()) {
            return Err("is not run, and is in none of the tables of tests/tests/sources/documented/tables.rs".to_owned());
        }
        match (name.as_str(), arguments.first().map(String::as_str), arguments.len()) {
            ("coordinator", Some("serve"), 2..) => self.serve(command),
            ("worker", Some("join"), 2..) => self.join(),
            ("coordinator", Some("page"), 2..) => self.page(command),
            _ if command.contains("HOST:PORT") => self.beside_a_coordinator(command),
            _ => self.start(command)?.end(),
        }
    }

    /// Has the lines of the document that come after this one know its names.
    pub(super) fn remember(&mut self, command: &str) {
        self.said = format!("{}{command}\n", self.said);
    }

    /// What is wrong once the document is at its end.
    pub(super) fn end(self) -> Option<String> {
        self.serving.map(|_| "a coordinator still waits for workers, which the document does not start".to_owned())
    }

    fn start(&self, command: &str) -> Result<Job, String> {
        let mut bash = Command::new("bash");
        // What may be set where a test is run, by `make test` for one.
        for name in ["XDG_CACHE_HOME", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MLFLOW_TRACKING_URI"] {
            bash.env_remove(name);
        }
        let child = bash
            .args(["-c", &format!("shopt -s expand_aliases\n{}{command}", self.said)])
            .current_dir(&self.folder)
            .env("HOME", self.folder.join("home"))
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| format!("bash: {e}"))?;
        let group = Pid::from_child(&child);
        Ok(Job { running: Some(Running::spawned(child, self.folder.clone())), group })
    }

    fn serve(&mut self, command: &str) -> Result<String, String> {
        let words = words(command);
        let workers = words.iter().skip_while(|word| *word != "--workers").nth(1).and_then(|n| n.parse().ok()).unwrap_or(1);
        let mut job = self.start(command)?;
        let join = job.says("worker join ")?;
        self.serving = Some(Serving { job, join, workers });
        Ok(String::new())
    }

    /// As many workers as the coordinator of this document waits for, by the line that it has
    /// printed; then all of them end with the run.
    fn join(&mut self) -> Result<String, String> {
        let mut serving = self.serving.take().ok_or("no coordinator of this document waits for workers")?;
        let workers = (0..serving.workers).map(|_| self.start(&serving.join)).collect::<Result<Vec<_>, _>>()?;
        for mut worker in workers {
            worker.end()?;
        }
        serving.job.end().map_err(|fault| format!("its coordinator {fault}"))
    }

    /// Reads the page at the address that is printed, then ends it by Ctrl-C.
    fn page(&self, command: &str) -> Result<String, String> {
        let mut job = self.start(command)?;
        let address = job.says("page: ")?;
        let page = Page::at(address.trim_start_matches("page: ")).ok_or_else(|| format!("has printed `{address}`"))?;
        page.get("/").filter(|text| text.contains("<html")).ok_or_else(|| format!("nobody answers at {address}"))?;
        let _ = kill_process_group(job.group, Signal::INT);
        job.end()
    }

    /// With the address and the token of a coordinator that waits.
    fn beside_a_coordinator(&self, command: &str) -> Result<String, String> {
        let serve = "target/release/coordinator serve configs/mlp-xor.toml --listen 127.0.0.1:0 --http off --run-dir served";
        let mut coordinator = self.start(serve)?;
        let line = coordinator.says("worker join ")?;
        let [_, _, address, _, token] = &words(&line)[..] else { return Err(format!("the join line is `{line}`")) };
        self.start(&command.replace("HOST:PORT", address).replace("TOKEN", token))?.end()
    }
}

/// A command that runs, with all processes that it has started; they end with it.
struct Job {
    running: Option<Running>,
    group: Pid,
}

impl Job {
    /// Waits for its end, which must be a success.
    fn end(&mut self) -> Result<String, String> {
        let start = Instant::now();
        while self.running.as_mut().is_some_and(Running::is_running) {
            if start.elapsed() > PATIENCE {
                return Err(format!("does not end within {PATIENCE:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let Finished { status, stdout, stderr, .. } = self.running.take().ok_or("has ended before")?.wait();
        if status.success() { Ok(format!("{stdout}{stderr}")) } else { Err(format!("ends with {status}:\n{stdout}{stderr}")) }
    }

    /// Waits for a line that begins so.
    fn says(&mut self, start: &str) -> Result<String, String> {
        let began = Instant::now();
        loop {
            let running = self.running.as_mut().ok_or("has ended before")?;
            let ended = !running.is_running();
            if let Some(line) = running.output().lines().map(str::trim).find(|line| line.starts_with(start)) {
                return Ok(line.to_owned());
            }
            if ended {
                return Err(self.end().map_or_else(|fault| fault, |printed| format!("has not printed `{start}...`, but\n{printed}")));
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("has not printed `{start}...` within {PATIENCE:?}:\n{}{}", running.output(), running.log()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.running.is_some() {
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }
}
