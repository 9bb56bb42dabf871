//! AlexNet at its full size: 62 million parameters, half a gigabyte of state.

use std::time::{Duration, Instant};

use cluster_tests::{LocalCluster, signal};

/// Datagrams that this machine has sent.
fn datagrams() -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp").unwrap_or_else(|e| panic!("/proc/net/snmp: {e}"));
    let mut rows = text.lines().filter(|line| line.starts_with("Udp:")).map(str::split_whitespace);
    let (names, values) = (rows.next(), rows.next());
    let found = names.into_iter().flatten().zip(values.into_iter().flatten()).find(|(name, _)| *name == "OutDatagrams");
    found.and_then(|(_, n)| n.parse().ok()).unwrap_or_else(|| panic!("no datagrams are counted: {text}"))
}

/// The first steps of all generations with this many workers.
fn begun(journal: &str, workers: usize) -> Vec<usize> {
    let lines = journal.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let generations = lines.filter(|event| event["event"] == "generation" && event["workers"] == workers);
    generations.filter_map(|event| event["step"].as_u64()).map(|step| step as usize).collect()
}

#[test]
fn alexnet_loses_a_worker_in_the_middle_of_an_all_reduce_and_goes_on() {
    let mut running = LocalCluster::new("benches/alexnet-224.toml")
        .workers(3)
        // A processor without bf16 arithmetic takes half a minute for a step in bf16.
        .set("train.precision=f32")
        .set_all(&["train.global_batch=24", "train.max_steps=9", "train.eval_epochs=100", "cluster.timeout_ms=1000"])
        .start();
    running.wait_for_steps(3);
    // A step's gradient takes thousands of datagrams; between two all-reduces there
    // are a few.
    let (before, victim) = (datagrams(), running.children()[1]);
    while datagrams() < before + 500 {
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(victim, libc::SIGKILL);
    let (killed, held) = (Instant::now(), running.step_count());
    let journal = running.path.join("journal.jsonl");
    let (mut without, mut with) = (None, None);
    while with.is_none() {
        assert!(killed.elapsed() < Duration::from_secs(60), "the run does not go on");
        std::thread::sleep(Duration::from_millis(5));
        let steps = running.step_count();
        without = without.or_else(|| (steps > held).then(|| killed.elapsed()));
        let again = begun(&std::fs::read_to_string(&journal).unwrap_or_default(), 3).into_iter().skip(1).min();
        with = again.filter(|&step| steps > step).map(|_| killed.elapsed());
    }
    let run = running.wait().succeeded();
    println!("went on {without:?} after the kill; with the replacement {with:?} after it");
    assert_eq!(run.column("step"), (0..9).map(f64::from).collect::<Vec<_>>());
    assert_eq!(run.summary()["recoveries"].as_array().map(Vec::len), Some(1), "{}", run.summary());
    assert!(run.stderr.contains("took over the state"), "{}", run.stderr);
}
