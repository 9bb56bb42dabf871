//! What only processes show: no orphans, refusals, exit codes and messages.

use std::path::Path;
use std::time::{Duration, Instant};

use cluster_tests::{LocalCluster, Running, gone, join_line, pictures, project};
use tempfile::TempDir;

const CONFIG: &str = "configs/alexnet-synthetic.toml";

fn temp() -> TempDir {
    TempDir::new().unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn killing_the_coordinator_leaves_no_worker_behind() {
    let mut running = LocalCluster::new(CONFIG).workers(2).set("train.epochs=1000").start();
    running.wait_for_steps(2);
    let workers = running.children();
    assert_eq!(workers.len(), 2, "two workers should run");
    running.signal(libc::SIGKILL);
    let start = Instant::now();
    while !gone(&workers) {
        assert!(start.elapsed() < Duration::from_secs(10), "a worker outlived its coordinator");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn wrong_input_is_named_and_ends_with_a_code() {
    LocalCluster::new(CONFIG).set("train.epoch=1").run().failed(2, &["unknown field `epoch`", "did you mean `epochs`"]);
    LocalCluster::new("configs/no-such.toml").run().failed(2, &["configs/no-such.toml"]);
    LocalCluster::new(CONFIG)
        .set_all(&["train.shards=3", "train.global_batch=64"])
        .run()
        .failed(2, &["multiple of train.shards = 3", "66"]);
    let check = |set: &str| Running::start("coordinator", &["check", "configs/alexnet-imagenette.toml", "--set", set]).wait();
    check("data.path=/nowhere/at/all").failed(1, &["/nowhere/at/all"]);

    let folder = temp();
    pictures::class_folders(folder.path(), 3, 4, 2);
    let path = format!("data.path={}", folder.path().display());
    let fine = Running::start("coordinator", &["check", "configs/alexnet-imagenette.toml", "--set", &path]).wait().succeeded();
    for word in ["3 classes", "12 training and 6 validation", "parameters", "rank 1", "MB sent"] {
        assert!(fine.stdout.contains(word), "{word}: {}", fine.stdout);
    }
    let class = folder.path().join("train/class 1");
    std::fs::remove_dir_all(&class).unwrap_or_else(|e| panic!("{e}"));
    std::fs::create_dir(&class).unwrap_or_else(|e| panic!("{e}"));
    check(&path).failed(1, &["class 1"]);
}

fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

#[test]
fn a_truncated_picture_stops_the_run_or_is_skipped_as_the_config_says() {
    let folder = temp();
    pictures::class_folders(folder.path(), 2, 8, 4);
    truncate(&folder.path().join("train/class 0/3.JPEG"));
    let data = format!("data={{kind=\"images\",path={:?},image_size=64}}", folder.path());
    let sets = [data.as_str(), "train.global_batch=8", "train.epochs=1", "train.shards=2"];
    LocalCluster::new(CONFIG).workers(2).set_all(&sets).run().failed(1, &["3.JPEG"]);
    let skipping = || LocalCluster::new(CONFIG).workers(2).set_all(&sets).set("data.on_corrupt=skip");
    skipping().run().failed(1, &["1 of the 8 training samples", "data.max_corrupt"]);
    truncate(&folder.path().join("val/class 1/1.JPEG"));
    // Two epochs and both splits: each of the two pictures counts once.
    let run = skipping().set("data.max_corrupt=0.2").set("train.epochs=2").run().succeeded();
    assert!(run.stderr.contains("3.JPEG") && run.stderr.contains("skipped"), "{}", run.stderr);
    assert_eq!(run.column("samples").iter().sum::<f64>(), 30.0);
    let listed = std::fs::read_to_string(run.path.join("skipped.jsonl")).unwrap_or_default();
    assert!(listed.lines().count() == 2 && listed.contains("3.JPEG") && listed.contains("1.JPEG"), "{listed}");
    assert_eq!(run.summary()["skipped"], 2);
}

#[test]
fn serve_and_join_train_together_and_refuse_a_wrong_token() {
    let folder = temp();
    let data = folder.path().join("data");
    pictures::class_folders(&data, 3, 16, 4);
    let run_dir = folder.path().join("run");
    let path = format!("data.path={}", data.display());
    let serve = [
        "serve",
        "configs/alexnet-imagenette.toml",
        "--listen",
        "127.0.0.1:0",
        "--workers",
        "3",
        "--run-dir",
        &run_dir.display().to_string(),
        "--set",
        &path,
        "--set",
        "train.max_steps=4",
        "--set",
        "train.global_batch=16",
        "--set",
        "model.width=0.0625",
        "--set",
        "data.image_size=64",
    ];
    let coordinator = Running::start("coordinator", &serve);
    let (addr, token) = join_line(&run_dir);
    let (addr, token) = (addr.as_str(), token.as_str());

    let mut wrong = token.to_owned();
    let last = wrong.pop();
    wrong.push(if last == Some('a') { 'b' } else { 'a' });
    Running::start("worker", &["join", addr, "--token", &wrong]).wait().failed(1, &["token"]);

    let mut workers = vec![Running::start("worker", &["join", addr, "--token", token, "--data", &data.display().to_string()])];
    workers.extend((0..2).map(|_| Running::start("worker", &["join", addr, "--token", token])));
    for worker in workers {
        worker.wait().succeeded();
    }
    let done = coordinator.wait().succeeded();
    assert!(done.stdout.contains("4 steps on 3 workers"), "{}", done.stdout);
    let other = folder.path().join("other");
    pictures::class_folders(&other, 3, 15, 4);
    assert!(project().join("configs").is_dir());
}
