//! What is known of pairs of workers of which the next generation may form: which were asked
//! to reach each other, and how that ended.

use std::collections::{BTreeMap, BTreeSet};

use super::listening::At;

/// Of up to this many workers all pairs are probed: whoever is lost later, the others are
/// a ring. Of more, only those that are to be neighbours.
const ALL_PAIRS: usize = 16;

/// The worker that tries, and the one that it tries to reach.
pub(super) type Attempt = (String, String);

/// What is known of the pairs of which the next generation may form.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    pub(super) asked: BTreeMap<Attempt, At>,
    pub(super) reached: BTreeSet<Attempt>,
    pub(super) failed: BTreeMap<Attempt, Failure>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// The worker that was to try said nothing.
    pub(super) silent: bool,
}

impl Pairs {
    /// Notes how `asker` fared with `peer`; false if nobody asked it to try.
    pub(super) fn answered(&mut self, asker: &str, peer: &str, reason: Option<String>) -> bool {
        let attempt = (asker.to_owned(), peer.to_owned());
        if self.asked.remove(&attempt).is_none() {
            return false;
        }
        match reason {
            None => _ = self.reached.insert(attempt),
            Some(reason) => _ = self.failed.insert(attempt, Failure { reason, silent: false }),
        }
        true
    }

    pub(super) fn has(&self, attempt: &Attempt) -> bool {
        self.asked.contains_key(attempt) || self.reached.contains(attempt) || self.failed.contains_key(attempt)
    }
}

/// The places in a ring of `world` workers that are probed by pairs.
pub(super) fn pairs(world: usize) -> impl Iterator<Item = (usize, usize)> {
    let all = move |one: usize| one + 1..world;
    let neighbours = move |one: usize, other: usize| other - one == 1 || (one == 0 && other == world - 1);
    (0..world)
        .flat_map(move |one| all(one).map(move |other| (one, other)))
        .filter(move |(one, other)| world <= ALL_PAIRS || neighbours(*one, *other))
}

/// Whom to leave out so that no failure is left, each with one of the failures: whoever has
/// the most of them, and of those with equally many the last in the order of `juniors`.
pub(super) fn blamed<'a>(failed: &'a BTreeMap<Attempt, Failure>, juniors: &[&'a str]) -> Vec<(&'a str, &'a Attempt)> {
    let mut left: Vec<(&Attempt, &Failure)> = failed.iter().collect();
    let mut out = Vec::new();
    // A worker that says nothing speaks of no other.
    let concerns = |name: &str, (attempt, failure): &(&Attempt, &Failure)| attempt.0 == name || (attempt.1 == name && !failure.silent);
    while !left.is_empty() {
        let count = |name: &str| left.iter().filter(|f| concerns(name, f)).count();
        let worst = juniors.iter().enumerate().max_by_key(|(place, name)| (count(name), *place));
        let Some((name, attempt)) = worst.and_then(|(_, name)| Some((*name, left.iter().find(|f| concerns(name, f))?.0))) else { break };
        out.push((name, attempt));
        left.retain(|f| f.0.0 != name && f.0.1 != name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(of: &[(&str, &str, bool)]) -> BTreeMap<Attempt, Failure> {
        let failure = |(asker, peer, silent): &(&str, &str, bool)| {
            ((String::from(*asker), String::from(*peer)), Failure { reason: String::new(), silent: *silent })
        };
        of.iter().map(failure).collect()
    }

    fn names(of: &[(&str, &str, bool)]) -> Vec<String> {
        let failed = failures(of);
        blamed(&failed, &["a", "b", "c", "d"]).into_iter().map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn whoever_nobody_reaches_is_left_out_however_old_it_is() {
        assert_eq!(names(&[("b", "a", false), ("c", "a", false), ("d", "a", false)]), ["a"]);
        assert_eq!(names(&[("a", "c", false), ("b", "c", false), ("c", "d", false)]), ["c"]);
        assert_eq!(names(&[]), Vec::<String>::new());
    }

    #[test]
    fn of_a_pair_the_newer_one_is_left_out_and_of_two_pairs_two() {
        assert_eq!(names(&[("b", "a", false)]), ["b"]);
        assert_eq!(names(&[("a", "b", false), ("b", "a", false)]), ["b"]);
        assert_eq!(names(&[("a", "b", false), ("d", "c", false)]), ["d", "b"]);
    }

    #[test]
    fn one_that_says_nothing_is_itself_left_out() {
        assert_eq!(names(&[("a", "b", true)]), ["a"]);
        assert_eq!(names(&[("a", "b", true), ("a", "c", true), ("b", "c", false)]), ["a", "c"]);
    }

    #[test]
    fn few_workers_are_probed_each_with_each_and_many_with_their_neighbours() {
        let of = |world: usize| pairs(world).collect::<Vec<_>>();
        assert!(of(0).is_empty() && of(1).is_empty());
        assert_eq!(of(2), [(0, 1)]);
        assert_eq!(of(ALL_PAIRS).len(), ALL_PAIRS * (ALL_PAIRS - 1) / 2);
        let many = of(100);
        assert_eq!(many.len(), 100);
        assert!(many.contains(&(0, 99)) && many.contains(&(41, 42)));
    }
}
