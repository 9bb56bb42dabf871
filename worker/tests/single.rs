//! A single-node run that is stopped or fails, and what is left of it.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::config::Config;
use common::dataset;
use common::run_dir::{RunDir, RunView};
use worker::engine::device::ComputeDevice;
use worker::training::single::{Outcome, SingleRun, run};

/// Every step is an epoch.
const CONFIG: &str = r#"
name = "single"
[model]
kind = "mlp"
hidden = [16]
[data]
kind = "synthetic"
classes = 2
train = 16
val = 4
image_size = 8
[train]
epochs = 3
global_batch = 16
shards = 2
threads = 1
"#;

/// Trains in `path`; with `stop`, until it has done one step.
fn train(path: &Path, resume: bool, stop: bool, set: &[&str]) -> anyhow::Result<Outcome> {
    let set: Vec<String> = set.iter().map(|&s| s.to_owned()).collect();
    let config = Config::parse(CONFIG, "test", &set)?;
    let source = dataset::open(&config.data, config.seed, &|_| {})?;
    let run_dir = RunDir::open(Some(path), resume, &config)?;
    let device = ComputeDevice::parse("cpu")?;
    run(SingleRun { config, source, run_dir, devices: device.into(), quiet: true, stop: Arc::new(AtomicBool::new(stop)) })
}

/// The steps after which there is an evaluation.
fn evaluated(path: &Path) -> Vec<u64> {
    RunView::open(path).unwrap().metrics().unwrap().1.iter().map(|e| e.step).collect()
}

#[test]
fn an_epoch_at_whose_end_the_run_is_stopped_is_evaluated_when_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let first = train(&path, false, true, &[]).unwrap();
    assert!(first.stopped && first.summary.steps == 1);
    assert!(evaluated(&path).is_empty());
    let second = train(&path, true, true, &[]).unwrap();
    assert!(second.stopped && second.summary.steps == 2);
    assert_eq!(evaluated(&path), [1]);
    // The run goes on to its end, and does not repeat the earlier evaluations.
    let third = train(&path, true, false, &[]).unwrap();
    assert!(!third.stopped && third.summary.steps == 3);
    assert_eq!(evaluated(&path), [1, 2, 3]);
}

#[test]
fn a_run_that_is_stopped_at_its_last_step_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let outcome = train(&path, false, true, &["train.max_steps=1"]).unwrap();
    assert!(!outcome.stopped && outcome.summary.top1.is_some());
    assert_eq!(evaluated(&path), [1]);
    let error = train(&path, true, false, &["train.max_steps=1"]).unwrap_err().to_string();
    assert!(error.contains("complete at step 1"), "{error}");
}

#[test]
fn a_run_that_lacks_only_its_last_evaluation_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    train(&path, false, false, &[]).unwrap();
    let metrics = path.join("metrics.jsonl");
    let text = std::fs::read_to_string(&metrics).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !(line.contains("\"eval\"") && line.contains("\"step\":3"))).collect();
    std::fs::write(&metrics, kept.join("\n") + "\n").unwrap();
    assert_eq!(evaluated(&path), [1, 2]);
    let outcome = train(&path, true, false, &[]).unwrap();
    assert!(!outcome.stopped && outcome.summary.steps == 3);
    assert_eq!(evaluated(&path), [1, 2, 3]);
}

#[test]
fn what_is_left_of_a_run_that_diverged_is_said_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let diverge = |name: &str, set: &[&str]| {
        let set = [&["train.lr=1e30", "train.epochs=50"], set].concat();
        format!("{:#}", train(&dir.path().join(name), false, false, &set).unwrap_err())
    };
    let error = diverge("none", &["train.checkpoint_steps=40"]);
    assert!(error.contains("no checkpoint yet: the first would follow step 40, and train.checkpoint_steps"), "{error}");
    let error = diverge("some", &["train.checkpoint_steps=1"]);
    let step: u64 = error.split("the checkpoint of step ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(error.contains("is kept") && step > 0, "{error}");
    assert!(dir.path().join(format!("some/checkpoints/step-{step:08}/manifest.json")).is_file(), "{error}");
}
