//! Dense layers whose factors are exchanged: with kills, and among unlike processors.

use std::ffi::OsString;
use std::time::Duration;

use cluster_tests::chaos::conditions::Conditions;
use cluster_tests::chaos::{Chaos, Fault, Moment, Then};
use cluster_tests::scenario::{Scenario, free_port, join};
use cluster_tests::{Running, join_line, record, until};
use serde_json::Value;

fn factors() -> Scenario {
    Scenario::endless().set("cluster.dense=factors")
}

/// A worker whose f32 products have other bits: those that any processor can make.
fn unlike(addr: &str, token: &str) -> Running {
    Running::start_in("worker", &["join", addr, "--token", token], &[("MKL_CBWR", OsString::from("COMPATIBLE"))])
}

/// What the journal says of each generation's dense layers.
fn ways(run: &std::path::Path) -> Vec<Value> {
    record::generations(run).into_iter().map(|ring| ring.dense).collect()
}

/// Each link takes so long that factors are on their way for most of a step.
#[test]
fn kills_while_factors_are_gathered_change_no_weight() {
    let scenario = factors();
    let mut chaos = Chaos::start(&scenario, 3, 9);
    chaos.settle_conditions(Conditions { delay: Duration::from_millis(10), ..Conditions::default() });
    for time in 0..5u64 {
        let step = record::committed(chaos.run_dir()) as usize + 8;
        chaos.at(Moment { step, then: Then::After { millis: 11 * time } }, &Fault::Kill { worker: time as usize % 3 });
        let rings = record::generations(chaos.run_dir()).len();
        let run = chaos.run_dir().to_owned();
        until("ring of all three", Duration::from_secs(90), || {
            record::generations(&run).into_iter().skip(rings.saturating_sub(1)).any(|g| g.members.len() == 3).then_some(())
        });
    }
    assert!(ways(chaos.run_dir()).iter().all(|way| way["factors"].is_string()), "{:?}", ways(chaos.run_dir()));
    let run = chaos.stop_undisturbed();
    let layers = run.summary()["dense"].as_array().cloned().unwrap_or_default();
    assert!(layers.len() == 3 && layers.iter().all(|layer| layer["exchanges"] == "factors"), "{layers:?}");
}

#[test]
fn unlike_processors_sum_and_the_record_says_why() {
    let scenario = factors().set("train.reproducible=false").set("train.threads=1");
    let mut coordinator = scenario.serve(free_port(), 2, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let mut workers = vec![join(&addr, &token, &[]), unlike(&addr, &token)];
    coordinator.wait_for_steps(5);
    let way = ways(&scenario.run_dir()).pop().unwrap_or_default();
    let reason = way["sum"].as_str().unwrap_or_else(|| panic!("factors are exchanged: {way}")).to_owned();
    assert!(reason.contains("makes other bits of the same factors than"), "{reason}");
    // Without it, factors are exchanged again.
    let other = workers.remove(1);
    Running::start("worker", &["leave", &other.id().to_string()]).wait().succeeded();
    workers.push(join(&addr, &token, &[]));
    let run = scenario.run_dir();
    until("ring of like workers", Duration::from_secs(30), || {
        let whole = record::generations(&run).last().is_some_and(|g| g.members.len() == 2);
        (whole && ways(&run).last().is_some_and(|way| way["factors"].is_string())).then_some(())
    });
    let run = Scenario::stop(coordinator);
    other.wait().succeeded();
    workers.into_iter().for_each(|worker| _ = worker.wait().succeeded());
    assert!(run.stderr.contains("are summed, which takes longer"), "{}", run.stderr);
    assert!(run.summary()["sums_because"].is_null(), "{}", run.summary());
}

#[test]
fn a_reproducible_run_refuses_a_processor_that_makes_other_products() {
    let scenario = factors();
    let mut coordinator = scenario.serve(free_port(), 2, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let workers = [join(&addr, &token, &[]), join(&addr, &token, &[])];
    coordinator.wait_for_steps(5);
    unlike(&addr, &token).wait().failed(1, &["makes other bits of the same factors"]);
    let run = Scenario::stop(coordinator);
    workers.into_iter().for_each(|worker| _ = worker.wait().succeeded());
    assert_eq!(record::generations(&run.path).len(), 1, "the ring was formed anew: {}", run.stderr);
    scenario.assert_undisturbed(&run);
}
