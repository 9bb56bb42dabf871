//! Decides which workers are given up, and when. A worker that is given up is no
//! longer a member. It keeps its state, and the run waits for that state if no other
//! worker has it.

use std::time::Duration;

use common::timing::{first_step_timeout, leave_timeout, reconnect_timeout};

use super::events::{Output, WorkerId};
use super::state::{Membership, Phase, State};

/// A member is stuck once it takes this many times as long as the slowest step.
const SLOWER: u32 = 4;

impl Membership {
    /// A connection broke. Its worker may come back over another one, in time.
    pub(super) fn disconnected(&mut self, worker: WorkerId) -> Vec<Output> {
        let Some(w) = self.workers.get_mut(&worker) else { return Vec::new() };
        w.connected = false;
        if w.phase == Phase::Joining && !self.is_awaited(worker) { self.lose(worker, "lost its connection", false) } else { Vec::new() }
    }

    /// Whether this worker has not left the last generation yet.
    pub(super) fn is_awaited(&self, worker: WorkerId) -> bool {
        matches!(&self.state, State::Ending { remaining, .. } if remaining.contains(&worker))
    }

    /// Removes a worker; `gone`: its process has ended, and its state with it.
    pub(super) fn lose(&mut self, worker: WorkerId, reason: &str, gone: bool) -> Vec<Output> {
        let at = self.listening.now();
        let Some(lost) = self.workers.remove(&worker) else { return Vec::new() };
        if self.storing == Some(worker) {
            self.storing = None;
        }
        if gone {
            self.absent.remove(&lost.name);
        } else if self.lineage.newest().contains(&lost.name) || lost.holds().is_some_and(|step| step > self.stored) {
            self.absent.insert(lost.name.clone(), at + self.rules.rejoin);
        }
        let silent = at.saturating_sub(lost.heard);
        if lost.fresh && lost.phase == Phase::Member {
            self.paths.strike(at, gone, if gone { Duration::ZERO } else { silent });
        }
        let said = |name: &str| Output::Lost { name: name.to_owned(), reason: reason.to_owned(), silent };
        match &mut self.state {
            // A member that has reported its end has done all that was expected of it.
            State::Running { members, reports, .. } if members.contains(&worker) && !reports.contains_key(&worker) => {
                let mut outputs = vec![said(&lost.name)];
                outputs.extend(self.end(worker, Some(format!("{} {reason}", lost.name))));
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

    /// A worker cannot go on. A problem of its own costs the run only that worker; a
    /// problem that any other worker would have too ends the run.
    pub(super) fn failed(&mut self, worker: WorkerId, reason: &str, run: bool) -> Vec<Output> {
        let Some(w) = self.workers.get(&worker) else { return Vec::new() };
        let ring = self.lineage.newest();
        if run && ring.contains(&w.name) {
            let reason = format!("{} ({}) {reason}", w.name, w.addr);
            self.reported_fatal.insert(w.name.clone());
            // All members would have the problem, so one of several is not believed alone.
            if self.reported_fatal.len() >= ring.len().min(2) {
                self.workers.remove(&worker);
                return self.fail(format!("{reason}; {}", self.kept()));
            }
        }
        self.lose(worker, reason, true)
    }

    pub(super) fn give_up(&mut self, workers: impl Iterator<Item = (WorkerId, String)>, gone: bool) -> Vec<Output> {
        let mut outputs = Vec::new();
        for (worker, reason) in workers {
            outputs.extend(self.lose(worker, &reason, gone));
            outputs.push(Output::Drop { worker, reason });
        }
        outputs
    }

    /// Gives up workers that were silent, stuck or waited for too long.
    pub(super) fn expire(&mut self) -> Vec<Output> {
        let mut outputs = self.stage();
        if self.listening.isolated() {
            // A step during which no worker was heard says nothing about how long
            // steps take.
            self.pace.starts(self.newest, self.listening.now());
            if self.listening.becomes_isolated() && !self.workers.is_empty() && !matches!(self.state, State::Over) {
                outputs.push(Output::Isolated);
            }
            return outputs;
        }
        let (at, timeout) = (self.listening.now(), self.rules.timeout);
        let mut expired: Vec<(WorkerId, String)> = Vec::new();
        for (&id, w) in &self.workers {
            let patience = if w.connected { timeout } else { reconnect_timeout(timeout) };
            if self.listening.silence(w.heard) > patience {
                expired.push((id, format!("was not heard for {} ms", patience.as_millis())));
            }
        }
        // Heartbeats do not show whether the training thread still answers.
        if let State::Ending { remaining, since } = &self.state
            && at.saturating_sub(*since) > self.stuck_after()
        {
            expired.extend(remaining.iter().map(|&id| (id, "did not leave a generation that was over".to_owned())));
        }
        let (awaited, bound) = self.awaited();
        if let State::Running { reports, .. } = &mut self.state {
            // Their reports that the run is over were false.
            awaited.iter().for_each(|id| _ = reports.remove(id));
        }
        // A newcomer that has never completed a step is not tried again soon.
        for id in awaited.iter().filter(|id| self.is_untried(**id)).copied().collect::<Vec<_>>() {
            outputs.extend(self.leave_out_after_a_ring(id, None, "it took part in no step", false));
        }
        expired.extend(awaited.into_iter().map(|id| (id, format!("kept all others waiting for {} s", bound.as_secs()))));
        outputs.extend(self.give_up(expired.into_iter(), false));
        outputs
    }

    /// How long a member may take to leave a generation that is over: longer than any
    /// step has taken. Before the first step the time of a step is unknown.
    fn stuck_after(&self) -> Duration {
        let known = self.pace.slowest().map(|slowest| slowest * SLOWER);
        let quick = self.newest > self.rules.first_step.max(self.rules.recorded);
        let least = leave_timeout(self.rules.timeout);
        known.map_or(if quick { least } else { self.rules.stall.max(least) }, |known| known.max(least))
    }

    /// Whether this worker is a newcomer in its first ring that has completed no step
    /// there.
    fn is_untried(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|w| w.fresh && !w.proved)
    }

    /// Members that hang although they are alive: all others wait for them, for
    /// longer than a step may take. A member that computes does not wait; a member
    /// that waits cannot be blamed. A newcomer has less time until it has completed a
    /// step. Members end a run together: if some report that it is over while others
    /// still wait, the smaller group is wrong.
    fn awaited(&self) -> (Vec<WorkerId>, Duration) {
        let State::Running { members, reports, .. } = &self.state else { return Default::default() };
        let at = self.listening.now();
        let since = |id: &WorkerId| self.workers.get(id).and_then(|w| w.waiting).map(|(_, since)| since);
        let (ended, train): (Vec<WorkerId>, Vec<WorkerId>) = members.iter().copied().partition(|id| reports.contains_key(id));
        let (wait, compute): (Vec<WorkerId>, Vec<WorkerId>) = train.into_iter().partition(|id| since(id).is_some());
        let others = match compute.is_empty() {
            false => compute,
            true if ended.len() > wait.len() => wait.clone(),
            true => ended,
        };
        let slowest = self.pace.slowest();
        let longest = slowest.unwrap_or_default() * SLOWER;
        let bound = match slowest.is_some() && others.iter().all(|id| self.is_untried(*id)) {
            true => longest.max(first_step_timeout(self.rules.timeout)),
            false => self.rules.stall.max(longest),
        };
        let long = |id: &WorkerId| since(id).is_some_and(|since| at.saturating_sub(since) > bound);
        if !wait.is_empty() && wait.iter().all(long) { (others, bound) } else { Default::default() }
    }
}
