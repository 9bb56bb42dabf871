#![allow(clippy::unwrap_used)]

use super::*;

const CONFIG: &str =
    "name = \"t\"\n[model]\nkind = \"alexnet\"\n[data]\nkind = \"synthetic\"\nclasses = 2\ntrain = 10\nval = 10\n[train]\n";

fn recorder(path: &std::path::Path, resume: bool) -> Recorder {
    let config = Config::parse(CONFIG, "test", &[]).unwrap();
    let run_dir = RunDir::open(Some(path), resume, &config).unwrap();
    let source = crate::dataset::open(&config.data, config.seed, &|_| {}).unwrap();
    let plan = plan(&config, source.info()).unwrap();
    Recorder::new(run_dir, &config, source.as_ref(), &plan, 1, true).unwrap()
}

fn step(step: u64) -> StepMetrics {
    let text = format!(
        r#"{{"step":{step},"epoch":0,"loss":1,"top1":0,"lr":1,"grad_norm":1,"samples":4,"step_ms":1,"data_wait_ms":0,
        "compute_ms":0,"all_reduce_exposed_ms":0,"update_ms":0,"images_per_second":1}}"#
    );
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_ring_that_takes_most_of_the_time_is_noticed_once() {
    let waits = |exposed: f64, product: f64| StepMetrics { step_ms: 100.0, all_reduce_exposed_ms: exposed, product_ms: product, ..step(0) };
    let noticed = |world, metrics: StepMetrics| {
        let mut share = RingShare { world, shares: Vec::new() };
        (0..100).filter_map(|_| share.add(&metrics)).collect::<Vec<_>>()
    };
    assert_eq!(noticed(2, waits(80.0, 10.0)), [0.7]);
    assert!(noticed(1, waits(80.0, 0.0)).is_empty() && noticed(3, waits(50.0, 0.0)).is_empty());
    assert!(noticed(2, waits(80.0, 40.0)).is_empty(), "products are no waiting");
}

fn recorded(recorder: &mut Recorder) -> Vec<u64> {
    recorder.run_dir.metrics().unwrap().0.iter().map(|m| m.step).collect()
}

#[test]
fn steps_are_taken_down_once_and_in_order_whoever_tells_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = recorder(&dir.path().join("run"), false);
    for reported in [0, 2, 4, 2, 1, 0, 5, 3, 7] {
        first.step(&step(reported));
    }
    assert_eq!((first.recorded().0, recorded(&mut first)), (6, (0..6).collect()));
    // A new generation repeats step 5; steps that were early before it are invalid
    // now.
    first.generation(2, &[], 5, &[], &[], None);
    first.step(&step(6));
    assert_eq!((first.recorded().0, recorded(&mut first)), (5, (0..5).collect()));
    first.step(&step(5));
    assert_eq!(recorded(&mut first), (0..7).collect::<Vec<_>>());
    // The coordinator dies and is restarted.
    drop(first);
    let mut second = recorder(&dir.path().join("run"), true);
    assert_eq!(second.recorded().0, 7);
    second.step(&step(8));
    second.step(&step(7));
    assert_eq!(recorded(&mut second), (0..9).collect::<Vec<_>>());
}

#[test]
fn a_skipped_sample_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut recorder = recorder(&dir.path().join("run"), false);
    for (step, name) in [(1, "a.png"), (1, "b.png"), (9, "a.png"), (17, "a.png")] {
        recorder.skipped(step, name, "it is cut short");
    }
    assert_eq!(recorder.run_dir.skipped().unwrap(), 2);
}

#[test]
fn a_resumed_run_shows_what_came_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let mut first = recorder(&path, false);
    first.checkpoint(40);
    first.recovery(Recovery { detect_ms: 1.0, resume_ms: 2.0 });
    drop(first);
    let status = recorder(&path, true).status();
    let status = status.borrow();
    assert_eq!((status.checkpoint, status.recoveries), (Some(40), 1));
}

#[test]
fn the_best_evaluation_is_the_first_of_the_best_that_are_stored() {
    let evaluation = |step: u64, top1: f64| Evaluation { step, epoch: step, loss: 1.0 - top1, top1, top5: 1.0, samples: 10 };
    let all = [evaluation(1, f64::NAN), evaluation(2, 0.5), evaluation(3, 0.7), evaluation(4, 0.7), evaluation(5, 0.6)];
    assert_eq!(best(&all, Metric::Top1).map(|e| e.step), Some(3));
    assert_eq!(best(&all[..1], Metric::Loss), None);
    let dir = tempfile::tempdir().unwrap();
    let mut recorder = recorder(&dir.path().join("run"), false);
    recorder.keeping.best = Some(Metric::Loss);
    all.iter().for_each(|evaluation| recorder.evaluation(evaluation));
    assert!(recorder.best().is_none(), "there is no checkpoint");
    // The run goes back behind the newest evaluations.
    recorder.generation(1, &[], 2, &[], &[], None);
    assert_eq!(recorder.evaluations.keys().copied().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_step_that_nobody_knows_holds_the_record_up_for_a_while_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut recorder = recorder(&dir.path().join("run"), false);
    (1..=EARLY as u64 + 1).for_each(|s| recorder.step(&step(s)));
    assert_eq!(recorder.recorded().0, EARLY as u64 + 2);
    // At the end, no step waits.
    recorder.step(&step(EARLY as u64 + 9));
    recorder.finish(&[]).unwrap();
    let text = std::fs::read_to_string(dir.path().join("run/metrics.jsonl")).unwrap();
    assert_eq!(text.lines().count(), EARLY + 2);
}
