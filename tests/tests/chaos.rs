//! A short selection of what `make chaos` does for hours.

use std::time::Duration;

use cluster_tests::chaos::weather::Weather;
use cluster_tests::chaos::{Chaos, Fault};
use cluster_tests::scenario::Scenario;
use serde_json::Value;

/// Trains with `workers`, does these things to it, and asserts that nothing was lost.
fn survives(steps: usize, workers: u32, faults: &[(usize, Fault)]) -> (Value, String) {
    let scenario = Scenario::new(steps).set("train.checkpoint_steps=100");
    let expected = scenario.quiet();
    let mut chaos = Chaos::start(&scenario, workers, 1);
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
    let (summary, stderr) = survives(400, 3, &[(20, Fault::Stop { worker: 1, millis: 10_000 })]);
    assert!(recoveries(&summary) >= 1 && stderr.contains("was not heard for 1000 ms"), "{stderr}");
}

#[test]
fn a_worker_cut_off_for_ten_seconds() {
    let (summary, _) = survives(400, 3, &[(20, Fault::Partition { worker: 2, millis: 10_000 })]);
    assert!(recoveries(&summary) >= 1, "{summary}");
}

#[test]
fn a_slow_network_that_loses_and_reorders() {
    let weather = Weather { delay: Duration::from_millis(50), loss: 0.02, reorder: 0.05, ..Weather::default() };
    survives(40, 3, &[(10, Fault::Weather { weather, millis: None })]);
}

#[test]
fn a_coordinator_away_for_twenty_seconds() {
    let (_, stderr) = survives(1400, 3, &[(20, Fault::Coordinator { millis: 20_000 })]);
    assert!(stderr.contains("3 workers are expected back"), "{stderr}");
}

#[test]
fn one_thing_after_the_other() {
    let faults = [
        Fault::Kill { worker: 0 },
        Fault::Weather { weather: Weather { jitter: Duration::from_millis(20), loss: 0.01, ..Weather::default() }, millis: Some(2000) },
        Fault::Kill { worker: 3 },
        Fault::Partition { worker: 1, millis: 3000 },
        Fault::Coordinator { millis: 1000 },
        Fault::Kill { worker: 2 },
        Fault::Weather { weather: Weather { bandwidth: Some(2_000_000), ..Weather::default() }, millis: Some(2000) },
        Fault::Kill { worker: 1 },
    ];
    let (summary, _) = survives(400, 4, &(1..).map(|n| 40 * n).zip(faults).collect::<Vec<_>>());
    assert!(recoveries(&summary) >= 4, "{summary}");
}
