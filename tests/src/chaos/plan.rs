//! The faults that are injected into a run, and when: by name, or drawn from a seed.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use common::seed;
use rand_chacha::ChaCha8Rng;

use super::conditions::{Conditions, Node};

/// A fault that is injected into a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// SIGKILL of a member of the ring, this worker if it is one; another worker is started
    /// in its place.
    Kill { worker: usize },
    /// SIGSTOP, and SIGCONT later.
    Stop { worker: usize, millis: u64 },
    /// SIGSTOP of all of these nodes at once, and SIGCONT later.
    Stall { nodes: BTreeSet<Node>, millis: u64 },
    /// Nothing reaches this worker, or comes from it, for a while.
    Partition { worker: usize, millis: u64 },
    /// Nothing reaches any of these nodes, or comes from them, for a while.
    Cut { nodes: BTreeSet<Node>, millis: u64 },
    /// Nothing of `from` arrives at `to` for a while; the way back is open.
    OneWay { from: Node, to: Node, millis: u64 },
    /// Nothing passes between these two nodes for a while; others reach both.
    Pair { between: (Node, Node), millis: u64 },
    /// The coordinator is killed, and started again later.
    Coordinator { millis: u64 },
    /// Every flush of the coordinator's disk takes longer by `delay_ms`, for a while.
    Disk { delay_ms: u64, millis: u64 },
    /// The network is bad, for a while or for good.
    Conditions { conditions: Conditions, millis: Option<u64> },
}

/// The workers in the first `count` places.
pub fn workers(count: usize) -> BTreeSet<Node> {
    (0..count).map(Node::Worker).collect()
}

/// The coordinator and the workers in the first `count` places.
pub fn everybody(count: usize) -> BTreeSet<Node> {
    let mut nodes = workers(count);
    nodes.insert(Node::Coordinator);
    nodes
}

/// The kinds of faults that can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Kill,
    Stop,
    Stall,
    Partition,
    Cut,
    OneWay,
    Pair,
    Coordinator,
    Disk,
    Delay,
    Jitter,
    Loss,
    Reorder,
    Bandwidth,
}

impl Kind {
    pub const ALL: [Self; 14] = [
        Self::Kill,
        Self::Stop,
        Self::Stall,
        Self::Partition,
        Self::Cut,
        Self::OneWay,
        Self::Pair,
        Self::Coordinator,
        Self::Disk,
        Self::Delay,
        Self::Jitter,
        Self::Loss,
        Self::Reorder,
        Self::Bandwidth,
    ];

    /// One fault of this kind, of up to some seconds.
    fn draw(self, rng: &mut ChaCha8Rng, count: usize) -> Fault {
        let worker = seed::below(rng, count as u32) as usize;
        let millis = u64::from(200 + seed::below(rng, 3000));
        let conditions = |conditions| Fault::Conditions { conditions, millis: Some(millis) };
        let ms = |rng: &mut ChaCha8Rng, most| Duration::from_millis(u64::from(5 + seed::below(rng, most)));
        // Neighbours in the ring, unless a worker is missing.
        let between = (Node::Worker(worker), Node::Worker((worker + 1) % count));
        match self {
            Self::Kill => Fault::Kill { worker },
            Self::Stop => Fault::Stop { worker, millis },
            Self::Stall => Fault::Stall { nodes: subset(rng, count), millis: u64::from(500 + seed::below(rng, 9500)) },
            Self::Partition => Fault::Partition { worker, millis },
            Self::Cut => Fault::Cut { nodes: subset(rng, count), millis: u64::from(500 + seed::below(rng, 9500)) },
            Self::OneWay => Fault::OneWay { from: between.0, to: between.1, millis },
            Self::Pair => Fault::Pair { between, millis },
            Self::Coordinator => Fault::Coordinator { millis },
            Self::Disk => Fault::Disk { delay_ms: u64::from(200 + seed::below(rng, 2800)), millis: 2 * millis },
            Self::Delay => conditions(Conditions { delay: ms(rng, 60), ..Conditions::default() }),
            Self::Jitter => conditions(Conditions { jitter: ms(rng, 40), ..Conditions::default() }),
            Self::Loss => conditions(Conditions { loss: 0.01 + 0.04 * f64::from(seed::unit(rng)), ..Conditions::default() }),
            Self::Reorder => conditions(Conditions { reorder: 0.01 + 0.2 * f64::from(seed::unit(rng)), ..Conditions::default() }),
            Self::Bandwidth => conditions(Conditions { bandwidth: Some(1_000_000 + seed::below(rng, 4_000_000)), ..Conditions::default() }),
        }
    }
}

/// A subset of the coordinator and the workers: the coordinator, all workers, all
/// nodes, or a random subset, each with equal chances.
fn subset(rng: &mut ChaCha8Rng, count: usize) -> BTreeSet<Node> {
    match seed::below(rng, 4) {
        0 => [Node::Coordinator].into(),
        1 => workers(count),
        2 => everybody(count),
        _ => {
            let drawn: BTreeSet<Node> = everybody(count).into_iter().filter(|_| seed::below(rng, 2) == 1).collect();
            if drawn.is_empty() { [Node::Worker(0)].into() } else { drawn }
        }
    }
}

/// When a fault is injected: once this many steps are on the record, and `then` has
/// happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub step: usize,
    pub then: Then,
}

/// What to wait for after the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    After {
        millis: u64,
    },
    /// A member of the ring is killed and replaced, this worker if it is one; a generation
    /// begins, with or without the replacement.
    Forming {
        worker: usize,
    },
    /// This worker is killed and replaced; the replacement is taking over the state.
    HandOver {
        worker: usize,
    },
    /// A checkpoint is on its way to the coordinator's disk.
    Upload,
}

/// The kinds of moments that can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Step,
    Forming,
    HandOver,
    Upload,
}

impl When {
    pub const ALL: [Self; 4] = [Self::Step, Self::Forming, Self::HandOver, Self::Upload];

    fn draw(self, rng: &mut ChaCha8Rng, count: usize) -> Then {
        let worker = seed::below(rng, count as u32) as usize;
        match self {
            Self::Step => Then::After { millis: u64::from(seed::below(rng, 200)) },
            Self::Forming => Then::Forming { worker },
            Self::HandOver => Then::HandOver { worker },
            Self::Upload => Then::Upload,
        }
    }
}

/// What faults are drawn from.
#[derive(Debug, Clone)]
pub struct Choice<'a> {
    pub kinds: &'a [Kind],
    pub moments: &'a [When],
    pub count: usize,
    /// Steps between two faults.
    pub spacing: usize,
    pub workers: usize,
}

/// Faults of these kinds, each with the moment at which it is done: one every
/// `spacing` steps.
pub fn draw(seed: u64, choice: &Choice<'_>) -> Vec<(Moment, Fault)> {
    let Choice { kinds, moments, count, spacing, workers } = *choice;
    // Faults and moments have random streams of their own: the faults do not depend
    // on the moments.
    let (mut what, mut when) = (seed::stream(seed, "chaos", &[]), seed::stream(seed, "moments", &[]));
    let one = |n: usize| {
        let kind = kinds[seed::below(&mut what, kinds.len() as u32) as usize];
        let moment = moments[seed::below(&mut when, moments.len() as u32) as usize];
        (Moment { step: spacing * (n + 1), then: moment.draw(&mut when, workers) }, kind.draw(&mut what, workers))
    };
    (0..count).map(one).collect()
}

/// The element of `all` with the name `text`.
fn named<T: Copy + fmt::Display>(all: &[T], text: &str, what: &str) -> Result<T, String> {
    let names = || all.iter().map(T::to_string).collect::<Vec<_>>().join(", ");
    all.iter().copied().find(|one| one.to_string() == text).ok_or_else(|| format!("`{text}` is no {what}; these are: {}", names()))
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(&Self::ALL, text, "fault")
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(&Self::ALL, text, "moment")
    }
}

impl Fault {
    /// The kind's name, for the table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::Stop { .. } => "stop",
            Self::Stall { .. } => "stall",
            Self::Partition { .. } => "partition",
            Self::Cut { .. } => "cut",
            Self::OneWay { .. } => "oneway",
            Self::Pair { .. } => "pair",
            Self::Coordinator { .. } => "coordinator",
            Self::Disk { .. } => "disk",
            Self::Conditions { .. } => "conditions",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice<'a>(kinds: &'a [Kind], moments: &'a [When]) -> Choice<'a> {
        Choice { kinds, moments, count: 30, spacing: 40, workers: 4 }
    }

    #[test]
    fn a_seed_decides_everything() {
        let draw = |seed| draw(seed, &choice(&Kind::ALL, &When::ALL));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_eq!(draw(1).iter().map(|(moment, _)| moment.step).collect::<Vec<_>>(), (1..=30).map(|n| n * 40).collect::<Vec<_>>());
        let names: BTreeSet<&str> = (0..10).flat_map(draw).map(|(_, fault)| fault.name()).collect();
        assert_eq!(names.len(), 10, "{names:?}");
        let kind = |then| match then {
            Then::After { .. } => 0,
            Then::Forming { .. } => 1,
            Then::HandOver { .. } => 2,
            Then::Upload => 3,
        };
        let moments: BTreeSet<i32> = (0..10).flat_map(draw).map(|(moment, _)| kind(moment.then)).collect();
        assert_eq!(moments.len(), When::ALL.len(), "every kind of moment comes up");
    }

    #[test]
    fn what_is_done_does_not_depend_on_when() {
        let faults = |moments: &[When]| draw(5, &choice(&Kind::ALL, moments)).into_iter().map(|(_, fault)| fault).collect::<Vec<_>>();
        assert_eq!(faults(&When::ALL), faults(&[When::Step]));
    }

    #[test]
    fn subsets_are_the_named_ones_and_others_and_never_empty() {
        let drawn: Vec<BTreeSet<Node>> = (0..200)
            .flat_map(|seed| draw(seed, &choice(&[Kind::Stall, Kind::Cut], &[When::Step])))
            .map(|(_, fault)| match fault {
                Fault::Stall { nodes, millis } | Fault::Cut { nodes, millis } => {
                    assert!((500..10_000).contains(&millis), "{millis}");
                    nodes
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(drawn.iter().all(|nodes| !nodes.is_empty()));
        for nodes in [[Node::Coordinator].into(), workers(4), everybody(4)] {
            let share = drawn.iter().filter(|one| **one == nodes).count() as f64 / drawn.len() as f64;
            assert!((0.2..0.35).contains(&share), "{nodes:?}: {share}");
        }
        let kinds: BTreeSet<&BTreeSet<Node>> = drawn.iter().collect();
        assert_eq!(kinds.len(), (1 << 5) - 1, "every subset of five comes up");
    }

    #[test]
    fn kinds_and_moments_have_names() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for when in When::ALL {
            assert_eq!(when.to_string().parse(), Ok(when));
        }
        assert!("flood".parse::<Kind>().is_err_and(|e| e.contains("kill, stop")));
        assert!("noon".parse::<When>().is_err_and(|e| e.contains("forming, handover")));
    }
}
