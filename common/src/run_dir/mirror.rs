//! `run.mirror`: the copy of a run in an object store, from which `--resume` goes on when
//! the run directory is lost with its machine.
//!
//! A thread of its own copies; a store that does not answer never holds a run up. A
//! checkpoint is copied after the metrics up to it and before the journal that names it,
//! its manifest last, so that whatever the mirror holds at any moment can be resumed. Keys
//! and tokens are not copied: a coordinator on another machine makes its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::checkpoint::{CHECKPOINT_FILES, CheckpointFiles, MANIFEST, UNFINISHED, open_in, remove_any};
use super::error::{RunDirError, write_whole};
use super::weights::INITIAL_WEIGHTS;
use crate::digest::Digest;
use crate::objects::{self, ObjectError};

const CONFIG: &str = "config.toml";

/// Copied whenever they have changed.
const RECORD: [&str; 7] = [CONFIG, "dataset.json", INITIAL_WEIGHTS, "journal.jsonl", "skipped.jsonl", "predictions.json", "summary.json"];

/// Copied with each checkpoint: they have a line for each step.
const STEPS: [&str; 2] = ["metrics.jsonl", "audit.jsonl"];

/// Says who writes to the mirror.
const WRITER: &str = "writer.json";

/// The journal is copied this often at most, and what failed is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// How long the end of a run waits for a store that does not answer.
const LAST_TRIES: Duration = Duration::from_secs(60);

/// How often a mirror that cannot be written is reported.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Where copies go: names are relative paths of the run directory.
pub(super) trait Target: Send {
    fn put(&self, name: &str, bytes: Bytes) -> Result<(), ObjectError>;
    fn put_file(&self, name: &str, path: &Path) -> Result<(), ObjectError>;
    fn get(&self, name: &str) -> Result<Option<Bytes>, ObjectError>;
    /// False if there is none.
    fn get_file(&self, name: &str, path: &Path) -> Result<bool, ObjectError>;
    fn remove(&self, name: &str) -> Result<(), ObjectError>;
    /// All names.
    fn list(&self) -> Result<Vec<String>, ObjectError>;
}

/// The objects below an address.
#[derive(Debug, Clone)]
pub(super) struct InStore(pub(super) String);

impl InStore {
    fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.0.trim_end_matches('/'))
    }
}

impl Target for InStore {
    fn put(&self, name: &str, bytes: Bytes) -> Result<(), ObjectError> {
        objects::put(&self.url(name), bytes)
    }

    fn put_file(&self, name: &str, path: &Path) -> Result<(), ObjectError> {
        objects::put_file(&self.url(name), path)
    }

    fn get(&self, name: &str) -> Result<Option<Bytes>, ObjectError> {
        objects::get(&self.url(name))
    }

    fn get_file(&self, name: &str, path: &Path) -> Result<bool, ObjectError> {
        objects::get_file(&self.url(name), path)
    }

    fn remove(&self, name: &str) -> Result<(), ObjectError> {
        objects::remove(&self.url(name))
    }

    fn list(&self) -> Result<Vec<String>, ObjectError> {
        objects::list(&self.0)
    }
}

/// Whether the mirror holds a run.
pub(super) fn holds_run(target: &impl Target) -> Result<bool, RunDirError> {
    Ok(target.get(CONFIG)?.is_some())
}

/// Fills the run directory `path`, which has no config.toml, with what the mirror holds.
/// False if it holds no run. config.toml is written last: until then the directory holds
/// no run, and the next attempt begins anew.
pub(super) fn restore(target: &impl Target, path: &Path) -> Result<bool, RunDirError> {
    let Some(config) = target.get(CONFIG)? else { return Ok(false) };
    fs::create_dir_all(path).map_err(RunDirError::io("create", path))?;
    for name in RECORD.into_iter().chain(STEPS).filter(|name| *name != CONFIG) {
        target.get_file(name, &path.join(name))?;
    }
    let checkpoints = CheckpointFiles::new(path.join("checkpoints"));
    for step in whole_checkpoints(&target.list()?).into_iter().rev() {
        match restore_checkpoint(target, &checkpoints, step) {
            Ok(()) => {}
            Err(e @ RunDirError::Mirror(_)) => return Err(e),
            Err(e) => tracing::warn!("passed over a broken checkpoint of the mirror: {e}"),
        }
    }
    write_whole(&path.join(CONFIG), &config)?;
    Ok(true)
}

fn restore_checkpoint(target: &impl Target, all: &CheckpointFiles, step: u64) -> Result<(), RunDirError> {
    let place = all.place(step);
    let name = CheckpointFiles::folder_of(step);
    let unfinished = all.folder().join(format!("{UNFINISHED}{name}"));
    remove_any(&unfinished)?;
    fs::create_dir_all(&unfinished).map_err(RunDirError::io("create", &unfinished))?;
    for file in CHECKPOINT_FILES.into_iter().chain([MANIFEST]) {
        target.get_file(&format!("checkpoints/{name}/{file}"), &unfinished.join(file))?;
    }
    open_in(&unfinished, step)?;
    remove_any(&place)?;
    fs::rename(&unfinished, &place).map_err(RunDirError::io("rename", &unfinished))
}

/// The steps whose manifest is among these names.
fn whole_checkpoints(names: &[String]) -> BTreeSet<u64> {
    let step = |name: &String| name.strip_prefix("checkpoints/step-")?.strip_suffix(MANIFEST)?.strip_suffix('/')?.parse().ok();
    names.iter().filter_map(step).collect()
}

/// What a run tells its mirror.
enum News {
    /// The journal or another file has changed.
    Changed,
    /// The journal names this checkpoint.
    Checkpoint(u64),
}

/// Copies one run while it is trained. Dropping it waits until the rest is copied, or for a
/// minute.
#[derive(Debug)]
pub(super) struct Mirror {
    news: Option<Sender<News>>,
    thread: Option<JoinHandle<()>>,
}

impl Mirror {
    /// Starts to copy the run in `path`, whose mirror may hold only this run.
    pub(super) fn start(target: impl Target + 'static, url: &str, path: &Path) -> Result<Self, RunDirError> {
        let mut copier = Copier::new(target, url, path)?;
        let (news, changes) = channel();
        let work = move || copier.run(&changes);
        let thread = std::thread::Builder::new().name("mirror".to_owned()).spawn(work).map_err(RunDirError::io("mirror", path))?;
        Ok(Self { news: Some(news), thread: Some(thread) })
    }

    pub(super) fn changed(&self) {
        self.tell(News::Changed);
    }

    pub(super) fn checkpoint(&self, step: u64) {
        self.tell(News::Checkpoint(step));
    }

    fn tell(&self, news: News) {
        // A mirror that has given up has said so.
        let _ = self.news.as_ref().map(|sender| sender.send(news));
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.news = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that copies to the mirror has panicked");
        }
    }
}

/// The state of a file when it was copied.
type Version = (u64, Option<SystemTime>);

struct Copier<T> {
    target: T,
    url: String,
    run: PathBuf,
    checkpoints: CheckpointFiles,
    /// The id under which this process writes.
    writer: String,
    copied: BTreeMap<&'static str, Version>,
    /// Whole checkpoints at the mirror.
    there: BTreeSet<u64>,
    /// Checkpoints that the journal names: only the metrics up to these are on disk.
    recorded: BTreeSet<u64>,
}

/// Why a pass ended early.
enum Fault {
    /// It is tried again.
    Passing(String),
    /// Another run writes to the mirror.
    Taken,
}

impl From<ObjectError> for Fault {
    fn from(error: ObjectError) -> Self {
        Self::Passing(error.to_string())
    }
}

impl<T: Target> Copier<T> {
    fn new(target: T, url: &str, path: &Path) -> Result<Self, RunDirError> {
        let checkpoints = CheckpointFiles::new(path.join("checkpoints"));
        let there = whole_checkpoints(&target.list()?);
        let recorded: BTreeSet<u64> = checkpoints.steps()?.into_iter().collect();
        let newest = |steps: &BTreeSet<u64>| steps.last().copied();
        if newest(&there) > newest(&recorded) {
            return Err(RunDirError::MirrorAhead {
                url: url.to_owned(),
                path: path.to_owned(),
                there: newest(&there).unwrap_or_default(),
                here: newest(&recorded).unwrap_or_default(),
            });
        }
        let own = format!("{path:?} {:?} {}", SystemTime::now(), std::process::id());
        let writer = Digest::of(own.as_bytes()).to_string();
        target.put(WRITER, format!("{{\"writer\":\"{writer}\"}}\n").into())?;
        Ok(Self { target, url: url.to_owned(), run: path.to_owned(), checkpoints, writer, copied: BTreeMap::new(), there, recorded })
    }

    /// Copies until the run is over.
    fn run(&mut self, news: &Receiver<News>) {
        let mut complained = None;
        let mut failed: Option<String> = None;
        let mut over: Option<Instant> = None;
        let mut changed = true;
        loop {
            if changed || failed.is_some() || over.is_some() {
                match self.pass(over.is_some()) {
                    Ok(()) => (changed, failed) = (false, None),
                    Err(Fault::Passing(problem)) => {
                        if complained.is_none_or(|at: Instant| at.elapsed() >= COMPLAIN_EVERY) {
                            complained = Some(Instant::now());
                            tracing::warn!("the mirror lacks the newest files for now: {problem}");
                        }
                        failed = Some(problem);
                    }
                    Err(Fault::Taken) => {
                        return tracing::error!(
                            "another process has begun to write to the mirror `{}`: this run goes on without it; give each run a mirror of its own",
                            self.url
                        );
                    }
                }
            }
            match (over, &failed) {
                (Some(_), None) => return,
                (Some(since), Some(problem)) if since.elapsed() > LAST_TRIES => {
                    return tracing::error!(
                        "the mirror `{}` lacks the newest files of `{}`: {problem}; `--resume` copies them once the store answers",
                        self.url,
                        self.run.display()
                    );
                }
                _ => {}
            }
            let until = Instant::now() + PAUSE;
            while over.is_none() {
                match news.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(News::Changed) => changed = true,
                    Ok(News::Checkpoint(step)) => {
                        self.recorded.insert(step);
                        changed = true;
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => over = Some(Instant::now()),
                }
            }
            if over.is_some() && failed.is_some() {
                std::thread::sleep(PAUSE.min(Duration::from_secs(1)));
            }
        }
    }

    /// Copies what the mirror lacks.
    fn pass(&mut self, last: bool) -> Result<(), Fault> {
        let here: BTreeSet<u64> = self.checkpoints.steps().map_err(|e| Fault::Passing(e.to_string()))?.into_iter().collect();
        let Moves { copy, remove } = moves(&here, &self.recorded, &self.there);
        if last || !copy.is_empty() {
            self.check_writer()?;
            STEPS.into_iter().try_for_each(|name| self.file(name))?;
        }
        for step in copy {
            // One that is pruned meanwhile is not missed.
            if self.checkpoint(step)? {
                self.there.insert(step);
            }
        }
        RECORD.into_iter().try_for_each(|name| self.file(name))?;
        for step in remove {
            let folder = CheckpointFiles::folder_of(step);
            for file in [MANIFEST].into_iter().chain(CHECKPOINT_FILES) {
                self.target.remove(&format!("checkpoints/{folder}/{file}"))?;
            }
            self.there.remove(&step);
        }
        Ok(())
    }

    /// Errors if another process has begun to write to the mirror since.
    fn check_writer(&self) -> Result<(), Fault> {
        let found = self.target.get(WRITER)?;
        let own = found.is_none_or(|bytes| String::from_utf8_lossy(&bytes).contains(&self.writer));
        if own { Ok(()) } else { Err(Fault::Taken) }
    }

    /// Copies a file if it is there and has changed.
    fn file(&mut self, name: &'static str) -> Result<(), Fault> {
        let path = self.run.join(name);
        let Ok(about) = path.metadata() else { return Ok(()) };
        let version = (about.len(), about.modified().ok());
        if self.copied.get(name) != Some(&version) {
            self.target.put_file(name, &path)?;
            self.copied.insert(name, version);
        }
        Ok(())
    }

    /// Copies a checkpoint, its manifest last. False if it is no longer there.
    fn checkpoint(&self, step: u64) -> Result<bool, Fault> {
        let place = self.checkpoints.place(step);
        for file in CHECKPOINT_FILES.into_iter().chain([MANIFEST]) {
            let copied = self.target.put_file(&format!("checkpoints/{}/{file}", CheckpointFiles::folder_of(step)), &place.join(file));
            if copied.is_err() && !place.join(MANIFEST).exists() {
                return Ok(false);
            }
            copied?;
        }
        Ok(true)
    }
}

/// What is to be done with checkpoints.
#[derive(Debug, Default, PartialEq, Eq)]
struct Moves {
    copy: Vec<u64>,
    remove: Vec<u64>,
}

/// The mirror gets the recorded checkpoints that are here, and loses those that are here no
/// longer, unless it would be left without any.
fn moves(here: &BTreeSet<u64>, recorded: &BTreeSet<u64>, there: &BTreeSet<u64>) -> Moves {
    let wanted: BTreeSet<u64> = here.intersection(recorded).copied().collect();
    let remove = if wanted.is_empty() { Vec::new() } else { there.difference(here).copied().collect() };
    Moves { copy: wanted.difference(there).copied().collect(), remove }
}

#[cfg(test)]
#[path = "tests_of_mirror.rs"]
mod tests;
