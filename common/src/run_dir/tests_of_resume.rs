//! What a run may be resumed with, and how its record stores numbers that are not
//! finite.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::digest::Digest;
use std::fs;

use tempfile::tempdir;

use super::tests::{config, run_with_checkpoints, step};
use super::*;
use crate::dataset::{Column, DatasetInfo, SampleFormat};

pub(super) fn data(classes: &[&str]) -> DataDescription {
    DataDescription {
        info: DatasetInfo {
            format: SampleFormat::Features { count: 2 },
            classes: classes.iter().map(|&c| c.to_owned()).collect(),
            train: 100,
            val: 20,
            fingerprint: Digest::of(b"own"),
        },
        columns: vec![Column { name: "x".to_owned(), mean: 0.1 + 0.2, deviation: 1.0 / 3.0 }, Column::plain("y")],
        files: None,
    }
}

#[test]
fn a_word_after_resume_may_stand_alone() {
    let joined = |line: &str| {
        let words = Resume::joined(line.split(' ').map(std::ffi::OsString::from));
        words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(joined("serve c.toml --resume auto --run-dir r"), "serve c.toml --resume=auto --run-dir r");
    assert_eq!(joined("serve --resume c.toml --run-dir auto"), "serve --resume c.toml --run-dir auto");
    assert_eq!(joined("serve --resume=auto auto"), "serve --resume=auto auto");
}

#[test]
fn a_run_goes_on_with_its_own_data_only_and_says_what_differs() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("run");
    let run = RunDir::create(&path, &config(&[])).unwrap();
    let own = data(&["cat", "dog"]);
    run.check_dataset(&own).unwrap();
    run.write_dataset(&own).unwrap();
    drop(run);
    let kept = fs::read(path.join("dataset.json")).unwrap();
    let written = fs::metadata(path.join("dataset.json")).unwrap().modified().unwrap();

    let changed = |change: fn(&mut DataDescription)| {
        let mut other = own.clone();
        change(&mut other);
        other
    };
    let prints = format!("{}, was {}", Digest::of(b"other").short(), Digest::of(b"own").short());
    let cases: [(DataDescription, &[&str]); 7] = [
        (data(&["dog", "zebra"]), &["2 with `zebra`", "2 with `cat`"]),
        (data(&["dog", "cat"]), &["class 0 `dog`, was `cat`"]),
        (changed(|d| d.info.train = 99), &["training samples 99, was 100"]),
        (changed(|d| d.info.val = 21), &["validation samples 21, was 20"]),
        (changed(|d| d.info.fingerprint = Digest::of(b"other")), &[&prints]),
        (changed(|d| d.columns[1].name = "z".to_owned()), &["features `x`, `z`, was `x`, `y`"]),
        (changed(|d| d.columns[0].mean = 7.0), &["means and deviations"]),
    ];
    for (other, words) in &cases {
        let longer = config(&["train.epochs=99"]);
        let run = RunDir::resume(&path, &longer).unwrap();
        let refused = run.check_dataset(other).unwrap_err();
        assert!(matches!(refused, RunDirError::OtherData { .. }), "{refused}");
        for word in words.iter().chain(&[path.to_str().unwrap(), "--run-dir"]) {
            assert!(refused.to_string().contains(word), "`{word}`: {refused}");
        }
        assert!(matches!(run.write_dataset(other), Err(RunDirError::OtherData { .. })), "whoever does not ask is refused too");
        assert_eq!(Config::load(&path.join("config.toml"), &[]).unwrap(), config(&[]), "a refusal changes nothing");
        assert_eq!(fs::read(path.join("dataset.json")).unwrap(), kept);
    }

    let run = RunDir::resume(&path, &config(&["train.epochs=99"])).unwrap();
    run.check_dataset(&own).unwrap();
    run.write_dataset(&own).unwrap();
    assert_eq!(fs::metadata(path.join("dataset.json")).unwrap().modified().unwrap(), written, "what is there stays");
    assert_eq!(Config::load(&path.join("config.toml"), &[]).unwrap().train.epochs, 99);
}

#[test]
fn a_run_that_never_described_its_data_may_and_a_damaged_description_is_named() {
    let (_dir, run) = run_with_checkpoints(&[]);
    run.check_dataset(&data(&["a", "b"])).unwrap();
    run.write_dataset(&data(&["a", "b"])).unwrap();
    let file = run.path().join("dataset.json");
    fs::write(&file, "{").unwrap();
    let text = run.check_dataset(&data(&["a", "b"])).unwrap_err().to_string();
    assert!(text.contains("dataset.json") && text.contains("remove it if the data is the same"), "{text}");
    fs::remove_file(&file).unwrap();
    run.write_dataset(&data(&["a", "b"])).unwrap();
    assert!(file.exists());
}

#[test]
fn what_does_not_decide_the_weights_may_change_on_the_way() {
    let free = [
        "train.keep_checkpoints=1",
        "train.eval_epochs=7",
        "train.checkpoint_steps=3",
        "train.audit=true",
        "train.epochs=99",
        "train.max_steps=5",
        "train.threads=3",
        "data.eval_resize=1.5",
        "data.eval_crops=five",
        "name=another",
        "cluster.min_workers=2",
        "cluster.heartbeat_ms=100",
        "cluster.timeout_ms=5000",
        "cluster.stall_ms=600000",
        "cluster.bucket_bytes=65536",
        "cluster.connections=2",
    ];
    let (_dir, run) = run_with_checkpoints(&[]);
    let path = run.path().to_owned();
    drop(run);
    for set in free {
        RunDir::resume(&path, &config(&[set])).unwrap_or_else(|e| panic!("{set}: {e}"));
    }
    for set in ["train.momentum=0.5", "train.label_smoothing=0.1", "train.precision=bf16", "data.brightness=0.3", "cluster.wire=bf16"] {
        assert!(matches!(RunDir::resume(&path, &config(&[set])), Err(RunDirError::OtherConfig { .. })), "{set}");
    }
}

#[test]
fn a_run_that_stopped_at_a_broken_picture_may_go_on_without_it() {
    let pictures = |policy: &str| {
        let text = "name = \"t\"\n[model]\nkind = \"alexnet\"\n[data]\nkind = \"images\"\npath = \"p\"\n[train]\n";
        Config::parse(text, "test", &[format!("data.on_corrupt={policy}")]).unwrap()
    };
    assert_eq!(pictures("stop").identity(), pictures("skip").identity());
}

#[test]
fn one_command_line_starts_a_run_and_goes_on_with_it() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("run");
    let open = || RunDir::open(Some(&path), Resume::applies(Some(Resume::Auto), Some(&path), &config(&[]))?, &config(&[]));
    assert!(!open().unwrap().resumed);
    assert!(open().unwrap().resumed);
    fs::remove_file(path.join("config.toml")).unwrap();
    fs::write(path.join("journal.jsonl"), "{}\n").unwrap();
    assert!(matches!(open(), Err(RunDirError::Taken(_))), "what is left of a run is not built upon");
    let applies = |asked| Resume::applies(asked, Some(&path), &config(&[])).unwrap();
    assert!(applies(Some(Resume::Always)) && !applies(None));
}

#[test]
fn a_run_is_complete_once_it_has_finished_all_steps_and_nobody_went_on() {
    let (_dir, mut run) = run_with_checkpoints(&[]);
    let generation =
        Event::Generation { generation: 1, workers: 1, step: 0, members: Vec::new(), shards: Vec::new(), speeds: Vec::new(), dense: None };
    let mut then = |event: &Event, steps| {
        run.record(event).unwrap();
        run.is_complete(steps).unwrap()
    };
    assert!(!then(&generation, 10));
    assert!(!then(&Event::RunFinished { step: 5 }, 10), "stopped by a person");
    assert!(then(&Event::RunFinished { step: 10 }, 10));
    assert!(!then(&Event::RunFinished { step: 10 }, 20), "it is to be longer now");
    assert!(!then(&generation, 10), "somebody went on");
}

#[test]
fn nobody_else_can_take_the_lock() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let (_dir, run) = run_with_checkpoints(&[]);
    let path = run.path().to_owned();
    assert_eq!(mode(&path.join(".lock")), 0o600);
    drop(run);
    // As an older version made it.
    fs::set_permissions(path.join(".lock"), fs::Permissions::from_mode(0o644)).unwrap();
    let _run = RunDir::resume(&path, &config(&[])).unwrap();
    assert_eq!(mode(&path.join(".lock")), 0o600);
}

#[test]
fn infinities_and_what_is_no_number_are_on_the_record_and_read_back() {
    let (_dir, mut run) = run_with_checkpoints(&[]);
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    run.write_step(&StepMetrics { loss: inf, grad_norm: nan, ..step(0) }).unwrap();
    run.write_step(&StepMetrics { loss: -inf, step_ms: inf, ..step(1) }).unwrap();
    run.write_evaluation(&Evaluation { step: 2, epoch: 1, loss: inf, top1: 0.5, top5: 1.0, samples: 10 }).unwrap();
    let (steps, evaluations) = run.metrics().unwrap();
    assert_eq!((steps.len(), evaluations.len()), (2, 1), "no line is passed over");
    assert_eq!((steps[0].loss, steps[1].loss, steps[1].step_ms, evaluations[0].loss), (inf, -inf, inf, inf));
    assert!(steps[0].grad_norm.is_nan());
    let text = fs::read_to_string(run.path().join("metrics.jsonl")).unwrap();
    assert!(text.contains(r#""loss":"inf""#) && text.contains(r#""loss":"-inf""#) && text.contains(r#""grad_norm":"nan""#), "{text}");

    let mut summary = SummaryBuilder::new("n", "m", 1);
    summary.reload(&steps, &evaluations);
    let summary = summary.finish(2, Digest::of(&[]), 0, 0);
    run.write_summary(&summary).unwrap();
    let text = fs::read_to_string(run.path().join("summary.json")).unwrap();
    assert!(text.contains(r#""loss": "inf""#) && text.contains(r#""train_loss": "-inf""#), "{text}");
    assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), summary);
    let none = SummaryBuilder::new("n", "m", 1).finish(0, Digest::of(&[]), 0, 0);
    assert!(serde_json::to_string(&none).unwrap().contains(r#""loss":null"#), "no evaluation");

    // As an older version wrote it.
    let old = text_of_a_step().replace(r#""loss":1"#, r#""loss":null"#);
    assert!(serde_json::from_str::<StepMetrics>(&old).unwrap().loss.is_nan());
    assert!(serde_json::from_str::<StepMetrics>(&old.replace("null", r#""much""#)).is_err());
}

fn text_of_a_step() -> String {
    serde_json::to_string(&StepMetrics { loss: 1.0, ..step(0) }).unwrap().replace("\"loss\":1.0", "\"loss\":1")
}
