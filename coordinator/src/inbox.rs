//! The news for the main loop, timestamped where it came in and handled in that order.

use std::time::Instant;

use common::audit::TrainedSamples;
use common::metrics::{Evaluation, StepMetrics, TimeShares};
use common::wire::messages::{Generation, ToWorker};
use tokio::sync::{mpsc, oneshot};

use crate::membership::{Input, WorkerId};
use crate::record_writer::Place;

/// What tasks tell the main loop, each item with the time at which it came.
pub enum News {
    /// A control connection was accepted and said hello.
    Connected {
        worker: WorkerId,
        name: String,
        outbox: mpsc::Sender<ToWorker>,
        input: Input,
    },
    Membership(Input),
    /// The device that a worker computes on.
    Device(WorkerId, String),
    /// Where a worker's time goes.
    Spends(WorkerId, TimeShares),
    Report(WorkerId, Fact, Place),
    /// The worker of this name sends bytes over another connection.
    Alive {
        name: String,
    },
    /// A checkpoint is on disk.
    Stored {
        step: u64,
    },
    /// A generation is on disk: its members may learn of it.
    Recorded {
        members: Vec<WorkerId>,
        generation: Generation,
    },
    /// A newcomer has proved that it knows this token's secret, and needs a name.
    Enrol {
        token: String,
        name: oneshot::Sender<String>,
    },
    /// These tokens were revoked, and with them the certificates of these names.
    Revoked {
        names: Vec<String>,
        tokens: Vec<String>,
    },
}

/// Events from outside of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LauncherEvent {
    /// A person asks the run to stop; a second request stops it at once.
    Stop,
    /// A person asks the run to stop with a checkpoint; asking again changes nothing.
    StopWithCheckpoint,
    /// A person asks the worker of this name to leave after the step in flight.
    Leave { name: String },
    /// The process of the worker that prefers this rank has ended: the membership
    /// need not wait for its timeout.
    Ended { preferred_rank: u32 },
}

/// The sender to the main loop.
#[derive(Clone)]
pub struct Inbox(pub mpsc::Sender<(Instant, News)>);

impl Inbox {
    /// Timestamps the news and hands it over. False once the run is over.
    pub async fn send(&self, news: News) -> bool {
        self.0.send((Instant::now(), news)).await.is_ok()
    }

    /// Hands over news that may be dropped if there is no room for it.
    pub fn try_send(&self, news: News) {
        let _ = self.0.try_send((Instant::now(), news));
    }
}

/// What workers report for the record.
#[derive(Debug)]
pub enum Fact {
    Step { generation: u64, metrics: StepMetrics },
    Evaluation(Evaluation),
    Skipped { step: u64, name: String, problem: String },
    Trained(TrainedSamples),
}

/// What the main loop does next.
pub enum Step {
    Input(Input),
    News(News),
}

/// All news that came before `now`, and then this input: a tick must not give up a
/// worker whose heartbeat waits to be read.
pub fn after_news(inbox: &mut mpsc::Receiver<(Instant, News)>, now: Instant, input: Input) -> Vec<(Instant, Step)> {
    let news = std::iter::from_fn(|| inbox.try_recv().ok()).map(|(at, news)| (at, Step::News(news)));
    let mut batch: Vec<(Instant, Step)> = news.collect();
    batch.push((now, Step::Input(input)));
    batch
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tick_comes_after_all_that_was_there_before_it() {
        let (send, mut inbox) = mpsc::channel(8);
        let (to_loop, start) = (Inbox(send), Instant::now());
        for worker in [3, 1, 2] {
            assert!(to_loop.send(News::Membership(Input::Alive { worker })).await);
        }
        let now = Instant::now();
        let batch = after_news(&mut inbox, now, Input::Tick);
        assert!(batch.is_sorted_by_key(|(at, _)| *at) && batch[0].0 >= start && batch[3].0 == now);
        let order: Vec<Option<WorkerId>> = batch
            .into_iter()
            .map(|(_, step)| match step {
                Step::News(News::Membership(Input::Alive { worker })) => Some(worker),
                Step::Input(Input::Tick) => None,
                _ => unreachable!("nothing else was said"),
            })
            .collect();
        assert_eq!(order, [Some(3), Some(1), Some(2), None]);
        assert!(inbox.try_recv().is_err());
    }
}
