//! Disks that are full, cannot be written, or have lost what was on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster_tests::scenario::Scenario;
use cluster_tests::{Running, signal};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// Lets a process write files of at most so many bytes; none for any size. To
/// the process a disk is full then: a write fails, and what was written stays.
fn limit_files(pid: u32, bytes: Option<u64>) {
    let pid = Pid::from_raw(pid as i32).unwrap_or_else(|| panic!("{pid} is no process"));
    let maximum = getrlimit(Resource::Fsize).maximum;
    let limit = Rlimit { current: bytes.or(maximum), maximum };
    prlimit(Some(pid), Resource::Fsize, limit).unwrap_or_else(|e| panic!("no limit: {e}"));
}

/// Makes a write that does not fit an error for the processes started from here
/// on, as it is on a full disk, and not the end of them.
fn survive_limits() {
    // SAFETY: nothing is called when the signal comes; it is ignored.
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
    // The ring does not stop for the disk: it is at its end when there is room again.
    std::thread::sleep(Duration::from_secs(4));
    assert!(!running.path.join("checkpoints/step-00000100").exists(), "checkpoints should not fit");
    limit_files(pid, None);
    let run = running.wait().succeeded();
    for word in ["what is to be recorded waits in memory", "free space", "is not stored"] {
        assert!(run.stderr.contains(word), "`{word}` is not in:\n{}", run.stderr);
    }
    scenario.assert_whole(&run, &expected);
    assert!(run.path.join("checkpoints/step-00000300").exists());
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

/// What was done to a run's directory, and what its resumption says of it.
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
