//! Probes the workers of which a generation is about to form, before it does: each tries
//! to reach the others, both ways, unless both were members of the newest generation or
//! reached each other a moment ago. While that is under way no ring stands that could wait
//! for an address that leads nowhere. Whoever is not reached is left out, and the others
//! form the generation.

use std::collections::{BTreeMap, BTreeSet};

use common::timing::PROBES;
use common::wire::messages::Member;

use super::events::{Output, WorkerId};
use super::pairs::{Attempt, Failure, blamed, pairs};
use super::paths::{FIRST_EXCLUSION, Path};
use super::state::{Membership, Worker};

/// Why a worker that is not reached is not, and what to do about it.
pub(super) fn unreached(asker: &str, peer: &Member, problem: &str) -> String {
    let Member { name, addr, .. } = peer;
    format!("{asker} does not reach {name} at {addr}: {problem}. {}", advice(asker, peer))
}

/// What to do so that `asker` reaches `peer` directly.
fn advice(asker: &str, peer: &Member) -> String {
    let Member { name, addr, .. } = peer;
    if peer.addresses().iter().all(|address| address.ip().is_loopback()) {
        format!(
            "{name} is at {addr}, where only processes of its own machine reach it: start it with --listen [::]:PORT, or name an address that {asker} reaches with --advertise IP:PORT"
        )
    } else {
        format!(
            "let UDP through to port {} of {name}, or have it name an address that {asker} reaches with --advertise IP:PORT",
            addr.port()
        )
    }
}

impl Membership {
    /// Has the workers of which a generation is about to form, by rank, try to reach each
    /// other. None once all that must are known to do so.
    pub(super) fn probe_pairs(&mut self, chosen: &[WorkerId], holds: impl Fn(WorkerId) -> bool) -> Option<Vec<Output>> {
        let at = self.listening.now();
        let ring: Vec<(WorkerId, Member)> = chosen.iter().filter_map(|id| Some((*id, self.workers.get(id)?.as_member()))).collect();
        let unknown: Vec<(usize, usize)> = pairs(ring.len()).filter(|(one, other)| !self.are_known(&ring[*one], &ring[*other])).collect();
        if unknown.is_empty() {
            return None;
        }
        let both = || unknown.iter().flat_map(|(one, other)| [(*one, *other), (*other, *one)]);
        let attempt = |(asker, peer): (usize, usize)| (ring[asker].1.name.clone(), ring[peer].1.name.clone());
        let needed: BTreeSet<Attempt> = both().map(attempt).collect();
        // Of workers that are gone, or that others have taken the place of.
        self.pairs.asked.retain(|attempt, _| needed.contains(attempt));
        self.pairs.failed.retain(|attempt, _| needed.contains(attempt));
        // One way alone is tried again with the other, for a worker lets in for a while only
        // those that it was to try itself.
        let whole = self.pairs.reached.clone();
        self.pairs.reached.retain(|a| needed.contains(a) || whole.contains(&(a.1.clone(), a.0.clone())));
        let mut peers: BTreeMap<usize, Vec<Member>> = BTreeMap::new();
        let unasked: Vec<(usize, usize)> = both().filter(|pair| !self.pairs.has(&attempt(*pair))).collect();
        for (asker, peer) in unasked {
            self.pairs.asked.insert(attempt((asker, peer)), at);
            peers.entry(asker).or_default().push(ring[peer].1.seen_by(&ring[asker].1));
        }
        let mut outputs: Vec<Output> =
            peers.into_iter().map(|(asker, peers)| Output::Probe { worker: ring[asker].0, peers, bytes: 0 }).collect();
        let late: Vec<Attempt> =
            self.pairs.asked.iter().filter(|(_, since)| at.saturating_sub(**since) > PROBES).map(|(a, _)| a.clone()).collect();
        for attempt in late {
            self.pairs.asked.remove(&attempt);
            let reason = format!("{} did not say whether it reaches {}", attempt.0, attempt.1);
            self.pairs.failed.insert(attempt, Failure { reason, silent: true });
        }
        // All have answered: the failures show together whose they are.
        if self.pairs.asked.is_empty() {
            let mut by_seniority = ring.clone();
            by_seniority.sort_by_key(|(id, _)| (!holds(*id), *id));
            let names: Vec<&str> = by_seniority.iter().map(|(_, member)| member.name.as_str()).collect();
            let failed = std::mem::take(&mut self.pairs.failed);
            for (name, attempt) in blamed(&failed, &names) {
                self.pairs.reached.retain(|(asker, peer)| asker != name && peer != name);
                let worker = ring.iter().find(|(_, member)| member.name == name).map(|(id, _)| *id);
                let other = if attempt.0 == name { &attempt.1 } else { &attempt.0 };
                if let Some(worker) = worker {
                    outputs.extend(self.leave_out(worker, Some(other), &failed[attempt].reason, FIRST_EXCLUSION));
                }
            }
        }
        Some(outputs)
    }

    /// Says once a generation that two of its members are relayed.
    pub(super) fn relayed(&mut self, worker: WorkerId, generation: u64, peer: &str) -> Vec<Output> {
        let other = self.workers.values().find(|w| w.name == peer).map(Worker::as_member);
        let (Some(asker), Some(other)) = (self.workers.get(&worker).map(Worker::as_member), other) else { return Vec::new() };
        let newest = self.lineage.newest();
        let known = generation == self.generation && asker.name != other.name && [&asker, &other].iter().all(|m| newest.contains(&m.name));
        let mut names = [asker.name.clone(), other.name.clone()];
        names.sort();
        if !known || !self.relayed.insert(names.clone()) {
            return Vec::new();
        }
        let advice = advice(&asker.name, &other.seen_by(&asker));
        let reason = format!(
            "{} reaches {} only through the coordinator, which takes longer: every step waits for it. {advice}",
            asker.name, other.name
        );
        vec![Output::Relayed { generation, names, reason }]
    }

    /// Whether these two have shown that they reach each other: as members of the newest
    /// generation, when one of them was probed beside its ring, or just now.
    fn are_known(&self, (one, a): &(WorkerId, Member), (other, b): &(WorkerId, Member)) -> bool {
        let newest = self.lineage.newest();
        let path = |of: &WorkerId, to: &Member| {
            self.workers.get(of).is_some_and(|w| matches!(&w.path, Path::Proven { names } if names.contains(&to.name)))
        };
        let reached = |from: &Member, to: &Member| self.pairs.reached.contains(&(from.name.clone(), to.name.clone()));
        (newest.contains(&a.name) && newest.contains(&b.name)) || path(one, b) || path(other, a) || (reached(a, b) && reached(b, a))
    }

    /// Takes the result of an attempt that [`Membership::probe_pairs`] asked for; false if
    /// it is the result of another one.
    pub(super) fn pair_answered(&mut self, asker: &Member, peer: &str, problem: Option<&String>) -> bool {
        let reason = problem.map(|problem| {
            let peer = self.workers.values().find(|w| w.name == peer).map(|w| w.as_member().seen_by(asker));
            peer.map_or_else(|| problem.clone(), |peer| unreached(&asker.name, &peer, problem))
        });
        self.pairs.answered(&asker.name, peer, reason)
    }
}
