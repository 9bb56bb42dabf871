//! The record of a run for an MLflow server, by its REST interface, where the environment
//! names one by `MLFLOW_TRACKING_URI`: the config as parameters, metrics of every step and
//! evaluation, pictures, and how the run ended.
//!
//! A thread of its own writes it, behind a bounded queue. Nothing of a run waits for the
//! server but its end, and that for some seconds; a server that cannot be reached, or that
//! refuses, costs its own record and one warning.

mod client;
mod entry;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::metrics::{Evaluation, RunPicture, StepMetrics};
use client::{About, Client, Failure, Run, Server};
pub use entry::{End, Pairs};
use entry::{Metric, now_ms};

/// Entries that may wait for the server; more are left out.
const QUEUE: usize = 1 << 14;

/// How long metrics wait for others to be sent with them, and how many at once at most: what
/// the interface allows (MLflow's REST API, "Log Batch").
const COLLECTED_WITHIN: Duration = Duration::from_secs(2);
const METRICS: usize = 1000;

/// The pause after a request that failed: it doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long the end of a run waits until the server has all of it.
const END: Duration = Duration::from_secs(10);

/// The files of the run directory that the server gets at the end.
const FILES: [&str; 2] = ["config.toml", "summary.json"];

/// One thing to record.
enum Entry {
    Metrics(Vec<Metric>),
    Picture(RunPicture),
    Ended { end: End, at: u64, tags: Pairs },
}

/// The handle of the thread that writes.
pub struct MlFlow {
    entries: SyncSender<Entry>,
    /// Closed once the thread has ended.
    over: Receiver<()>,
    overflowed: bool,
}

impl MlFlow {
    /// Writes to the server that the environment names, if it names one. `tags` say what is
    /// known of the run beside its config. A run that the server has a record of goes on in
    /// that one.
    pub fn of_environment(config: &Config, run_dir: &Path, tags: Pairs) -> Option<Self> {
        let started = Server::of(|name| std::env::var(name).ok())?.and_then(|server| Self::start(server, config, run_dir, tags));
        started.inspect_err(|problem| tracing::warn!("no record is kept for MLflow: {problem}")).ok()
    }

    fn start(server: Server, config: &Config, run_dir: &Path, tags: Pairs) -> Result<Self, String> {
        let (entries, queue) = sync_channel(QUEUE);
        let (alive, over) = sync_channel::<()>(0);
        let about = About { name: config.name.clone(), values: config.values(), tags, run_dir: run_dir.to_owned() };
        let mut writer = Writer { client: Client::new(server), about, warned: false };
        let write = move || {
            let _alive = alive;
            // None: the record is complete, or given up.
            let _ = writer.write(&queue);
        };
        let thread = std::thread::Builder::new().name("mlflow".to_owned()).spawn(write);
        thread.map(|_| Self { entries, over, overflowed: false }).map_err(|e| format!("its thread could not be started: {e}"))
    }

    pub fn step(&mut self, metrics: &StepMetrics) {
        self.metrics(metrics.step + 1, &metrics.scalars());
    }

    pub fn evaluation(&mut self, evaluation: &Evaluation) {
        self.metrics(evaluation.step, &evaluation.scalars());
    }

    fn metrics(&mut self, step: u64, scalars: &[(&'static str, f64)]) {
        let timestamp = now_ms();
        self.put(Entry::Metrics(scalars.iter().map(|&(key, value)| Metric { key, value, step, timestamp }).collect()));
    }

    pub fn picture(&mut self, picture: &RunPicture) {
        self.put(Entry::Picture(picture.clone()));
    }

    /// The run is over, and its files are written. Waits for a while until the server has
    /// the record; `tags` say what is known at the end.
    pub fn ended(mut self, end: End, tags: Pairs) {
        self.put(Entry::Ended { end, at: now_ms(), tags });
        if self.over.recv_timeout(END) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the run ends before MLflow's server has all of its record");
        }
    }

    /// A queue that is full means that the server has been slow or away for long; one that
    /// is closed, that the record was given up.
    fn put(&mut self, entry: Entry) {
        if let Err(TrySendError::Full(_)) = self.entries.try_send(entry)
            && !std::mem::replace(&mut self.overflowed, true)
        {
            tracing::debug!("MLflow's server is too slow for the run: its record has gaps");
        }
    }
}

struct Writer {
    client: Client,
    about: About,
    warned: bool,
}

impl Writer {
    /// Writes until the run has ended, or until the server refuses something for good.
    fn write(&mut self, queue: &Receiver<Entry>) -> Option<()> {
        let run = self.insist(|client, about| client.begin(about))?;
        loop {
            match queue.recv().ok()? {
                Entry::Metrics(first) => {
                    let (metrics, next) = collected(queue, first, Instant::now() + COLLECTED_WITHIN);
                    self.insist(|client, _| client.log(&run, &metrics))?;
                    next.map_or(Some(()), |entry| self.other(&run, entry))?;
                }
                other => self.other(&run, other)?,
            }
        }
    }

    /// None for the last entry.
    fn other(&mut self, run: &Run, entry: Entry) -> Option<()> {
        match entry {
            Entry::Metrics(metrics) => self.insist(|client, _| client.log(run, &metrics)),
            Entry::Picture(picture) => {
                let name = format!("{}-{:08}.png", picture.shown.name(), picture.step);
                self.insist(|client, _| client.artifact(run, &name, &picture.png))
            }
            Entry::Ended { end, at, tags } => {
                self.insist(|client, _| client.tag(run, &tags))?;
                for name in FILES {
                    // A run that failed has no summary.
                    let Ok(content) = std::fs::read(self.about.run_dir.join(name)) else { continue };
                    self.insist(|client, _| client.artifact(run, name, &content))?;
                }
                self.insist(|client, _| client.end(run, end, at))?;
                None
            }
        }
    }

    /// Repeats a request until it succeeds; none if the server refuses it for good.
    fn insist<T>(&mut self, request: impl Fn(&Client, &About) -> Result<T, Failure>) -> Option<T> {
        let mut pause = PAUSE;
        loop {
            let failure = match request(&self.client, &self.about) {
                Ok(done) => return Some(done),
                Err(failure) => failure,
            };
            let what = if failure.is_final { "its record ends here" } else { "its record waits" };
            let text = format!("MLflow's server at `{}` fails; the run goes on, and {what}: {}", self.client.url(), failure.problem);
            if std::mem::replace(&mut self.warned, true) {
                tracing::debug!("{text}");
            } else {
                tracing::warn!("{text}");
            }
            if failure.is_final {
                return None;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The metrics that come until then, as many as a request may have, and the entry of another
/// kind that came first, if one did.
fn collected(queue: &Receiver<Entry>, mut metrics: Vec<Metric>, until: Instant) -> (Vec<Metric>, Option<Entry>) {
    while let Ok(entry) = queue.recv_timeout(until.saturating_duration_since(Instant::now())) {
        match entry {
            Entry::Metrics(more) if metrics.len() + more.len() <= METRICS => metrics.extend(more),
            other => return (metrics, Some(other)),
        }
    }
    (metrics, None)
}
