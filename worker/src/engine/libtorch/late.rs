//! Streams that are as late as they may be, for tests: a copy leaves garbage in the tensor
//! that it goes to, until a delay drawn from a seed has passed. Whoever does not wait for
//! it computes with garbage.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use common::seed;
use tch::{Kind, Tensor};

use super::super::EngineError;
use super::streams::{InlineStreams, Lane, Mark, Streams, Transfer};

/// The longest delay of a copy.
const LONGEST_US: u32 = 150;

/// Tells when a late copy is done.
#[derive(Debug, Clone, Default)]
pub(super) struct Ticket(Arc<(Mutex<bool>, Condvar)>);

impl Ticket {
    fn is_done(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_done(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let mut done = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*done {
            done = self.0.1.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Job {
    to: Tensor,
    from: Tensor,
    delay: Duration,
    ticket: Ticket,
}

/// Counts the waits of all streams of a run, one of which may be left out.
#[derive(Debug, Default)]
pub(super) struct Waits {
    pub(super) counted: AtomicUsize,
    pub(super) left_out: Option<usize>,
}

impl Waits {
    fn is_left_out(&self) -> bool {
        Some(self.counted.fetch_add(1, Ordering::Relaxed)) == self.left_out
    }
}

pub(super) struct LateStreams {
    rng: rand_chacha::ChaCha8Rng,
    lanes: [Sender<Job>; 2],
    waits: Arc<Waits>,
    ended: Arc<AtomicBool>,
}

impl LateStreams {
    pub(super) fn new(seed: u64, waits: Arc<Waits>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let lane = |_| {
            let (jobs, received): (Sender<Job>, Receiver<Job>) = channel();
            let ending = Arc::clone(&ended);
            std::thread::spawn(move || copy_late(received, &ending));
            jobs
        };
        Self { rng: seed::stream(seed, "late", &[]), lanes: [0, 1].map(lane), waits, ended }
    }

    fn await_unless_left_out(&self, transfer: &Transfer) {
        if let Transfer::Late(ticket) = transfer
            && !self.waits.is_left_out()
        {
            ticket.wait();
        }
    }
}

impl Drop for LateStreams {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// The thread of a lane. Nobody waits for what is left at the end.
fn copy_late(jobs: Receiver<Job>, ending: &AtomicBool) {
    for job in jobs {
        if !ending.load(Ordering::Relaxed) {
            std::thread::sleep(job.delay);
        }
        let copied = tch::no_grad(|| job.to.shallow_clone().f_copy_(&job.from));
        assert!(copied.is_ok(), "{copied:?}");
        job.ticket.set_done();
    }
}

/// Values that no computation should meet.
fn spoil(tensor: &Tensor) -> Result<(), EngineError> {
    let garbage = if matches!(tensor.kind(), Kind::Float | Kind::BFloat16) { f64::NAN } else { 165.0 };
    let _ = tch::no_grad(|| tensor.shallow_clone().f_fill_(garbage))?;
    Ok(())
}

impl Streams for LateStreams {
    fn host_memory(&self, len: usize, kind: Kind) -> Result<Tensor, EngineError> {
        let memory = InlineStreams.host_memory(len, kind)?;
        spoil(&memory)?;
        Ok(memory)
    }

    fn mark(&mut self) -> Result<Mark, EngineError> {
        Ok(Mark::Done)
    }

    fn copy(&mut self, lane: Lane, to: &Tensor, from: &Tensor, _after: &Mark) -> Result<Transfer, EngineError> {
        spoil(to)?;
        let ticket = Ticket::default();
        let delay = Duration::from_micros(seed::below(&mut self.rng, LONGEST_US).into());
        let job = Job { to: to.shallow_clone(), from: from.shallow_clone(), delay, ticket: ticket.clone() };
        self.lanes[usize::from(lane == Lane::ToHost)].send(job).map_err(|_| EngineError::Broken)?;
        Ok(Transfer::Late(ticket))
    }

    fn compute_after(&mut self, transfer: &Transfer) -> Result<(), EngineError> {
        self.await_unless_left_out(transfer);
        Ok(())
    }

    fn wait(&mut self, transfer: &Transfer) -> Result<(), EngineError> {
        self.await_unless_left_out(transfer);
        Ok(())
    }

    fn is_done(&mut self, transfer: &Transfer) -> Result<bool, EngineError> {
        Ok(if let Transfer::Late(ticket) = transfer { ticket.is_done() } else { true })
    }
}
