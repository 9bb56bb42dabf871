//! What this worker says to the coordinator, and remembers: a coordinator that
//! was started again, on the record of another, is told what that one took along.

use std::collections::VecDeque;

use common::wire::messages::ToCoordinator;
use tokio::sync::mpsc;

/// Messages that are remembered; at 100 steps a second, of a quarter of an hour.
const REMEMBERED: usize = 100_000;

/// Rank 0's line of a step may be on the record while the word of another rank
/// on it was lost, so that much is repeated.
const OVERLAP: u64 = 64;

/// The words of the training thread on their way to the coordinator.
pub struct Voice {
    outbox: mpsc::Receiver<ToCoordinator>,
    said: VecDeque<ToCoordinator>,
    generation: Option<u64>,
    /// The last word on where this worker stands, until it is in another ring.
    standing: Option<ToCoordinator>,
    leaving: bool,
}

impl Voice {
    pub fn new(outbox: mpsc::Receiver<ToCoordinator>) -> Self {
        Self { outbox, said: VecDeque::new(), generation: None, standing: None, leaving: false }
    }

    /// The next thing to say; never if there is nothing. May be cancelled.
    pub async fn next(&mut self) -> ToCoordinator {
        match self.outbox.recv().await {
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
            ToCoordinator::Hello { .. } | ToCoordinator::Heartbeat { .. } => {}
            ToCoordinator::Step { .. } | ToCoordinator::Evaluation(_) | ToCoordinator::Skipped { .. } | ToCoordinator::Trained(_) => {
                if self.said.len() == REMEMBERED {
                    self.said.pop_front();
                }
                self.said.push_back(message.clone());
            }
        }
    }

    /// This worker was put into a ring.
    pub fn joins(&mut self, generation: u64) {
        (self.generation, self.standing) = (Some(generation), None);
    }

    /// The generation that it is in.
    pub fn generation(&self) -> Option<u64> {
        self.generation
    }

    /// What to say to a coordinator whose record lacks `recorded` and later steps.
    pub fn again(&self, recorded: u64) -> Vec<ToCoordinator> {
        let lacking = |message: &&ToCoordinator| match message {
            ToCoordinator::Step { metrics, .. } => metrics.step >= recorded,
            ToCoordinator::Evaluation(evaluation) => evaluation.step >= recorded,
            ToCoordinator::Skipped { step, .. } => step + OVERLAP >= recorded,
            ToCoordinator::Trained(trained) => trained.step + OVERLAP >= recorded,
            _ => false,
        };
        let leaving = self.leaving.then_some(ToCoordinator::Leaving);
        self.said.iter().filter(lacking).cloned().chain(self.standing.clone()).chain(leaving).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(step: u64) -> ToCoordinator {
        ToCoordinator::Skipped { step, name: String::new(), problem: String::new() }
    }

    fn ready(generation: u64) -> ToCoordinator {
        ToCoordinator::Ready { device: String::new(), generation, step: 0 }
    }

    #[test]
    fn what_stands_and_what_the_record_lacks_is_said_again() {
        let (_keep, outbox) = mpsc::channel(1);
        let mut voice = Voice::new(outbox);
        voice.remember(&ready(0));
        assert_eq!((voice.generation(), voice.again(0)), (None, vec![ready(0)]));
        voice.joins(4);
        assert_eq!((voice.generation(), voice.again(0)), (Some(4), vec![]));
        (0..100).for_each(|step| voice.remember(&skipped(step)));
        voice.remember(&ToCoordinator::Leaving);
        voice.remember(&ToCoordinator::Heartbeat { step: 7, waiting: false });
        let expected: Vec<_> = (90 - OVERLAP..100).map(skipped).chain([ToCoordinator::Leaving]).collect();
        assert_eq!(voice.again(90), expected);
        voice.remember(&ready(4));
        assert_eq!((voice.generation(), voice.again(1000)), (None, vec![ready(4), ToCoordinator::Leaving]));
    }

    #[test]
    fn memory_is_bounded() {
        let (_keep, outbox) = mpsc::channel(1);
        let mut voice = Voice::new(outbox);
        (0..REMEMBERED as u64 + 10).for_each(|step| voice.remember(&skipped(step)));
        assert_eq!(voice.again(0).len(), REMEMBERED);
    }
}
