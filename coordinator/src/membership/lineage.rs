//! Which states belong to the run. A state is identified by its step and by the
//! generation that committed it: a step that is trained again in a later generation
//! may have other bits, and must not be taken for the same.

use std::collections::VecDeque;

use common::wire::messages::Member;

/// The number of generations remembered: a worker that was away for longer holds no
/// state of use.
const REMEMBERED: usize = 4096;

/// The run's generations, oldest first.
#[derive(Debug, Default)]
pub struct Lineage {
    generations: VecDeque<Begun>,
    /// Whether this process has started a generation itself.
    own: bool,
}

#[derive(Debug)]
struct Begun {
    number: u64,
    first_step: u64,
    names: Vec<String>,
}

impl Lineage {
    /// The lineage of a journal's generations: (number, first step, members), oldest first.
    pub fn of<'a>(generations: impl IntoIterator<Item = (u64, u64, &'a [Member])>) -> Self {
        let mut lineage = Self::default();
        for (number, first_step, members) in generations {
            lineage.push(number, first_step, members);
        }
        lineage
    }

    fn push(&mut self, number: u64, first_step: u64, members: &[Member]) {
        if self.generations.len() == REMEMBERED {
            self.generations.pop_front();
        }
        self.generations.push_back(Begun { number, first_step, names: members.iter().map(|m| m.name.clone()).collect() });
    }

    /// A generation starts.
    pub(super) fn begin(&mut self, number: u64, first_step: u64, members: &[Member]) {
        self.own = true;
        self.push(number, first_step, members);
    }

    /// Whether the worker `name` can truthfully hold the run's state after
    /// `step` steps, the last of them committed in generation `committed`.
    ///
    /// It must have been a member of that generation, and no later generation may
    /// have begun before that step. Every worker holds the initial state. A state of
    /// a generation that the journal has lost is accepted from members of the
    /// generation before it, as long as this coordinator has started none.
    pub(super) fn holds(&self, name: &str, step: u64, committed: u64) -> bool {
        if step == 0 {
            return true;
        }
        let last = self.generations.back();
        if last.is_none_or(|last| committed > last.number) {
            return !self.own && committed > 0 && last.is_none_or(|last| last.names.iter().any(|n| n == name));
        }
        let mut later = self.generations.iter().skip_while(|g| g.number < committed);
        let member = later.next().is_some_and(|g| g.number == committed && g.first_step <= step && g.names.iter().any(|n| n == name));
        member && later.all(|g| g.first_step >= step)
    }

    /// Whether `name` was the member of this rank in generation `number`.
    pub fn was_rank(&self, name: &str, number: u64, rank: u32) -> bool {
        let generation = self.generations.iter().rev().find(|g| g.number == number);
        generation.and_then(|g| g.names.get(rank as usize)).is_some_and(|n| n == name)
    }

    /// Whether `name` was ever a member, as far as is remembered.
    pub fn was_member(&self, name: &str) -> bool {
        self.generations.iter().any(|g| g.names.iter().any(|n| n == name))
    }

    /// The first step of the newest generation.
    pub(super) fn newest_first_step(&self) -> Option<u64> {
        self.generations.back().map(|g| g.first_step)
    }

    /// The names of the newest generation's members.
    pub(super) fn newest(&self) -> &[String] {
        self.generations.back().map_or(&[], |g| &g.names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(names: &[&str]) -> Vec<Member> {
        names.iter().map(|name| Member { name: (*name).to_owned(), addr: ([127, 0, 0, 1], 1).into(), others: Vec::new() }).collect()
    }

    fn lineage() -> Lineage {
        let (all, two) = (members(&["a", "b", "c"]), members(&["a", "b"]));
        // Generation 3 redoes what only c had committed; generation 5 went back to a checkpoint.
        Lineage::of([(1, 0, &all[..]), (2, 40, &all), (3, 60, &two), (5, 50, &two)])
    }

    #[test]
    fn a_state_is_known_by_its_step_and_the_generation_that_committed_it() {
        let lineage = lineage();
        assert!(lineage.holds("c", 40, 1) && lineage.holds("c", 45, 2) && lineage.holds("a", 50, 2));
        assert!(!lineage.holds("c", 41, 1), "generation 2 began at step 40");
        assert!(!lineage.holds("c", 61, 2), "step 60 was trained again without it");
        assert!(!lineage.holds("a", 55, 3) && !lineage.holds("a", 70, 3), "the run went back to step 50");
        assert!(lineage.holds("a", 70, 5) && !lineage.holds("a", 49, 5));
    }

    #[test]
    fn only_members_hold_what_they_say() {
        let mut lineage = lineage();
        assert!(!lineage.holds("stranger", 70, 5) && !lineage.holds("c", 70, 5));
        assert!(lineage.holds("stranger", 0, 0));
        // The journal may have lost a generation: its members are probably those of the one before.
        assert!(lineage.holds("a", 80, 6) && !lineage.holds("stranger", 80, 6));
        lineage.begin(7, 80, &members(&["a"]));
        assert!(!lineage.holds("a", 90, 8) && lineage.holds("a", 90, 7));
        assert!(lineage.was_rank("b", 3, 1) && !lineage.was_rank("b", 3, 0) && !lineage.was_rank("b", 9, 0));
        assert!(lineage.was_member("c") && !lineage.was_member("stranger"));
    }

    #[test]
    fn memory_is_bounded() {
        let mut lineage = Lineage::default();
        let all = members(&["a"]);
        (1..=2 * REMEMBERED as u64).for_each(|n| lineage.begin(n, n, &all));
        assert_eq!(lineage.generations.len(), REMEMBERED);
        assert!(!lineage.holds("a", 5, 4));
    }
}
