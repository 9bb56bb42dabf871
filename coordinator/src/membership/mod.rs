//! The membership of a run: a plain state machine. It opens no socket, reads no clock
//! and knows no runtime: `now` is an argument, and the actions to take are returned.
//!
//! Workers gather until there are `min_workers`; then a generation starts with the
//! workers that are ready, each with a rank. Whenever a member is lost, or a worker
//! joins or leaves, the generation ends, all remaining members report which step they
//! hold, and the next generation starts from the newest committed step that any of
//! them holds.
//!
//! | file | decides |
//! |---|---|
//! | `joining` | how a worker joins, or comes back |
//! | `staging`, `paths` | which newcomers a ring yields for |
//! | `pairs` | who must reach whom before a generation forms |
//! | `listening`, `losing` | which workers are given up, and when |
//! | `heartbeats`, `pace` | which step the members have reached, and how long a step takes |
//! | `balance`, `sharing` | how many shards each rank owns, and when a ring is formed anew for it |
//! | `lineage` | which states belong to the run |
//! | `forming`, `back_off` | the next generation |
//! | `dense` | whether its members exchange factors of dense layers |
//! | `state`, `events` | (the shared state, the inputs and the outputs) |

mod back_off;
mod balance;
mod dense;
mod events;
mod forming;
mod heartbeats;
mod joining;
mod lineage;
mod listening;
mod losing;
mod pace;
mod pairs;
mod paths;
mod probing;
mod sharing;
mod staging;
mod state;

use std::collections::BTreeSet;
use std::time::Instant;

use common::wire::messages::Finished;

pub use events::{Input, Output, Rules, WorkerId};
pub use lineage::Lineage;
pub use state::Membership;

use state::{Phase, State, Worker};

impl Membership {
    /// The known generations of the run.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Handles one input at time `now` and returns what to do. Inputs must come in
    /// the order of their times.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Output> {
        self.listening.advance(now);
        if let Input::Ready { worker, .. }
        | Input::Alive { worker }
        | Input::Beat { worker, .. }
        | Input::Probed { worker, .. }
        | Input::Missed { worker, .. }
        | Input::Relayed { worker, .. }
        | Input::Finished { worker, .. }
        | Input::Leaving { worker } = &input
        {
            self.hear(*worker);
        }
        let mut outputs = match input {
            Input::Joined { worker, member, preferred_rank, generation } => {
                self.listening.hear();
                let newcomer = Worker::new(member, preferred_rank, self.listening.now());
                self.join(worker, newcomer, generation)
            }
            Input::Ready { worker, generation, step, committed, products } => {
                if let Some(w) = self.workers.get_mut(&worker) {
                    w.products = products;
                }
                let mut outputs = self.ready(worker, generation, step, committed);
                outputs.extend(self.refuse_unlike());
                outputs
            }
            Input::Alive { .. } => Vec::new(),
            Input::Beat { worker, step, waiting, speed } => self.beat(worker, step, waiting, speed),
            Input::Probed { worker, peer, problem, millis } => self.probed(worker, &peer, problem, millis),
            Input::Missed { worker, generation, peer, donor, reason } => self.missed(worker, generation, &peer, donor, &reason),
            Input::Relayed { worker, generation, peer } => self.relayed(worker, generation, &peer),
            Input::Finished { worker, report } => self.finish(worker, report),
            Input::Failed { worker, reason, run } => self.failed(worker, &reason, run),
            Input::Leaving { worker } => self.leaving(worker),
            Input::Left { worker, reason } => self.lose(worker, &format!("left: {reason}"), true),
            Input::Disconnected { worker } => self.disconnected(worker),
            Input::Ended { preferred_rank } => {
                let ended: Vec<WorkerId> =
                    self.workers.iter().filter(|(_, w)| w.preferred_rank == Some(preferred_rank)).map(|(&id, _)| id).collect();
                self.give_up(ended.into_iter().map(|worker| (worker, "ended".to_owned())), true)
            }
            Input::Stored { step } => {
                self.stored = self.stored.max(step);
                self.storing = None;
                Vec::new()
            }
            Input::Revoked { name } => {
                self.absent.remove(&name);
                Vec::new()
            }
            Input::StopRequested => self.stop(),
            Input::Tick => self.expire(),
        };
        outputs.extend(self.settle());
        outputs
    }

    fn ready(&mut self, worker: WorkerId, generation: u64, step: u64, committed: u64) -> Vec<Output> {
        if let Some(outputs) = self.newer(worker, generation) {
            return outputs;
        }
        let at = self.listening.now();
        let Some(w) = self.workers.get_mut(&worker) else { return Vec::new() };
        // A report on an older generation was sent before the worker knew of this one.
        if w.phase == Phase::Member && generation != self.generation {
            return Vec::new();
        }
        let held = self.lineage.holds(&w.name, step, committed).then_some(step);
        w.phase = Phase::Ready(held);
        w.since = at;
        if !w.fresh {
            // The report of a single worker raises this by one step at most; forming
            // a ring settles the rest.
            self.newest = self.newest.max(held.unwrap_or_default().min(self.newest.saturating_add(1)));
        }
        self.absent.remove(&w.name);
        let (name, fresh) = (w.name.clone(), w.fresh);
        match &mut self.state {
            State::Running { members, yielding, .. } if members.contains(&worker) => {
                // This member is the first to have left the ring. The others follow
                // by themselves if they were asked to yield, and are told to if not.
                let unasked = !*yielding;
                let mut outputs = self.end(worker, unasked.then(|| format!("{name} has left the ring")));
                let fruitless = self.newest <= self.first_step();
                let held_elsewhere = self.workers.values().any(|w| w.name != name && w.connected && self.initial_holders.contains(&w.name));
                // It may have lost a neighbour, and is soon tried again; one that leaves
                // every ring like this must not keep the others from training.
                if fresh && unasked && fruitless && held_elsewhere {
                    outputs.extend(self.leave_out_after_a_ring(worker, None, "it left a ring that had completed no step", true));
                }
                outputs
            }
            State::Ending { remaining, .. } => {
                remaining.remove(&worker);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// Ends the generation. `gone` has left it or is lost; all other members are to
    /// report which step they hold.
    fn end(&mut self, gone: WorkerId, reason: Option<String>) -> Vec<Output> {
        let State::Running { members, .. } = &self.state else { return Vec::new() };
        let alive = |id: &WorkerId| *id != gone && self.workers.get(id).is_some_and(|w| w.phase == Phase::Member);
        let remaining: BTreeSet<WorkerId> = members.iter().copied().filter(alive).collect();
        self.state = State::Ending { remaining: remaining.clone(), since: self.listening.now() };
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
            State::Ending { .. } | State::Waiting | State::Over => Vec::new(),
        }
    }

    /// Takes the actions that the current state requires, whatever input led to it.
    fn settle(&mut self) -> Vec<Output> {
        match &self.state {
            State::Over => Vec::new(),
            State::Ending { remaining, .. } if !remaining.is_empty() => Vec::new(),
            State::Ending { .. } | State::Waiting => self.form(),
            State::Running { members, reports, yielding } => {
                let mut outputs = Vec::new();
                let room = members.len() < self.rules.shards as usize;
                let staying = || self.workers.values().filter(|w| !w.leaving);
                let joins = room && staying().any(|w| self.is_admissible(w));
                let leaves = members.iter().any(|id| self.workers.get(id).is_some_and(|w| w.leaving));
                // With a single shard no other worker can be in the ring beside the
                // one that leaves.
                let heirs = self.rules.shards > 1 && staying().any(|w| w.phase == Phase::Member || self.is_admissible(w));
                // Whoever joins or leaves has the shards given away anew in any case.
                let moves = if joins || leaves || *yielding { None } else { self.moves_shards() };
                let changes = joins || (leaves && heirs) || moves.is_some();
                if changes && !yielding && !self.stopping && reports.is_empty() {
                    outputs.extend(moves);
                    outputs.push(Output::Yield { members: members.clone(), generation: self.generation });
                    if let State::Running { yielding, .. } = &mut self.state {
                        *yielding = true;
                    }
                } else if leaves && !yielding && (!staying().any(|w| self.may_inherit(w)) || self.rules.shards == 1) {
                    // The last worker to leave takes the state with it, so the state
                    // must be stored.
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
