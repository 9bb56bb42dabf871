//! Threads that make batches ahead of time, handed out in order.
//!
//! Memory is bounded by the number of buffers: a thread takes an empty one before it
//! claims the next batch, and waits until a used one is recycled if there is none.
//! Since a thread claims a batch only with a buffer in hand, the batch that the
//! consumer waits for always has one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::contained::panic_message;
use common::dataset::DatasetError;
use common::trace;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::inputs::{InputBuffer, Inputs};
use super::masks::Masks;
use super::mix::Second;

/// Tells batches apart, and parts of them: two that are equal have the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchName {
    /// The loader: each has a number of its own in this process. The same step has other
    /// samples where another loader makes it for other shards.
    pub loader: u64,
    pub step: u64,
    pub part: usize,
}

/// Samples of one step, or of one part of an evaluation.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    /// The step, or the number of the part.
    pub step: u64,
    /// Of n samples; in an evaluation, all crops of the first sample come first.
    pub inputs: InputBuffer,
    /// `[n]`
    pub labels: Vec<i32>,
    /// Of mixed samples, `[n]`; empty if none are mixed.
    pub seconds: Vec<Second>,
    /// Sample ids, `[n]`.
    pub ids: Vec<u32>,
    /// Which places of the batch belong to which shard.
    pub shards: Vec<(u32, Range<usize>)>,
    /// Samples that were left out because they do not decode.
    pub skipped: Vec<Skipped>,
    /// What dropout keeps of each sample.
    pub masks: Masks,
}

/// A sample that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    pub id: u32,
    pub name: String,
    pub problem: String,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error("`{name}` {problem}; mend or remove it, or set data.on_corrupt = \"skip\"")]
    Corrupt { name: String, problem: String },
    #[error("a decoding thread panicked: {0}")]
    Panicked(String),
    #[error("could not start a decoding thread: {0}")]
    Threads(std::io::Error),
    #[error("the input pipeline ended early")]
    Ended,
    #[error("it was asked to stop while it waited for data")]
    Stopped,
}

/// How many threads decode, and how many batches may wait decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderOptions {
    pub threads: usize,
    pub prefetch_steps: usize,
}

/// The memory that a loader's batches may take together.
const LOADER_BYTES: usize = 2 << 30;

impl LoaderOptions {
    /// As many threads as `cores`, but fewer if their batches of `batch_bytes` each would
    /// take too much memory: each thread makes a batch of its own.
    pub fn new(cores: usize, prefetch_steps: usize, batch_bytes: usize) -> Self {
        let batches = LOADER_BYTES / batch_bytes.max(1);
        Self { threads: batches.saturating_sub(prefetch_steps).clamp(1, cores.max(1)), prefetch_steps }
    }
}

/// How long a batch may be awaited before a request to stop is heeded. Most batches come
/// sooner; a store that does not answer is waited for much longer.
const STOP_HEEDED: Duration = Duration::from_secs(2);

/// Fills a buffer with the batch of this number.
pub(super) type Make = Box<dyn FnMut(u64, &mut Batch) -> Result<(), LoadError> + Send>;

/// Batches `first..end`, made by threads and returned in order.
pub(super) struct Pipeline {
    number: u64,
    next: u64,
    end: u64,
    free: Sender<Batch>,
    made: Receiver<(u64, Result<Batch, LoadError>)>,
    early: BTreeMap<u64, Result<Batch, LoadError>>,
}

impl Pipeline {
    /// `make` is called once for each thread and returns the thread's maker. When the
    /// pipeline is dropped, each thread ends after the batch that it is making.
    pub(super) fn start(first: u64, end: u64, options: LoaderOptions, mut make: impl FnMut() -> Make) -> Result<Self, LoadError> {
        let threads = options.threads.max(1);
        let buffers = options.prefetch_steps + threads;
        let (free, take) = bounded::<Batch>(buffers);
        let (give, made) = bounded(buffers);
        for _ in 0..buffers {
            // The channel has room for all of them.
            let _ = free.send(Batch::default());
        }
        let claim = Arc::new(AtomicU64::new(first));
        for n in 0..threads {
            let (take, give, claim, mut make) = (take.clone(), give.clone(), Arc::clone(&claim), make());
            let work = move || {
                while let Ok(mut batch) = take.recv() {
                    let number = claim.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        break;
                    }
                    batch.clear(number);
                    let _span = trace::span("make a batch", Some(number));
                    let outcome = catch_unwind(AssertUnwindSafe(|| make(number, &mut batch)));
                    let result = match outcome {
                        Ok(Ok(())) => Ok(batch),
                        Ok(Err(e)) => Err(e),
                        Err(panic) => Err(LoadError::Panicked(panic_message(&*panic))),
                    };
                    if give.send((number, result)).is_err() {
                        break;
                    }
                }
            };
            std::thread::Builder::new().name(format!("decode-{n}")).spawn(work).map_err(LoadError::Threads)?;
        }
        static PIPELINES: AtomicU64 = AtomicU64::new(0);
        let number = PIPELINES.fetch_add(1, Ordering::Relaxed);
        Ok(Self { number, next: first, end, free, made, early: BTreeMap::new() })
    }

    /// Its number in this process.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next batch in order; none after the last. While the batch does not come, `stop`
    /// is asked from time to time.
    ///
    /// # Errors
    /// [`LoadError::Stopped`] once `stop` is true; the batch may then be asked for again.
    pub(super) fn next_batch(&mut self, stop: impl Fn() -> bool) -> Result<Option<Batch>, LoadError> {
        if self.next >= self.end {
            return Ok(None);
        }
        loop {
            if let Some(result) = self.early.remove(&self.next) {
                self.next += 1;
                return result.map(Some);
            }
            match self.made.recv_timeout(STOP_HEEDED) {
                Ok((number, result)) => _ = self.early.insert(number, result),
                Err(RecvTimeoutError::Disconnected) => return Err(LoadError::Ended),
                Err(RecvTimeoutError::Timeout) if stop() => return Err(LoadError::Stopped),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The next batch in order, if it is made and nothing is wrong with it.
    pub(super) fn made_batch(&mut self) -> Option<Batch> {
        while let Ok((number, result)) = self.made.try_recv() {
            self.early.insert(number, result);
        }
        let entry = self.early.first_entry().filter(|entry| *entry.key() == self.next && entry.get().is_ok())?;
        self.next += 1;
        entry.remove().ok()
    }

    /// Takes a used batch back, so that its memory is used again.
    pub(super) fn recycle(&self, batch: Batch) {
        let _ = self.free.try_send(batch);
    }
}

impl Batch {
    /// Inputs, labels and second labels, if there are any, of the samples at these places.
    pub fn part(&self, places: &Range<usize>) -> (Inputs<'_>, &[i32], &[Second]) {
        let seconds = self.seconds.get(places.clone()).unwrap_or_default();
        (self.inputs.all().part(places, self.labels.len()), &self.labels[places.clone()], seconds)
    }

    fn clear(&mut self, step: u64) {
        self.step = step;
        self.inputs.clear();
        self.labels.clear();
        self.seconds.clear();
        self.ids.clear();
        self.shards.clear();
        self.skipped.clear();
    }
}
