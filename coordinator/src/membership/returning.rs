//! A coordinator that was started again finds the ring still training: its
//! members are taken for alive until they had time to come back, and then it
//! is the ordinary machine.

use std::time::{Duration, Instant};

use common::wire::messages::Member;

use crate::limits::LEAP;

use super::{BTreeMap, Membership, Output, Phase, Rules, State, Worker, WorkerId};

/// How long members get to find a coordinator that was started again.
const GRACE: Duration = Duration::from_secs(3);

impl Membership {
    /// A membership whose generation `rules.last_generation` of `members` may be
    /// under way. They have the ids from 1 on until they are back under others.
    pub fn returning(rules: Rules, members: &[Member], now: Instant) -> Self {
        let mut membership = Self::new(rules);
        let heard = now + GRACE;
        for (id, member) in (1..).zip(members) {
            let (name, addr) = (member.name.clone(), member.addr.clone());
            let worker =
                Worker { name, addr, preferred_rank: None, phase: Phase::Member, leaving: false, told_spare: false, heard, waiting: None };
            membership.workers.insert(id, worker);
        }
        if !members.is_empty() {
            membership.begun = true;
            let members = membership.workers.keys().copied().collect();
            membership.state = State::Running { members, reports: BTreeMap::new(), yielding: false };
        }
        membership
    }

    /// A worker that tells of a generation which the journal does not know: a disk
    /// may have lost the journal's end, and then no number is to be used twice. What
    /// no disk can have lost is not true.
    pub(super) fn newer(&mut self, worker: WorkerId, generation: u64) -> Option<Vec<Output>> {
        if generation > self.generation.saturating_add(LEAP) {
            self.workers.remove(&worker);
            let reason = format!("told of generation {generation}, and the newest is {}", self.generation);
            return Some(vec![Output::Refuse { worker, reason }]);
        }
        if generation > self.generation && !matches!(self.state, State::Running { .. }) {
            self.generation = generation;
        }
        None
    }

    /// Whether the generation of this number is the one that runs.
    pub(super) fn runs(&self, generation: Option<u64>) -> bool {
        generation == Some(self.generation) && matches!(self.state, State::Running { .. })
    }

    /// A member of the running generation is back over another connection: it
    /// takes its own place, and is told again what it may have missed.
    pub(super) fn takes_its_place(&mut self, now: Instant, worker: WorkerId, former: WorkerId) -> Vec<Output> {
        let State::Running { members, reports, yielding } = &mut self.state else { return Vec::new() };
        members.iter_mut().filter(|id| **id == former).for_each(|id| *id = worker);
        if let Some(report) = reports.remove(&former) {
            reports.insert(worker, report);
        }
        let mut outputs = Vec::new();
        if *yielding {
            outputs.push(Output::Yield { members: vec![worker], generation: self.generation });
        }
        if self.stopping {
            outputs.push(Output::Stop { members: vec![worker] });
        }
        if let Some(back) = self.workers.remove(&former) {
            self.workers.insert(worker, Worker { heard: now, ..back });
        }
        outputs
    }
}
