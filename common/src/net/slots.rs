//! Places for peers that have proved nothing yet: how many there are, and which holder
//! is evicted for a newcomer when all are taken. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// A bounded number of places. Each carries what is needed to close its holder's
/// connection.
///
/// While there is room, every peer gets a place. Then the source that holds the most
/// places loses its oldest, so that no source can take another's share. Where the
/// shares are even, that oldest holder must have had its place for `grace`: otherwise a
/// fast flood would evict all peers before they can prove anything.
#[derive(Debug)]
pub(super) struct Slots<T> {
    most: usize,
    grace: Duration,
    /// In order of arrival.
    held: Vec<Held<T>>,
    next: u64,
}

#[derive(Debug)]
struct Held<T> {
    id: u64,
    source: IpAddr,
    since: Instant,
    proved: bool,
    holder: T,
}

#[derive(Debug)]
pub(super) struct Entered<T> {
    /// The place's number, for [`Slots::prove`] and [`Slots::leave`].
    pub(super) id: u64,
    /// The holder that has just lost its place.
    pub(super) gave_way: Option<T>,
}

impl<T> Slots<T> {
    pub(super) fn new(most: usize, grace: Duration) -> Self {
        Self { most, grace, held: Vec::new(), next: 0 }
    }

    pub(super) fn taken(&self) -> usize {
        self.held.len()
    }

    /// A place for a newcomer from `source`; none if all are taken and no holder may be
    /// evicted.
    pub(super) fn enter(&mut self, source: IpAddr, now: Instant, holder: T) -> Option<Entered<T>> {
        let gave_way = if self.held.len() < self.most {
            None
        } else {
            let index = self.gives_way(source, now)?;
            Some(self.held.remove(index).holder)
        };
        let id = self.next;
        self.next += 1;
        self.held.push(Held { id, source, since: now, proved: false, holder });
        Some(Entered { id, gave_way })
    }

    fn gives_way(&self, source: IpAddr, now: Instant) -> Option<usize> {
        let share = |of: IpAddr| self.held.iter().filter(|h| h.source == of).count();
        let keys: Vec<IpAddr> = self.held.iter().map(|h| h.source).collect();
        let (index, largest) = largest_share(&keys, |index| !self.held[index].proved)?;
        let had = now.saturating_duration_since(self.held[index].since);
        (largest >= share(source) + 2 || had >= self.grace).then_some(index)
    }

    /// The holder has shown that it belongs here: it is no longer evicted.
    pub(super) fn prove(&mut self, id: u64) {
        self.held.iter_mut().filter(|h| h.id == id).for_each(|h| h.proved = true);
    }

    /// Gives a place up; false if it was lost before.
    pub(super) fn leave(&mut self, id: u64) -> bool {
        let before = self.held.len();
        self.held.retain(|h| h.id != id);
        self.held.len() < before
    }
}

/// Among the entries for which `may` is true, the first of those whose key is the most
/// frequent: its index, and how often the key occurs.
pub(super) fn largest_share<K: PartialEq>(keys: &[K], may: impl Fn(usize) -> bool) -> Option<(usize, usize)> {
    let mut largest: Option<(usize, usize)> = None;
    for index in (0..keys.len()).filter(|&index| may(index)) {
        let share = keys.iter().filter(|&key| *key == keys[index]).count();
        if largest.is_none_or(|(_, most)| share > most) {
            largest = Some((index, share));
        }
    }
    largest
}

/// What counts as one source: an IPv4 address, or the IPv6 network of 64 bits
/// that one host commonly has to itself.
pub(super) fn source(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::seed;

    const GRACE: Duration = Duration::from_millis(500);

    fn host(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[test]
    fn one_source_is_one_ipv4_address_or_one_ipv6_network() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("10.0.0.1:1"), of("10.0.0.1:2"));
        assert_eq!(of("10.0.0.1:1"), of("[::ffff:10.0.0.1]:1"));
        assert_ne!(of("10.0.0.1:1"), of("10.0.0.2:1"));
        assert_eq!(of("[2001:db8:1:2:3::4]:1"), of("[2001:db8:1:2:ffff::1]:1"));
        assert_ne!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:3::1]:1"));
    }

    /// Idle strangers on one address, and newcomers on the same address.
    #[test]
    fn a_thousand_idle_strangers_hold_no_newcomer_up_for_longer_than_the_grace() {
        let (start, mut places) = (Instant::now(), Slots::new(64, GRACE));
        for number in 0..1000 {
            places.enter(host(1), start, number);
        }
        assert_eq!(places.taken(), 64);
        assert!(places.enter(host(1), start, 1000).is_none(), "those of this moment may still prove something");
        for newcomer in 0..64 {
            let entered = places.enter(host(1), start + GRACE, 1001 + newcomer).unwrap();
            assert_eq!(entered.gave_way, Some(newcomer), "the oldest gives way");
        }
    }

    #[test]
    fn another_source_than_the_crowd_enters_at_once() {
        let (start, mut places) = (Instant::now(), Slots::new(8, GRACE));
        for number in 0..20 {
            places.enter(host(1), start, number);
        }
        // Up to an equal share without any wait, and no further.
        for number in 100..104 {
            assert!(places.enter(host(2), start, number).is_some_and(|e| e.gave_way.is_some_and(|n| n < 20)));
        }
        assert!(places.enter(host(2), start, 104).is_none());
        assert!(places.enter(host(1), start, 20).is_none());
    }

    #[test]
    fn whoever_has_proved_something_stays() {
        let (start, mut places) = (Instant::now(), Slots::new(3, GRACE));
        let ids: Vec<u64> = (0..3).map(|n| places.enter(host(1), start, n).unwrap().id).collect();
        places.prove(ids[0]);
        let later = start + 2 * GRACE;
        assert_eq!(places.enter(host(1), later, 3).unwrap().gave_way, Some(1));
        let last = places.enter(host(1), later, 4).unwrap();
        assert_eq!(last.gave_way, Some(2));
        assert!(!places.leave(ids[2]), "it has lost its place");
        places.prove(last.id);
        assert!(places.leave(ids[0]) && !places.leave(ids[0]));
        assert!(places.enter(host(1), later, 5).is_some_and(|e| e.gave_way.is_none()));
    }

    /// Hosts come and go at random, some of them many times.
    #[test]
    fn shares_are_fair_whatever_comes() {
        let (mut evicted, mut refused) = (0, 0);
        for case in 0..2000u64 {
            let mut rng = seed::stream(case, "places", &[]);
            let most = 1 + seed::below(&mut rng, 12) as usize;
            let (mut now, mut places) = (Instant::now(), Slots::new(most, GRACE));
            // By number of the holder: place, source, since, proved.
            let mut there: HashMap<u32, (u64, IpAddr, Instant, bool)> = HashMap::new();
            for number in 0..150 {
                now += Duration::from_millis(u64::from(seed::below(&mut rng, 120)));
                let mut holders: Vec<u32> = there.keys().copied().collect();
                holders.sort_unstable();
                let pick = |rng: &mut _| holders.get(seed::below(rng, holders.len().max(1) as u32) as usize).copied();
                match seed::below(&mut rng, 10) {
                    0 => {
                        if let Some(holder) = pick(&mut rng) {
                            assert!(places.leave(there.remove(&holder).unwrap().0));
                        }
                    }
                    1 => {
                        if let Some(holder) = pick(&mut rng) {
                            let entry = there.get_mut(&holder).unwrap();
                            entry.3 = true;
                            places.prove(entry.0);
                        }
                    }
                    _ => {
                        // Half of all come from one host.
                        let from = host(seed::below(&mut rng, 8).saturating_sub(4));
                        let share = |of: IpAddr| there.values().filter(|(_, source, ..)| *source == of).count();
                        let unproved = || there.values().filter(|(.., proved)| !proved);
                        let largest = unproved().map(|(_, source, ..)| share(*source)).max().unwrap_or(0);
                        match places.enter(from, now, number) {
                            None => {
                                refused += 1;
                                assert!(there.len() == most && largest < share(from) + 2, "case {case}");
                                let old = |since: Instant| now.duration_since(since) >= GRACE;
                                let waits = unproved().any(|(_, source, since, _)| share(*source) == largest && old(*since));
                                // Of several largest sources, the one with the oldest
                                // place is considered.
                                assert!(!waits, "case {case}: it should have entered");
                            }
                            Some(Entered { id, gave_way }) => {
                                assert_eq!(gave_way.is_some(), there.len() == most, "case {case}");
                                if let Some(other) = gave_way {
                                    evicted += 1;
                                    let (_, source, since, proved) = there[&other];
                                    assert!(!proved && share(source) == largest, "case {case}");
                                    let older = |s: &&(u64, IpAddr, Instant, bool)| s.1 == source && s.2 < since;
                                    assert!(!unproved().any(|s| older(&s)), "case {case}: not its oldest");
                                    let fair = largest >= share(from) + 2 || now.duration_since(since) >= GRACE;
                                    assert!(fair, "case {case}: it had no time");
                                    there.remove(&other);
                                }
                                there.insert(number, (id, from, now, false));
                            }
                        }
                    }
                }
                assert_eq!(places.taken(), there.len());
                assert!(places.taken() <= most);
            }
        }
        assert!(evicted > 10_000 && refused > 10_000, "{evicted} gave way, {refused} were refused");
    }
}
