//! The result does not depend on how many workers compute it, nor on where
//! their data comes from, nor on an interruption.

use cluster_tests::record::assert_close;
use cluster_tests::{Finished, LocalCluster, Running, pictures};
use tempfile::TempDir;

const CONFIG: &str = "configs/alexnet-synthetic.toml";

/// Gradients travel as f32, so that only the order of additions differs.
/// Dropout stays on: its masks follow the shards, not the world.
const COMPARABLE: [&str; 5] = ["train.optimizer=sgd", "train.lr=0.01", "cluster.wire=f32", "train.threads=1", "data.train=400"];

fn checked(run: Finished, world: u64) -> Finished {
    let run = run.succeeded();
    let summary = run.summary();
    assert_eq!(summary["world"], world);
    assert_eq!(summary["steps"], 12);
    assert_eq!(summary["weights_blake3"].as_str().map(str::len), Some(64));
    for key in ["images_per_second", "loss", "top1", "top5", "peak_rss_bytes", "wall_seconds"] {
        assert!(summary[key].as_f64().is_some_and(|v| v >= 0.0 && v.is_finite()), "{key}: {summary}");
    }
    let sent = summary["bytes_sent"].as_u64().unwrap_or_default();
    assert_eq!(sent > 0, world > 1, "{summary}");
    run
}

#[test]
fn one_two_three_and_four_workers_give_the_same_loss_curve() {
    let run = |workers: u32| {
        let cluster = LocalCluster::new(CONFIG).workers(workers).set_all(&COMPARABLE).set("train.max_steps=12");
        checked(cluster.run(), workers.into())
    };
    let alone = run(1);
    // 8 shards on 3 workers are owned unevenly: 3, 3 and 2.
    for world in [2, 3, 4] {
        let run = run(world);
        assert_close(&alone.column("loss"), &run.column("loss"), 2e-3, &format!("world {world}, loss"));
        assert_close(&alone.column("grad_norm"), &run.column("grad_norm"), 2e-2, &format!("world {world}, gradient norm"));
        assert_eq!(alone.column("samples"), run.column("samples"));
        // The last step of an epoch takes what is left: 400 = 6 * 64 + 16.
        assert_eq!(run.column("samples")[6], 16.0);
    }
}

#[test]
fn a_worker_that_streams_its_data_trains_the_same_weights() {
    let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    pictures::class_folders(folder.path(), 3, 24, 6);
    let config = folder.path().join("pictures.toml");
    let text = format!(
        "name = \"pictures\"\n[model]\nkind = \"alexnet\"\nwidth = 0.0625\n[data]\nkind = \"images\"\npath = {:?}\nimage_size = 64\naugment = [\"crop\", \"flip\", \"brightness\", \"contrast\", \"temperature\", \"lighting\"]\n[train]\nepochs = 2\nglobal_batch = 16\nshards = 4\nthreads = 1\n",
        folder.path()
    );
    std::fs::write(&config, text).unwrap_or_else(|e| panic!("{e}"));
    let local = LocalCluster::new(&config).workers(2).run().succeeded();
    let streamed = LocalCluster::new(&config).workers(2).arg("--stream-data").arg("0,1").run().succeeded();
    assert_eq!(local.digest(), streamed.digest());
    assert_eq!(local.column("loss"), streamed.column("loss"));
    assert_eq!(local.summary()["top1"], streamed.summary()["top1"]);
    assert!(streamed.stderr.contains("samples come from the coordinator"), "{}", streamed.stderr);
}

#[test]
fn a_run_that_was_stopped_and_resumed_equals_one_that_was_not() {
    let sets = ["train.threads=1", "data.train=640", "train.epochs=3", "train.keep_checkpoints=1"];
    let whole = LocalCluster::new(CONFIG).workers(2).set_all(&sets).run().succeeded();

    let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    let path = folder.path().join("run");
    let mut first = LocalCluster::new(CONFIG).workers(2).set_all(&sets).run_dir(&path).start();
    first.wait_for_steps(4);
    first.signal(libc::SIGINT);
    let first = first.wait().succeeded();
    let done = first.steps().len();
    assert!((4..30).contains(&done), "it should have stopped in between, not after {done} steps");
    assert!(first.stdout.contains("--resume"), "{}", first.stdout);

    let second = LocalCluster::new(CONFIG).workers(2).set_all(&sets).run_dir(&path).arg("--resume").run().succeeded();
    assert_eq!(whole.digest(), second.digest());
    assert_eq!(whole.column("loss"), second.column("loss"));
    assert_eq!(second.summary()["samples"], 3 * 640);
    let steps: Vec<f64> = (0..30).map(f64::from).collect();
    assert_eq!(second.column("step"), steps, "every step stands in the metrics once");
}

/// What `train.reproducible` promises: the same bits from any number of workers, in
/// one process or several, and across an interruption in which their number changes.
#[test]
fn reproducible_runs_end_with_the_same_bits_in_any_world() {
    let sets = ["train.reproducible=true", "train.schedule=constant", "data.train=300", "data.val=50", "train.max_steps=8"];
    let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    let single = folder.path().join("single");
    let mut args = vec!["train", CONFIG, "--run-dir", single.to_str().unwrap_or_default(), "-q"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    Running::start("worker", &args).wait().succeeded();
    let text = std::fs::read_to_string(single.join("summary.json")).unwrap_or_else(|e| panic!("{e}"));
    let digest = text.split("weights_blake3\": \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned();
    assert_eq!(digest.len(), 64, "{text}");
    for workers in 1..=4 {
        let run = LocalCluster::new(CONFIG).workers(workers).set_all(&sets).run().succeeded();
        assert_eq!(run.digest(), digest, "{workers} workers");
    }
    // Two workers begin, and three go on.
    let shared = folder.path().join("resumed");
    let begin = LocalCluster::new(CONFIG).workers(2).set_all(&sets).set("train.max_steps=3").run_dir(&shared);
    assert_ne!(begin.run().succeeded().digest(), digest);
    let resumed = LocalCluster::new(CONFIG).workers(3).set_all(&sets).run_dir(&shared).arg("--resume").run().succeeded();
    assert_eq!(resumed.digest(), digest);
}
