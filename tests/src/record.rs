//! The record of a run, read while the run goes on.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::until;

/// The lines of one of a run's files. A line that is being written does not count yet.
fn lines(run: &Path, name: &str) -> Vec<Value> {
    parsed(&std::fs::read_to_string(run.join(name)).unwrap_or_default())
}

fn parsed(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The last lines of metrics.jsonl: dozens of them, and no more to read the longer the run
/// is.
fn last_lines(run: &Path) -> Vec<Value> {
    const BYTES: u64 = 32 << 10;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(run.join("metrics.jsonl"))?;
        let from = file.metadata()?.len().saturating_sub(BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    parsed(&String::from_utf8_lossy(&read().unwrap_or_default()))
}

/// The step lines of metrics.jsonl.
pub fn step_lines(run: &Path) -> Vec<Value> {
    lines(run, "metrics.jsonl").into_iter().filter(|line| line.get("step").is_some()).collect()
}

/// How many steps are committed, according to the record.
pub fn committed(run: &Path) -> u64 {
    last_lines(run).iter().filter_map(|line| line["step"].as_u64()).max().map_or(0, |newest| newest + 1)
}

/// A ring of a run, according to its journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    pub number: u64,
    /// The first step that it executes.
    pub step: u64,
    /// Names and ring addresses, by rank.
    pub members: Vec<(String, SocketAddr)>,
    /// How many shards each owns, by rank.
    pub shards: Vec<u64>,
    /// What they exchange of dense layers.
    pub dense: Value,
}

impl Generation {
    /// Whether one of its members has this ring address.
    pub fn has(&self, ring: SocketAddr) -> bool {
        self.members.iter().any(|(_, address)| *address == ring)
    }
}

/// All rings of a run, in order.
pub fn generations(run: &Path) -> Vec<Generation> {
    let number = |value: &Value, key: &str| value[key].as_u64().unwrap_or_else(|| panic!("a generation has no {key}: {value}"));
    let member = |value: &Value| Some((value["name"].as_str()?.to_owned(), value["addr"].as_str()?.parse().ok()?));
    let found = lines(run, "journal.jsonl").into_iter().filter(|line| line["event"] == "generation");
    let read = |line: Value| Generation {
        number: number(&line, "generation"),
        step: number(&line, "step"),
        members: line["members"].as_array().into_iter().flatten().filter_map(member).collect(),
        dense: line["dense"].clone(),
        shards: line["shards"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect(),
    };
    found.map(read).collect()
}

/// Waits until the newest ring of a run has this many members and has trained.
pub fn wait_for_ring(run: &Path, members: usize) {
    until(&format!("ring of {members} that trains"), Duration::from_secs(30), || {
        let ring = generations(run).pop().filter(|ring| ring.members.len() == members)?;
        (committed(run) > ring.step + 2).then_some(())
    });
}

/// The name of the worker with this ring address, once it has joined.
pub fn name_of(run: &Path, ring: SocketAddr) -> Option<String> {
    let joined = lines(run, "journal.jsonl").into_iter().filter(|line| line["event"] == "worker_joined");
    let here = joined.filter(|line| line["addr"].as_str().and_then(|addr| addr.parse().ok()) == Some(ring));
    here.filter_map(|line| line["name"].as_str().map(str::to_owned)).next_back()
}

/// The steps of the whole checkpoints of a run, in order.
pub fn checkpoints(run: &Path) -> Vec<u64> {
    let folders = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let whole = folders.filter(|folder| folder.path().join("manifest.json").exists());
    let step = |folder: std::fs::DirEntry| folder.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
    let mut steps: Vec<u64> = whole.filter_map(step).collect();
    steps.sort_unstable();
    steps
}

/// Whether a checkpoint is being written just now.
pub fn uploading(run: &Path) -> bool {
    let folders = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    folders.into_iter().any(|folder| folder.file_name().to_string_lossy().starts_with(".writing-"))
}

/// The median of the values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Asserts that two columns are equal within `tolerance` of each value, or of 1 where
/// that is more.
pub fn assert_close(one: &[f64], other: &[f64], tolerance: f64, what: &str) {
    assert_eq!(one.len(), other.len(), "{what}");
    for (step, (a, b)) in one.iter().zip(other).enumerate() {
        assert!((a - b).abs() <= tolerance * a.abs().max(1.0), "{what}, step {step}: {a} and {b}");
    }
}
