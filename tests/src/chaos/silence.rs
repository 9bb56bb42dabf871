//! Silences: processes that are all stopped at once, or links that carry nothing, for
//! less than the timeout after which a worker is given up, and for longer. No process
//! has died, so only the step in flight may be done again.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::seed;

use super::conditions::{Conditions, Node};
use super::plan::{Fault, Moment, Then, everybody, workers};
use super::{Chaos, Scenario};
use crate::{record, until};

/// The number of workers of a run that falls silent.
pub const WORKERS: usize = 3;

/// The lengths of silences: below, at and above the timeout of a worker that is not heard.
pub const DURATIONS_MS: [u64; 8] = [500, 1000, 1500, 2000, 2500, 3000, 4000, 8000];

/// Steps that pass before a silence, and between two.
const SPACING: usize = 12;

/// How long a run may take to go on after a silence.
const GOES_ON: Duration = Duration::from_secs(30);

/// Which processes or links are silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// SIGSTOP.
    Coordinator,
    Workers,
    Everything,
    /// The links are cut, and all processes run.
    CoordinatorLinks,
    AllLinks,
}

impl Silence {
    pub const ALL: [Self; 5] = [Self::Coordinator, Self::Workers, Self::Everything, Self::CoordinatorLinks, Self::AllLinks];

    fn fault(self, millis: u64) -> Fault {
        match self {
            Self::Coordinator => Fault::Stall { nodes: [Node::Coordinator].into(), millis },
            Self::Workers => Fault::Stall { nodes: workers(WORKERS), millis },
            Self::Everything => Fault::Stall { nodes: everybody(WORKERS), millis },
            Self::CoordinatorLinks => Fault::Cut { nodes: [Node::Coordinator].into(), millis },
            Self::AllLinks => Fault::Cut { nodes: everybody(WORKERS), millis },
        }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coordinator => "coordinator stopped",
            Self::Workers => "workers stopped",
            Self::Everything => "everything stopped",
            Self::CoordinatorLinks => "coordinator's links cut",
            Self::AllLinks => "all links cut",
        })
    }
}

/// A network so slow that a step takes tens of milliseconds: the number of steps in a
/// silence then depends on the clock and not on the machine.
pub fn pace() -> Conditions {
    Conditions { delay: Duration::from_millis(6), ..Conditions::default() }
}

/// The outcome of one silence.
#[derive(Debug, Clone, Copy)]
pub struct Survived {
    pub millis: u64,
    /// Steps on the record when it began.
    pub held: u64,
    /// The time from its end to the next step on the record.
    pub went_on_after: Duration,
}

/// A run that was silent a few times, and ended as it should.
pub struct Played {
    pub silences: Vec<Survived>,
    /// Workers that were given up meanwhile, counted as the run's summary does.
    pub recoveries: usize,
}

/// Plays `silence` for each of these durations, at moments drawn from the seed, and
/// asserts that only the step in flight was ever done again, and that the result is
/// that of an undisturbed run.
pub fn play(scenario: &Scenario, silence: Silence, millis: &[u64], seed: u64) -> Played {
    let mut chaos = Chaos::start(scenario, WORKERS as u32, seed);
    chaos.settle_conditions(pace());
    let run = chaos.run_dir().to_owned();
    let mut rng = seed::stream(seed, "silence", &[]);
    let mut step = SPACING;
    let (mut silences, mut rings) = (Vec::new(), Vec::new());
    for &millis in millis {
        let then = Then::After { millis: u64::from(seed::below(&mut rng, 120)) };
        chaos.wait_until(Moment { step, then });
        let (held, formed) = (record::committed(&run), record::generations(&run).len());
        assert!(record::checkpoints(&run).is_empty(), "there is a checkpoint to fall back to");
        chaos.inflict(&silence.fault(millis));
        let end = Instant::now();
        let what = format!("step after {silence} for {millis} ms at step {held} (seed {seed})");
        until(&what, GOES_ON, || {
            if let Some(problem) = redone(&run, formed, held) {
                panic!("{silence} for {millis} ms at step {held} (seed {seed}): {problem}\n{}", chaos.coordinator().log());
            }
            (record::committed(&run) > held).then_some(())
        });
        silences.push(Survived { millis, held, went_on_after: end.elapsed() });
        rings.push((formed, held, millis));
        step = record::committed(&run) as usize + SPACING;
    }
    chaos.coordinator().wait_for_steps(step);
    let run = chaos.stop_undisturbed();
    for (formed, held, millis) in rings {
        let problem = redone(&run.path, formed, held);
        assert!(problem.is_none(), "{silence} for {millis} ms at step {held} (seed {seed}): {problem:?}\n{}", run.stderr);
    }
    let recoveries = run.summary()["recoveries"].as_array().map_or(0, Vec::len);
    Played { silences, recoveries }
}

/// What is wrong with the rings after the first `formed` ones, if `held` steps were
/// on the record before: only the newest of these steps may be redone.
fn redone(run: &Path, formed: usize, held: u64) -> Option<String> {
    let later = record::generations(run).into_iter().skip(formed);
    let back = later.into_iter().find(|ring| ring.step + 1 < held)?;
    Some(format!("generation {} begins at step {} although {held} steps were committed", back.number, back.step))
}
