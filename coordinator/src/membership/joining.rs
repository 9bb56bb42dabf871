//! Workers that join, and workers that come back: over a new connection to the same
//! coordinator, or to a restarted one that finds the ring still training. A worker is
//! identified by the name in its certificate, so a worker that comes back takes its
//! former place.

use std::collections::BTreeMap;
use std::time::Instant;

use common::plan::Ownership;
use common::run_dir::LastGeneration;
use common::wire::messages::Member;

use crate::limits::LEAP;

use super::dense::decided;
use super::events::{Output, Rules, WorkerId};
use super::lineage::Lineage;
use super::state::{Membership, Phase, State, Worker};

impl Membership {
    /// The membership of a run that has a journal, from which `last` and `lineage` were read.
    /// Generation `rules.last_generation` of `members`, who own the shards that `last` says,
    /// may still be training. Its members count as alive, with ids from 1 on, until they
    /// have had time to come back.
    pub fn returning(rules: Rules, last: &LastGeneration, members: &[Member], lineage: Lineage, now: Instant) -> Self {
        let (newest, shards) = (rules.recorded.max(rules.first_step), &last.shards);
        let mut membership = Self { lineage, newest, decided: decided(&rules, last), ..Self::new(rules, now) };
        for (id, member) in (1..).zip(members) {
            let worker = Worker { phase: Phase::Member, connected: false, ..Worker::new(member.clone(), None, membership.listening.now()) };
            membership.workers.insert(id, worker);
        }
        if !members.is_empty() {
            membership.begun = true;
            // A damaged journal may not say it: then the shares are judged as if equal.
            let equal = |_| Ownership::equal(members.len() as u32, rules.shards);
            let ownership = Ownership::recorded(shards, members.len(), rules.shards).unwrap_or_else(equal);
            membership.balancing.starts(ownership, membership.newest, membership.listening.now(), &rules);
            let members = membership.workers.keys().copied().collect();
            membership.state = State::Running { members, reports: BTreeMap::new(), yielding: false };
        }
        membership
    }

    pub(super) fn join(&mut self, worker: WorkerId, newcomer: Worker, generation: Option<u64>) -> Vec<Output> {
        if let Some(outputs) = generation.and_then(|generation| self.newer(worker, generation)) {
            return outputs;
        }
        // A worker that joins again has lost its former connection, whether that was
        // noticed or not.
        let former = self.workers.iter().find(|(_, w)| w.name == newcomer.name).map(|(&id, w)| (id, w.phase));
        if former.is_some_and(|(id, _)| id == worker) {
            self.workers.remove(&worker);
            return vec![Output::Drop { worker, reason: "it joined twice over one connection".to_owned() }];
        }
        if let Some((former, phase)) = former
            && (phase == Phase::Member || self.is_awaited(former))
        {
            return self.takes_its_place(worker, former, generation);
        }
        if matches!(self.state, State::Over) || (self.stopping && generation.is_none() && !self.absent.contains_key(&newcomer.name)) {
            return vec![Output::Refuse { worker, reason: "the run is over".to_owned() }];
        }
        let mut outputs = former.map_or_else(Vec::new, |(former, _)| self.lose(former, "joined again", false));
        self.workers.insert(worker, newcomer);
        if let Some(generation) = generation {
            let reason = "the generation is over".to_owned();
            outputs.push(Output::End { members: vec![worker], generation, reason });
        }
        outputs
    }

    /// Handles a worker's report of a generation that the journal does not have. A
    /// disk may have lost the journal's end, and then no generation number may be
    /// used twice. A number so far ahead that no disk can have lost it is false.
    pub(super) fn newer(&mut self, worker: WorkerId, generation: u64) -> Option<Vec<Output>> {
        if generation > self.generation.saturating_add(LEAP) {
            self.workers.remove(&worker);
            let reason = format!("claims generation {generation}, and the newest is {}", self.generation);
            return Some(vec![Output::Refuse { worker, reason }]);
        }
        if generation > self.generation && !matches!(self.state, State::Running { .. }) {
            self.generation = generation;
        }
        None
    }

    /// Whether the generation of this number is the one that runs.
    fn runs(&self, generation: Option<u64>) -> bool {
        generation == Some(self.generation) && matches!(self.state, State::Running { .. })
    }

    /// A member is back over another connection, and is told what it may have missed.
    /// A member that has left its ring meanwhile reports which step it holds.
    fn takes_its_place(&mut self, worker: WorkerId, former: WorkerId, generation: Option<u64>) -> Vec<Output> {
        let at = self.listening.now();
        let runs = self.runs(generation);
        let Some(back) = self.workers.remove(&former) else { return Vec::new() };
        let name = back.name.clone();
        self.workers.insert(worker, Worker { heard: at, connected: true, ..back });
        match &mut self.state {
            State::Running { members, reports, .. } => {
                members.iter_mut().filter(|id| **id == former).for_each(|id| *id = worker);
                if let Some(report) = reports.remove(&former) {
                    reports.insert(worker, report);
                }
            }
            State::Ending { remaining, .. } => {
                if remaining.remove(&former) {
                    remaining.insert(worker);
                }
            }
            State::Waiting | State::Over => {}
        }
        if runs {
            let mut outputs = Vec::new();
            if let State::Running { yielding: true, .. } = &self.state {
                outputs.push(Output::Yield { members: vec![worker], generation: self.generation });
            }
            if self.stopping {
                outputs.push(Output::Stop { members: vec![worker] });
            }
            return outputs;
        }
        // The ring is over for the coordinator or for the worker: the worker's next
        // report replaces what was known of it.
        let mut outputs = self.end(worker, Some(format!("{name} has left the ring")));
        if let Some(w) = self.workers.get_mut(&worker) {
            w.phase = Phase::Joining;
        }
        if let State::Ending { remaining, .. } = &mut self.state {
            remaining.insert(worker);
        }
        if let Some(generation) = generation {
            outputs.push(Output::End { members: vec![worker], generation, reason: "the generation is over".to_owned() });
        }
        outputs
    }
}
