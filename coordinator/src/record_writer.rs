//! Writes the run's record on a thread of its own, so that a slow disk, or a terminal
//! that nobody reads, holds up nothing else.
//!
//! Entries come through a bounded queue. Some have to be on disk before any worker
//! may know of them (a generation, a worker's name): these are answered once they are
//! on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use common::audit::TrainedSamples;
use common::metrics::{Evaluation, Recovery, RunPicture, StepMetrics};
use common::predictions::Predictions;
use common::recorder::Recorder;
use common::run_dir::{Dense, Event};
use common::status::Status;
use common::wire::messages::Member;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

/// Reports of workers that may wait to be written. A disk that is stalled for longer
/// than it takes to fill this holds up the workers that report, and loses nothing.
const REPORTS: usize = 1 << 16;

/// Other entries that may wait to be written: the main loop decides little at a time.
const EVENTS: usize = 1 << 14;

/// Pictures that may wait to be written; more are left out.
const PICTURES: usize = 8;

/// How often a failed write is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// One thing to write.
pub enum Entry {
    Event(Event),
    /// Answered once the event is on disk; the sender is dropped if it never is.
    Durable(Event, oneshot::Sender<()>),
    /// A generation starts at `first_step`. Answered once this entry is on disk, with
    /// the first step that the record lacks and the newest step that it has an
    /// evaluation of.
    Generation {
        number: u64,
        members: Vec<Member>,
        first_step: u64,
        /// By rank: how many each owns, and its speed as far as it is known.
        shards: Vec<u32>,
        speeds: Vec<Option<f64>>,
        dense: Option<Dense>,
        started: oneshot::Sender<(u64, u64)>,
    },
    Step(StepMetrics, Place),
    Evaluation(Evaluation, Place),
    Skipped {
        step: u64,
        name: String,
        problem: String,
        place: Place,
    },
    Trained(TrainedSamples, Place),
    Shown(ToShow, Place),
    Checkpoint {
        step: u64,
    },
    Recovery(Recovery),
}

/// A place in the queue, held until a report is written.
pub type Place = OwnedSemaphorePermit;

/// What the record shows to people.
#[derive(Debug, Clone, PartialEq)]
pub enum ToShow {
    Picture(RunPicture),
    Predictions(Predictions),
}

/// Takes what is to be shown for the record, for as long as it is written. False for what is
/// left out.
pub type OnShown = Arc<dyn Fn(ToShow) -> bool + Send + Sync>;

/// The handle of the thread that writes.
pub struct RecordWriter {
    entries: mpsc::Sender<Entry>,
    thread: JoinHandle<Recorder>,
    places: Arc<Semaphore>,
    recorded: Arc<AtomicU64>,
    status: Arc<watch::Sender<Status>>,
}

impl RecordWriter {
    /// Hands the recorder to a thread of its own.
    pub fn start(recorder: Recorder) -> std::io::Result<Self> {
        let (entries, queue) = mpsc::channel(REPORTS + EVENTS);
        let recorded = Arc::new(AtomicU64::new(0));
        let status = recorder.status();
        let mut writer = Writer { recorder, recorded: Arc::clone(&recorded), unanswered: Vec::new() };
        writer.tell_recorded();
        let thread = std::thread::Builder::new().name("record".to_owned()).spawn(move || writer.write(queue))?;
        Ok(Self { entries, thread, places: Arc::new(Semaphore::new(REPORTS)), recorded, status })
    }

    /// The first step that the record lacks, for the tasks that welcome workers.
    pub fn recorded(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.recorded)
    }

    /// The places in the queue; a report needs one.
    pub fn places(&self) -> Arc<Semaphore> {
        Arc::clone(&self.places)
    }

    /// Takes pictures for the record.
    pub fn pictures(&self) -> OnShown {
        // The thread ends when all senders are gone, and this one outlives the run.
        let (entries, places) = (self.entries.downgrade(), Arc::new(Semaphore::new(PICTURES)));
        Arc::new(move |shown| {
            let (Some(entries), Ok(place)) = (entries.upgrade(), Arc::clone(&places).try_acquire_owned()) else { return false };
            entries.try_send(Entry::Shown(shown, place)).is_ok()
        })
    }

    /// The status of the run.
    pub fn status(&self) -> &watch::Sender<Status> {
        &self.status
    }

    /// Queues an entry to be written.
    pub fn put(&self, entry: Entry) {
        // Reports need a place, so the queue is full only if the disk has taken no
        // event for very long.
        if self.entries.try_send(entry).is_err() {
            tracing::error!("the run's record cannot be written: something that happened is missing on it");
        }
    }

    /// Waits until all is written, and returns the recorder.
    pub async fn close(self) -> std::io::Result<Recorder> {
        drop(self.entries);
        let ended = tokio::task::spawn_blocking(move || self.thread.join()).await;
        ended.map_err(std::io::Error::other)?.map_err(|_| std::io::Error::other("the thread that writes the record panicked"))
    }
}

struct Writer {
    recorder: Recorder,
    recorded: Arc<AtomicU64>,
    /// The senders that wait until the journal is on disk.
    unanswered: Vec<Answer>,
}

enum Answer {
    Event(oneshot::Sender<()>),
    Generation(oneshot::Sender<(u64, u64)>),
}

impl Writer {
    fn write(mut self, mut queue: mpsc::Receiver<Entry>) -> Recorder {
        loop {
            // If no sender waits for an answer, there is nothing to do until an entry
            // comes.
            let next = if self.unanswered.is_empty() { queue.blocking_recv().ok_or(TryRecvError::Disconnected) } else { queue.try_recv() };
            match next {
                Ok(entry) => self.take(entry),
                Err(TryRecvError::Disconnected) => return self.recorder,
                Err(TryRecvError::Empty) => {
                    std::thread::sleep(AGAIN);
                    if self.recorder.sync_journal() {
                        self.release();
                    }
                }
            }
        }
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Event(event) => _ = self.recorder.event(&event),
            Entry::Durable(event, written) => {
                self.unanswered.push(Answer::Event(written));
                self.journalled(|recorder| recorder.event(&event));
            }
            Entry::Generation { number, members, first_step, shards, speeds, dense, started } => {
                self.unanswered.push(Answer::Generation(started));
                self.journalled(|recorder| recorder.generation(number, &members, first_step, &shards, &speeds, dense));
            }
            Entry::Step(metrics, _place) => self.recorder.step(&metrics),
            Entry::Evaluation(evaluation, _place) => self.recorder.evaluation(&evaluation),
            Entry::Skipped { step, name, problem, place: _place } => self.recorder.skipped(step, &name, &problem),
            Entry::Trained(trained, _place) => self.recorder.trained(&trained),
            Entry::Shown(ToShow::Picture(picture), _place) => self.recorder.picture(&picture),
            Entry::Shown(ToShow::Predictions(predictions), _place) => self.recorder.predictions(&predictions),
            Entry::Checkpoint { step } => self.recorder.checkpoint(step),
            Entry::Recovery(recovery) => self.recorder.recovery(recovery),
        }
        self.tell_recorded();
    }

    /// Writes a line of the journal. Once it is on disk, so are earlier lines that
    /// waited in memory.
    fn journalled(&mut self, write: impl FnOnce(&mut Recorder) -> bool) {
        if write(&mut self.recorder) {
            self.release();
        }
    }

    fn release(&mut self) {
        self.tell_recorded();
        let recorded = self.recorder.recorded();
        for waiting in self.unanswered.drain(..) {
            // The receiver may be gone.
            match waiting {
                Answer::Event(written) => _ = written.send(()),
                Answer::Generation(started) => _ = started.send(recorded),
            }
        }
    }

    fn tell_recorded(&mut self) {
        self.recorded.store(self.recorder.recorded().0, Ordering::Relaxed);
    }
}
