//! Traces of where the time goes, as a file that Perfetto and chrome://tracing open:
//! the Trace Event Format's JSON array, one event per line, so that the files of
//! several processes are joined by joining their lines ([`merge`]).
//!
//! Off until [`to_file`]; until then a span costs one atomic load. Each process is a
//! rank and each of its threads is a row; spans that overlap within a thread (buckets
//! on the ring) have rows of their own.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Spans that are kept, 100 bytes each; later ones are only counted.
const MAX_SPANS: usize = 2_000_000;

static TRACER: OnceLock<Tracer> = OnceLock::new();

struct Tracer {
    /// When tracing started, by both clocks: spans are measured by the monotonic clock,
    /// and the processes of a machine are aligned by the other.
    started: Instant,
    started_unix: Duration,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    rank: u32,
    spans: Vec<Span>,
    dropped: u64,
    /// Row and name of each thread.
    threads: HashMap<ThreadId, (u32, String)>,
}

struct Span {
    name: &'static str,
    row: Row,
    from: Duration,
    to: Duration,
    number: Option<u64>,
}

enum Row {
    Thread(u32),
    /// Overlaps others of its kind; this number distinguishes them.
    Overlapping(u64),
}

/// Starts tracing in this process; a second call does nothing.
fn start() {
    TRACER.get_or_init(|| Tracer {
        started: Instant::now(),
        started_unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        record: Mutex::default(),
    });
}

/// Names the process after its rank.
pub fn set_rank(rank: u32) {
    if let Some(tracer) = TRACER.get() {
        tracer.record().rank = rank;
    }
}

/// A span of this thread until the value is dropped. `number` says which one of many it
/// is: a step, a bucket.
#[must_use = "the span ends when this is dropped"]
pub fn span(name: &'static str, number: Option<u64>) -> Running {
    Running::begin(name, number, None)
}

/// A span of a task until the value is dropped, beside others of its kind; `id` is
/// unique among those of `name` that run at the same time.
#[must_use = "the span ends when this is dropped"]
pub fn overlapping(name: &'static str, id: u64, number: Option<u64>) -> Running {
    Running::begin(name, number, Some(id))
}

/// A span of this thread between two moments.
pub fn record(name: &'static str, number: Option<u64>, from: Instant, to: Instant) {
    if let Some(tracer) = TRACER.get() {
        tracer.add(name, number, from, to, None);
    }
}

/// A span that has begun.
pub struct Running {
    name: &'static str,
    number: Option<u64>,
    /// None while tracing is off.
    from: Option<Instant>,
    overlapping: Option<u64>,
}

impl Running {
    fn begin(name: &'static str, number: Option<u64>, overlapping: Option<u64>) -> Self {
        Self { name, number, from: TRACER.get().map(|_| Instant::now()), overlapping }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (Some(from), Some(tracer)) = (self.from, TRACER.get()) {
            tracer.add(self.name, self.number, from, Instant::now(), self.overlapping);
        }
    }
}

impl Tracer {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, name: &'static str, number: Option<u64>, from: Instant, to: Instant, overlapping: Option<u64>) {
        let since = |at: Instant| at.saturating_duration_since(self.started);
        let mut record = self.record();
        if record.spans.len() >= MAX_SPANS {
            record.dropped += 1;
            return;
        }
        let row = overlapping.map_or_else(|| Row::Thread(record.thread()), Row::Overlapping);
        record.spans.push(Span { name, row, from: since(from), to: since(to), number });
    }
}

impl Record {
    fn thread(&mut self) -> u32 {
        let current = std::thread::current();
        let next = self.threads.len() as u32 + 1;
        self.threads.entry(current.id()).or_insert_with(|| (next, current.name().unwrap_or("unnamed").to_owned())).0
    }

    /// The events of this process; `zero` is its start in the common time.
    fn events(&self, zero: Duration) -> Vec<String> {
        let rank = self.rank;
        let micros = |at: Duration| (zero + at).as_nanos() as f64 / 1e3;
        let meta = |kind: &str, row: u32, name: &str| {
            let name = serde_json::Value::from(name);
            format!(r#"{{"ph":"M","name":"{kind}","pid":{rank},"tid":{row},"args":{{"name":{name}}}}}"#)
        };
        let mut events = vec![meta("process_name", 0, &format!("rank {rank}"))];
        let mut threads: Vec<&(u32, String)> = self.threads.values().collect();
        threads.sort();
        events.extend(threads.into_iter().map(|(row, name)| meta("thread_name", *row, name)));
        for Span { name, row, from, to, number } in &self.spans {
            let args = number.map_or_else(|| "{}".to_owned(), |n| format!(r#"{{"number":{n}}}"#));
            let common = format!(r#""name":"{name}","pid":{rank},"args":{args}"#);
            let (start, end) = (micros(*from), micros(*to));
            events.extend(match row {
                Row::Thread(row) => vec![format!(r#"{{"ph":"X",{common},"tid":{row},"ts":{start:.3},"dur":{:.3}}}"#, end - start)],
                // In the format's terms, a nestable asynchronous event.
                Row::Overlapping(id) => [("b", start), ("e", end)]
                    .map(|(ph, at)| format!(r#"{{"ph":"{ph}",{common},"cat":"{name}","id":"{rank}.{id}","tid":0,"ts":{at:.3}}}"#))
                    .to_vec(),
            });
        }
        if self.dropped > 0 {
            tracing::warn!("the trace was full after {MAX_SPANS} spans: {} later ones are missing", self.dropped);
        }
        events
    }
}

/// Traces this process until the value is dropped, and writes the file then.
#[must_use = "the file is written when this is dropped"]
pub struct ToFile(PathBuf);

/// Starts tracing if a file is named.
pub fn to_file(path: Option<PathBuf>) -> Option<ToFile> {
    path.map(|path| {
        start();
        ToFile(path)
    })
}

impl Drop for ToFile {
    fn drop(&mut self) {
        if let Err(e) = write(&self.0) {
            tracing::warn!("could not write the trace to `{}`: {e}", self.0.display());
        }
    }
}

/// Writes the spans of this process so far; nothing if tracing is off.
fn write(path: &Path) -> io::Result<()> {
    let Some(tracer) = TRACER.get() else { return Ok(()) };
    let events = tracer.record().events(tracer.started_unix);
    write_events(path, &events)
}

fn write_events(path: &Path, events: &[String]) -> io::Result<()> {
    let mut text = String::new();
    for (n, event) in events.iter().enumerate() {
        _ = writeln!(text, "{}{event}", if n == 0 { "[" } else { "," });
    }
    std::fs::write(path, text + "]\n")
}

/// Joins trace files of processes of one machine into one, and removes them. Missing
/// files are skipped: a killed worker leaves none.
pub fn merge(into: &Path, parts: &[PathBuf]) -> io::Result<()> {
    let mut events = Vec::new();
    for part in parts {
        let Ok(text) = std::fs::read_to_string(part) else { continue };
        events.extend(text.lines().filter_map(|line| line.strip_prefix(['[', ','])).map(str::to_owned));
        std::fs::remove_file(part)?;
    }
    write_events(into, &events)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_of_two_ranks_become_one_that_is_json() {
        let dir = tempfile::tempdir().unwrap();
        let parts: Vec<_> = (0..2).map(|rank| dir.path().join(format!("rank-{rank}"))).collect();
        for (rank, part) in (0..).zip(&parts) {
            let mut record = Record { rank, ..Record::default() };
            let row = record.thread();
            let at = Duration::from_millis;
            record.spans.push(Span { name: "forward", row: Row::Thread(row), from: at(1), to: at(3), number: Some(7) });
            record.spans.push(Span { name: "bucket", row: Row::Overlapping(4), from: at(2), to: at(5), number: None });
            write_events(part, &record.events(Duration::from_secs(1_800_000_000))).unwrap();
        }
        let whole = dir.path().join("trace.json");
        merge(&whole, &[parts[0].clone(), dir.path().join("missing"), parts[1].clone()]).unwrap();
        let events: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(&whole).unwrap()).unwrap();
        assert_eq!(events.len(), 2 * 5);
        let spans: Vec<_> = events.iter().filter(|e| e["ph"] == "X").collect();
        assert_eq!(spans.iter().map(|e| e["pid"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
        assert!(spans.iter().all(|e| e["dur"] == 2000.0 && e["args"]["number"] == 7 && e["ts"] == 1.8e15 + 1000.0));
        let (begun, ended) = (events.iter().filter(|e| e["ph"] == "b"), events.iter().filter(|e| e["ph"] == "e"));
        assert!(begun.zip(ended).all(|(b, e)| b["id"] == e["id"] && e["ts"].as_f64() > b["ts"].as_f64()));
        assert!(!parts[0].exists() && !parts[1].exists());
    }

    #[test]
    fn without_a_start_nothing_is_kept() {
        drop(span("step", None));
        drop(overlapping("bucket", 1, None));
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("trace.json")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
