//! No process dies: the coordinator, all workers or everything stands still for a
//! while, or links carry nothing, or a disk is slow. No step is lost because of it.

use std::time::{Duration, Instant};

use cluster_tests::chaos::Chaos;
use cluster_tests::chaos::disk::SlowDisk;
use cluster_tests::chaos::silence::{self, Silence, play};
use cluster_tests::record;
use cluster_tests::scenario::Scenario;

fn survives(silence: Silence, millis: &[u64], seed: u64) {
    let played = play(&Scenario::endless(), silence, millis, seed);
    for survived in &played.silences {
        println!("{silence} for {} ms at step {}: went on after {:.1?}", survived.millis, survived.held, survived.went_on_after);
    }
    println!("{silence}: {} recoveries in all", played.recoveries);
}

#[test]
fn a_coordinator_that_stands_still_costs_no_step() {
    survives(Silence::Coordinator, &[500, 2000, 4000], 1);
}

#[test]
fn workers_that_all_stand_still_cost_no_step() {
    survives(Silence::Workers, &[2500, 1500, 8000], 2);
}

#[test]
fn everything_that_stands_still_costs_no_step() {
    survives(Silence::Everything, &[1500, 4000, 2000], 3);
}

#[test]
fn a_coordinator_without_links_costs_no_step() {
    survives(Silence::CoordinatorLinks, &[1500, 2500, 4000], 4);
}

#[test]
fn cut_links_of_everybody_cost_no_step() {
    survives(Silence::AllLinks, &[500, 2000, 2500], 5);
}

/// The coordinator's flushes take 3 s each, from shortly before a checkpoint on: no
/// worker is given up because of it, and the ring does not wait for the disk.
#[test]
fn a_slow_disk_costs_no_worker_and_no_time() {
    const DELAY_MS: u64 = 3000;
    const SLOW: Duration = Duration::from_secs(15);
    let Some(disk) = SlowDisk::build() else { return };
    // At this interval no second checkpoint waits for the first one, which is slow on
    // purpose.
    let scenario = Scenario::endless().set("train.checkpoint_steps=100");
    let mut chaos = Chaos::start_on(&scenario, silence::WORKERS as u32, 6, Some(disk));
    chaos.settle_conditions(silence::pace());
    // The rate is that of gradient bytes: the record on a slow disk may not have all
    // steps yet.
    let rate = |chaos: &Chaos<'_>, time: Duration| {
        let (before, start) = (chaos.between_workers(), Instant::now());
        std::thread::sleep(time);
        (chaos.between_workers() - before) as f64 / start.elapsed().as_secs_f64()
    };
    chaos.coordinator().wait_for_steps(20);
    let calm = rate(&chaos, Duration::from_secs(3));
    chaos.coordinator().wait_for_steps(95);
    let disk = chaos.disk().unwrap_or_else(|| panic!("it was started with one"));
    disk.slow_by(DELAY_MS);
    let slow = rate(&chaos, SLOW);
    let disk = chaos.disk().unwrap_or_else(|| panic!("it was started with one"));
    disk.slow_by(0);
    let delayed = disk.delayed();
    let held = record::committed(chaos.run_dir());
    let run = chaos.stop_undisturbed();
    println!("{delayed} flushes delayed by {DELAY_MS} ms each: {:.1} % of the steps before, {held} steps at its end", 100.0 * slow / calm);
    assert!(delayed > 0, "nothing was flushed while the disk was slow");
    assert_eq!(run.summary()["recoveries"].as_array().map(Vec::len), Some(0), "{}", run.stderr);
    assert_eq!(run.summary()["generations"], 1, "{}", run.stderr);
    assert!(slow > 0.7 * calm, "{calm:.0} bytes of gradients a second before, {slow:.0} while the disk was slow\n{}", run.stderr);
}
