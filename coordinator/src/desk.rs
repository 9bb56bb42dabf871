//! Carries out what the membership decides, and keeps the record of what the
//! workers report. It waits for nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::recorder::Recorder;
use common::run_dir::{Event, LastGeneration, Recovery};
use common::wire::messages::{Finished, Generation, ToWorker};
use tokio::sync::mpsc;

use crate::membership::{Input, Output, WorkerId};
use crate::roster::Roster;
use crate::serve::Fact;

/// The run's record and the ways to its workers.
pub struct Desk {
    pub recorder: Recorder,
    keep_checkpoints: usize,
    /// Name and outbox of each connected worker.
    outboxes: BTreeMap<WorkerId, (String, mpsc::Sender<ToWorker>)>,
    recovery: Recovering,
    /// The newest generation.
    current: u64,
    /// The first step that the record lacks, for those who greet workers.
    recorded: Arc<AtomicU64>,
    roster: Arc<Roster>,
}

/// How the run ended, as the membership has it.
pub type Ended = Result<Vec<Finished>, String>;

impl Desk {
    pub fn new(recorder: Recorder, keep_checkpoints: usize, last: &LastGeneration, recorded: Arc<AtomicU64>, roster: Arc<Roster>) -> Self {
        roster.set_members(&last.members);
        let (outboxes, recovery) = (BTreeMap::new(), Recovering::default());
        let mut desk = Self { recorder, keep_checkpoints, outboxes, recovery, current: last.number, recorded, roster };
        desk.tell_recorded();
        desk
    }

    fn tell_recorded(&mut self) {
        self.recorded.store(self.recorder.recorded().0, Ordering::Relaxed);
    }

    /// A worker can be spoken to.
    pub fn connected(&mut self, worker: WorkerId, name: String, outbox: mpsc::Sender<ToWorker>) {
        self.outboxes.insert(worker, (name, outbox));
    }

    /// Sends the workers of this name away. Returns what the membership should know.
    pub fn expel(&mut self, name: &str, reason: &str) -> Vec<Input> {
        let found: Vec<WorkerId> = self.outboxes.iter().filter(|(_, (known, _))| known == name).map(|(&worker, _)| worker).collect();
        for &worker in &found {
            tracing::warn!("{name} is sent away: {reason}");
            self.send(worker, ToWorker::Refused { reason: reason.to_owned() });
        }
        found.into_iter().map(|worker| Input::Left { worker, reason: reason.to_owned() }).collect()
    }

    /// Notes for the journal what the membership is about to hear.
    pub fn note(&mut self, input: &Input) {
        match input {
            Input::Joined { name, addr, .. } => self.recorder.event(&Event::WorkerJoined { name: name.clone(), addr: addr.clone() }),
            Input::Failed { worker, reason } | Input::Left { worker, reason } => {
                // A connection that never said hello is nobody's.
                if let Some((name, _)) = self.outboxes.get(worker) {
                    self.recorder.event(&Event::WorkerLeft { name: name.clone(), reason: reason.clone() });
                }
            }
            _ => {}
        }
        if let Input::Left { worker, .. } = input {
            self.outboxes.remove(worker);
        }
    }

    /// Takes down what a worker reports.
    pub fn record(&mut self, worker: WorkerId, fact: Fact) {
        let member = self.outboxes.get(&worker).is_some_and(|(name, _)| self.roster.is_member(name));
        match fact {
            // Of an earlier ring, those that are in this one say what is lacking.
            Fact::Step { generation, metrics } if member && generation == self.current => {
                self.recovery.stepped(metrics.step, &mut self.recorder);
                self.recorder.step(&metrics);
                self.tell_recorded();
            }
            Fact::Evaluation(evaluation) if member => self.recorder.evaluation(&evaluation),
            Fact::Skipped { step, name, problem } => self.recorder.skipped(step, &name, &problem),
            Fact::Trained(trained) => self.recorder.trained(&trained),
            Fact::Step { .. } | Fact::Evaluation(_) => {}
        }
    }

    /// A checkpoint is on disk. Returns what the membership should know.
    pub fn stored(&mut self, step: u64) -> Input {
        self.recorder.checkpoint(step, self.keep_checkpoints);
        Input::Stored { step }
    }

    /// Does one thing that the membership asks for. Something once the run is over.
    pub fn carry_out(&mut self, output: Output) -> Option<Ended> {
        match output {
            Output::Refuse { worker, reason } => self.send(worker, ToWorker::Refused { reason }),
            Output::Waiting { ready, needed } => tracing::info!("{ready} of {needed} workers are ready"),
            Output::Lost { name, reason, silent } => {
                tracing::warn!("{name} is lost: it {reason}");
                self.recovery.lost(silent);
            }
            Output::End { members, generation, reason } => self.send_all(&members, &ToWorker::End { generation, reason }),
            Output::Yield { members, generation } => self.send_all(&members, &ToWorker::Yield { generation }),
            Output::Spare { worker } => self.send(worker, ToWorker::Spare),
            Output::Goodbye { worker } => self.send(worker, ToWorker::Goodbye),
            Output::Drop { worker, reason } => self.send(worker, ToWorker::Dropped { reason }),
            Output::Start { members, generation } => self.start(&members, generation),
            Output::Stop { members } => self.send_all(&members, &ToWorker::Stop),
            Output::Done { reports } => return Some(Ok(reports)),
            Output::Fail { members, reason } => {
                self.send_all(&members, &ToWorker::Abort { reason: reason.clone() });
                return Some(Err(reason));
            }
        }
        None
    }

    fn start(&mut self, members: &[WorkerId], generation: Generation) {
        tracing::info!("generation {}: {} workers, from step {}", generation.number, members.len(), generation.first_step);
        self.recovery.started(generation.first_step);
        self.current = generation.number;
        self.roster.set_members(&generation.members);
        self.recorder.generation(generation.number, &generation.members, generation.first_step);
        self.tell_recorded();
        let (recorded, evaluated) = self.recorder.recorded();
        let generation = Generation { recorded, evaluated, ..generation };
        for (rank, &member) in (0..).zip(members) {
            self.send(member, ToWorker::Generation(Generation { rank, ..generation.clone() }));
        }
    }

    /// The run ended as it should: the workers may go.
    pub fn dismiss(&self) {
        self.outboxes.keys().for_each(|&w| self.send(w, ToWorker::Goodbye));
    }

    /// Says nothing more to anybody.
    pub fn close(self) -> Recorder {
        self.recorder
    }

    fn send(&self, worker: WorkerId, message: ToWorker) {
        if let Some((_, outbox)) = self.outboxes.get(&worker)
            && outbox.try_send(message).is_err()
        {
            tracing::debug!("worker {worker} no longer takes messages");
        }
    }

    fn send_all(&self, workers: &[WorkerId], message: &ToWorker) {
        workers.iter().for_each(|&worker| self.send(worker, message.clone()));
    }
}

/// Times how long the loss of a worker holds the run up.
#[derive(Default)]
struct Recovering {
    /// When somebody was lost, and for how long nothing had been heard of it then.
    lost: Option<(Instant, Duration)>,
    /// The first step of the generation that followed.
    first_step: Option<u64>,
}

impl Recovering {
    fn lost(&mut self, silent: Duration) {
        self.first_step = None;
        self.lost.get_or_insert((Instant::now(), silent));
    }

    fn started(&mut self, first_step: u64) {
        self.first_step = self.lost.map(|_| first_step);
    }

    /// A step is on the record.
    fn stepped(&mut self, step: u64, recorder: &mut Recorder) {
        if self.first_step.is_none_or(|first| step < first) {
            return;
        }
        self.first_step = None;
        if let Some((since, silent)) = self.lost.take() {
            let ms = |d: Duration| d.as_secs_f64() * 1e3;
            recorder.recovery(Recovery { detect_ms: ms(silent), resume_ms: ms(since.elapsed()) });
        }
    }
}
