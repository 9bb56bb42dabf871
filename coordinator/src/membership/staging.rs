//! Decides which newcomers a ring yields for. While the ring trains on, its members
//! and the newcomer try to reach each other, in both directions, and one member times
//! a test transfer. A newcomer that cannot be reached, or would hold the ring up for
//! too long, is left out, and tried again after a time that doubles. Newcomers that
//! die soon after they have joined make all later newcomers wait a little, whatever
//! their names.

use std::collections::BTreeSet;
use std::time::Duration;

use common::timing::PROBES;
use common::wire::messages::{Member, PROBE_BYTES};

use super::events::{Output, WorkerId};
use super::paths::{AFTER_A_RING, FIRST_EXCLUSION, Path, REMEMBERED, TIMES_STOOD_STILL};
use super::probing::unreached;
use super::state::{Membership, State, Worker};

impl Membership {
    /// Whether the ring may yield for this worker.
    pub(super) fn is_admissible(&self, w: &Worker) -> bool {
        let (at, State::Running { members, .. }) = (self.listening.now(), &self.state) else { return false };
        let reaches = |names: &BTreeSet<String>| members.iter().filter_map(|id| self.workers.get(id)).all(|m| names.contains(&m.name));
        let proven = matches!(&w.path, Path::Proven { names, .. } if reaches(names));
        w.is_ready() && proven && !self.paths.excludes(&w.name, at) && at.saturating_sub(w.since) >= self.paths.proving(at)
    }

    /// Starts probes of the workers that wait beside a ring, and ends probes that
    /// take too long.
    pub(super) fn stage(&mut self) -> Vec<Output> {
        let State::Running { members, .. } = &self.state else { return Vec::new() };
        let at = self.listening.now();
        let members: Vec<(WorkerId, Member)> = members.iter().filter_map(|id| self.workers.get(id).map(|w| (*id, w.as_member()))).collect();
        let mut outputs = Vec::new();
        let mut late: Vec<(WorkerId, String, String)> = Vec::new();
        let here: BTreeSet<String> = self.workers.values().map(|w| w.name.clone()).collect();
        for (&id, w) in &mut self.workers {
            if !w.is_ready() || w.leaving || self.paths.excludes(&w.name, at) {
                continue;
            }
            match &w.path {
                Path::Proven { names, .. } if members.iter().all(|(_, m)| names.contains(&m.name)) => continue,
                Path::Probing { since, missing, .. } => {
                    // If all of whom nothing is known yet were lost meanwhile, those that
                    // are members now are probed.
                    if let Some((asker, asked)) = missing.iter().find(|(asker, asked)| here.contains(asker) && here.contains(asked)) {
                        if at.saturating_sub(*since) > PROBES {
                            let other = if *asker == w.name { asked } else { asker };
                            late.push((id, other.clone(), format!("{asker} did not say whether it reaches {asked}")));
                        }
                        continue;
                    }
                }
                _ => {}
            }
            let newcomer = w.as_member();
            let both = |m: &Member| [(m.name.clone(), newcomer.name.clone()), (newcomer.name.clone(), m.name.clone())];
            w.path = Path::Probing {
                since: at,
                names: members.iter().map(|(_, m)| m.name.clone()).collect(),
                missing: members.iter().flat_map(|(_, m)| both(m)).collect(),
                handover: Duration::ZERO,
            };
            outputs.push(Output::Probe { worker: id, peers: members.iter().map(|(_, m)| m.seen_by(&newcomer)).collect(), bytes: 0 });
            for (nth, (member, as_member)) in members.iter().enumerate() {
                let bytes = if nth == 0 { self.rules.state_bytes.min(PROBE_BYTES) } else { 0 };
                outputs.push(Output::Probe { worker: *member, peers: vec![newcomer.seen_by(as_member)], bytes });
            }
        }
        for (id, other, reason) in late {
            outputs.extend(self.leave_out(id, Some(&other), &reason, FIRST_EXCLUSION));
        }
        outputs
    }

    /// Handles the result of `worker`'s attempt to reach `peer`.
    pub(super) fn probed(&mut self, worker: WorkerId, peer: &str, problem: Option<String>, millis: u64) -> Vec<Output> {
        let Some(asking) = self.workers.get(&worker).map(Worker::as_member) else { return Vec::new() };
        if self.pair_answered(&asking, peer, problem.as_ref()) {
            return Vec::new();
        }
        let asked = self.workers.values().find(|w| w.name == peer).map(|w| w.as_member().seen_by(&asking));
        let answered = (asking.name.clone(), peer.to_owned());
        let newcomer = self.workers.iter_mut().find_map(|(&id, w)| match &mut w.path {
            Path::Probing { missing, handover, .. } => missing.remove(&answered).then_some((id, handover)),
            _ => None,
        });
        let Some((id, handover)) = newcomer else { return Vec::new() };
        // Nobody reaches a worker that was lost meanwhile, and nobody has to.
        if let (Some(problem), Some(asked)) = (problem, asked) {
            let other = if id == worker { peer } else { &asking.name };
            let reason = unreached(&asking.name, &asked, &problem);
            return self.leave_out(id, Some(other), &reason, FIRST_EXCLUSION);
        }
        let bytes = self.rules.state_bytes.clamp(1, PROBE_BYTES);
        *handover = (*handover).max(Duration::from_secs_f64(millis as f64 * 1e-3 * self.rules.state_bytes as f64 / bytes as f64));
        let handover = *handover;
        if handover > self.rules.handover {
            let megabytes = self.rules.state_bytes as f64 * 1e-6;
            return self.leave_out(
                id,
                None,
                &format!(
                    "its link is slow: the state of {megabytes:.1} MB would hold the ring up for {:.0} s, longer than cluster.handover_ms allows",
                    handover.as_secs_f64()
                ),
                FIRST_EXCLUSION,
            );
        }
        if let Some(w) = self.workers.get_mut(&id)
            && let Path::Probing { names, missing, .. } = &mut w.path
            && missing.is_empty()
        {
            w.path = Path::Proven { names: std::mem::take(names) };
            w.handover = Some(handover);
        }
        Vec::new()
    }

    /// Leaves this worker out of all rings for a while; the first time for `first`.
    /// `other` is the worker that it has to do with.
    pub(super) fn leave_out(&mut self, worker: WorkerId, other: Option<&str>, reason: &str, first: Duration) -> Vec<Output> {
        let at = self.listening.now();
        let Some(w) = self.workers.get_mut(&worker) else { return Vec::new() };
        w.path = Path::Unknown;
        let again = self.paths.exclude(&w.name, at, first);
        vec![Output::LeftOut { name: w.name.clone(), other: other.map(str::to_owned), reason: reason.to_owned(), again }]
    }

    /// Leaves a newcomer out for which the newest ring stood still in vain. `gone`: it left
    /// that ring by itself, and may have had a reason.
    pub(super) fn leave_out_after_a_ring(&mut self, worker: WorkerId, other: Option<&str>, reason: &str, gone: bool) -> Vec<Output> {
        let at = self.listening.now();
        let stood_still = at.saturating_sub(self.generation_began);
        self.paths.strike(at, gone, stood_still);
        let least = if gone { FIRST_EXCLUSION } else { AFTER_A_RING };
        self.leave_out(worker, other, reason, stood_still.saturating_mul(TIMES_STOOD_STILL).max(least))
    }

    /// Handles the report that a ring could not form, or that a worker did not get
    /// its state, because two workers did not reach each other. The newer one of the
    /// two is left out. Of two proved members neither is left out the first time.
    pub(super) fn missed(&mut self, worker: WorkerId, generation: u64, peer: &str, donor: bool, reason: &str) -> Vec<Output> {
        let at = self.listening.now();
        let other = self.workers.iter().find(|(_, w)| w.name == peer).map(|(&id, _)| id);
        let (Some(reporter), Some(other)) = (self.workers.get(&worker), other) else { return Vec::new() };
        let member = |name: &String| self.lineage.newest().contains(name);
        let known = generation == self.generation && member(&reporter.name) && member(&self.workers[&other].name);
        // A ring that makes steps has formed.
        let formed = self.newest > self.first_step();
        if known && !formed && donor {
            self.failed_donors = self.failed_donors.wrapping_add(1);
        }
        if !known || formed || self.paths.excludes(&reporter.name, at) || self.paths.excludes(peer, at) {
            return Vec::new();
        }
        // Without the worker that holds the state the run would go back.
        let junior = match (self.initial_holders.contains(&reporter.name), self.initial_holders.contains(peer)) {
            (true, false) => other,
            (false, true) => worker,
            _ => worker.max(other),
        };
        let blamed = match (reporter.proved, self.workers[&other].proved) {
            (false, true) => worker,
            (true, false) => other,
            (false, false) => junior,
            (true, true) => {
                let mut pair = [reporter.name.clone(), peer.to_owned()];
                pair.sort();
                let [one, two] = pair;
                if self.paths.missed.len() >= REMEMBERED {
                    self.paths.missed.clear();
                }
                if self.paths.missed.insert((one, two)) {
                    return Vec::new();
                }
                if donor { other } else { junior }
            }
        };
        let also = if blamed == worker { peer.to_owned() } else { reporter.name.clone() };
        let reason = format!("{} and {peer} cannot reach each other: {reason}", reporter.name);
        if self.workers[&blamed].fresh {
            return self.leave_out_after_a_ring(blamed, Some(&also), &reason, false);
        }
        // Probes cost a ring nothing, so a worker that no ring has yielded for is
        // soon tried again.
        self.leave_out(blamed, Some(&also), &reason, FIRST_EXCLUSION)
    }
}
