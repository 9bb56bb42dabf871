//! The engine that keeps its state on the device, under its name on the CPU: whole runs,
//! alone and in clusters, beside the engine that keeps it in host memory.

use cluster_tests::record::assert_close;
use cluster_tests::scenario::{Scenario, digest};
use cluster_tests::{LocalCluster, Running, signal};

const RESIDENT: &str = "cpu:resident";

/// Fifty steps with dropout, momentum, clipping, smoothing, an evaluation and a resume.
#[test]
fn a_run_on_the_device_has_the_losses_of_one_in_host_memory() {
    let sets = [
        "train.clip_norm=5",
        "train.label_smoothing=0.1",
        "train.checkpoint_steps=20",
        "data.train=1600",
        "train.reproducible=false",
        "train.optimizer=sgd",
        "train.lr=0.01",
    ];
    let run = |device: &str| {
        let mut scenario = Scenario::new(50);
        for set in sets {
            scenario = scenario.set(set);
        }
        let path = scenario.run_dir().display().to_string();
        let start = |scenario: &Scenario, more: &[&str]| {
            let mut running = Running::start("worker", &scenario.train(&path, &[&["--device", device], more].concat()));
            running.path = path.clone().into();
            running.wait().succeeded()
        };
        let whole = start(&scenario, &[]);
        let (losses, norms) = (whole.column("loss"), whole.column("grad_norm"));
        let longer = start(&scenario.of_steps(60), &["--resume"]);
        (losses, norms, longer.column("loss"), longer.summary()["loss"].as_f64())
    };
    let (host, resident) = (run("cpu"), run(RESIDENT));
    assert_eq!((host.0.len(), host.2.len()), (50, 60));
    assert_close(&host.0, &resident.0, 1e-3, "loss");
    assert_close(&host.1, &resident.1, 1e-2, "gradient norm");
    assert_close(&host.2, &resident.2, 2e-3, "loss of the resumed run");
    assert!(host.3.zip(resident.3).is_some_and(|(a, b)| (a - b).abs() < 2e-3 * a), "evaluation: {:?} and {:?}", host.3, resident.3);
}

/// The coordinator fails a run whose ranks end with different weights.
#[test]
fn ranks_with_unlike_engines_train_one_model() {
    let sets = ["train.threads=1", "data.train=400", "train.max_steps=12", "train.optimizer=adamw", "train.lr=0.001"];
    let run = |devices: &str| {
        LocalCluster::new("configs/alexnet-synthetic.toml").workers(2).set_all(&sets).arg("--devices").arg(devices).run().succeeded()
    };
    let (host, mixed) = (run("cpu,cpu"), run(&format!("cpu,{RESIDENT}")));
    assert_close(&host.column("loss"), &mixed.column("loss"), 2e-3, "loss");
    assert!(mixed.stderr.contains("the engine of GPUs"), "{}", mixed.stderr);
}

#[test]
fn kills_change_no_bit_of_a_run_on_devices() {
    let scenario = Scenario::new(120);
    let quiet = scenario.folder.path().join("quiet").display().to_string();
    Running::start("worker", &scenario.train(&quiet, &["--device", RESIDENT, "-q"])).wait().succeeded();
    let expected = digest(quiet.as_ref());
    let mut running = scenario.local(3).arg("--devices").arg(RESIDENT).start();
    for (n, steps) in [10, 50].into_iter().enumerate() {
        running.wait_for_steps(steps);
        signal(running.children()[n], libc::SIGKILL);
    }
    let run = running.wait().succeeded();
    scenario.assert_whole(&run, &expected);
    assert!(run.summary()["recoveries"].as_array().is_some_and(|all| !all.is_empty()));
}

/// Several devices are one rank, which computes what as many ranks compute.
#[test]
fn devices_of_one_worker_train_what_workers_train() {
    let sets = [
        "train.threads=2",
        "data.train=400",
        "data.val=30",
        "train.max_steps=10",
        "train.optimizer=adamw",
        "train.lr=0.001",
        "cluster.wire=f32",
    ];
    let run = |workers: u32, devices: &str, sets: &[&str]| {
        let cluster = LocalCluster::new("configs/alexnet-synthetic.toml").workers(workers).set_all(sets);
        cluster.arg("--devices").arg(devices).run().succeeded()
    };
    let two = run(2, "cpu,cpu", &sets);
    for (workers, devices) in [(1, "cpu,cpu"), (1, "cpu,cpu,cpu"), (2, "cpu,cpu,cpu,cpu")] {
        let group = run(workers, devices, &sets);
        let what = format!("{workers} workers on {devices}");
        assert_close(&two.column("loss"), &group.column("loss"), 2e-3, &what);
        assert_eq!(group.summary()["world"], workers, "{what}");
    }
    let exact = |workers, devices| {
        let sets = [&sets[1..], &["train.reproducible=true", "train.shards=4", "train.global_batch=32"]].concat();
        run(workers, devices, &sets).digest()
    };
    let alone = exact(1, RESIDENT);
    for (workers, devices) in [(1, "cpu,cpu"), (2, "cpu,cpu,cpu,cpu")] {
        assert_eq!(exact(workers, devices), alone, "{workers} workers on {devices}");
    }
}

/// Parts of a batch have the dropout masks that their samples have in the whole one.
#[test]
fn batches_computed_in_parts_train_the_same() {
    let sets = ["train.threads=1", "data.train=400", "train.max_steps=8", "train.optimizer=sgd", "train.lr=0.01"];
    let run = |micro_batch: &str, workers: u32, devices: &str| {
        let cluster = LocalCluster::new("configs/alexnet-synthetic.toml").workers(workers).set_all(&sets);
        cluster.set(format!("train.micro_batch={micro_batch}")).arg("--devices").arg(devices).run().succeeded().column("loss")
    };
    let whole = run("64", 1, "cpu");
    for (micro_batch, workers, devices) in
        [("13", 1, "cpu"), ("5", 2, "cpu"), ("13", 1, RESIDENT), ("5", 2, RESIDENT), ("auto", 2, RESIDENT)]
    {
        assert_close(&whole, &run(micro_batch, workers, devices), 2e-3, &format!("{micro_batch} at a time, {workers} workers, {devices}"));
    }
}
