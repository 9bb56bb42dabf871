//! Workers come, go, die and freeze, and the weights are those of a run in which
//! nothing happened: the same bits. Every test checks that its fault did happen.

use std::time::Duration;

use cluster_tests::record::{generations, wait_for_ring};
use cluster_tests::scenario::{Scenario, events, free_port, join};
use cluster_tests::{Running, gone, join_line, signal, until};

#[test]
fn killed_workers_are_replaced_and_not_a_bit_is_lost() {
    let scenario = Scenario::endless();
    let mut running = scenario.local(3).start();
    for (n, steps) in [8, 35, 70, 95].into_iter().enumerate() {
        running.wait_for_steps(steps);
        let victims = running.children();
        // A different worker each time, including rank 0.
        signal(victims[n % victims.len()], libc::SIGKILL);
    }
    let rings = generations(&running.path).len();
    until("ring after the last kill", Duration::from_secs(30), || (generations(&running.path).len() > rings).then_some(()));
    wait_for_ring(&running.path, 3);
    let run = Scenario::stop(running);
    scenario.assert_undisturbed(&run);
    let summary = run.summary();
    let recoveries = summary["recoveries"].as_array().map_or(0, Vec::len);
    assert!((2..=4).contains(&recoveries), "4 kills, some of which may fall into one recovery: {summary}");
    assert!(summary["generations"].as_u64() > Some(2) && summary["world"] == 3, "{summary}");
    assert!(run.stderr.contains("starting another in its place"), "{}", run.stderr);
}

#[test]
fn a_frozen_worker_is_given_up_and_comes_back_as_a_newcomer() {
    let scenario = Scenario::endless();
    let mut running = scenario.local(3).start();
    running.wait_for_steps(10);
    let frozen = running.children()[1];
    signal(frozen, libc::SIGSTOP);
    // The others go on without it.
    running.wait_for_steps(30);
    wait_for_ring(&running.path, 2);
    signal(frozen, libc::SIGCONT);
    wait_for_ring(&running.path, 3);
    let run = Scenario::stop(running);
    scenario.assert_undisturbed(&run);
    assert!(run.stderr.contains("was not heard for 1000 ms"), "{}", run.stderr);
    assert!(events(&run.path, "worker_joined") >= 4, "three joined, and one of them again");
}

#[test]
fn workers_join_and_leave_while_the_run_goes_on() {
    let scenario = Scenario::endless();
    let mut running = scenario.local(1).start();
    let (addr, token) = join_line(&running.path);
    running.wait_for_steps(5);
    let newcomer = join(&addr, &token, &[]);
    wait_for_ring(&running.path, 2);
    let here = running.step_count();
    running.wait_for_steps(here + 10);
    Running::start("worker", &["leave", &newcomer.id().to_string()]).wait().succeeded();
    let left = newcomer.wait().succeeded();
    assert!(left.stderr.contains("took over the state") && left.stderr.contains("leaving the run"), "{}", left.stderr);
    wait_for_ring(&running.path, 1);
    let run = Scenario::stop(running);
    scenario.assert_undisturbed(&run);
    assert_eq!(run.summary()["generations"], 3);
    // A clean goodbye is no loss.
    assert_eq!(run.summary()["recoveries"].as_array().map(Vec::len), Some(0));
}

#[test]
fn below_min_workers_the_run_waits() {
    let scenario = Scenario::new(120).set("cluster.min_workers=2");
    let expected = scenario.quiet();
    let mut coordinator = scenario.serve(free_port(), 1, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let join_this = || join(&addr, &token, &[]);
    let (first, second) = (join_this(), join_this());
    coordinator.wait_for_steps(5);
    // Two of at least two: without one of them the run waits.
    first.signal(libc::SIGKILL);
    let _ = first.wait();
    std::thread::sleep(Duration::from_millis(2500));
    let held = coordinator.step_count();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(coordinator.step_count(), held, "the run should wait for a second worker");
    let third = join_this();
    let run = coordinator.wait().succeeded();
    for worker in [second, third] {
        worker.wait().succeeded();
    }
    assert!(run.stderr.contains("1 of 2 workers are ready"), "{}", run.stderr);
    scenario.assert_whole(&run, &expected);
}

#[test]
fn a_spare_takes_the_place_of_a_lost_worker() {
    // Four shards, five workers.
    let scenario = Scenario::endless();
    let mut running = scenario.local(4).start();
    let (addr, token) = join_line(&running.path);
    running.wait_for_steps(3);
    let spare = join(&addr, &token, &[]);
    running.wait_for_steps(30);
    let victim = running.children()[0];
    until("spare that waits", Duration::from_secs(30), || spare.log().contains("waiting as a spare").then_some(()));
    let rings = generations(&running.path).len();
    signal(victim, libc::SIGKILL);
    until("ring with the spare", Duration::from_secs(30), || (generations(&running.path).len() > rings).then_some(()));
    let run = Scenario::stop(running);
    assert!(gone(&[victim]));
    let spare = spare.wait().succeeded();
    assert!(spare.stderr.contains("waiting as a spare") && spare.stderr.contains("took over the state"), "{}", spare.stderr);
    scenario.assert_undisturbed(&run);
}
