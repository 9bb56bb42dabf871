//! Who is in the run: a plain state machine. It opens no socket, reads no clock
//! and knows no runtime; `now` is an argument, what is to be done is returned.
//!
//! Workers gather until there are `min_workers`; then a generation starts with
//! those that are ready, ranked. Whenever a member is lost, or somebody joins or
//! leaves, the generation ends, all that are left say how far they are, and the
//! next one starts from the newest committed step that any of them holds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::wire::messages::{Finished, Generation, Member, StateSource};

/// A worker's connection, numbered in the order of arrival.
pub type WorkerId = u64;

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A worker said hello. `addr` is where its predecessor reaches it.
    Joined {
        worker: WorkerId,
        name: String,
        addr: String,
        preferred_rank: Option<u32>,
    },
    /// It is in no ring, and holds the state before step `step`. `generation` is
    /// the last one that it was in.
    Ready {
        worker: WorkerId,
        generation: u64,
        step: u64,
    },
    /// Anything was heard from it.
    Alive {
        worker: WorkerId,
    },
    Finished {
        worker: WorkerId,
        report: Finished,
    },
    /// It cannot go on, and neither can the run.
    Failed {
        worker: WorkerId,
        reason: String,
    },
    /// It asked to leave.
    Leaving {
        worker: WorkerId,
    },
    /// Its connection closed.
    Left {
        worker: WorkerId,
        reason: String,
    },
    /// A checkpoint of the state before `step` is on disk.
    Stored {
        step: u64,
    },
    /// A person asked for the run to stop.
    StopRequested,
    /// Time passed.
    Tick,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    Refuse {
        worker: WorkerId,
        reason: String,
    },
    /// Short of workers.
    Waiting {
        ready: u32,
        needed: u32,
    },
    /// Send each member its generation.
    Start {
        members: Vec<WorkerId>,
        generation: Generation,
    },
    /// A member is gone after a silence of so long.
    Lost {
        name: String,
        reason: String,
        silent: Duration,
    },
    /// Tell these to leave the ring at once.
    End {
        members: Vec<WorkerId>,
        generation: u64,
        reason: String,
    },
    /// Tell these to leave the ring after the step in flight.
    Yield {
        members: Vec<WorkerId>,
        generation: u64,
    },
    /// Tell it that there is no place for it now.
    Spare {
        worker: WorkerId,
    },
    /// It was given up.
    Drop {
        worker: WorkerId,
        reason: String,
    },
    /// It may go.
    Goodbye {
        worker: WorkerId,
    },
    /// Ask all members to end the run after the step in flight.
    Stop {
        members: Vec<WorkerId>,
    },
    /// The run is over, and it ended as it should.
    Done {
        reports: Vec<Finished>,
    },
    /// The run is over and it failed: tell the workers, then end.
    Fail {
        members: Vec<WorkerId>,
        reason: String,
    },
}

#[derive(Debug)]
struct Worker {
    name: String,
    addr: String,
    preferred_rank: Option<u32>,
    phase: Phase,
    leaving: bool,
    told_spare: bool,
    heard: Instant,
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
    },
    Over,
}

/// The rules that a run's config sets.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The first generation waits for so many; at least `min_workers`.
    pub start_workers: u32,
    /// With fewer, the run waits.
    pub min_workers: u32,
    /// V: more workers than shards would have nothing to do.
    pub shards: u32,
    pub timeout: Duration,
    /// Where the run starts (its newest checkpoint), and the generation before its first.
    pub first_step: u64,
    pub last_generation: u64,
}

/// The membership of one run.
#[derive(Debug)]
pub struct Membership {
    rules: Rules,
    workers: BTreeMap<WorkerId, Worker>,
    state: State,
    /// The newest generation.
    generation: u64,
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
            stored: rules.first_step,
            stopping: false,
            told_waiting: None,
        }
    }

    /// Takes one input at time `now` and says what to do.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Output> {
        if let Input::Ready { worker, .. } | Input::Alive { worker } | Input::Finished { worker, .. } | Input::Leaving { worker } = &input
            && let Some(w) = self.workers.get_mut(worker)
        {
            w.heard = now;
        }
        let mut outputs = match input {
            Input::Joined { worker, name, addr, preferred_rank } => self.join(now, worker, name, addr, preferred_rank),
            Input::Ready { worker, generation, step } => self.ready(worker, generation, step),
            Input::Alive { .. } => Vec::new(),
            Input::Finished { worker, report } => self.finish(worker, report),
            Input::Failed { worker, reason } => self.failed(worker, &reason),
            Input::Leaving { worker } => self.leaving(worker),
            Input::Left { worker, reason } => self.lose(now, worker, &format!("left: {reason}")),
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

    fn join(&mut self, now: Instant, worker: WorkerId, name: String, addr: String, preferred_rank: Option<u32>) -> Vec<Output> {
        if matches!(self.state, State::Over) || self.stopping {
            return vec![Output::Refuse { worker, reason: "the run is over".to_owned() }];
        }
        // A name that joins again has lost its former connection, noticed or not.
        let former: Vec<WorkerId> = self.workers.iter().filter(|(_, w)| w.name == name).map(|(&id, _)| id).collect();
        let mut outputs: Vec<Output> = former.into_iter().flat_map(|w| self.lose(now, w, "joined again")).collect();
        let newcomer = Worker { name, addr, preferred_rank, phase: Phase::Joining, leaving: false, told_spare: false, heard: now };
        if self.workers.insert(worker, newcomer).is_some() {
            outputs.push(Output::Drop { worker, reason: "it joined twice over one connection".to_owned() });
            self.workers.remove(&worker);
        }
        outputs
    }

    fn ready(&mut self, worker: WorkerId, generation: u64, step: u64) -> Vec<Output> {
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
                self.end(worker, reason)
            }
            State::Ending { remaining } => {
                remaining.remove(&worker);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// The generation is over for `gone`; all other members are to say how far they are.
    fn end(&mut self, gone: WorkerId, reason: Option<String>) -> Vec<Output> {
        let State::Running { members, .. } = &self.state else { return Vec::new() };
        let alive = |id: &WorkerId| *id != gone && self.workers.get(id).is_some_and(|w| w.phase == Phase::Member);
        let remaining: BTreeSet<WorkerId> = members.iter().copied().filter(alive).collect();
        self.state = State::Ending { remaining: remaining.clone() };
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
                outputs.extend(self.end(worker, Some(format!("{} {reason}", lost.name))));
                outputs
            }
            State::Ending { remaining } => {
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
        let mut outputs = Vec::new();
        for worker in silent {
            let reason = format!("was not heard for {} ms", timeout.as_millis());
            outputs.extend(self.lose(now, worker, &reason));
            outputs.push(Output::Drop { worker, reason });
        }
        outputs
    }

    /// Does what the state of things asks for, whatever led to it.
    fn settle(&mut self) -> Vec<Output> {
        match &self.state {
            State::Over => Vec::new(),
            State::Ending { remaining } if !remaining.is_empty() => Vec::new(),
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

    /// Lets those go that want to and are in no ring, but for one that is to
    /// hand over its state first.
    fn dismiss(&mut self, holder: Option<WorkerId>) -> Vec<Output> {
        let free = |id: WorkerId, w: &Worker| w.leaving && w.phase != Phase::Member && holder != Some(id);
        let going: Vec<WorkerId> = self.workers.iter().filter(|(id, w)| free(**id, w)).map(|(&id, _)| id).collect();
        going.iter().for_each(|id| _ = self.workers.remove(id));
        going.into_iter().map(|worker| Output::Goodbye { worker }).collect()
    }

    /// A worker that wants to go and alone holds the newest step, while others
    /// are there that could take it over in one more generation.
    fn last_holder(&self) -> Option<WorkerId> {
        let ready = || self.workers.iter().filter_map(|(&id, w)| if let Phase::Ready(step) = w.phase { Some((id, w, step)) } else { None });
        let newest = ready().map(|(_, _, step)| step).max()?;
        let staying = || ready().filter(|(_, w, _)| !w.leaving);
        let holders = staying().any(|(_, _, step)| step == newest);
        let enough = staying().count() + 1 >= self.rules.min_workers as usize;
        if holders || staying().next().is_none() || !enough {
            return None;
        }
        ready().find(|(_, w, step)| w.leaving && *step == newest).map(|(id, _, _)| id)
    }

    fn tell_spares(&mut self) -> Vec<Output> {
        let spares = self.workers.iter_mut().filter(|(_, w)| matches!(w.phase, Phase::Ready(_)) && !w.told_spare);
        spares
            .map(|(&worker, w)| {
                w.told_spare = true;
                Output::Spare { worker }
            })
            .collect()
    }

    /// Starts the next generation if there are enough workers for one.
    fn form(&mut self) -> Vec<Output> {
        let mut outputs = self.dismiss(self.last_holder());
        let ready: Vec<(WorkerId, u64)> =
            self.workers.iter().filter_map(|(&id, w)| if let Phase::Ready(step) = w.phase { Some((id, step)) } else { None }).collect();
        self.state = State::Waiting;
        let needed = if self.generation == self.rules.last_generation { self.rules.start_workers } else { self.rules.min_workers };
        let count = ready.len() as u32;
        if count < needed {
            if self.stopping {
                outputs.extend(self.fail("stopped while it waited for workers; the newest checkpoint is kept".to_owned()));
            } else if count > 0 && self.told_waiting.replace(count) != Some(count) {
                outputs.push(Output::Waiting { ready: count, needed });
            }
            return outputs;
        }
        self.told_waiting = None;
        // The newest committed step that anybody holds, else the newest checkpoint.
        let held = ready.iter().map(|(_, step)| *step).max().unwrap_or(0);
        let first_step = held.max(self.stored);
        let mut chosen = ready;
        let place = |id: &WorkerId| (self.workers.get(id).and_then(|w| w.preferred_rank).unwrap_or(u32::MAX), *id);
        // Who holds the state, and of others who has waited longest.
        chosen.sort_by_key(|(id, step)| (*step != first_step, *id));
        chosen.truncate(self.rules.shards as usize);
        chosen.sort_by_key(|(id, _)| place(id));
        let state = match chosen.iter().position(|(_, step)| *step == first_step) {
            _ if chosen.iter().all(|(_, step)| *step == first_step) => StateSource::Everywhere,
            Some(rank) => StateSource::Donor { rank: rank as u32 },
            None => StateSource::Checkpoint,
        };
        let members: Vec<WorkerId> = chosen.into_iter().map(|(id, _)| id).collect();
        let as_member = |w: &Worker| Member { name: w.name.clone(), addr: w.addr.clone() };
        self.generation += 1;
        let generation = Generation {
            number: self.generation,
            rank: 0,
            members: members.iter().filter_map(|id| self.workers.get(id)).map(as_member).collect(),
            first_step,
            state,
            evaluated: 0,
            stored: self.stored,
        };
        for id in &members {
            if let Some(w) = self.workers.get_mut(id) {
                (w.phase, w.told_spare) = (Phase::Member, false);
            }
        }
        self.state = State::Running { members: members.clone(), reports: BTreeMap::new(), yielding: false };
        outputs.push(Output::Start { members: members.clone(), generation });
        if self.stopping {
            outputs.push(Output::Stop { members });
        }
        outputs.extend(self.settle());
        outputs
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
