//! This worker's messages to the coordinator, and the reports that it remembers. A
//! restarted coordinator is sent again the reports that its record lacks; and if rank 0
//! is lost before the coordinator has received its reports, another rank sends them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::metrics::{Evaluation, StepMetrics};
use common::wire::messages::ToCoordinator;
use tokio::sync::mpsc;

/// The most bytes of messages that are remembered: a quarter of an hour at 100 steps a
/// second, with the ids of a batch of 128.
const REMEMBERED_BYTES: usize = 64 << 20;

/// Reports on so many recorded steps are repeated, since the record may have rank 0's
/// line of a step while another rank's report on it was lost.
const OVERLAP: u64 = 64;

/// A message that may have to be sent again, or in the place of rank 0.
#[derive(Debug)]
struct Kept {
    message: ToCoordinator,
    /// Whether this worker has sent the message; if not, rank 0 was to send it.
    said: bool,
}

/// Reports that are remembered, bounded in bytes: the oldest are dropped first.
#[derive(Debug, Default)]
struct Log {
    kept: VecDeque<Kept>,
    bytes: usize,
    /// Whether reports were dropped, which is logged once.
    overflowed: bool,
}

/// The memory of a message in bytes, approximately.
fn size(message: &ToCoordinator) -> usize {
    size_of::<Kept>()
        + match message {
            ToCoordinator::Step { metrics, .. } => metrics.samples_checksum.len(),
            ToCoordinator::Skipped { name, problem, .. } => name.len() + problem.len(),
            ToCoordinator::Trained(trained) => size_of::<u32>() * (trained.ids.len() + trained.skipped.len()),
            _ => 0,
        }
}

impl Log {
    fn push(&mut self, message: ToCoordinator, said: bool) {
        self.bytes += size(&message);
        self.kept.push_back(Kept { message, said });
        while self.bytes > REMEMBERED_BYTES
            && let Some(oldest) = self.kept.pop_front()
        {
            self.bytes -= size(&oldest.message);
            if !std::mem::replace(&mut self.overflowed, true) {
                tracing::debug!("more was reported than is remembered: the oldest reports cannot be said again");
            }
        }
    }

    /// Removes and returns the messages that `which` selects.
    fn take(&mut self, which: impl Fn(&ToCoordinator) -> bool) -> Vec<ToCoordinator> {
        let (taken, kept) = std::mem::take(&mut self.kept).into_iter().partition(|k| which(&k.message));
        self.kept = kept;
        self.bytes = self.kept.iter().map(|k| size(&k.message)).sum();
        let taken: VecDeque<Kept> = taken;
        taken.into_iter().map(|k| k.message).collect()
    }
}

/// The log, which the training thread and the async side share.
#[derive(Debug, Clone, Default)]
pub struct ReplayLog(Arc<Mutex<Log>>);

impl ReplayLog {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a step that rank 0 reports.
    pub fn keep_step(&self, generation: u64, metrics: &StepMetrics) {
        self.log().push(ToCoordinator::Step { generation, metrics: metrics.clone() }, false);
    }

    /// Remembers an evaluation that rank 0 reports.
    pub fn keep_evaluation(&self, evaluation: &Evaluation) {
        self.log().push(ToCoordinator::Evaluation(evaluation.clone()), false);
    }

    /// A generation begins at step `first`: forgets the reports on steps that are
    /// trained again, and returns the reports on earlier steps that the record lacks,
    /// for this worker to send.
    pub fn lacking(&self, generation: u64, first: u64, recorded: u64, evaluated: u64) -> Vec<ToCoordinator> {
        let taken = self.log().take(|message| match message {
            ToCoordinator::Step { metrics, .. } => metrics.step >= first || metrics.step >= recorded,
            ToCoordinator::Evaluation(evaluation) => evaluation.step > first || evaluation.step > evaluated,
            _ => false,
        });
        let lacking = |message| match message {
            ToCoordinator::Step { metrics, .. } if metrics.step < first => Some(ToCoordinator::Step { generation, metrics }),
            ToCoordinator::Evaluation(evaluation) if evaluation.step <= first => Some(ToCoordinator::Evaluation(evaluation)),
            _ => None,
        };
        taken.into_iter().filter_map(lacking).collect()
    }
}

/// The messages of the training thread on their way to the coordinator.
pub struct Outbox {
    queue: mpsc::Receiver<ToCoordinator>,
    log: ReplayLog,
    generation: Option<u64>,
    /// The last message that says whether this worker is ready, finished or failed,
    /// until the worker is in another ring.
    standing: Option<ToCoordinator>,
    leaving: bool,
}

impl Outbox {
    pub fn new(queue: mpsc::Receiver<ToCoordinator>, log: ReplayLog) -> Self {
        Self { queue, log, generation: None, standing: None, leaving: false }
    }

    /// Waits for the next message to send. May be cancelled.
    pub async fn next(&mut self) -> ToCoordinator {
        match self.queue.recv().await {
            Some(message) => {
                self.remember(&message);
                message
            }
            None => std::future::pending().await,
        }
    }

    fn remember(&mut self, message: &ToCoordinator) {
        match message {
            ToCoordinator::Ready { .. } => (self.generation, self.standing) = (None, Some(message.clone())),
            ToCoordinator::Finished(_) | ToCoordinator::Failed { .. } => self.standing = Some(message.clone()),
            ToCoordinator::Leaving => self.leaving = true,
            ToCoordinator::Hello { .. }
            | ToCoordinator::Heartbeat { .. }
            | ToCoordinator::Probed { .. }
            | ToCoordinator::Missed { .. }
            | ToCoordinator::Relayed { .. } => {}
            ToCoordinator::Step { .. } | ToCoordinator::Evaluation(_) | ToCoordinator::Skipped { .. } | ToCoordinator::Trained(_) => {
                self.log.log().push(message.clone(), true);
            }
        }
    }

    /// This worker was put into the ring of `generation`.
    pub fn joins(&mut self, generation: u64) {
        (self.generation, self.standing) = (Some(generation), None);
    }

    /// The coordinator gave this worker up: forgets that the worker finished or failed.
    /// Returns the generation that it was in.
    pub fn is_given_up(&mut self) -> Option<u64> {
        if !matches!(self.standing, Some(ToCoordinator::Ready { .. })) {
            self.standing = None;
        }
        self.generation.take()
    }

    /// The generation that this worker is in.
    pub fn generation(&self) -> Option<u64> {
        self.generation
    }

    /// The messages to send again to a coordinator whose record lacks step `recorded`
    /// and later ones.
    pub fn again(&self, recorded: u64) -> Vec<ToCoordinator> {
        let lacking = |message: &ToCoordinator| match message {
            ToCoordinator::Step { metrics, .. } => metrics.step >= recorded,
            ToCoordinator::Evaluation(evaluation) => evaluation.step >= recorded,
            ToCoordinator::Skipped { step, .. } => step + OVERLAP >= recorded,
            ToCoordinator::Trained(trained) => trained.step + OVERLAP >= recorded,
            _ => false,
        };
        let said: Vec<_> = self.log.log().kept.iter().filter(|k| k.said && lacking(&k.message)).map(|k| k.message.clone()).collect();
        said.into_iter().chain(self.standing.clone()).chain(self.leaving.then_some(ToCoordinator::Leaving)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(step: u64) -> ToCoordinator {
        ToCoordinator::Skipped { step, name: String::new(), problem: String::new() }
    }

    fn ready(generation: u64) -> ToCoordinator {
        ToCoordinator::Ready { device: String::new(), generation, step: 0, committed: 0, products: None }
    }

    fn outbox() -> (mpsc::Sender<ToCoordinator>, Outbox) {
        let (sender, queue) = mpsc::channel(1);
        (sender, Outbox::new(queue, ReplayLog::default()))
    }

    fn evaluation(step: u64) -> Evaluation {
        Evaluation { step, epoch: 0, loss: 0.0, top1: 0.0, top5: 0.0, samples: 1 }
    }

    #[test]
    fn what_stands_and_what_the_record_lacks_is_said_again() {
        let (_keep, mut outbox) = outbox();
        outbox.remember(&ready(0));
        assert_eq!((outbox.generation(), outbox.again(0)), (None, vec![ready(0)]));
        outbox.joins(4);
        assert_eq!((outbox.generation(), outbox.again(0)), (Some(4), vec![]));
        (0..100).for_each(|step| outbox.remember(&skipped(step)));
        outbox.remember(&ToCoordinator::Leaving);
        outbox.remember(&ToCoordinator::Heartbeat { step: 7, waiting: false, speed: None, shares: None });
        let expected: Vec<_> = (90 - OVERLAP..100).map(skipped).chain([ToCoordinator::Leaving]).collect();
        assert_eq!(outbox.again(90), expected);
        outbox.remember(&ready(4));
        assert_eq!((outbox.generation(), outbox.again(1000)), (None, vec![ready(4), ToCoordinator::Leaving]));
    }

    #[test]
    fn what_rank_0_did_not_get_to_say_is_said_by_another_once() {
        let (_keep, mut outbox) = outbox();
        (1..=6).for_each(|step| outbox.log.keep_evaluation(&evaluation(step)));
        assert_eq!(outbox.again(0), [], "it was not this worker's to say");
        let lacking = outbox.log.lacking(2, 5, 0, 3);
        assert_eq!(lacking, [4, 5].map(|step| ToCoordinator::Evaluation(evaluation(step))), "6 is to be made again");
        lacking.iter().for_each(|message| outbox.remember(message));
        assert_eq!(outbox.again(0), lacking);
    }

    #[test]
    fn one_that_was_given_up_stands_where_it_stood_in_no_ring_only() {
        let (_keep, mut outbox) = outbox();
        outbox.remember(&ready(3));
        assert_eq!((outbox.is_given_up(), outbox.again(0)), (None, vec![ready(3)]));
        outbox.joins(4);
        outbox.remember(&ToCoordinator::Failed { reason: String::new(), run: false });
        assert_eq!((outbox.is_given_up(), outbox.again(0)), (Some(4), vec![]));
    }

    #[test]
    fn memory_is_bounded_in_bytes() {
        let (_keep, mut outbox) = outbox();
        let large = |step| ToCoordinator::Skipped { step, name: "x".repeat(1 << 20), problem: String::new() };
        (0..200).for_each(|step| outbox.remember(&large(step)));
        let held = outbox.again(0).len();
        assert!((60..=64).contains(&held), "{held} of a megabyte each");
        assert_eq!(outbox.again(0).last(), Some(&large(199)));
        outbox.log.log().take(|_| true);
        assert_eq!(outbox.log.log().bytes, 0);
    }
}
