//! Which peers with a certificate a worker admits, and how many connections each
//! may have. Pure.

use std::collections::{HashMap, HashSet, VecDeque};

use super::protocol::Alpn;

/// Connections that one peer may have here for a protocol. A ring has at most 16
/// from each neighbour, and the next ring forms while the last one ends.
fn most(alpn: Alpn) -> usize {
    match alpn {
        Alpn::Ring => 32,
        Alpn::Bulk => 8,
        // Not served by workers.
        Alpn::Enrol | Alpn::Doctor | Alpn::Control | Alpn::Relay => 1,
    }
}

/// The connections that are open, each with what is needed to end it.
#[derive(Debug)]
pub(super) struct AllowList<T> {
    /// None until [`AllowList::expect`] is called: any node of the run is expected.
    expected: Option<HashSet<String>>,
    /// The oldest first.
    standing: HashMap<(String, Alpn), VecDeque<(u64, T)>>,
    next: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admitted<T> {
    /// The connection's number, for [`AllowList::leave`].
    pub(super) id: u64,
    /// The same peer's oldest connection, if it has as many as it may.
    pub(super) replaced: Option<T>,
}

impl<T> AllowList<T> {
    pub(super) fn new() -> Self {
        Self { expected: None, standing: HashMap::new(), next: 0 }
    }

    /// None if no peer of that name is expected.
    pub(super) fn admit(&mut self, name: &str, alpn: Alpn, connection: T) -> Option<Admitted<T>> {
        if self.expected.as_ref().is_some_and(|expected| !expected.contains(name)) {
            return None;
        }
        let id = self.next;
        self.next += 1;
        let own = self.standing.entry((name.to_owned(), alpn)).or_default();
        let replaced = if own.len() >= most(alpn) { own.pop_front() } else { None };
        own.push_back((id, connection));
        Some(Admitted { id, replaced: replaced.map(|(_, connection)| connection) })
    }

    /// From now on only these are admitted. Returns the connections of others.
    pub(super) fn expect(&mut self, names: HashSet<String>) -> Vec<T> {
        let gone = self.standing.extract_if(|(name, _), _| !names.contains(name));
        let gone = gone.flat_map(|(_, connections)| connections).map(|(_, connection)| connection).collect();
        self.expected = Some(names);
        gone
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, name: &str, alpn: Alpn, id: u64) {
        let key = (name.to_owned(), alpn);
        if let Some(own) = self.standing.get_mut(&key) {
            own.retain(|(other, _)| *other != id);
            if own.is_empty() {
                self.standing.remove(&key);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::seed;

    fn names(names: &[&str]) -> HashSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn until_names_are_given_everybody_is_admitted_then_only_they_are() {
        let mut list = AllowList::new();
        assert!(list.admit("a", Alpn::Ring, 1).is_some());
        assert!(list.admit("b", Alpn::Ring, 2).is_some());
        assert!(list.admit("b", Alpn::Bulk, 3).is_some());
        let mut gone = list.expect(names(&["a", "c"]));
        gone.sort_unstable();
        assert_eq!(gone, [2, 3]);
        assert!(list.admit("b", Alpn::Ring, 4).is_none());
        assert!(list.admit("c", Alpn::Bulk, 5).is_some());
        assert_eq!(list.expect(names(&["b"])).len(), 2);
        assert!(list.admit("b", Alpn::Ring, 6).is_some());
        assert_eq!(list.expect(names(&[])), [6]);
        assert!(list.standing.is_empty());
    }

    #[test]
    fn the_newest_replaces_the_oldest_of_the_same_name_and_protocol() {
        let mut list = AllowList::new();
        for (alpn, most) in [(Alpn::Ring, 32u32), (Alpn::Bulk, 8)] {
            for number in 0..100u32 {
                let admitted = list.admit("a", alpn, number).unwrap();
                assert_eq!(admitted.replaced, number.checked_sub(most));
                assert_eq!(list.admit("b", alpn, 1000).unwrap().replaced, None);
                list.leave("b", alpn, admitted.id + 1);
            }
        }
        assert_eq!(list.standing.len(), 2, "those of `b` have all left");
    }

    #[test]
    fn whatever_comes_only_the_expected_stand_and_not_too_many() {
        for case in 0..500u64 {
            let mut rng = seed::stream(case, "guests", &[]);
            let mut list = AllowList::new();
            let mut there: Vec<(u64, String, Alpn)> = Vec::new();
            let mut expected: Option<HashSet<String>> = None;
            let mut numbers = 0;
            for _ in 0..300 {
                match seed::below(&mut rng, 20) {
                    0 => {
                        let named: HashSet<String> =
                            (0..4).filter(|_| seed::below(&mut rng, 2) == 0).map(|name| format!("worker-{name}")).collect();
                        for gone in list.expect(named.clone()) {
                            there.retain(|(number, ..)| *number != gone);
                        }
                        assert!(there.iter().all(|(_, name, _)| named.contains(name)));
                        expected = Some(named);
                    }
                    1..=3 if !there.is_empty() => {
                        let (id, name, alpn) = there.swap_remove(seed::below(&mut rng, there.len() as u32) as usize);
                        list.leave(&name, alpn, id);
                    }
                    _ => {
                        let name = format!("worker-{}", seed::below(&mut rng, 4));
                        let alpn = if seed::below(&mut rng, 2) == 0 { Alpn::Ring } else { Alpn::Bulk };
                        let admitted = list.admit(&name, alpn, numbers);
                        assert_eq!(admitted.is_some(), expected.as_ref().is_none_or(|e| e.contains(&name)));
                        let Some(admitted) = admitted else { continue };
                        assert_eq!(admitted.id, numbers);
                        numbers += 1;
                        if let Some(replaced) = admitted.replaced {
                            let oldest = there.iter().filter(|(_, n, a)| (n, *a) == (&name, alpn)).map(|(number, ..)| *number).min();
                            assert_eq!(Some(replaced), oldest);
                            there.retain(|(number, ..)| *number != replaced);
                        }
                        there.push((admitted.id, name.clone(), alpn));
                        assert!(there.iter().filter(|(_, n, a)| (n, *a) == (&name, alpn)).count() <= most(alpn));
                    }
                }
                let standing: usize = list.standing.values().map(VecDeque::len).sum();
                assert_eq!(standing, there.len());
            }
        }
    }
}
