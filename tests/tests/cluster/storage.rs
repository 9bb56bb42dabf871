//! Disks that are full, cannot be written, or have lost what was on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster_tests::scenario::{Scenario, free_port, join};
use cluster_tests::{Running, pictures, record, signal};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;

/// Lets a process write files of at most this many bytes; `None` allows any size. To
/// the process this is a full disk: a write fails, and what was written stays.
fn limit_files(pid: u32, bytes: Option<u64>) {
    let pid = Pid::from_raw(pid as i32).unwrap_or_else(|| panic!("{pid} is no process"));
    let maximum = getrlimit(Resource::Fsize).maximum;
    let limit = Rlimit { current: bytes.or(maximum), maximum };
    prlimit(Some(pid), Resource::Fsize, limit).unwrap_or_else(|e| panic!("no limit: {e}"));
}

/// Makes a write that does not fit return an error, as on a full disk, instead of
/// ending the process. This holds for the processes started from here on.
fn survive_limits() {
    // SAFETY: no handler is called when the signal comes; it is ignored.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.len())
}

/// Waits until a file does not grow any more.
fn wait_until_stuck(path: &Path) {
    let start = Instant::now();
    let mut before = (0, Instant::now());
    while before.0 == 0 || before.1.elapsed() < Duration::from_secs(1) {
        assert!(start.elapsed() < Duration::from_secs(60), "{} goes on growing", path.display());
        std::thread::sleep(Duration::from_millis(20));
        if size(path) != before.0 {
            before = (size(path), Instant::now());
        }
    }
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_nothing() {
    let scenario = Scenario::new(300).set("train.checkpoint_steps=50");
    let expected = scenario.quiet();
    survive_limits();
    let mut running = scenario.local(2).start();
    running.wait_for_steps(20);
    let (metrics, pid) = (running.path.join("metrics.jsonl"), running.id());
    limit_files(pid, Some(size(&metrics) + 2000));
    wait_until_stuck(&metrics);
    // The ring does not stop for the disk: it has made its last step when there is
    // room again.
    std::thread::sleep(Duration::from_secs(4));
    assert!(!running.path.join("checkpoints/step-00000100").exists(), "checkpoints should not fit");
    limit_files(pid, None);
    let run = running.wait().succeeded();
    for word in ["what is to be recorded waits in memory", "free space", "is not stored"] {
        assert!(run.stderr.contains(word), "`{word}` is not in:\n{}", run.stderr);
    }
    assert_eq!(run.stderr.matches("waits in memory").count(), 1, "it is said once a minute: {}", run.stderr);
    scenario.assert_whole(&run, &expected);
    assert!(run.path.join("checkpoints/step-00000300").exists());
}

/// A restarted coordinator must know every generation that any worker was in, and
/// every name that was given: no worker is told either of them before its line is on
/// disk.
#[test]
fn a_generation_and_a_name_wait_for_their_line_on_a_full_disk() {
    let scenario = Scenario::new(300).set("train.checkpoint_steps=1000000");
    let expected = scenario.quiet();
    survive_limits();
    let mut coordinator = scenario.serve(free_port(), 2, &[]);
    let (addr, token) = cluster_tests::join_line(&scenario.run_dir());
    let mut workers = vec![join(&addr, &token, &[]), join(&addr, &token, &[])];
    coordinator.wait_for_steps(20);
    let run = scenario.run_dir();
    let journal = run.join("journal.jsonl");
    let lines = || fs::read_to_string(&journal).unwrap_or_default();
    // The metrics file is longer already, so nothing at all is written.
    limit_files(coordinator.id(), Some(size(&journal)));
    let before = lines();
    workers.remove(0).signal(libc::SIGKILL);
    workers.push(join(&addr, &token, &[]));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(lines(), before, "the disk should be full");
    let log = workers[0].log();
    assert!(log.contains("generation 1 ended") && !log.contains("generation 2, rank"), "{log}");
    let log = workers[1].log();
    assert!(!log.contains("is ready") && !log.contains(", rank"), "{log}");
    limit_files(coordinator.id(), None);
    let run = coordinator.wait().succeeded();
    scenario.assert_whole(&run, &expected);
    let generations = record::generations(&run.path);
    assert_eq!(Some(generations.len() as u64), run.summary()["generations"].as_u64(), "{}", lines());
    let names: Vec<Value> =
        lines().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|e| e["event"] == "enrolled").collect();
    let distinct: std::collections::BTreeSet<&str> = names.iter().filter_map(|e| e["name"].as_str()).collect();
    assert_eq!((names.len(), distinct.len()), (3, 3), "{}", lines());
}

#[test]
fn a_single_node_run_outlives_a_full_disk_too() {
    let scenario = Scenario::new(200).set("train.checkpoint_steps=50");
    let expected = scenario.quiet();
    survive_limits();
    let mut running = scenario.single();
    running.wait_for_steps(20);
    let metrics = running.path.join("metrics.jsonl");
    limit_files(running.id(), Some(size(&metrics) + 2000));
    wait_until_stuck(&metrics);
    std::thread::sleep(Duration::from_secs(3));
    limit_files(running.id(), None);
    let run = running.wait().succeeded();
    assert!(run.stderr.contains("waits in memory") && run.stderr.contains("is not stored"), "{}", run.stderr);
    scenario.assert_whole(&run, &expected);
}

#[test]
fn a_place_that_cannot_be_written_is_named_at_once() {
    // Nobody can write here, not even root.
    let path = "/proc/ringleader-run";
    let config = "configs/alexnet-synthetic.toml";
    Running::start("coordinator", &["local", config, "--run-dir", path]).wait().failed(1, &["could not create", path]);
    Running::start("worker", &["train", config, "--run-dir", path]).wait().failed(1, &["could not create", path]);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
    for entry in fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())).flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() { copy(&from, &to) } else { _ = fs::copy(&from, &to).unwrap_or_else(|e| panic!("{}: {e}", from.display())) }
    }
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    change(&mut bytes);
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn newest_checkpoint(run: &Path) -> PathBuf {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(run.join("checkpoints")).unwrap_or_else(|e| panic!("{e}")).flatten().map(|e| e.path()).collect();
    folders.sort();
    folders.pop().unwrap_or_else(|| panic!("no checkpoint"))
}

/// The damage done to a run directory, and the words that resuming it must log.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

const DAMAGES: [Damage; 6] = [
    (
        "a flipped byte",
        |run| change(&newest_checkpoint(run).join("model.safetensors"), |bytes| bytes[5000] ^= 1),
        &["passed over a broken checkpoint", "model.safetensors"],
    ),
    (
        "a manifest without its files",
        |run| _ = fs::remove_file(newest_checkpoint(run).join("optimizer.safetensors")),
        &["passed over a broken checkpoint", "optimizer.safetensors"],
    ),
    ("a manifest cut short", |run| change(&newest_checkpoint(run).join("manifest.json"), |b| b.truncate(20)), &["passed over a broken"]),
    ("an empty journal", |run| change(&run.join("journal.jsonl"), Vec::clear), &[]),
    (
        "a journal cut in the middle of a line",
        |run| change(&run.join("journal.jsonl"), |bytes| bytes.truncate(bytes.len() - 7)),
        &["journal.jsonl", "middle of a line"],
    ),
    (
        "metrics with a line of nonsense, and without their end",
        |run| {
            change(&run.join("metrics.jsonl"), |bytes| {
                bytes.truncate(bytes.len() / 2);
                bytes.splice(0..0, *b"{\"step\": nonsense}\n");
            });
        },
        &["metrics.jsonl"],
    ),
];

#[test]
fn a_damaged_run_directory_is_resumed_from_what_is_whole() {
    let scenario = Scenario::new(200).set("train.checkpoint_steps=40").set("train.keep_checkpoints=3");
    let expected = scenario.quiet();
    let mut running = scenario.local(2).start();
    running.wait_for_steps(150);
    signal(running.id() as i32, libc::SIGKILL);
    running.await_end();
    let broken = scenario.folder.path().join("broken");
    copy(&scenario.run_dir(), &broken);
    for (name, damage, words) in DAMAGES {
        let run = scenario.run_dir();
        fs::remove_dir_all(&run).unwrap_or_else(|e| panic!("{}: {e}", run.display()));
        copy(&broken, &run);
        damage(&run);
        let resumed = scenario.local(2).arg("--resume").run().succeeded();
        for word in words {
            assert!(resumed.stderr.contains(word), "{name}: `{word}` is not in:\n{}", resumed.stderr);
        }
        assert_eq!(resumed.digest(), expected, "{name}: {}", resumed.stderr);
    }
}

fn temporary() -> TempDir {
    TempDir::new().unwrap_or_else(|e| panic!("no temporary folder: {e}"))
}

/// The same command line is repeated, as by a machine that is switched off and on again.
#[test]
fn one_command_line_starts_a_run_goes_on_with_it_and_finds_it_complete() {
    let scenario = Scenario::new(100).set("train.checkpoint_steps=20").set("train.keep_checkpoints=3");
    let expected = scenario.quiet();
    let line = || scenario.local(2).arg("--resume=auto");
    let mut running = line().start();
    running.wait_for_steps(70);
    signal(running.id() as i32, libc::SIGKILL);
    running.await_end();
    // The setting that the message for a full disk advises is accepted.
    let run = line().set("train.keep_checkpoints=1").run().succeeded();
    scenario.assert_whole(&run, &expected);
    let kept = fs::read_dir(run.path.join("checkpoints")).unwrap_or_else(|e| panic!("{e}")).count();
    assert_eq!(kept, 1, "checkpoints");
    let again = line().run().succeeded();
    assert!(again.stdout.contains("complete after 100 steps"), "{}", again.stdout);
    scenario.local(2).arg("--resume").set("train.lr=0.5").run().failed(1, &["train.lr"]);
}

#[test]
fn a_run_does_not_go_on_with_other_data() {
    let folder = temporary();
    let (data, run) = (folder.path().join("data"), folder.path().join("run"));
    pictures::class_folders(&data, 3, 8, 4);
    let path = format!("data={{kind=\"images\",path={data:?},image_size=64}}");
    let sets = ["train.global_batch=8", "train.shards=2", "model.width=0.0625", &path];
    let train = |binary: &str, command: &str, more: &[&str]| {
        let run = run.display().to_string();
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let arguments = [command, "configs/alexnet-synthetic.toml", "--run-dir", &run].into_iter().chain(sets);
        Running::start(binary, &arguments.chain(more.iter().copied()).collect::<Vec<_>>()).wait()
    };
    train("worker", "train", &["--set", "train.epochs=1"]).succeeded();
    let described = fs::read(run.join("dataset.json")).unwrap_or_else(|e| panic!("{e}"));
    let rename = |from: &str, to: &str| {
        for split in ["train", "val"] {
            fs::rename(data.join(split).join(from), data.join(split).join(to)).unwrap_or_else(|e| panic!("{e}"));
        }
    };
    let longer = ["--resume", "--set", "train.epochs=2"];
    rename("class 0", "zebra");
    train("worker", "train", &longer).failed(1, &["`zebra`", "`class 0`", "--run-dir"]);
    train("coordinator", "local", &longer).failed(1, &["`zebra`", "`class 0`", "--run-dir"]);
    rename("zebra", "class 0");
    let picture = data.join("train/class 1/0.png");
    let kept = fs::read(&picture).unwrap_or_else(|e| panic!("{e}"));
    fs::remove_file(&picture).unwrap_or_else(|e| panic!("{e}"));
    train("worker", "train", &longer).failed(1, &["training samples 23, was 24", "fingerprint"]);
    let mut mended = kept.clone();
    if let Some(last) = mended.last_mut() {
        *last ^= 1;
    }
    fs::write(&picture, mended).unwrap_or_else(|e| panic!("{e}"));
    for (binary, command) in [("worker", "train"), ("coordinator", "local")] {
        train(binary, command, &longer).failed(1, &["contents of the files", "--accept-data"]);
    }
    fs::write(&picture, kept).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(fs::read(run.join("dataset.json")).unwrap_or_else(|e| panic!("{e}")), described);
    train("worker", "train", &longer).succeeded();

    rename("class 0", "zebra");
    let accepting = |epochs| ["--resume", "--accept-data", "--set", epochs];
    let accepted = train("worker", "train", &accepting("train.epochs=3")).succeeded();
    assert!(accepted.stderr.contains("goes on with other data") && accepted.stderr.contains("`zebra`"), "{}", accepted.stderr);
    let journal = || fs::read_to_string(run.join("journal.jsonl")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(journal().matches("data_accepted").count(), 1);
    train("coordinator", "local", &accepting("train.epochs=4")).succeeded();
    assert_eq!(journal().matches("data_accepted").count(), 1, "it is the run's data now");
    // Another number of classes is another model.
    for split in ["train", "val"] {
        fs::remove_dir_all(data.join(split).join("zebra")).unwrap_or_else(|e| panic!("{e}"));
    }
    train("worker", "train", &accepting("train.epochs=5")).failed(1, &["another number of classes", "`zebra`"]);
}

#[test]
fn a_port_that_is_taken_leaves_no_run_behind() {
    let scenario = Scenario::new(10);
    let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("{e}"));
    let port = held.local_addr().unwrap_or_else(|e| panic!("{e}")).port();
    scenario.serve(port, 1, &[]).wait().failed(1, &["--listen", &port.to_string()]);
    assert!(!scenario.run_dir().exists());
    // So the next attempt, on another port, is a first start.
    let started = scenario.serve(free_port(), 1, &[]);
    cluster_tests::join_line(&scenario.run_dir());
    started.signal(libc::SIGKILL);
}

#[test]
fn an_infinite_loss_is_on_the_record_as_what_it_is() {
    let folder = temporary();
    let config = folder.path().join("lenet.toml");
    let text = "name = \"lenet\"\n[model]\nkind = \"lenet\"\n[data]\nkind = \"synthetic\"\nclasses = 10\ntrain = 4000\nval = 500\n\
        image_size = 32\n[train]\nepochs = 3\nmax_steps = 8\nlr = 1e8\nglobal_batch = 64\nshards = 8\nthreads = 1\n";
    fs::write(&config, text).unwrap_or_else(|e| panic!("{e}"));
    let run = folder.path().join("run");
    let (config, path) = (config.display().to_string(), run.display().to_string());
    let trained = Running::start("worker", &["train", &config, "--run-dir", &path]).wait().succeeded();
    let summary = fs::read_to_string(run.join("summary.json")).unwrap_or_else(|e| panic!("{e}"));
    let summary: Value = serde_json::from_str(&summary).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(summary["loss"], "inf");
    let plotted = Running::start("worker", &["plot", &path]).wait().succeeded();
    for run in [trained, plotted] {
        assert!(!run.stderr.contains("passed over"), "{}", run.stderr);
    }
}
