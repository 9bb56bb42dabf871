//! Faults that only real processes show: what a run still holds when it is short
//! of workers, fixed ports, uploads that break off, data that is not the run's.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cluster_tests::chaos::conditions::{Conditions, Node};
use cluster_tests::chaos::disk::SlowDisk;
use cluster_tests::chaos::{Chaos, Fault, Moment, Then};
use cluster_tests::scenario::{ENDLESS, Scenario, assert_audited, digest, events, free_port, join};
use cluster_tests::{Running, join_line, pictures, record, until};
use tempfile::TempDir;

/// A run without a checkpoint that has two workers and needs both. It does not end
/// before the loss of a worker is noticed.
fn needs_two() -> Scenario {
    Scenario::new(240).set("cluster.min_workers=2").set("train.checkpoint_steps=1000000").set("train.eval_epochs=1000")
}

/// The digest of that run undisturbed, which two tests share.
fn expected() -> &'static str {
    static DIGEST: OnceLock<String> = OnceLock::new();
    DIGEST.get_or_init(|| needs_two().quiet())
}

/// A run in which one of two workers was killed: the other one holds the state.
struct Short {
    coordinator: Running,
    holder: Running,
}

fn short_of_workers(scenario: &Scenario, port: u16) -> Short {
    let mut coordinator = scenario.serve(port, 2, &[]);
    let (addr, token) = join_line(&scenario.run_dir());
    let (victim, holder) = (join(&addr, &token, &[]), join(&addr, &token, &[]));
    coordinator.wait_for_steps(10);
    victim.signal(libc::SIGKILL);
    let _ = victim.wait();
    until("run that waits for a second worker", Duration::from_secs(20), || {
        coordinator.log().contains("1 of 2 workers are ready").then_some(())
    });
    assert!(record::checkpoints(&scenario.run_dir()).is_empty(), "there is a checkpoint already");
    Short { coordinator, holder }
}

/// Asserts that the run goes on from a checkpoint of all that it had committed, and
/// ends with the weights of the undisturbed one.
fn goes_on_from_what_was_held(scenario: &Scenario, expected: &str, log: &str) {
    let (run, port) = (scenario.run_dir(), free_port());
    let committed = record::committed(&run);
    let stored = record::checkpoints(&run).last().copied();
    assert!(stored.is_some_and(|step| step >= committed), "{committed} steps were committed, and {stored:?} is stored\n{log}");
    let rings = record::generations(&run).len();
    let coordinator = scenario.serve(port, 2, &["--resume"]);
    let (addr, token) = (format!("127.0.0.1:{port}"), join_line(&run).1);
    let workers = [join(&addr, &token, &[]), join(&addr, &token, &[])];
    let resumed = coordinator.wait().succeeded();
    for worker in workers {
        worker.wait().succeeded();
    }
    let first = record::generations(&run).get(rings).map(|g| g.step);
    assert_eq!(first, stored, "it did not go on from the checkpoint");
    scenario.assert_whole(&resumed, expected);
}

#[test]
fn ctrl_c_below_min_workers_stores_what_the_last_one_holds() {
    let scenario = needs_two();
    let expected = expected();
    let Short { coordinator, holder } = short_of_workers(&scenario, free_port());
    coordinator.signal(libc::SIGINT);
    let stopped = coordinator.wait();
    let _ = holder.wait();
    goes_on_from_what_was_held(&scenario, expected, &stopped.stderr);
}

#[test]
fn the_last_holder_that_leaves_stores_what_it_holds() {
    let scenario = needs_two();
    let expected = expected();
    let Short { mut coordinator, holder } = short_of_workers(&scenario, free_port());
    Running::start("worker", &["leave", &holder.id().to_string()]).wait().succeeded();
    let left = holder.wait();
    let run = scenario.run_dir();
    until("checkpoint of what was held", Duration::from_secs(20), || record::checkpoints(&run).last().map(|_| ()));
    // The coordinator may wait for other workers or end; both are right.
    if coordinator.is_running() {
        coordinator.signal(libc::SIGINT);
    }
    let stopped = coordinator.wait();
    goes_on_from_what_was_held(&scenario, expected, &format!("{}\n{}", stopped.stderr, left.stderr));
}

#[test]
fn a_worker_with_a_fixed_ring_port_comes_back_whenever_it_was_frozen() {
    let scenario = Scenario::endless();
    // Every worker of these clusters has a port of its own for the ring.
    let mut chaos = Chaos::start(&scenario, 2, 1);
    chaos.settle_conditions(Conditions { delay: Duration::from_millis(5), ..Conditions::default() });
    chaos.coordinator().wait_for_steps(10);
    let run = chaos.run_dir().to_owned();
    for time in 1..=5 {
        let (rings, worker) = (record::generations(&run).len(), time % 2);
        chaos.inflict(&Fault::Stop { worker, millis: 3000 });
        let ring = chaos.ring_address(worker);
        let log = |chaos: &Chaos<'_>| chaos.worker(worker).log();
        let back = || record::generations(&run).into_iter().skip(rings).any(|g| g.members.len() == 2 && g.has(ring));
        let start = Instant::now();
        while !back() {
            assert!(start.elapsed() < Duration::from_secs(20), "it is not back the {time}th time\n{}", log(&chaos));
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!log(&chaos).contains("in use"), "the {time}th time: {}", log(&chaos));
        let here = record::committed(&run);
        until("steps with the one that is back", Duration::from_secs(20), || (record::committed(&run) > here + 5).then_some(()));
    }
    assert_audited(&chaos.stop().path);
}

/// The longest time within `time` in which workers sent each other next to nothing.
fn longest_pause(chaos: &Chaos<'_>, time: Duration) -> Duration {
    /// Signs of life have fewer bytes than this, and a step's gradients more.
    const NOTHING: u64 = 50_000;
    let (start, mut since, mut before, mut longest) = (Instant::now(), Instant::now(), chaos.between_workers(), Duration::ZERO);
    while start.elapsed() < time {
        std::thread::sleep(Duration::from_millis(10));
        let now = chaos.between_workers();
        longest = longest.max(since.elapsed());
        if now > before + NOTHING {
            (before, since) = (now, Instant::now());
        }
    }
    longest
}

#[test]
fn a_coordinator_killed_during_an_upload_and_back_at_once_holds_nobody_up() {
    const MOST: Duration = Duration::from_secs(4);
    let scenario = Scenario::endless().set("train.checkpoint_steps=10");
    // A disk on which an upload takes long enough to be found; the next one is due soon.
    let disk = SlowDisk::build();
    let mut chaos = Chaos::start_on(&scenario, 2, 2, disk);
    chaos.settle_conditions(Conditions { delay: Duration::from_millis(8), ..Conditions::default() });
    if let Some(disk) = chaos.disk() {
        disk.slow_by(100);
    }
    chaos.coordinator().wait_for_steps(5);
    // Each upload waits for the one before it.
    let usual = longest_pause(&chaos, Duration::from_secs(5));
    chaos.at(Moment { step: 20, then: Then::Upload }, &Fault::Coordinator { millis: 200 });
    let pause = longest_pause(&chaos, Duration::from_secs(13));
    if let Some(disk) = chaos.disk() {
        disk.slow_by(0);
    }
    println!("the ring stood still for {pause:.1?} at most, and for {usual:.1?} before");
    let run = chaos.stop_undisturbed();
    assert!(pause < MOST + usual, "the ring stood still for {pause:.1?}, and for {usual:.1?} before\n{}", run.stderr);
}

#[test]
fn an_upload_that_fills_a_slow_uplink_costs_nobody_its_place() {
    let scenario = Scenario::new(200).set("train.checkpoint_steps=100").set("train.eval_epochs=1000").set("cluster.stall_ms=2000");
    let expected = scenario.quiet();
    let mut chaos = Chaos::start(&scenario, 2, 3);
    let narrow = [0, 1].map(|place| ((Node::Worker(place), Node::Coordinator), 1_000_000)).into();
    chaos.settle_conditions(Conditions { delay: Duration::from_millis(5), narrow, ..Conditions::default() });
    let run = chaos.run_dir().to_owned();
    let start = until("upload", Duration::from_secs(60), || record::uploading(&run).then(Instant::now));
    let stored = until("end of the upload", Duration::from_secs(60), || record::checkpoints(&run).last().map(|_| start.elapsed()));
    println!("the upload took {stored:.1?}");
    assert!(stored > Duration::from_secs(3), "an upload of {stored:?} is no test of a slow uplink");
    let run = chaos.finish();
    assert_eq!(run.summary()["recoveries"].as_array().map(Vec::len), Some(0), "{}", run.stderr);
    assert_eq!(run.summary()["generations"], 1, "{}", run.stderr);
    scenario.assert_whole(&run, &expected);
}

/// A small run over pictures, reproducible, with the data in `data`.
fn with_pictures(folder: &Path) -> PathBuf {
    let data = folder.join("data");
    pictures::class_folders(&data, 3, 24, 6);
    let config = folder.join("pictures.toml");
    let text = format!(
        "name = \"pictures\"\n[model]\nkind = \"alexnet\"\nwidth = 0.0625\n[data]\nkind = \"images\"\npath = {data:?}\nimage_size = 64\n\
         [train]\nepochs = 1000\nmax_steps = {ENDLESS}\neval_epochs = 1000\ncheckpoint_steps = 1000\nglobal_batch = 16\nshards = 4\n\
         optimizer = \"adamw\"\nlr = 0.001\nschedule = \"constant\"\nreproducible = true\n[cluster]\ntimeout_ms = 1000\n"
    );
    fs::write(&config, text).unwrap_or_else(|e| panic!("{}: {e}", config.display()));
    config
}

/// The digest of this many undisturbed steps.
fn quiet(config: &Path, folder: &Path, steps: usize) -> String {
    let (run, steps) = (folder.join("quiet"), format!("train.max_steps={steps}"));
    let arguments = ["train", &config.display().to_string(), "-q", "--run-dir", &run.display().to_string(), "--set", &steps];
    Running::start("worker", &arguments).wait().succeeded();
    digest(&run)
}

fn serve(config: &Path, run: &Path, port: u16, workers: &str, more: &[&str]) -> Running {
    let listen = format!("127.0.0.1:{port}");
    let (config, path) = (config.display().to_string(), run.display().to_string());
    let arguments = ["serve", &config, "--listen", &listen, "--run-dir", &path, "--workers", workers];
    let mut coordinator = Running::start("coordinator", &[&arguments, more].concat());
    run.clone_into(&mut coordinator.path);
    coordinator
}

#[test]
fn a_worker_whose_copy_of_the_data_breaks_leaves_and_the_others_go_on() {
    let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    let config = with_pictures(folder.path());
    let [good, copy, other, run] = ["data", "copy", "other", "run"].map(|name| folder.path().join(name));
    pictures::class_folders(&copy, 3, 24, 6);
    pictures::class_folders(&other, 3, 23, 6);
    let mut coordinator = serve(&config, &run, free_port(), "3", &[]);
    let (addr, token) = join_line(&run);
    let with = |data: &Path| join(&addr, &token, &["--data", &data.display().to_string()]);
    let workers = [with(&good), with(&good)];
    // Names are given in the order of joining.
    until("first two workers", Duration::from_secs(20), || (events(&run, "worker_joined") == 2).then_some(()));
    let broken = with(&copy);
    coordinator.wait_for_steps(5);
    // A worker with other data is refused before it is in any ring.
    let foreign = with(&other).wait();
    assert!(!foreign.status.success() && foreign.stderr.contains("data"), "{}", foreign.stderr);
    fs::remove_dir_all(copy.join("train/class 0")).unwrap_or_else(|e| panic!("{e}"));
    let left = broken.wait();
    assert!(!left.status.success() && left.stderr.contains("class 0"), "{}", left.stderr);
    record::wait_for_ring(&run, 2);
    let run = Scenario::stop(coordinator);
    for worker in workers {
        worker.wait().succeeded();
    }
    // The undisturbed run reads the same pictures.
    assert_eq!(run.digest(), quiet(&config, folder.path(), run.steps().len()), "{}", run.stderr);
    assert_audited(&run.path);
    // The reason is in the log and on the record.
    let journal = fs::read_to_string(run.path.join("journal.jsonl")).unwrap_or_default();
    for (what, text) in [("the log", &run.stderr), ("the journal", &journal)] {
        assert!(text.lines().any(|line| line.contains("worker-3") && line.contains("class 0")), "{what} does not say why: {text}");
    }
    assert_eq!(run.summary()["world"], 2, "{}", run.summary());
}

#[test]
fn a_run_is_not_resumed_over_other_data() {
    let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    let config = with_pictures(folder.path());
    let run = folder.path().join("run");
    let port = free_port();
    let mut coordinator = serve(&config, &run, port, "1", &[]);
    let (addr, token) = join_line(&run);
    let worker = join(&addr, &token, &[]);
    coordinator.wait_for_steps(5);
    coordinator.signal(libc::SIGINT);
    coordinator.wait().succeeded();
    let _ = worker.wait();
    let described = fs::read(run.join("dataset.json")).unwrap_or_else(|e| panic!("{e}"));

    let (class, hidden) = (folder.path().join("data/train/class 1"), folder.path().join("hidden"));
    // A missing class, a missing picture, and a picture with another name.
    let picture = |n: u32| class.join(format!("{}.png", 2 * n));
    let damages: [(&str, PathBuf, PathBuf); 3] = [
        ("a class is gone", class.clone(), hidden.clone()),
        ("a picture is gone", picture(1), hidden.clone()),
        ("a picture has another name", picture(1), class.join("other.png")),
    ];
    for (what, from, to) in damages {
        fs::rename(&from, &to).unwrap_or_else(|e| panic!("{what}: {e}"));
        let refused = serve(&config, &run, port, "1", &["--resume"]);
        let refused = until_ended(refused, what);
        assert!(refused.status.code() == Some(1) && refused.stderr.contains("data"), "{what}: {}", refused.stderr);
        assert_eq!(fs::read(run.join("dataset.json")).ok().as_ref(), Some(&described), "{what}: dataset.json was replaced");
        fs::rename(&to, &from).unwrap_or_else(|e| panic!("{what}: {e}"));
    }

    let before = record::committed(&run);
    let mut coordinator = serve(&config, &run, port, "1", &["--resume"]);
    let worker = join(&addr, &token, &[]);
    coordinator.wait_for_steps(before as usize + 20);
    let resumed = Scenario::stop(coordinator);
    worker.wait().succeeded();
    let expected = quiet(&config, folder.path(), resumed.steps().len());
    assert_eq!(resumed.digest(), expected, "{before} steps before: {}", resumed.stderr);
    assert_audited(&run);
}

/// The coordinator dies before it has described its data, and the data has changed
/// when it is back: a worker that still has the state of the run goes no further.
#[test]
fn a_worker_does_not_go_on_with_other_data() {
    let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    let config = with_pictures(folder.path());
    let (run, port) = (folder.path().join("run"), free_port());
    let mut coordinator = serve(&config, &run, port, "1", &[]);
    let (addr, token) = join_line(&run);
    let worker = join(&addr, &token, &[]);
    coordinator.wait_for_steps(5);
    coordinator.signal(libc::SIGKILL);
    let _ = coordinator.wait();
    for gone in [run.join("dataset.json"), folder.path().join("data/train/class 1/2.png")] {
        fs::remove_file(&gone).unwrap_or_else(|e| panic!("{}: {e}", gone.display()));
    }
    let coordinator = serve(&config, &run, port, "1", &["--resume"]);
    worker.wait().failed(1, &["the coordinator is back with other data"]);
    coordinator.signal(libc::SIGKILL);
}

/// Waits for the end of a process that should refuse to start.
fn until_ended(mut process: Running, what: &str) -> cluster_tests::Finished {
    let start = Instant::now();
    while process.is_running() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: it was not refused\n{}", process.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    process.wait()
}
