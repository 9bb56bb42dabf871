//! One of two workers computes at a third of its speed: it ends up with fewer shards, and not a
//! bit of the weights is another.

use std::time::Duration;

use cluster_tests::record::{committed, generations};
use cluster_tests::scenario::Scenario;
use cluster_tests::{Running, Slowed, until};

/// Epochs of ten steps, and steps that are long against the pauses of the worker that is
/// slowed.
fn scenario() -> Scenario {
    let sets = ["train.shards=16", "train.global_batch=32", "data.train=320", "cluster.timeout_ms=10000", "cluster.balance=speed"];
    sets.into_iter().fold(Scenario::endless(), Scenario::set)
}

/// A ring of two that trains, of which rank 1 is slowed.
fn with_one_that_is_slow(scenario: &Scenario) -> (Running, Slowed) {
    let mut running = scenario.local(2).start();
    running.wait_for_steps(3);
    let slowed = Slowed::to_a_third(running.children()[1]);
    (running, slowed)
}

#[test]
fn a_slow_worker_owns_fewer_shards_and_the_weights_are_the_same_bits() {
    let scenario = scenario();
    let (running, slowed) = with_one_that_is_slow(&scenario);
    assert_eq!(generations(&running.path)[0].shards, [8, 8]);
    let moved = until("ring in which the slow worker owns fewer shards", Duration::from_secs(120), || {
        generations(&running.path).into_iter().find(|ring| ring.shards.len() == 2 && ring.shards[1] < ring.shards[0])
    });
    until("step of that ring", Duration::from_secs(40), || (committed(&running.path) > moved.step + 10).then_some(()));
    drop(slowed);
    let run = Scenario::stop(running);
    // Whoever trained on what is on the record, and is checked against the shards of each ring.
    scenario.assert_undisturbed(&run);
    let epochs: Vec<u64> = generations(&run.path).iter().map(|ring| ring.step / 10).collect();
    assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "one ring at most in an epoch: {epochs:?}");
    assert_eq!(moved.shards.iter().sum::<u64>(), 16);
    assert!(run.stderr.contains("the shards move by speed"), "{}", run.stderr);
    assert_eq!(run.summary()["recoveries"].as_array().map(Vec::len), Some(0), "nobody was lost");
}

#[test]
fn with_equal_balance_a_slow_worker_owns_as_many_shards() {
    let scenario = scenario().set("cluster.balance=equal");
    let (mut running, slowed) = with_one_that_is_slow(&scenario);
    running.wait_for_steps(110);
    drop(slowed);
    let run = Scenario::stop(running);
    let rings = generations(&run.path);
    assert_eq!(rings.iter().map(|ring| ring.shards.as_slice()).collect::<Vec<_>>(), [[8, 8]]);
    assert_eq!(run.summary()["shards"].as_array().map(Vec::len), Some(2));
    scenario.assert_undisturbed(&run);
}
