//! The record of a run, followed while it grows: each look reads what was added since the
//! last one, in bounded memory, and without the directory's lock. A run that has finished
//! is read in the same way.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::checkpoint::CheckpointFiles;
use super::error::RunDirError;
use super::journal::Dated;
use super::metrics::Line;
use super::names::{JOURNAL, METRICS, PREDICTIONS, SKIPPED};
use super::skipped::SkippedSample;
use crate::metrics::{Evaluation, StepMetrics};
use crate::predictions::{MAX_BYTES, Predictions};

/// The longest line that is read; longer ones are none of ours.
const LONGEST: usize = 1 << 20;

/// The most bytes of a file that one look reads.
const AT_A_TIME: u64 = 8 << 20;

/// The largest file of predictions that is read: pictures are written in base64.
const PREDICTIONS_BYTES: u64 = 2 * MAX_BYTES as u64;

/// What was added to a run's record.
#[derive(Debug, Default)]
pub struct Added {
    /// What was read of metrics.jsonl before is void: a generation began at an earlier step,
    /// and the file was written anew. What follows is its beginning.
    pub metrics_anew: bool,
    pub steps: Vec<StepMetrics>,
    pub evaluations: Vec<Evaluation>,
    pub events: Vec<Dated>,
    pub skipped: Vec<SkippedSample>,
    /// In place of those before; unchecked.
    pub predictions: Option<Predictions>,
    /// There is more to read.
    pub more: bool,
}

/// A reader of one run's record.
#[derive(Debug)]
pub struct RunFollower {
    metrics: Tail,
    journal: Tail,
    skipped: Tail,
    predictions: Replaced,
    checkpoints: CheckpointFiles,
}

impl RunFollower {
    /// Follows the run in `path`, from its beginning. A file that is not there yet is empty.
    pub fn new(path: &Path) -> Self {
        let tail = |name| Tail { path: path.join(name), identity: None, read: 0 };
        let predictions = Replaced { path: path.join(PREDICTIONS), version: None };
        let checkpoints = CheckpointFiles::new(path.join("checkpoints"));
        Self { metrics: tail(METRICS), journal: tail(JOURNAL), skipped: tail(SKIPPED), predictions, checkpoints }
    }

    /// Reads what was added since the last look.
    pub fn look(&mut self) -> Result<Added, RunDirError> {
        let mut added = Added::default();
        let metrics = self.metrics.look(|line| match line {
            Line::Step(step) => added.steps.push(step),
            Line::Evaluation { eval } => added.evaluations.push(eval),
        })?;
        let journal = self.journal.look(|event| added.events.push(event))?;
        let skipped = self.skipped.look(|sample| added.skipped.push(sample))?;
        added.predictions = self.predictions.look()?;
        added.metrics_anew = metrics.anew;
        added.more = metrics.more || journal.more || skipped.more;
        Ok(added)
    }

    /// The steps of the checkpoints that are on disk, in order.
    pub fn checkpoints(&self) -> Result<Vec<u64>, RunDirError> {
        let mut steps = self.checkpoints.steps()?;
        steps.sort_unstable();
        Ok(steps)
    }
}

/// A file of JSON lines, and how far it was read.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    /// Device and inode: another file may take the name.
    identity: Option<(u64, u64)>,
    /// Bytes of whole lines.
    read: u64,
}

/// A JSON file that is replaced as a whole.
#[derive(Debug)]
struct Replaced {
    path: PathBuf,
    /// Device, inode, and time of modification in nanoseconds, of the one that was read.
    version: Option<(u64, u64, i64, i64)>,
}

impl Replaced {
    /// What it holds, if it is another file than at the last look, and parses.
    fn look<T: DeserializeOwned>(&mut self) -> Result<Option<T>, RunDirError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(RunDirError::io("open", &self.path)(e)),
        };
        let about = file.metadata().map_err(RunDirError::io("read", &self.path))?;
        let version = Some((about.dev(), about.ino(), about.mtime(), about.mtime_nsec()));
        if std::mem::replace(&mut self.version, version) == version {
            return Ok(None);
        }
        let mut text = Vec::new();
        file.take(PREDICTIONS_BYTES).read_to_end(&mut text).map_err(RunDirError::io("read", &self.path))?;
        Ok(serde_json::from_slice(&text).ok())
    }
}

struct Look {
    anew: bool,
    more: bool,
}

impl Tail {
    /// Hands on each whole line that was added and parses; others are passed over, as the
    /// record's other readers do, which also name them.
    fn look<T: DeserializeOwned>(&mut self, mut take: impl FnMut(T)) -> Result<Look, RunDirError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Look { anew: false, more: false }),
            Err(e) => return Err(RunDirError::io("open", &self.path)(e)),
        };
        let about = file.metadata().map_err(RunDirError::io("read", &self.path))?;
        let identity = Some((about.dev(), about.ino()));
        let anew = self.read > 0 && (self.identity != identity || about.len() < self.read);
        if anew {
            self.read = 0;
        }
        self.identity = identity;
        let until = self.read + AT_A_TIME;
        if about.len() == self.read {
            return Ok(Look { anew, more: false });
        }
        let mut reader = BufReader::with_capacity(1 << 16, file);
        reader.seek(SeekFrom::Start(self.read)).map_err(RunDirError::io("read", &self.path))?;
        let mut line = Vec::new();
        while self.read < until {
            line.clear();
            let bytes = self.line(&mut reader, &mut line).map_err(RunDirError::io("read", &self.path))?;
            // The end of the file, or of a line that is being written.
            let Some(bytes) = bytes else { return Ok(Look { anew, more: false }) };
            self.read += bytes;
            if let Ok(value) = serde_json::from_slice(&line) {
                take(value);
            }
        }
        Ok(Look { anew, more: true })
    }

    /// The bytes of the next whole line, of which as many are kept as a line may have.
    fn line(&self, reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<Option<u64>> {
        let mut bytes = 0;
        loop {
            let buffer = reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let end = buffer.iter().position(|&b| b == b'\n');
            let taken = end.map_or(buffer.len(), |at| at + 1);
            let room = LONGEST.saturating_sub(line.len());
            line.extend_from_slice(&buffer[..taken.min(room)]);
            reader.consume(taken);
            bytes += taken as u64;
            if end.is_some() {
                return Ok(Some(bytes));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::run_dir::Event;

    fn step(step: u64) -> String {
        format!(
            r#"{{"step":{step},"epoch":0,"loss":1,"top1":0,"lr":1,"grad_norm":1,"samples":4,"step_ms":1,"data_wait_ms":0,"compute_ms":0,"all_reduce_exposed_ms":0,"update_ms":0,"images_per_second":1}}"#
        )
    }

    fn append(path: &Path, text: &str) {
        File::options().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn each_look_sees_what_was_added_and_a_file_written_anew_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = RunFollower::new(dir.path());
        assert!(run.look().unwrap().steps.is_empty(), "nothing is there yet");
        let metrics = dir.path().join("metrics.jsonl");
        let steps = |added: &Added| added.steps.iter().map(|s| s.step).collect::<Vec<_>>();
        let half = step(2);
        append(&metrics, &format!("{}\nnonsense\n{}\n{}", step(0), step(1), &half[..40]));
        assert_eq!(steps(&run.look().unwrap()), [0, 1]);
        assert!(run.look().unwrap().steps.is_empty(), "half a line is none");
        append(&metrics, &format!("{}\n", &half[40..]));
        let eval = r#"{"eval":{"step":3,"epoch":0,"loss":1,"top1":0.5,"top5":1,"samples":4}}"#;
        append(&metrics, &format!("{eval}\n"));
        let added = run.look().unwrap();
        assert_eq!((steps(&added), added.evaluations.len(), added.metrics_anew), (vec![2], 1, false));
        // A generation begins at step 1.
        let other = dir.path().join("other");
        append(&other, &format!("{}\n", step(0)));
        std::fs::rename(&other, &metrics).unwrap();
        let added = run.look().unwrap();
        assert_eq!((steps(&added), added.metrics_anew), (vec![0], true));
        assert!(!run.look().unwrap().metrics_anew);

        append(&dir.path().join("journal.jsonl"), "{\"unix_seconds\":7.5,\"event\":\"checkpoint\",\"step\":3}\n");
        let event = Dated { unix_seconds: 7.5, event: Event::Checkpoint { step: 3 } };
        assert_eq!(run.look().unwrap().events, [event]);

        let predictions = |step| Predictions { step, pictures: Vec::new() };
        let replace = |text: &str| crate::files::replace(&dir.path().join(PREDICTIONS), text.as_bytes()).unwrap();
        for step in [4, 5] {
            replace(&serde_json::to_string(&predictions(step)).unwrap());
            assert_eq!(run.look().unwrap().predictions, Some(predictions(step)));
            assert_eq!(run.look().unwrap().predictions, None, "they were read");
        }
        replace(&format!("{}{{\"step\":6,\"pictures\":[]}}", " ".repeat(PREDICTIONS_BYTES as usize)));
        assert_eq!(run.look().unwrap().predictions, None, "no more is read than there can be");
    }

    #[test]
    fn a_long_record_is_read_in_parts_and_a_boundless_line_takes_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = dir.path().join("metrics.jsonl");
        let text: String = (0..60_000).map(|n| step(n) + "\n").collect();
        append(&metrics, &format!("{}\n{text}", "x".repeat(3 << 20)));
        let (mut run, mut seen, mut looks) = (RunFollower::new(dir.path()), 0, 0);
        loop {
            let added = run.look().unwrap();
            assert!(added.steps.iter().map(|s| s.step).eq(seen..seen + added.steps.len() as u64));
            (seen, looks) = (seen + added.steps.len() as u64, looks + 1);
            if !added.more {
                break;
            }
        }
        assert!(seen == 60_000 && looks > 1, "{seen} steps in {looks} looks");
    }
}
