//! Which step the members have reached, according to their heartbeats. The report of
//! a member is believed only as far as others report the same.

use super::events::{Output, WorkerId};
use super::paths::PROBATION;
use super::state::{Membership, Phase, State, Worker};

impl Membership {
    /// The number of steps that at least half of the members have committed, whatever
    /// a single one reports. No checkpoint can be more than one step beyond it.
    pub fn committed(&self) -> u64 {
        match &self.state {
            State::Running { members, .. } => {
                let mut steps: Vec<u64> = members.iter().filter_map(|id| self.workers.get(id)).map(|w| w.step).collect();
                steps.sort_unstable();
                steps.get(steps.len().saturating_sub(1) / 2).copied()
            }
            _ => self.workers.values().filter_map(Worker::holds).max(),
        }
        .unwrap_or_default()
        .max(self.stored)
    }

    pub(super) fn hear(&mut self, worker: WorkerId) {
        if let Some(w) = self.workers.get_mut(&worker) {
            self.listening.hear();
            w.heard = self.listening.now();
        }
    }

    pub(super) fn beat(&mut self, worker: WorkerId, step: u64, waiting: bool, speed: Option<f64>) -> Vec<Output> {
        let at = self.listening.now();
        let Some(w) = self.workers.get_mut(&worker) else { return Vec::new() };
        let still = w.waiting.filter(|(after, _)| *after == step);
        w.waiting = waiting.then(|| still.unwrap_or((step, at)));
        if let Some(speed) = speed {
            self.balancing.hear(&w.name, speed);
        }
        if w.phase != Phase::Member || step <= w.step {
            return Vec::new();
        }
        w.step = step;
        self.newest = self.newest.max(self.witnessed());
        if self.newest > self.first_step()
            && let Some(w) = self.workers.get_mut(&worker)
        {
            w.proved = true;
            w.fresh &= at.saturating_sub(w.since) <= PROBATION;
        }
        self.pace.stepped(self.newest, at);
        self.weigh();
        Vec::new()
    }

    /// The largest number of steps that two members of the ring, or its only member,
    /// report as committed. No rank is far ahead of another, so a number that only
    /// one member reports is false, or is soon reported by another. Newcomers count
    /// only if all members are newcomers.
    fn witnessed(&self) -> u64 {
        let members = || self.workers.values().filter(|w| w.phase == Phase::Member);
        let mut steps: Vec<u64> = members().filter(|w| !w.fresh).map(|w| w.step).collect();
        if steps.is_empty() {
            steps = members().map(|w| w.step).collect();
        }
        steps.sort_unstable();
        steps.iter().rev().take(2).min().copied().unwrap_or_default()
    }
}
