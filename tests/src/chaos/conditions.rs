//! What a bad network does to a datagram: drawn from a seed, pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::seed;
use rand_chacha::ChaCha8Rng;

/// A place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Coordinator,
    /// A worker, by its place in the test.
    Worker(usize),
    /// A node that is not part of the run.
    Stranger,
}

/// The state of all links. The default is a network without faults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conditions {
    pub delay: Duration,
    /// Added to the delay, uniformly distributed from 0 to this; it reorders too.
    pub jitter: Duration,
    /// Share of the datagrams that vanish.
    pub loss: f64,
    /// Share of the datagrams that arrive [`LATE`] later than the others.
    pub reorder: f64,
    /// Bytes a second of each link in each direction.
    pub bandwidth: Option<u32>,
    /// The same limit between two nodes, in each direction. Where both limits apply,
    /// the smaller one holds.
    pub narrow: BTreeMap<(Node, Node), u32>,
    /// Nothing reaches these nodes, and nothing comes from them.
    pub cut: BTreeSet<Node>,
    /// Nothing from the first node of each pair arrives at the second; the way back
    /// is open.
    pub one_way: BTreeSet<(Node, Node)>,
    /// Nothing passes between the two nodes of a pair, in either direction; others
    /// reach both.
    pub pairs: BTreeSet<(Node, Node)>,
}

impl Conditions {
    /// Whether a datagram from `from` has no way to `to`.
    fn cuts(&self, from: Node, to: Node) -> bool {
        self.cut.contains(&from)
            || self.cut.contains(&to)
            || self.one_way.contains(&(from, to))
            || self.pairs.contains(&(from, to))
            || self.pairs.contains(&(to, from))
    }

    /// Bytes a second from `from` to `to`; `None` if there is no limit.
    fn width(&self, from: Node, to: Node) -> Option<u32> {
        [self.bandwidth, self.narrow.get(&(from, to)).copied(), self.narrow.get(&(to, from)).copied()].into_iter().flatten().min()
    }
}

/// How much later a reordered datagram arrives.
pub const LATE: Duration = Duration::from_millis(10);

/// How much a link of limited bandwidth queues, as time, before it drops datagrams.
const QUEUE: Duration = Duration::from_millis(200);

/// What becomes of one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Lost,
    /// It arrives at this time; `late`: it was drawn to arrive after later ones.
    Arrives {
        at: Instant,
        late: bool,
    },
}

/// One direction of one link.
#[derive(Debug)]
pub struct Link {
    from: Node,
    to: Node,
    rng: ChaCha8Rng,
    /// When the last byte sent so far leaves the sender.
    free: Instant,
}

impl Link {
    pub fn new(from: Node, to: Node, rng: ChaCha8Rng, now: Instant) -> Self {
        Self { from, to, rng, free: now }
    }

    /// The sender and the receiver.
    pub fn ends(&self) -> (Node, Node) {
        (self.from, self.to)
    }

    /// Sends `bytes` at `now`.
    pub fn send(&mut self, conditions: &Conditions, bytes: usize, now: Instant) -> Fate {
        if conditions.cuts(self.from, self.to) || self.drawn(conditions.loss) {
            return Fate::Lost;
        }
        let mut at = now;
        if let Some(bandwidth) = conditions.width(self.from, self.to) {
            let start = self.free.max(now);
            if start > now + QUEUE {
                return Fate::Lost;
            }
            self.free = start + Duration::from_secs_f64(bytes as f64 / f64::from(bandwidth.max(1)));
            at = self.free;
        }
        let late = self.drawn(conditions.reorder);
        let jitter = conditions.jitter.mul_f64(self.share());
        Fate::Arrives { at: at + conditions.delay + jitter + if late { LATE } else { Duration::ZERO }, late }
    }

    fn share(&mut self) -> f64 {
        f64::from(seed::unit(&mut self.rng))
    }

    fn drawn(&mut self, share: f64) -> bool {
        share > 0.0 && self.share() < share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(conditions: &Conditions, n: usize, spacing: Duration) -> Vec<(Instant, Fate)> {
        let start = Instant::now();
        let mut link = Link::new(Node::Worker(0), Node::Worker(1), seed::stream(7, "conditions", &[]), start);
        (0..n as u32).map(|i| (start + spacing * i, link.send(conditions, 1000, start + spacing * i))).collect()
    }

    fn lost(fates: &[(Instant, Fate)]) -> usize {
        fates.iter().filter(|(_, fate)| *fate == Fate::Lost).count()
    }

    #[test]
    fn good_conditions_change_nothing() {
        let all = fates(&Conditions::default(), 100, Duration::from_millis(1));
        assert!(all.iter().all(|&(sent, fate)| fate == Fate::Arrives { at: sent, late: false }));
    }

    #[test]
    fn shares_are_what_was_asked_for() {
        let conditions = Conditions { loss: 0.02, reorder: 0.1, delay: Duration::from_millis(50), ..Conditions::default() };
        let all = fates(&conditions, 20_000, Duration::from_millis(1));
        assert!((300..500).contains(&lost(&all)), "{}", lost(&all));
        let late = all.iter().filter(|(_, fate)| matches!(fate, Fate::Arrives { late: true, .. })).count();
        assert!((1700..2300).contains(&late), "{late}");
        for (sent, fate) in all {
            if let Fate::Arrives { at, late } = fate {
                assert_eq!(at - sent, Duration::from_millis(50) + if late { LATE } else { Duration::ZERO });
            }
        }
    }

    #[test]
    fn a_narrow_link_delays_then_drops() {
        // A megabyte a second is sent over a link with a tenth of that bandwidth.
        let all = fates(&Conditions { bandwidth: Some(100_000), ..Conditions::default() }, 2000, Duration::from_millis(1));
        let arrived = all.len() - lost(&all);
        assert!((200..250).contains(&arrived), "{arrived} of 2000 in two seconds");
        assert!(all.iter().all(|&(sent, fate)| !matches!(fate, Fate::Arrives { at, .. } if at > sent + QUEUE * 2)));
    }

    #[test]
    fn a_cut_node_is_cut_both_ways() {
        let cut = |node| fates(&Conditions { cut: [node].into(), ..Conditions::default() }, 10, Duration::ZERO);
        assert_eq!(lost(&cut(Node::Worker(0))), 10);
        assert_eq!(lost(&cut(Node::Worker(1))), 10);
        assert_eq!(lost(&cut(Node::Worker(2))), 0);
        assert_eq!(lost(&cut(Node::Coordinator)), 0);
    }

    /// The directions (from, to) that are open between four workers.
    fn open(conditions: &Conditions) -> Vec<(usize, usize)> {
        let now = Instant::now();
        let all = (0..4).flat_map(|from| (0..4).map(move |to| (from, to))).filter(|(from, to)| from != to);
        all.filter(|&(from, to)| {
            let mut link = Link::new(Node::Worker(from), Node::Worker(to), seed::stream(7, "conditions", &[]), now);
            link.send(conditions, 1000, now) != Fate::Lost
        })
        .collect()
    }

    #[test]
    fn one_direction_and_one_pair_are_cut_alone() {
        let node = Node::Worker;
        let one_way = open(&Conditions { one_way: [(node(0), node(1))].into(), ..Conditions::default() });
        assert!(one_way.len() == 11 && !one_way.contains(&(0, 1)), "{one_way:?}");
        // The order in which the two are named does not matter.
        for pair in [(node(3), node(2)), (node(2), node(3))] {
            let rest = open(&Conditions { pairs: [pair].into(), ..Conditions::default() });
            assert!(rest.len() == 10 && !rest.contains(&(2, 3)) && !rest.contains(&(3, 2)), "{rest:?}");
        }
    }

    #[test]
    fn a_narrow_link_slows_itself_only() {
        let link = (Node::Worker(1), Node::Worker(0));
        let narrow = Conditions { narrow: [(link, 100_000)].into(), bandwidth: Some(1_000_000), ..Conditions::default() };
        let width = |from, to| narrow.width(Node::Worker(from), Node::Worker(to));
        assert_eq!([width(0, 1), width(1, 0), width(0, 2)], [Some(100_000), Some(100_000), Some(1_000_000)]);
        let arrived = 2000 - lost(&fates(&narrow, 2000, Duration::from_millis(1)));
        assert!((200..250).contains(&arrived), "{arrived} of 2000 in two seconds");
    }
}
