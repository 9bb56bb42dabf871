//! What the members of a generation exchange of dense layers: factors only where all of
//! them make the same products of the same factors.

use common::dense::agreed;
use common::run_dir::{Dense, LastGeneration};

use super::events::{Output, Rules, WorkerId};
use super::state::Membership;

/// What a reproducible run has decided, as its journal tells: it stays so to its end.
pub(super) fn decided(rules: &Rules, last: &LastGeneration) -> Option<Dense> {
    last.decided().filter(|_| rules.factors && rules.reproducible)
}

impl Membership {
    /// What a generation of these members exchanges.
    pub(super) fn dense_of(&mut self, members: &[WorkerId]) -> Option<Dense> {
        if !self.rules.factors {
            return None;
        }
        if let Some(decided) = &self.decided {
            return Some(decided.clone());
        }
        let said = members.iter().filter_map(|id| self.workers.get(id)).map(|w| (w.name.as_str(), w.products));
        let dense = agreed(said).map_or_else(Dense::Sum, Dense::Factors);
        if self.rules.reproducible {
            self.decided = Some(dense.clone());
        }
        Some(dense)
    }

    /// Sends workers away whose products would make other weights than those that a
    /// reproducible run has.
    pub(super) fn refuse_unlike(&mut self) -> Vec<Output> {
        let Some(Dense::Factors(products)) = &self.decided else { return Vec::new() };
        let unlike = self.workers.iter().filter(|(_, w)| w.is_ready() && w.products != Some(*products));
        let unlike: Vec<WorkerId> = unlike.map(|(&id, _)| id).collect();
        let refuse = |worker: WorkerId| {
            self.workers.remove(&worker);
            let reason = "it makes other bits of the same factors than the workers that began this reproducible run: let it join with a processor and a libtorch like theirs, or begin a run with cluster.dense = \"sum\"".to_owned();
            Output::Refuse { worker, reason }
        };
        unlike.into_iter().map(refuse).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use common::digest::Digest;

    use super::super::tests::{joined, reached, ready, rules};
    use super::super::{Input, Membership};
    use super::*;

    fn makes(worker: WorkerId, products: Option<&[u8]>) -> Input {
        let Input::Ready { worker, generation, step, committed, .. } = ready(worker, 0, 0) else { panic!("it is not ready") };
        Input::Ready { worker, generation, step, committed, products: products.map(Digest::of) }
    }

    /// What the first generation of workers with these products exchanges.
    fn first(rules: Rules, products: &[Option<&[u8]>]) -> (Membership, Instant, Option<Dense>) {
        let now = Instant::now();
        let mut m = Membership::new(Rules { start_workers: products.len() as u32, ..rules }, now);
        let mut dense = None;
        for (worker, products) in (0..).zip(products) {
            m.handle(now, joined(worker, None));
            let outputs = m.handle(now, makes(worker, *products));
            let outputs = reached(&mut m, now, outputs);
            dense = outputs.into_iter().find_map(|o| if let Output::Start { dense, .. } = o { Some(dense) } else { None }).or(dense);
        }
        (m, now, dense.unwrap())
    }

    fn factors() -> Rules {
        Rules { factors: true, ..rules(2, 8) }
    }

    #[test]
    fn members_exchange_factors_if_all_make_the_same_products() {
        let same = Dense::Factors(Digest::of(b"p"));
        assert_eq!(first(factors(), &[Some(b"p"), Some(b"p")]).2, Some(same));
        assert_eq!(first(rules(2, 8), &[None, None]).2, None, "the config has none");
        let Some(Dense::Sum(reason)) = first(factors(), &[Some(b"p"), Some(b"q")]).2 else { panic!("unlike products were taken") };
        assert!(reason.contains("worker-1 makes other bits of the same factors than worker-0"), "{reason}");
        let Some(Dense::Sum(reason)) = first(factors(), &[None, Some(b"q")]).2 else { panic!("no products were taken") };
        assert!(reason.contains("worker-0 cannot"), "{reason}");
    }

    #[test]
    fn a_reproducible_run_keeps_its_way_and_refuses_other_products() {
        let rules = Rules { reproducible: true, ..factors() };
        let refused = |m: &mut Membership, now, products| {
            m.handle(now, joined(7, None));
            let outputs = m.handle(now, makes(7, products));
            outputs.iter().any(|o| matches!(o, Output::Refuse { worker: 7, reason } if reason.contains("other bits")))
        };
        let (mut m, now, _) = first(rules, &[Some(b"p"), Some(b"p")]);
        assert!(refused(&mut m, now, Some(b"q")) && refused(&mut m, now, None));
        assert!(!refused(&mut m, now, Some(b"p")));
        // A run that began with sums takes everybody.
        let (mut m, now, dense) = first(rules, &[Some(b"p"), Some(b"q")]);
        assert!(matches!(dense, Some(Dense::Sum(_))));
        assert!(!refused(&mut m, now, Some(b"p")));
        // One that is not reproducible decides anew for each ring.
        let (mut m, now, _) = first(factors(), &[Some(b"p"), Some(b"p")]);
        assert!(!refused(&mut m, now, Some(b"q")));
    }

    #[test]
    fn a_restarted_coordinator_knows_what_was_decided() {
        let rules = Rules { reproducible: true, ..factors() };
        let last = |dense| LastGeneration { number: 3, dense, ..LastGeneration::default() };
        let same = Some(Dense::Factors(Digest::of(b"p")));
        assert_eq!(decided(&rules, &last(same.clone())), same);
        assert!(matches!(decided(&rules, &last(None)), Some(Dense::Sum(_))), "an older version summed");
        assert_eq!(decided(&rules, &LastGeneration::default()), None, "nothing was decided");
        assert_eq!(decided(&factors(), &last(same)), None);
    }
}
