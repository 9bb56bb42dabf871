//! Carries out the membership's decisions, and checks the workers' reports before
//! they go on the record. Nothing here waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{Balance, Config, name_of};
use common::metrics::{Recovery, TimeShares};
use common::plan::Ownership;
use common::recorder::Recorder;
use common::run_dir::{Dense, Event};
use common::status::MemberStatus;
use common::wire::messages::{Finished, Generation, Member, ToWorker};
use tokio::sync::{mpsc, oneshot};

use crate::admissions::Admissions;
use crate::inbox::{Fact, News};
use crate::membership::{Input, Lineage, Output, WorkerId};
use crate::record_writer::{Entry, Place, RecordWriter};
use crate::relay::Relay;

/// The handles to the run's record and to its workers.
pub(super) struct Effects {
    record: RecordWriter,
    news: mpsc::Sender<(Instant, News)>,
    /// The connected workers.
    workers: BTreeMap<WorkerId, Connected>,
    recovery: Recovering,
    /// The newest generation.
    current: u64,
    admissions: Arc<Admissions>,
    relay: Arc<Relay>,
    balance: Balance,
}

/// A worker with an open control connection.
struct Connected {
    name: String,
    /// The device in the worker's own words; empty until the worker is ready.
    device: String,
    outbox: mpsc::Sender<ToWorker>,
}

/// How the run ended, according to the membership.
pub(super) type RunEnd = Result<Vec<Finished>, String>;

impl Effects {
    pub(super) fn new(
        record: RecordWriter,
        news: mpsc::Sender<(Instant, News)>,
        current: u64,
        admissions: Arc<Admissions>,
        relay: Arc<Relay>,
        config: &Config,
    ) -> Self {
        let balance = config.cluster.balance;
        Self { record, news, workers: BTreeMap::new(), recovery: Recovering::default(), current, admissions, relay, balance }
    }

    /// Adds a worker with an open control connection.
    pub(super) fn connected(&mut self, worker: WorkerId, name: String, outbox: mpsc::Sender<ToWorker>) {
        self.workers.insert(worker, Connected { name, device: String::new(), outbox });
    }

    /// The connection of the worker of this name.
    pub(super) fn worker(&self, name: &str) -> Option<WorkerId> {
        self.workers.iter().rev().find(|(_, w)| w.name == name).map(|(&worker, _)| worker)
    }

    /// The name of a connected worker.
    pub(super) fn name(&self, worker: WorkerId) -> Option<&str> {
        self.workers.get(&worker).map(|w| w.name.as_str())
    }

    /// Sets the device that a worker computes on.
    pub(super) fn describe(&mut self, worker: WorkerId, device: String) {
        if let Some(w) = self.workers.get_mut(&worker) {
            w.device = device;
        }
    }

    /// Refuses all connections of the worker of this name. Returns the inputs for the
    /// membership.
    pub(super) fn expel(&mut self, name: &str, reason: &str) -> Vec<Input> {
        self.relay.expel(name);
        let found: Vec<WorkerId> = self.workers.iter().filter(|(_, w)| w.name == name).map(|(&worker, _)| worker).collect();
        for &worker in &found {
            tracing::warn!("{name} is sent away: {reason}");
            self.send(worker, ToWorker::Refused { reason: reason.to_owned() });
        }
        found.into_iter().map(|worker| Input::Left { worker, reason: reason.to_owned() }).collect()
    }

    /// Shows where a member's time goes.
    pub(super) fn spends(&self, worker: WorkerId, shares: TimeShares) {
        let Some(Connected { name, .. }) = self.workers.get(&worker) else { return };
        self.record.status().send_if_modified(|status| {
            let member = status.members.iter_mut().find(|m| m.name == *name && m.shares != Some(shares));
            member.map(|m| m.shares = Some(shares)).is_some()
        });
    }

    /// Journals an input that the membership is about to get.
    pub(super) fn note(&mut self, input: &Input) {
        match input {
            Input::Joined { member, .. } => self.event(Event::WorkerJoined { name: member.name.clone(), addr: member.addr }),
            Input::Failed { worker, reason, .. } | Input::Left { worker, reason } => {
                // A connection that never sent a hello belongs to no worker.
                if let Some(Connected { name, .. }) = self.workers.get(worker) {
                    self.event(Event::WorkerLeft { name: name.clone(), reason: reason.clone() });
                }
            }
            _ => {}
        }
        if let Input::Left { worker, .. } | Input::Disconnected { worker } = input {
            self.workers.remove(worker);
        }
        if let Input::Beat { worker, step, speed, .. } = input
            && let Some(Connected { name, .. }) = self.workers.get(worker)
        {
            self.record.status().send_if_modified(|status| {
                let member = status.members.iter_mut().find(|m| m.name == *name && (m.step, m.speed) != (*step, *speed));
                member.map(|m| (m.step, m.speed) = (*step, *speed)).is_some()
            });
        }
    }

    /// Has an event written into the journal.
    pub(super) fn event(&self, event: Event) {
        self.record.put(Entry::Event(event));
    }

    /// Records a worker's report, if this worker can truthfully make it.
    pub(super) fn report(&mut self, at: Instant, worker: WorkerId, fact: Fact, place: Place, lineage: &Lineage) {
        let Some(Connected { name, .. }) = self.workers.get(&worker) else { return };
        let member = self.admissions.is_member(name);
        match fact {
            // Reports of an earlier ring are ignored: the members of this one report
            // the steps that the record lacks.
            Fact::Step { generation, metrics } if member && generation == self.current => {
                if let Some(recovery) = self.recovery.stepped(at, metrics.step) {
                    self.record.put(Entry::Recovery(recovery));
                }
                self.record.put(Entry::Step(metrics, place));
            }
            Fact::Evaluation(evaluation) if member => self.record.put(Entry::Evaluation(evaluation, place)),
            Fact::Skipped { step, name: sample, problem } if lineage.was_member(name) => {
                self.record.put(Entry::Skipped { step, name: sample, problem, place });
            }
            Fact::Trained(trained) if lineage.was_rank(name, trained.generation, trained.rank) => {
                self.record.put(Entry::Trained(trained, place));
            }
            other => tracing::debug!("{name} reports what is not its own to report: {other:?}"),
        }
    }

    /// Records that a checkpoint is on disk. Returns the input for the membership.
    pub(super) fn stored(&mut self, step: u64) -> Input {
        self.record.put(Entry::Checkpoint { step });
        Input::Stored { step }
    }

    /// Carries out one output of the membership. Returns `Some` once the run is over.
    pub(super) fn carry_out(&mut self, at: Instant, output: Output) -> Option<RunEnd> {
        match output {
            Output::Refuse { worker, reason } => self.send(worker, ToWorker::Refused { reason }),
            Output::Waiting { ready, needed } => tracing::info!("{ready} of {needed} workers are ready"),
            Output::Awaiting { step, names, at_most } => tracing::warn!(
                "the run is at step {step}, whose state only {} may hold, out of reach now: waiting for {} s at most before the run goes back to an older state",
                names.join(", "),
                at_most.as_secs()
            ),
            Output::WentBack { from, to } => {
                tracing::warn!("nobody is left who holds the state of step {from}: the run goes back to step {to}");
                self.event(Event::WentBack { from, to });
            }
            Output::Isolated => tracing::warn!(
                "no worker is heard any more: the network of this machine may be down; nobody is given up until somebody is heard again"
            ),
            Output::Probe { worker, peers, bytes } => {
                if let Some(name) = self.name(worker) {
                    self.relay.probes(name, &peers);
                }
                self.send(worker, ToWorker::Probe { peers, bytes });
            }
            Output::LeftOut { name, other, reason, again } => {
                let message = ToWorker::LeftOut { name: name.clone(), reason: reason.clone(), again_ms: again.as_millis() as u64 };
                self.tell([&name].into_iter().chain(&other), &message);
                tracing::warn!("{name} is left out of the ring and tried again in {} s: {reason}", again.as_secs());
                self.event(Event::LeftOut { name, reason });
            }
            Output::Relayed { generation, names, reason } => {
                self.tell(&names, &ToWorker::Relayed { reason: reason.clone() });
                tracing::warn!("{reason}");
                self.event(Event::Relayed { generation, names, reason });
            }
            Output::Store { worker } => self.send(worker, ToWorker::Store),
            Output::Lost { name, reason, silent } => {
                tracing::warn!("{name} is lost: it {reason}");
                self.event(Event::WorkerLost { name, reason, silent_ms: silent.as_secs_f64() * 1e3 });
                self.recovery.lost(at, silent);
            }
            Output::End { members, generation, reason } => self.send_all(&members, &ToWorker::End { generation, reason }),
            Output::Balance { from, to, gain } => {
                tracing::info!("the shards move by speed, {to} instead of {from}: steps should take {:.0} % less time", 100.0 * gain)
            }
            Output::Yield { members, generation } => self.send_all(&members, &ToWorker::Yield { generation }),
            Output::Spare { worker } => self.send(worker, ToWorker::Spare),
            Output::Goodbye { worker } => self.send(worker, ToWorker::Goodbye),
            Output::Drop { worker, reason } => {
                // The loss of a member was logged already.
                if let Some(Connected { name, .. }) = self.workers.get(&worker)
                    && !self.admissions.is_member(name)
                {
                    tracing::info!("{name}, which was in no ring, is gone: it {reason}");
                }
                self.send(worker, ToWorker::Dropped { reason });
            }
            Output::Start { members, generation, speeds, dense } => self.start(members, generation, &speeds, dense),
            Output::Stop { members } => self.send_all(&members, &ToWorker::Stop),
            Output::Done { reports } => return Some(Ok(reports)),
            Output::Fail { members, reason } => {
                self.send_all(&members, &ToWorker::Abort { reason: reason.clone() });
                return Some(Err(reason));
            }
        }
        None
    }

    /// Starts a generation. Its members are told of it once it is on disk: a
    /// restarted coordinator must know every generation that any worker was in.
    fn start(&mut self, members: Vec<WorkerId>, generation: Generation, speeds: &[Option<f64>], dense: Option<Dense>) {
        let Generation { number, first_step, .. } = generation;
        let shares = shares(&generation.shards, speeds, self.balance);
        tracing::info!("generation {number}: {} workers, from step {first_step}; {shares}", members.len());
        if let Some(Dense::Sum(reason)) = &dense
            && members.len() > 1
        {
            tracing::warn!("the gradients of dense layers are summed, which takes longer than to exchange factors: {reason}");
        }
        self.recovery.started(generation.first_step);
        self.current = generation.number;
        self.admissions.set_members(&generation.members);
        self.relay.set_members(&generation.members);
        self.show(&generation, speeds);
        let (started, on_disk) = oneshot::channel();
        let (members_by_rank, shards) = (generation.members.clone(), generation.shards.clone());
        let speeds = speeds.to_vec();
        self.record.put(Entry::Generation { number, members: members_by_rank, first_step, shards, speeds, dense, started });
        let news = self.news.clone();
        tokio::spawn(async move {
            if let Ok((recorded, evaluated)) = on_disk.await {
                let generation = Generation { recorded, evaluated, ..generation };
                // The main loop may have ended; then no generation starts.
                let _ = news.send((Instant::now(), News::Recorded { members, generation })).await;
            }
        });
    }

    /// Shows the members in the run's status.
    fn show(&self, generation: &Generation, speeds: &[Option<f64>]) {
        let mut end = 0;
        let member = |((member, count), speed): ((&Member, &u32), &Option<f64>)| {
            let start = end;
            end += count;
            let device = self.workers.values().find(|w| w.name == member.name).map(|w| w.device.clone()).unwrap_or_default();
            MemberStatus {
                name: member.name.clone(),
                address: member.addr.to_string(),
                device,
                shards: (start, end),
                step: generation.first_step,
                images_per_second: 0.0,
                speed: *speed,
                shares: None,
            }
        };
        let members: Vec<MemberStatus> = generation.members.iter().zip(&generation.shards).zip(speeds).map(member).collect();
        self.record.status().send_modify(|status| (status.generation, status.members) = (generation.number, members));
    }

    /// Sends its generation to each member, once the generation is on disk.
    pub(super) fn started(&mut self, members: &[WorkerId], generation: &Generation) {
        for (rank, &member) in (0..).zip(members) {
            self.send(member, ToWorker::Generation(generation.for_rank(rank)));
        }
    }

    /// Gives a newcomer its name once the name is journaled on disk, so that no name
    /// is given twice after a restart.
    pub(super) fn enrol(&mut self, admissions: &Arc<Admissions>, token: String, name: oneshot::Sender<String>) {
        let given = admissions.reserve(&token);
        let (written, on_disk) = oneshot::channel();
        self.record.put(Entry::Durable(Event::Enrolled { name: given.clone(), token }, written));
        let admissions = Arc::clone(admissions);
        tokio::spawn(async move {
            // The newcomer may have given up waiting: then no worker has the name.
            if on_disk.await.is_err() || name.send(given.clone()).is_err() {
                admissions.release(&given);
            }
        });
    }

    /// Writes all that was recorded, and returns the recorder.
    pub(super) async fn close(self) -> std::io::Result<Recorder> {
        // Nothing more is sent to any worker.
        drop(self.workers);
        self.record.close().await
    }

    /// The run ended as it should: tells all workers to go.
    pub(super) fn dismiss(&mut self) {
        let all: Vec<WorkerId> = self.workers.keys().copied().collect();
        all.into_iter().for_each(|worker| self.send(worker, ToWorker::Goodbye));
    }

    /// Sends a message to a worker. A worker that does not take its messages is cut
    /// off: it comes back and is told what it missed.
    /// Sends a message to the workers of these names, as far as they are connected.
    fn tell<'a>(&mut self, names: impl IntoIterator<Item = &'a String>, message: &ToWorker) {
        for name in names {
            if let Some(worker) = self.worker(name) {
                self.send(worker, message.clone());
            }
        }
    }

    fn send(&mut self, worker: WorkerId, message: ToWorker) {
        if let Some(Connected { name, outbox, .. }) = self.workers.get(&worker)
            && outbox.try_send(message).is_err()
        {
            tracing::debug!("{name} no longer takes messages");
            self.workers.remove(&worker);
        }
    }

    fn send_all(&mut self, workers: &[WorkerId], message: &ToWorker) {
        workers.iter().for_each(|&worker| self.send(worker, message.clone()));
    }
}

/// Who owns how many shards, and why, in words.
fn shares(shards: &[u32], speeds: &[Option<f64>], balance: Balance) -> String {
    let ownership = Ownership::of(shards, shards.len(), shards.iter().sum());
    let shards = ownership.map_or_else(|problem| problem, |ownership| ownership.to_string());
    let speed = |speed: &Option<f64>| speed.map_or_else(|| "unknown".to_owned(), |speed| format!("{speed:.1}"));
    let why = match balance {
        Balance::Equal => format!("cluster.balance is \"{}\"", name_of(balance)),
        Balance::Speed if speeds.iter().all(Option::is_none) => "no speed is known yet".to_owned(),
        // As many as are named of the shards.
        Balance::Speed => format!("samples/s: {}", speeds.iter().take(16).map(speed).collect::<Vec<_>>().join(", ")),
    };
    format!("shards by rank: {shards} ({why})")
}

/// Times how long the loss of a worker holds the run up.
#[derive(Default)]
struct Recovering {
    /// When a worker was lost, and for how long it had been silent by then.
    lost: Option<(Instant, Duration)>,
    /// The first step of the generation that followed.
    first_step: Option<u64>,
}

impl Recovering {
    fn lost(&mut self, at: Instant, silent: Duration) {
        self.first_step = None;
        self.lost.get_or_insert((at, silent));
    }

    fn started(&mut self, first_step: u64) {
        self.first_step = self.lost.map(|_| first_step);
    }

    /// Takes the report of a step. Returns `Some` if the run has recovered with this step.
    fn stepped(&mut self, at: Instant, step: u64) -> Option<Recovery> {
        if self.first_step.is_none_or(|first| step < first) {
            return None;
        }
        self.first_step = None;
        let (since, silent) = self.lost.take()?;
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        Some(Recovery { detect_ms: ms(silent), resume_ms: ms(at.saturating_duration_since(since)) })
    }
}
