//! Workers come, go, die and freeze, and the weights are those of a run in which
//! nothing happened: the same bits. Every test sees that what it does to the run
//! did happen.

use std::path::Path;
use std::time::{Duration, Instant};

use cluster_tests::{Finished, LocalCluster, Running, gone, join_line, signal};
use tempfile::TempDir;

const CONFIG: &str = "configs/alexnet-synthetic.toml";

/// A small model, long enough to be disturbed, with the product's own timeouts.
const SETS: [&str; 9] = [
    "train.reproducible=true",
    "train.schedule=constant",
    "train.checkpoint_steps=1000",
    "train.shards=4",
    "train.global_batch=32",
    "model.width=0.125",
    "data.train=6400",
    "data.val=50",
    "train.max_steps=120",
];

fn temp() -> TempDir {
    TempDir::new().unwrap_or_else(|e| panic!("{e}"))
}

/// The digest of an undisturbed run in one process.
fn quiet(folder: &Path) -> String {
    let run = folder.join("quiet").display().to_string();
    let mut args = vec!["train", CONFIG, "--run-dir", &run, "-q"];
    SETS.iter().for_each(|set| args.extend(["--set", set]));
    Running::start("worker", &args).wait().succeeded();
    digest_in(Path::new(&run))
}

fn digest_in(run: &Path) -> String {
    let text = std::fs::read_to_string(run.join("summary.json")).unwrap_or_else(|e| panic!("{}: {e}", run.display()));
    let digest = text.split("weights_blake3\": \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned();
    assert_eq!(digest.len(), 64, "{text}");
    digest
}

fn cluster(workers: u32) -> LocalCluster {
    LocalCluster::new(CONFIG).workers(workers).set_all(&SETS).set("cluster.timeout_ms=1000")
}

/// Every step is on the record once, in order.
fn assert_steps_are_whole(run: &Finished) {
    let steps: Vec<f64> = run.column("step");
    assert_eq!(steps, (0..120).map(f64::from).collect::<Vec<_>>());
}

fn events(run: &Finished, kind: &str) -> usize {
    let text = std::fs::read_to_string(run.path.join("journal.jsonl")).unwrap_or_default();
    text.lines().filter(|line| line.contains(&format!("\"event\":\"{kind}\""))).count()
}

#[test]
fn killed_workers_are_replaced_and_not_a_bit_is_lost() {
    let folder = temp();
    let expected = quiet(folder.path());
    let mut running = cluster(3).start();
    for (n, steps) in [8, 35, 70, 95].into_iter().enumerate() {
        running.wait_for_steps(steps);
        let victims = running.children();
        // Another one each time, rank 0 among them.
        signal(victims[n % victims.len()], libc::SIGKILL);
    }
    let run = running.wait().succeeded();
    assert_eq!(run.digest(), expected);
    assert_steps_are_whole(&run);
    let summary = run.summary();
    let recoveries = summary["recoveries"].as_array().map_or(0, Vec::len);
    assert!((2..=4).contains(&recoveries), "4 kills, some of which may fall into one recovery: {summary}");
    assert!(summary["generations"].as_u64() > Some(2) && summary["world"] == 3, "{summary}");
    assert!(run.stderr.contains("starting another in its place"), "{}", run.stderr);
}

#[test]
fn a_frozen_worker_is_given_up_and_comes_back_as_a_newcomer() {
    let folder = temp();
    let expected = quiet(folder.path());
    let mut running = cluster(3).set("train.max_steps=120").start();
    running.wait_for_steps(10);
    let frozen = running.children()[1];
    signal(frozen, libc::SIGSTOP);
    // The others go on without it.
    running.wait_for_steps(30);
    signal(frozen, libc::SIGCONT);
    let run = running.wait().succeeded();
    assert_eq!(run.digest(), expected);
    assert_steps_are_whole(&run);
    assert!(run.stderr.contains("was not heard for 1000 ms"), "{}", run.stderr);
    assert!(events(&run, "worker_joined") >= 4, "three joined, and one of them again");
}

#[test]
fn workers_join_and_leave_while_the_run_goes_on() {
    let folder = temp();
    let expected = quiet(folder.path());
    let mut running = cluster(1).start();
    let (addr, token) = join_line(&running.path);
    running.wait_for_steps(5);
    let newcomer = Running::start("worker", &["join", &addr, "--token", &token]);
    let start = Instant::now();
    while !std::fs::read_to_string(running.path.join("journal.jsonl")).unwrap_or_default().contains("\"workers\":2") {
        assert!(start.elapsed() < Duration::from_secs(30), "the newcomer is not let in");
        std::thread::sleep(Duration::from_millis(10));
    }
    let here = running.step_count();
    running.wait_for_steps(here + 10);
    newcomer.signal(libc::SIGINT);
    let left = newcomer.wait().succeeded();
    assert!(left.stderr.contains("took over the state") && left.stderr.contains("leaving the run"), "{}", left.stderr);
    let run = running.wait().succeeded();
    assert_eq!(run.digest(), expected);
    assert_steps_are_whole(&run);
    assert_eq!(run.summary()["generations"], 3);
    // A clean goodbye is no loss.
    assert_eq!(run.summary()["recoveries"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_spare_waits_for_the_place_of_a_lost_worker_and_below_min_workers_the_run_waits() {
    let folder = temp();
    let expected = quiet(folder.path());
    let run_dir = folder.path().join("run");
    let path = run_dir.display().to_string();
    let mut serve = vec!["serve", CONFIG, "--listen", "127.0.0.1:0", "--run-dir", &path];
    let sets: Vec<&str> = SETS.iter().copied().chain(["cluster.timeout_ms=1000", "cluster.min_workers=2"]).collect();
    sets.iter().for_each(|set| serve.extend(["--set", set]));
    let mut coordinator = Running::start("coordinator", &serve);
    coordinator.path = run_dir.clone();
    let (addr, token) = join_line(&run_dir);
    let join = || Running::start("worker", &["join", &addr, "--token", &token]);
    let (first, second) = (join(), join());
    coordinator.wait_for_steps(5);
    // Two of at least two: without one of them the run waits.
    first.signal(libc::SIGKILL);
    let _ = first.wait();
    std::thread::sleep(Duration::from_millis(2500));
    let held = coordinator.step_count();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(coordinator.step_count(), held, "the run should wait for a second worker");
    let third = join();
    let run = coordinator.wait().succeeded();
    for worker in [second, third] {
        worker.wait().succeeded();
    }
    assert!(run.stderr.contains("1 of 2 workers are ready"), "{}", run.stderr);
    assert_eq!(digest_in(&run_dir), expected);

    // Four shards, five workers.
    let mut running = cluster(4).start();
    let (addr, token) = join_line(&running.path);
    running.wait_for_steps(3);
    let spare = Running::start("worker", &["join", &addr, "--token", &token]);
    running.wait_for_steps(30);
    let victim = running.children()[0];
    signal(victim, libc::SIGKILL);
    let run = running.wait().succeeded();
    assert!(gone(&[victim]));
    let spare = spare.wait().succeeded();
    assert!(spare.stderr.contains("waiting as a spare") && spare.stderr.contains("took over the state"), "{}", spare.stderr);
    assert_eq!(run.digest(), expected);
}
