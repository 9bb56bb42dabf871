//! skipped.jsonl: the samples that were left out because they do not decode, each once,
//! whatever the number of epochs and workers that met it.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::RunDirError;
use super::lines::{self, Lines};

/// Lines of the file; later samples are counted and not listed.
const LISTED: usize = 10_000;

/// Samples that are told apart; later ones are not counted.
const COUNTED: usize = 1 << 20;

/// A sample that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedSample {
    /// The step that met it first; for a validation sample the step after which was
    /// evaluated.
    pub step: u64,
    pub sample: String,
    pub problem: String,
}

#[derive(Debug)]
pub(super) struct SkippedSamples {
    lines: Lines,
    /// Hashes of the samples' names.
    seen: HashSet<u64>,
}

impl SkippedSamples {
    pub(super) fn open(path: &Path) -> Result<Self, RunDirError> {
        let lines = Lines::open(path)?;
        let listed: Vec<SkippedSample> = lines::parse(path)?;
        Ok(Self { lines, seen: listed.iter().map(|s| hash(&s.sample)).collect() })
    }

    /// Whether the sample was not known yet.
    pub(super) fn add(&mut self, sample: &SkippedSample) -> bool {
        let new = self.seen.len() < COUNTED && self.seen.insert(hash(&sample.sample));
        if new && self.seen.len() <= LISTED {
            self.lines.push(sample);
        }
        new
    }

    pub(super) fn flush(&mut self) -> Result<(), RunDirError> {
        self.lines.flush()
    }

    pub(super) fn count(&self) -> u64 {
        self.seen.len() as u64
    }
}

fn hash(name: &str) -> u64 {
    blake3::hash(name.as_bytes()).as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_counts_once_in_all_epochs_and_after_a_resumption() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skipped.jsonl");
        let sample = |name: &str, step| SkippedSample { step, sample: name.to_owned(), problem: "is damaged".to_owned() };
        let mut skipped = SkippedSamples::open(&path).unwrap();
        assert!(skipped.add(&sample("a", 1)) && skipped.add(&sample("b", 2)) && !skipped.add(&sample("a", 3)));
        skipped.flush().unwrap();
        assert_eq!(lines::parse::<SkippedSample>(&path).unwrap(), [sample("a", 1), sample("b", 2)]);
        drop(skipped);

        let mut resumed = SkippedSamples::open(&path).unwrap();
        assert_eq!(resumed.count(), 2);
        assert!(!resumed.add(&sample("b", 9)) && resumed.add(&sample("c", 9)));
        assert_eq!(resumed.count(), 3);
    }

    #[test]
    fn the_list_is_bounded_and_the_count_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skipped.jsonl");
        let mut skipped = SkippedSamples::open(&path).unwrap();
        for n in 0..LISTED + 5 {
            assert!(skipped.add(&SkippedSample { step: 1, sample: n.to_string(), problem: String::new() }));
        }
        skipped.flush().unwrap();
        assert_eq!(skipped.count() as usize, LISTED + 5);
        assert_eq!(lines::parse::<SkippedSample>(&path).unwrap().len(), LISTED);
    }
}
