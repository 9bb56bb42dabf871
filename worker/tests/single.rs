//! A single-node run that is stopped or fails, and what is left of it.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::config::Config;
use common::dataset::{self, DatasetError, DatasetInfo, Sample, SampleSource, Split};
use common::run_dir::{RunDir, RunView, Which};
use worker::analysis::trained::{TrainedModel, Weights};
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
    train_from(source, config, path, resume, Arc::new(AtomicBool::new(stop)))
}

fn train_from(source: Arc<dyn SampleSource>, config: Config, path: &Path, resume: bool, stop: Arc<AtomicBool>) -> anyhow::Result<Outcome> {
    let run_dir = RunDir::open(Some(path), resume, &config)?;
    let device = ComputeDevice::parse("cpu")?;
    run(SingleRun { config, source, run_dir, devices: device.into(), quiet: true, stop })
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

/// Samples of a store that answers no more reads of a split, after so many.
struct Unanswered {
    samples: Arc<dyn SampleSource>,
    split: Split,
    answers: AtomicU32,
}

impl SampleSource for Unanswered {
    fn info(&self) -> &DatasetInfo {
        self.samples.info()
    }
    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        let fewer = |left: u32| left.checked_sub(1);
        if split == self.split && self.answers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_err() {
            std::thread::sleep(Duration::from_secs(3600));
        }
        self.samples.read(split, ids)
    }
    fn name(&self, split: Split, id: u32) -> String {
        self.samples.name(split, id)
    }
}

#[test]
fn a_run_that_waits_for_a_silent_store_stops_between_two_steps_and_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let whole = train(&dir.path().join("whole"), false, false, &[]).unwrap().summary;
    // What is read for the record, before the first step, is answered too.
    for (name, split, answers, steps) in [("train", Split::Train, 2, 1..=2), ("val", Split::Val, 1, 1..=2)] {
        let path = dir.path().join(name);
        let config = Config::parse(CONFIG, "test", &[]).unwrap();
        let samples = dataset::open(&config.data, config.seed, &|_| {}).unwrap();
        let store = Arc::new(Unanswered { samples, split, answers: answers.into() });
        let stop = Arc::new(AtomicBool::new(false));
        let (start, asks) = (Instant::now(), Arc::clone(&stop));
        let user = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(3));
            asks.store(true, Ordering::Relaxed);
        });
        let outcome = train_from(store, config, &path, false, stop).unwrap();
        user.join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(30), "{name}: {:?}", start.elapsed());
        assert!(outcome.stopped && steps.contains(&outcome.summary.steps), "{name}: {outcome:?}");
        let resumed = train(&path, true, false, &[]).unwrap();
        assert!(!resumed.stopped, "{name}");
        assert_eq!((resumed.summary.steps, resumed.summary.weights_blake3), (whole.steps, whole.weights_blake3), "{name}");
        assert_eq!(evaluated(&path), [1, 2, 3], "{name}");
    }
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

/// What a run did at each step, and what it ended with.
fn steps(path: &Path) -> Vec<(u64, f64, f64)> {
    RunView::open(path).unwrap().metrics().unwrap().0.iter().map(|m| (m.step, m.lr, m.loss)).collect()
}

/// Evaluations of noise get better and worse.
const NOISE: [&str; 5] = ["data.train=64", "data.val=24", "data.classes=4", "train.shards=4", "train.lr=0.3"];

#[test]
fn a_plateau_is_the_same_in_a_run_that_is_stopped_at_every_step() {
    let dir = tempfile::tempdir().unwrap();
    for metric in ["train.keep_metric=top1", "train.keep_metric=loss"] {
        let recipe = [
            "train.schedule=plateau",
            "train.plateau_patience=0",
            "train.decay=0.5",
            "train.optimizer=lars",
            "train.trust_coefficient=0.5",
        ];
        let set = [&NOISE[..], &recipe, &[metric, "train.ema=0.8", "train.epochs=6", "train.reproducible=true"]].concat();
        let (whole, parts) = (dir.path().join(format!("{metric}-whole")), dir.path().join(format!("{metric}-parts")));
        let expected = train(&whole, false, false, &set).unwrap().summary;
        let mut found = train(&parts, false, true, &set).unwrap();
        while found.stopped {
            found = train(&parts, true, true, &set).unwrap();
        }
        assert_eq!((steps(&parts), found.summary.weights_blake3), (steps(&whole), expected.weights_blake3), "{metric}");
        let fell = steps(&whole).iter().map(|step| step.1).fold(0.3, f64::min);
        assert!(fell < 0.2, "{metric}: the rate stayed at {fell}");
        // The evaluation after the last step is on the record, and is made again.
        let longer = [&set[..], &["train.epochs=8"]].concat();
        let fresh = dir.path().join(format!("{metric}-longer"));
        let expected = train(&fresh, false, false, &longer).unwrap().summary;
        let found = train(&whole, true, false, &longer).unwrap().summary;
        assert_eq!((steps(&whole), found.weights_blake3), (steps(&fresh), expected.weights_blake3), "{metric}");
    }
}

#[test]
fn a_run_without_patience_ends_early_with_its_best_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let set = [&NOISE[..], &["train.patience=2", "train.keep=best", "train.keep_checkpoints=1", "train.epochs=60"]].concat();
    let outcome = train(&path, false, false, &set).unwrap();
    let summary = outcome.summary;
    assert!(!outcome.stopped && summary.steps < 240, "after {} steps", summary.steps);
    let evaluations = RunView::open(&path).unwrap().metrics().unwrap().1;
    let best = common::metrics::best(&evaluations, common::config::Metric::Top1).unwrap();
    let [.., first, last] = &evaluations[..] else { panic!("{evaluations:?}") };
    assert!(best.step == evaluations[evaluations.len() - 3].step && first.top1 <= best.top1 && last.top1 <= best.top1, "{evaluations:?}");
    assert_eq!(summary.best.as_ref().map(|best| &best.evaluation), Some(best));
    let mut kept: Vec<_> =
        std::fs::read_dir(path.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    kept.sort();
    assert_eq!(kept, [best.step, last.step].map(|step| format!("step-{step:08}")));
    // What `worker eval` sees of it.
    let device = ComputeDevice::parse("cpu").unwrap();
    for (which, step) in [("best", best.step), ("last", last.step), (&best.step.to_string(), best.step)] {
        let trained = TrainedModel::load(&path, which.parse().unwrap(), None, device).unwrap();
        assert_eq!(trained.step, step);
        let source = trained.open_data(None).unwrap();
        let sums = trained.score(&source, common::dataset::Split::Val, |_, _, _| ()).unwrap();
        let evaluation = evaluations.iter().find(|evaluation| evaluation.step == step).unwrap();
        assert_eq!(f64::from(sums.top1) / 24.0, evaluation.top1, "{which}");
    }
    let load = |which: &str| TrainedModel::load(&path, which.parse().unwrap(), None, device).map(|_| ());
    let error = load("1").unwrap_err().to_string();
    assert!(error.contains(&format!("it has those of {}, {}", best.step, last.step)), "{error}");
    assert!("newest".parse::<Which>().unwrap_err().contains("neither best, last nor a step"));
    // It has ended, and goes on with more patience.
    let again = train(&path, true, false, &set).unwrap();
    assert!(!again.stopped && again.summary.steps == summary.steps && again.summary.weights_blake3 == summary.weights_blake3);
    let patient = [&set[..], &["train.patience=3"]].concat();
    assert!(train(&path, true, false, &patient).unwrap().summary.steps > summary.steps);
}

#[test]
fn either_weights_of_a_run_with_an_average_are_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let (path, without) = (dir.path().join("run"), dir.path().join("without"));
    let set = [&NOISE[..], &["train.ema=0.9", "train.epochs=3"]].concat();
    let summary = train(&path, false, false, &set).unwrap().summary;
    let load = |path: &Path, weights| TrainedModel::load(path, Which::Last, weights, ComputeDevice::parse("cpu").unwrap());
    let loss = |weights| {
        let trained = load(&path, weights).unwrap();
        let sums = trained.score(&trained.open_data(None).unwrap(), common::dataset::Split::Val, |_, _, _| ()).unwrap();
        sums.loss / f64::from(sums.count)
    };
    let averaged = loss(Some(Weights::Ema));
    assert!((averaged - summary.loss.unwrap()).abs() < 1e-6, "{averaged}: the run's evaluations are of the average");
    assert!((averaged - loss(Some(Weights::Raw))).abs() > 1e-3);
    assert!((averaged - loss(None)).abs() < 1e-9);
    train(&without, false, false, &NOISE).unwrap();
    let error = load(&without, Some(Weights::Ema)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("without train.ema") && error.contains("--weights ema"), "{error}");
    assert!(load(&without, None).is_ok());
}
