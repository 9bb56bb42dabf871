//! The coordinator dies and is started again on its run directory: the ring
//! trains on meanwhile, and nothing is lost.

use std::time::{Duration, Instant};

use cluster_tests::scenario::{Scenario, free_port, join};
use cluster_tests::{Running, join_line};

#[test]
fn the_ring_trains_on_without_its_coordinator() {
    let scenario = Scenario::new(300).set("train.checkpoint_steps=100");
    let expected = scenario.quiet();
    let port = free_port();
    let mut coordinator = scenario.serve(port, 3, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let workers: Vec<Running> = (0..3).map(|_| join(&addr, &token, &[])).collect();
    coordinator.wait_for_steps(15);
    coordinator.signal(libc::SIGKILL);
    let _ = coordinator.wait();
    std::thread::sleep(Duration::from_secs(4));
    let run = scenario.serve(port, 3, &["--resume"]).wait().succeeded();
    assert!(run.stderr.contains("3 workers are expected back"), "{}", run.stderr);
    for worker in workers {
        let worker = worker.wait().succeeded();
        assert!(worker.stderr.contains("the coordinator is back"), "{}", worker.stderr);
        assert_eq!(worker.stderr.matches("generation 1, rank").count(), 1, "{}", worker.stderr);
    }
    scenario.assert_whole(&run, &expected);
    assert_eq!(run.summary()["generations"], 1, "the ring never stopped: {}", run.summary());
}

#[test]
fn a_coordinator_is_looked_for_as_long_as_the_config_says() {
    let scenario = Scenario::new(100_000).set("cluster.orphan_ms=2000");
    let mut coordinator = scenario.serve(free_port(), 1, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let worker = join(&addr, &token, &[]);
    coordinator.wait_for_steps(5);
    let start = Instant::now();
    coordinator.signal(libc::SIGKILL);
    let _ = coordinator.wait();
    worker.wait().failed(1, &["out of reach for 2 s", "cluster.orphan_ms"]);
    assert!(start.elapsed() < Duration::from_secs(15), "it looked for {:?}", start.elapsed());
}

#[test]
fn a_worker_that_dies_while_the_coordinator_is_away_is_replaced_when_it_is_back() {
    let scenario = Scenario::new(300);
    let expected = scenario.quiet();
    let port = free_port();
    let mut coordinator = scenario.serve(port, 3, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let mut workers: Vec<Running> = (0..3).map(|_| join(&addr, &token, &[])).collect();
    coordinator.wait_for_steps(15);
    coordinator.signal(libc::SIGKILL);
    let _ = coordinator.wait();
    let victim = workers.remove(1);
    victim.signal(libc::SIGKILL);
    let _ = victim.wait();
    std::thread::sleep(Duration::from_secs(1));
    let coordinator = scenario.serve(port, 3, &["--resume"]);
    workers.push(join(&addr, &token, &[]));
    let run = coordinator.wait().succeeded();
    for worker in workers {
        worker.wait().succeeded();
    }
    scenario.assert_whole(&run, &expected);
    assert!(run.summary()["generations"].as_u64() > Some(1), "{}", run.summary());
}
