//! Which workers may send packets to each other through the coordinator: those that it has
//! named to each other, as in [`common::net::Endpoint::expect`]. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Allowed {
    /// Of the newest generation.
    members: BTreeSet<u32>,
    /// Pairs that probe each other, the smaller number first, and until when.
    probes: BTreeMap<(u32, u32), Instant>,
}

fn pair(one: u32, other: u32) -> (u32, u32) {
    (one.min(other), one.max(other))
}

impl Allowed {
    pub(super) fn set_members(&mut self, members: impl Iterator<Item = u32>) {
        self.members = members.collect();
    }

    /// One worker tries to reach others, or they it, until then.
    pub(super) fn probes(&mut self, asker: u32, peers: impl Iterator<Item = u32>, now: Instant, until: Instant) {
        self.probes.retain(|_, until| *until > now);
        self.probes.extend(peers.map(|peer| (pair(asker, peer), until)));
    }

    /// Whether a packet may go from one worker to another.
    pub(super) fn may(&self, from: u32, to: u32, now: Instant) -> bool {
        let both = || self.members.contains(&from) && self.members.contains(&to);
        from != to && (both() || self.probes.get(&pair(from, to)).is_some_and(|until| *until > now))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::seed;

    use super::*;

    /// Against the rule as it is said: over many schedules of generations and probes.
    #[test]
    fn only_members_and_those_that_probe_each_other_may() {
        const WORKERS: u32 = 9;
        let start = Instant::now();
        let mut passed = 0;
        for case in 0..500 {
            let mut rng = seed::stream(case, "relay", &[]);
            let mut any = |most: u32| seed::below(&mut rng, most);
            let mut allowed = Allowed::default();
            let (mut members, mut named): (Vec<u32>, Vec<(u32, u32, Instant)>) = (Vec::new(), Vec::new());
            let mut now = start;
            for _ in 0..40 {
                now += Duration::from_millis(u64::from(any(2000)));
                match any(4) {
                    0 => {
                        members = (0..any(5)).map(|_| any(WORKERS)).collect();
                        allowed.set_members(members.iter().copied());
                    }
                    1 => {
                        let (asker, until) = (any(WORKERS), now + Duration::from_secs(6));
                        let peers: Vec<u32> = (0..any(4)).map(|_| any(WORKERS)).collect();
                        named.extend(peers.iter().map(|peer| (asker, *peer, until)));
                        allowed.probes(asker, peers.into_iter(), now, until);
                    }
                    _ => {
                        let (from, to) = (any(WORKERS), any(WORKERS));
                        let probe = |(a, b, until): &(u32, u32, Instant)| *until > now && [(from, to), (to, from)].contains(&(*a, *b));
                        let may = from != to && ([from, to].iter().all(|n| members.contains(n)) || named.iter().any(probe));
                        assert_eq!(allowed.may(from, to, now), may, "case {case}: {from} to {to}");
                        passed += u32::from(may);
                    }
                }
                assert!(allowed.probes.len() <= named.len());
            }
        }
        assert!(passed > 500, "only {passed} packets passed");
    }

    #[test]
    fn probes_that_are_over_are_forgotten() {
        let (mut allowed, now) = (Allowed::default(), Instant::now());
        let later = now + Duration::from_secs(7);
        for asker in 0..1000 {
            allowed.probes(asker, [asker + 1].into_iter(), now, now + Duration::from_secs(6));
        }
        allowed.probes(1, [2].into_iter(), later, later + Duration::from_secs(6));
        assert_eq!(allowed.probes.len(), 1);
    }
}
