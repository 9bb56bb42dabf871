//! A short selection of what `make chaos` does for hours.

use std::sync::OnceLock;
use std::time::Duration;

use cluster_tests::chaos::conditions::{Conditions, Node};
use cluster_tests::chaos::{Chaos, Fault, Moment, Then};
use cluster_tests::scenario::Scenario;
use serde_json::Value;

/// Steps of most of these runs.
const STEPS: usize = 400;

fn scenario(steps: usize) -> Scenario {
    Scenario::new(steps).set("train.checkpoint_steps=100")
}

/// A run for faults in quick succession: on a busy machine one may come before all workers
/// have recovered from the last, and take the only one that holds the newest step. The run
/// does not wait for it for long.
fn impatient() -> Scenario {
    scenario(STEPS).set("cluster.rejoin_ms=5000")
}

/// The digest of this many undisturbed steps; most of these tests share one.
fn expected(steps: usize) -> String {
    static DIGEST: OnceLock<String> = OnceLock::new();
    if steps == STEPS { DIGEST.get_or_init(|| scenario(STEPS).quiet()).clone() } else { scenario(steps).quiet() }
}

/// A network so slow that a run is not over before the last of its faults.
fn slow() -> Conditions {
    Conditions { delay: Duration::from_millis(3), ..Conditions::default() }
}

/// Trains with `workers` workers, injects these faults, and asserts that nothing was lost.
fn survives(scenario: &Scenario, workers: u32, faults: &[(usize, Fault)]) -> (Value, String) {
    let expected = expected(scenario.steps);
    let mut chaos = Chaos::start(scenario, workers, 1);
    for (step, fault) in faults {
        chaos.at_step(*step, fault);
    }
    let run = chaos.finish();
    scenario.assert_whole(&run, &expected);
    (run.summary(), run.stderr)
}

fn recoveries(summary: &Value) -> usize {
    summary["recoveries"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_worker_stopped_for_ten_seconds() {
    let (summary, stderr) = survives(&scenario(STEPS), 3, &[(20, Fault::Stop { worker: 1, millis: 10_000 })]);
    assert!(recoveries(&summary) >= 1 && stderr.contains("was not heard for 1000 ms"), "{stderr}");
}

#[test]
fn a_worker_cut_off_for_ten_seconds() {
    let (summary, _) = survives(&scenario(STEPS), 3, &[(20, Fault::Partition { worker: 2, millis: 10_000 })]);
    assert!(recoveries(&summary) >= 1, "{summary}");
}

#[test]
fn a_slow_network_that_loses_and_reorders() {
    let conditions = Conditions { delay: Duration::from_millis(50), loss: 0.02, reorder: 0.05, ..Conditions::default() };
    survives(&scenario(40), 3, &[(10, Fault::Conditions { conditions, millis: None })]);
}

#[test]
fn a_coordinator_away_for_twenty_seconds() {
    // A network so slow that the run is not over before the coordinator is back.
    let conditions = Conditions { delay: Duration::from_millis(12), ..Conditions::default() };
    let faults = [(1, Fault::Conditions { conditions, millis: None }), (20, Fault::Coordinator { millis: 20_000 })];
    let (_, stderr) = survives(&scenario(150), 3, &faults);
    assert!(stderr.contains("3 workers are expected back"), "{stderr}");
}

/// Faults while a ring forms, while a state is handed over, and while a checkpoint is
/// uploaded.
#[test]
fn faults_at_the_worst_moments() {
    let scenario = impatient();
    let expected = expected(STEPS);
    let mut chaos = Chaos::start(&scenario, 3, 2);
    chaos.settle_conditions(slow());
    let (from, to) = (Node::Worker(0), Node::Worker(1));
    for (step, then, fault) in [
        (30, Then::Forming { worker: 2 }, Fault::Stop { worker: 0, millis: 1500 }),
        (90, Then::HandOver { worker: 1 }, Fault::Kill { worker: 2 }),
        (150, Then::After { millis: 10 }, Fault::OneWay { from, to, millis: 1500 }),
        (190, Then::Upload, Fault::Coordinator { millis: 300 }),
        (240, Then::Forming { worker: 0 }, Fault::Pair { between: (from, to), millis: 1500 }),
    ] {
        chaos.at(Moment { step, then }, &fault);
    }
    let run = chaos.finish();
    scenario.assert_whole(&run, &expected);
}

#[test]
fn one_thing_after_the_other() {
    let faults = [
        Fault::Conditions { conditions: slow(), millis: None },
        Fault::Kill { worker: 0 },
        Fault::Conditions {
            conditions: Conditions { jitter: Duration::from_millis(20), loss: 0.01, ..Conditions::default() },
            millis: Some(2000),
        },
        Fault::Kill { worker: 3 },
        Fault::Partition { worker: 1, millis: 3000 },
        Fault::Coordinator { millis: 1000 },
        Fault::Kill { worker: 2 },
        Fault::Conditions { conditions: Conditions { bandwidth: Some(2_000_000), ..Conditions::default() }, millis: Some(2000) },
        Fault::Kill { worker: 1 },
    ];
    let (summary, stderr) = survives(&impatient(), 4, &(0..).map(|n| 40 * n).zip(faults).collect::<Vec<_>>());
    assert!(recoveries(&summary) >= 4, "{summary}\n{stderr}");
}
