//! Who is in the run: a plain state machine. It opens no socket, reads no clock
//! and knows no runtime; `now` is an argument, what is to be done is returned.
//!
//! Workers gather until there are `min_workers`; then a generation starts with
//! those that are ready, ranked. Whenever a member is lost, or somebody joins or
//! leaves, the generation ends, all that are left say how far they are, and the
//! next one starts from the newest committed step that any of them holds.

mod events;
mod forming;
mod returning;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::wire::messages::Finished;

pub use events::{Input, Output, Rules};

/// A generation that is over waits so long for a member that is alive and does
/// not leave it. A step in flight is dropped at its next exchange, so this is
/// longer than any forward and backward pass should take.
const STUCK: Duration = Duration::from_secs(60);

/// A worker's connection, numbered in the order of arrival.
pub type WorkerId = u64;

#[derive(Debug)]
struct Worker {
    name: String,
    addr: String,
    preferred_rank: Option<u32>,
    phase: Phase,
    leaving: bool,
    told_spare: bool,
    heard: Instant,
    /// After which step, and since when, it has been waiting for the others in its ring.
    waiting: Option<(u64, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Opens its data, builds its model.
    Joining,
    /// In no ring, with the state before this step.
    Ready(u64),
    /// A member of the generation that runs, or of the one that is ending.
    Member,
}

#[derive(Debug)]
enum State {
    /// No ring: short of workers.
    Waiting,
    Running {
        members: Vec<WorkerId>,
        reports: BTreeMap<WorkerId, Finished>,
        yielding: bool,
    },
    /// A generation is over; these have not said yet how far they are.
    Ending {
        remaining: BTreeSet<WorkerId>,
        since: Instant,
    },
    Over,
}

/// The membership of one run.
#[derive(Debug)]
pub struct Membership {
    rules: Rules,
    workers: BTreeMap<WorkerId, Worker>,
    state: State,
    /// The newest generation.
    generation: u64,
    /// The first one has started: from then on `min_workers` are enough.
    begun: bool,
    /// The newest checkpoint is of the state before this step.
    stored: u64,
    stopping: bool,
    /// What was last said about being short of workers.
    told_waiting: Option<u32>,
}

impl Membership {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            workers: BTreeMap::new(),
            state: State::Waiting,
            generation: rules.last_generation,
            begun: false,
            stored: rules.first_step,
            stopping: false,
            told_waiting: None,
        }
    }

    /// Takes one input at time `now` and says what to do.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Output> {
        if let Input::Ready { worker, .. }
        | Input::Alive { worker }
        | Input::Beat { worker, .. }
        | Input::Finished { worker, .. }
        | Input::Leaving { worker } = &input
            && let Some(w) = self.workers.get_mut(worker)
        {
            w.heard = now;
        }
        let mut outputs = match input {
            Input::Joined { worker, name, addr, preferred_rank, generation } => {
                let newcomer = Worker {
                    name,
                    addr,
                    preferred_rank,
                    phase: Phase::Joining,
                    leaving: false,
                    told_spare: false,
                    heard: now,
                    waiting: None,
                };
                self.join(now, worker, newcomer, generation)
            }
            Input::Ready { worker, generation, step } => self.ready(now, worker, generation, step),
            Input::Alive { .. } => Vec::new(),
            Input::Beat { worker, step, waiting } => {
                if let Some(w) = self.workers.get_mut(&worker) {
                    let still = w.waiting.filter(|(after, _)| *after == step);
                    w.waiting = waiting.then(|| still.unwrap_or((step, now)));
                }
                Vec::new()
            }
            Input::Finished { worker, report } => self.finish(worker, report),
            Input::Failed { worker, reason } => self.failed(worker, &reason),
            Input::Leaving { worker } => self.leaving(worker),
            Input::Left { worker, reason } => self.lose(now, worker, &format!("left: {reason}")),
            Input::Ended { preferred_rank } => {
                let ended: Vec<WorkerId> =
                    self.workers.iter().filter(|(_, w)| w.preferred_rank == Some(preferred_rank)).map(|(&id, _)| id).collect();
                self.give_up(now, ended.into_iter().map(|worker| (worker, "ended".to_owned())))
            }
            Input::Stored { step } => {
                self.stored = self.stored.max(step);
                Vec::new()
            }
            Input::StopRequested => self.stop(),
            Input::Tick => self.expire(now),
        };
        outputs.extend(self.settle());
        outputs
    }

    fn join(&mut self, now: Instant, worker: WorkerId, newcomer: Worker, generation: Option<u64>) -> Vec<Output> {
        if let Some(outputs) = generation.and_then(|generation| self.newer(worker, generation)) {
            return outputs;
        }
        // A name that joins again has lost its former connection, noticed or not.
        let former = self.workers.iter().find(|(_, w)| w.name == newcomer.name).map(|(&id, w)| (id, w.phase));
        if former.is_some_and(|(id, _)| id == worker) {
            self.workers.remove(&worker);
            return vec![Output::Drop { worker, reason: "it joined twice over one connection".to_owned() }];
        }
        if let Some((former, Phase::Member)) = former
            && self.runs(generation)
        {
            return self.takes_its_place(now, worker, former);
        }
        if matches!(self.state, State::Over) || (self.stopping && generation.is_none()) {
            return vec![Output::Refuse { worker, reason: "the run is over".to_owned() }];
        }
        let mut outputs = former.map_or_else(Vec::new, |(former, _)| self.lose(now, former, "joined again"));
        self.workers.insert(worker, newcomer);
        if let Some(generation) = generation {
            let reason = "the generation is over".to_owned();
            outputs.push(Output::End { members: vec![worker], generation, reason });
        }
        outputs
    }

    fn ready(&mut self, now: Instant, worker: WorkerId, generation: u64, step: u64) -> Vec<Output> {
        if let Some(outputs) = self.newer(worker, generation) {
            return outputs;
        }
        let Some(w) = self.workers.get_mut(&worker) else { return Vec::new() };
        // What it says of an older generation was said before it heard of this one.
        if w.phase == Phase::Member && generation != self.generation {
            return Vec::new();
        }
        w.phase = Phase::Ready(step);
        let name = w.name.clone();
        match &mut self.state {
            State::Running { members, yielding, .. } if members.contains(&worker) => {
                // The first to have left a ring: the others follow by themselves
                // if they were asked to yield, and are told if not.
                let reason = (!*yielding).then(|| format!("{name} has left the ring"));
                self.end(now, worker, reason)
            }
            State::Ending { remaining, .. } => {
                remaining.remove(&worker);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// The generation is over for `gone`; all other members are to say how far they are.
    fn end(&mut self, now: Instant, gone: WorkerId, reason: Option<String>) -> Vec<Output> {
        let State::Running { members, .. } = &self.state else { return Vec::new() };
        let alive = |id: &WorkerId| *id != gone && self.workers.get(id).is_some_and(|w| w.phase == Phase::Member);
        let remaining: BTreeSet<WorkerId> = members.iter().copied().filter(alive).collect();
        self.state = State::Ending { remaining: remaining.clone(), since: now };
        match reason {
            Some(reason) if !remaining.is_empty() => {
                vec![Output::End { members: remaining.into_iter().collect(), generation: self.generation, reason }]
            }
            _ => Vec::new(),
        }
    }

    fn finish(&mut self, worker: WorkerId, report: Finished) -> Vec<Output> {
        let State::Running { members, reports, .. } = &mut self.state else { return Vec::new() };
        if !members.contains(&worker) {
            return Vec::new();
        }
        reports.insert(worker, report);
        if reports.len() < members.len() {
            return Vec::new();
        }
        let reports: Vec<Finished> = members.iter().filter_map(|id| reports.get(id)).cloned().collect();
        let differ = reports.windows(2).any(|pair| (&pair[0].weights_blake3, pair[0].step) != (&pair[1].weights_blake3, pair[1].step));
        if differ {
            let digests: Vec<String> = reports.iter().map(|r| format!("step {} {}", r.step, r.weights_blake3)).collect();
            return self.fail(format!("the workers ended with different weights, which must never happen: {}", digests.join(", ")));
        }
        self.state = State::Over;
        vec![Output::Done { reports }]
    }

    fn leaving(&mut self, worker: WorkerId) -> Vec<Output> {
        if let Some(w) = self.workers.get_mut(&worker) {
            w.leaving = true;
        }
        Vec::new()
    }

    fn lose(&mut self, now: Instant, worker: WorkerId, reason: &str) -> Vec<Output> {
        let Some(lost) = self.workers.remove(&worker) else { return Vec::new() };
        let silent = now.saturating_duration_since(lost.heard);
        let said = |name: &str| Output::Lost { name: name.to_owned(), reason: reason.to_owned(), silent };
        match &mut self.state {
            // One that has reported its end is not missed.
            State::Running { members, reports, .. } if members.contains(&worker) && !reports.contains_key(&worker) => {
                let mut outputs = vec![said(&lost.name)];
                outputs.extend(self.end(now, worker, Some(format!("{} {reason}", lost.name))));
                outputs
            }
            State::Ending { remaining, .. } => {
                if remaining.remove(&worker) {
                    vec![said(&lost.name)]
                } else {
                    Vec::new()
                }
            }
            _ => Vec::new(),
        }
    }

    fn failed(&mut self, worker: WorkerId, reason: &str) -> Vec<Output> {
        let Some(w) = self.workers.get(&worker) else { return Vec::new() };
        // Before it was in a ring, its trouble is its own.
        if w.phase == Phase::Joining {
            self.workers.remove(&worker);
            return Vec::new();
        }
        let reason = format!("{} ({}) {reason}", w.name, w.addr);
        self.workers.remove(&worker);
        self.fail(reason)
    }

    fn fail(&mut self, reason: String) -> Vec<Output> {
        if matches!(self.state, State::Over) {
            return Vec::new();
        }
        self.state = State::Over;
        vec![Output::Fail { members: self.workers.keys().copied().collect(), reason }]
    }

    fn stop(&mut self) -> Vec<Output> {
        if std::mem::replace(&mut self.stopping, true) {
            return Vec::new();
        }
        match &self.state {
            State::Running { members, .. } => vec![Output::Stop { members: members.clone() }],
            // The next generation is stopped after its first step, which leaves a checkpoint.
            State::Ending { .. } | State::Over => Vec::new(),
            State::Waiting => self.fail("stopped while it waited for workers; the newest checkpoint is kept".to_owned()),
        }
    }

    fn expire(&mut self, now: Instant) -> Vec<Output> {
        let timeout = self.rules.timeout;
        let silent: Vec<WorkerId> =
            self.workers.iter().filter(|(_, w)| now.saturating_duration_since(w.heard) > timeout).map(|(&id, _)| id).collect();
        // Heartbeats do not show whether the training thread still answers.
        let stuck: Vec<WorkerId> = match &self.state {
            State::Ending { remaining, since } if now.saturating_duration_since(*since) > timeout.max(STUCK) => {
                remaining.iter().copied().collect()
            }
            _ => Vec::new(),
        };
        let awaited = self.awaited(now);
        let silent = silent.into_iter().map(|worker| (worker, format!("was not heard for {} ms", timeout.as_millis())));
        let stuck = stuck.into_iter().map(|worker| (worker, "did not leave a generation that was over".to_owned()));
        let stall = self.rules.stall;
        let awaited = awaited.into_iter().map(|worker| (worker, format!("kept all others waiting for {} s", stall.as_secs())));
        self.give_up(now, silent.chain(stuck).chain(awaited))
    }

    /// Members that hang although they are alive: all others wait for them, for longer
    /// than any step may take. One that computes does not wait; of those that wait
    /// nobody can be blamed.
    fn awaited(&self, now: Instant) -> Vec<WorkerId> {
        let State::Running { members, reports, .. } = &self.state else { return Vec::new() };
        let since = |id: &WorkerId| self.workers.get(id).and_then(|w| w.waiting).map(|(_, since)| since);
        let (wait, others): (Vec<WorkerId>, Vec<WorkerId>) =
            members.iter().copied().filter(|id| !reports.contains_key(id)).partition(|id| since(id).is_some());
        let long = |id: &WorkerId| since(id).is_some_and(|at| now.saturating_duration_since(at) > self.rules.stall);
        if !wait.is_empty() && wait.iter().all(long) { others } else { Vec::new() }
    }

    fn give_up(&mut self, now: Instant, workers: impl Iterator<Item = (WorkerId, String)>) -> Vec<Output> {
        let mut outputs = Vec::new();
        for (worker, reason) in workers {
            outputs.extend(self.lose(now, worker, &reason));
            outputs.push(Output::Drop { worker, reason });
        }
        outputs
    }

    /// Does what the state of things asks for, whatever led to it.
    fn settle(&mut self) -> Vec<Output> {
        match &self.state {
            State::Over => Vec::new(),
            State::Ending { remaining, .. } if !remaining.is_empty() => Vec::new(),
            State::Ending { .. } | State::Waiting => self.form(),
            State::Running { members, reports, yielding } => {
                let mut outputs = Vec::new();
                let room = members.len() < self.rules.shards as usize;
                let staying = || self.workers.values().filter(|w| !w.leaving);
                let joins = room && staying().any(|w| matches!(w.phase, Phase::Ready(_)));
                let leaves = members.iter().any(|id| self.workers.get(id).is_some_and(|w| w.leaving));
                // With a single shard nobody can stand beside the one that leaves.
                let heirs = self.rules.shards > 1 && staying().any(|w| w.phase != Phase::Joining);
                let changes = joins || (leaves && heirs);
                if changes && !yielding && !self.stopping && reports.is_empty() {
                    outputs.push(Output::Yield { members: members.clone(), generation: self.generation });
                    if let State::Running { yielding, .. } = &mut self.state {
                        *yielding = true;
                    }
                } else if leaves && !yielding && (staying().next().is_none() || self.rules.shards == 1) {
                    // The last to leave takes the state with it, so it must be stored.
                    outputs.extend(self.stop());
                }
                outputs.extend(self.dismiss(None));
                if !room {
                    outputs.extend(self.tell_spares());
                }
                outputs
            }
        }
    }
}

#[cfg(test)]
mod tests;
