//! Who is in the run: a plain state machine. It opens no socket, reads no clock
//! and knows no runtime; `now` is an argument, what is to be done is returned.
//!
//! Workers gather until there are `min_workers`; then a generation starts with
//! all that are ready, ranked. A run ends when every member has finished, when
//! it is stopped, or when a member is lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::wire::messages::{Finished, Generation, Member};

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
    Ready {
        worker: WorkerId,
    },
    /// Anything was heard from it.
    Alive {
        worker: WorkerId,
    },
    Finished {
        worker: WorkerId,
        report: Finished,
    },
    Failed {
        worker: WorkerId,
        reason: String,
    },
    /// Its connection closed.
    Left {
        worker: WorkerId,
        reason: String,
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
    /// Still short of workers.
    Waiting {
        ready: u32,
        needed: u32,
    },
    /// Send each member its generation.
    Start {
        members: Vec<WorkerId>,
        generation: Generation,
    },
    /// Ask all members to stop after the step in flight.
    Stop {
        members: Vec<WorkerId>,
    },
    /// The run is over, and it ended as it should.
    Done {
        reports: Vec<Finished>,
    },
    /// The run is over and it failed: tell the members, then end.
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
    ready: bool,
    heard: Instant,
}

#[derive(Debug)]
enum State {
    Gathering,
    Running { members: Vec<WorkerId>, reports: BTreeMap<WorkerId, Finished>, stopping: bool },
    Over,
}

/// The rules that a run's config sets.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub min_workers: u32,
    /// V: more workers than shards would have nothing to do.
    pub shards: u32,
    pub timeout: Duration,
    /// Where the run starts, and the generation before its first.
    pub first_step: u64,
    pub last_generation: u64,
}

/// The membership of one run.
#[derive(Debug)]
pub struct Membership {
    rules: Rules,
    workers: BTreeMap<WorkerId, Worker>,
    state: State,
}

impl Membership {
    pub fn new(rules: Rules) -> Self {
        Self { rules, workers: BTreeMap::new(), state: State::Gathering }
    }

    /// Takes one input at time `now` and says what to do.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Output> {
        match input {
            Input::Joined { worker, name, addr, preferred_rank } => self.join(now, worker, name, addr, preferred_rank),
            Input::Ready { worker } => {
                self.hear(now, worker);
                if let Some(w) = self.workers.get_mut(&worker) {
                    w.ready = true;
                }
                self.start_if_complete()
            }
            Input::Alive { worker } => {
                self.hear(now, worker);
                Vec::new()
            }
            Input::Finished { worker, report } => {
                self.hear(now, worker);
                self.finish(worker, report)
            }
            Input::Failed { worker, reason } => self.lose(worker, &reason),
            Input::Left { worker, reason } => self.lose(worker, &format!("left: {reason}")),
            Input::StopRequested => self.stop(),
            Input::Tick => self.expire(now),
        }
    }

    fn join(&mut self, now: Instant, worker: WorkerId, name: String, addr: String, preferred_rank: Option<u32>) -> Vec<Output> {
        let refuse = |reason: String| vec![Output::Refuse { worker, reason }];
        match self.state {
            State::Gathering if self.workers.len() as u32 >= self.rules.shards => {
                refuse(format!("the run has {} shards and as many workers; raise train.shards for more", self.rules.shards))
            }
            State::Gathering => {
                self.workers.insert(worker, Worker { name, addr, preferred_rank, ready: false, heard: now });
                Vec::new()
            }
            State::Running { .. } => {
                refuse("the run has started with the workers that it waited for; raise cluster.min_workers to wait for more".to_owned())
            }
            State::Over => refuse("the run is over".to_owned()),
        }
    }

    fn hear(&mut self, now: Instant, worker: WorkerId) {
        if let Some(w) = self.workers.get_mut(&worker) {
            w.heard = now;
        }
    }

    fn start_if_complete(&mut self) -> Vec<Output> {
        if !matches!(self.state, State::Gathering) {
            return Vec::new();
        }
        let mut members: Vec<WorkerId> = self.workers.iter().filter(|(_, w)| w.ready).map(|(&id, _)| id).collect();
        let (ready, needed) = (members.len() as u32, self.rules.min_workers);
        if ready < needed {
            return vec![Output::Waiting { ready, needed }];
        }
        members.sort_by_key(|id| (self.workers.get(id).and_then(|w| w.preferred_rank).unwrap_or(u32::MAX), *id));
        let generation = Generation {
            number: self.rules.last_generation + 1,
            rank: 0,
            members: members
                .iter()
                .filter_map(|id| self.workers.get(id))
                .map(|w| Member { name: w.name.clone(), addr: w.addr.clone() })
                .collect(),
            first_step: self.rules.first_step,
        };
        // A worker that was welcomed but is not ready has come too late.
        let late: Vec<WorkerId> = self.workers.keys().copied().filter(|id| !members.contains(id)).collect();
        let mut outputs = Vec::new();
        for worker in late {
            self.workers.remove(&worker);
            outputs.push(Output::Refuse {
                worker,
                reason: "the run has started with the workers that were ready; raise cluster.min_workers to wait for more".to_owned(),
            });
        }
        self.state = State::Running { members: members.clone(), reports: BTreeMap::new(), stopping: false };
        outputs.push(Output::Start { members, generation });
        outputs
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

    fn lose(&mut self, worker: WorkerId, reason: &str) -> Vec<Output> {
        let Some(lost) = self.workers.remove(&worker) else { return Vec::new() };
        match &self.state {
            State::Running { members, reports, .. } if members.contains(&worker) && !reports.contains_key(&worker) => {
                let rank = members.iter().position(|&m| m == worker).unwrap_or_default();
                self.fail(format!("{} (rank {rank}, {}) {reason}", lost.name, lost.addr))
            }
            _ => Vec::new(),
        }
    }

    fn fail(&mut self, reason: String) -> Vec<Output> {
        let State::Running { members, .. } = std::mem::replace(&mut self.state, State::Over) else { return Vec::new() };
        let members = members.into_iter().filter(|m| self.workers.contains_key(m)).collect();
        vec![Output::Fail { members, reason }]
    }

    fn stop(&mut self) -> Vec<Output> {
        match &mut self.state {
            State::Running { members, stopping, .. } if !*stopping => {
                *stopping = true;
                vec![Output::Stop { members: members.clone() }]
            }
            State::Gathering => {
                self.state = State::Over;
                vec![Output::Fail {
                    members: self.workers.keys().copied().collect(),
                    reason: "stopped before enough workers had joined".to_owned(),
                }]
            }
            State::Running { .. } | State::Over => Vec::new(),
        }
    }

    fn expire(&mut self, now: Instant) -> Vec<Output> {
        let timeout = self.rules.timeout;
        let silent: Vec<WorkerId> = self.workers.iter().filter(|(_, w)| now.duration_since(w.heard) > timeout).map(|(&id, _)| id).collect();
        silent.into_iter().flat_map(|worker| self.lose(worker, &format!("was not heard for {} ms", timeout.as_millis()))).collect()
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
