//! Crashes, damage and concurrent writers: what a run directory must survive.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::digest::Digest;
use std::fs;

use tempfile::tempdir;

use super::tests::{checkpoint, config, run_with_checkpoints, step};
use super::*;

fn steps(run: &RunDir) -> Vec<u64> {
    run.checkpoints().steps_for_test()
}

fn newest(run: &RunDir) -> Option<u64> {
    run.newest_checkpoint().unwrap().map(|c| c.step)
}

#[test]
fn a_broken_newer_checkpoint_never_costs_a_whole_one() {
    type Damage = fn(&Path);
    let damages: [Damage; 3] = [
        |c| fs::remove_file(c.join("manifest.json")).unwrap(),
        |c| fs::write(c.join("model.safetensors"), b"cut").unwrap(),
        |c| {
            let mut bytes = fs::read(c.join("model.safetensors")).unwrap();
            bytes[500] ^= 1;
            fs::write(c.join("model.safetensors"), bytes).unwrap();
        },
    ];
    for (case, damage) in damages.into_iter().enumerate() {
        let (_dir, run) = run_with_checkpoints(&[10]);
        damage(&checkpoint(&run, 20));
        if case < 2 {
            // Detecting the third damage takes reading every byte, which pruning does
            // not do.
            run.prune_checkpoints(1, None).unwrap();
        }
        assert_eq!(newest(&run), Some(10), "case {case}");
        // The run continues from an older state, and writes a checkpoint before it
        // reaches 20 again.
        checkpoint(&run, 15);
        run.prune_checkpoints(1, None).unwrap();
        assert_eq!((steps(&run), newest(&run)), (vec![15], Some(15)), "case {case}");
        checkpoint(&run, 20);
        assert_eq!(newest(&run), Some(20), "case {case}");
    }
}

#[test]
fn pruning_counts_whole_checkpoints_only() {
    let (_dir, run) = run_with_checkpoints(&[10, 20, 30, 40]);
    fs::remove_file(run.path().join("checkpoints/step-00000030/manifest.json")).unwrap();
    run.prune_checkpoints(2, None).unwrap();
    assert_eq!(steps(&run), [40, 20]);
}

#[test]
fn a_whole_checkpoint_of_the_same_state_is_not_touched_and_another_state_replaces_it() {
    let (_dir, run) = run_with_checkpoints(&[10]);
    let manifest = run.path().join("checkpoints/step-00000010/manifest.json");
    let before = fs::metadata(&manifest).unwrap().modified().unwrap();
    checkpoint(&run, 10);
    assert_eq!(fs::metadata(&manifest).unwrap().modified().unwrap(), before);
    let mut writer = run.checkpoints().begin(10).unwrap();
    for name in CHECKPOINT_FILES {
        writer.start_file(name).unwrap();
        writer.write(b"other").unwrap();
    }
    writer.commit(&CheckpointMeta { config_identity: Digest::of(b"id"), weights_blake3: Digest::of(b"other") }).unwrap();
    assert_eq!(run.newest_checkpoint().unwrap().unwrap().meta.weights_blake3, Digest::of(b"other"));
    assert_eq!(fs::read_dir(run.path().join("checkpoints")).unwrap().count(), 1);
}

#[test]
fn a_checkpoint_that_lacks_a_file_cannot_be_committed() {
    let (_dir, run) = run_with_checkpoints(&[10]);
    let mut writer = run.checkpoints().begin(20).unwrap();
    writer.start_file(CHECKPOINT_FILES[0]).unwrap();
    writer.write(b"x").unwrap();
    let meta = CheckpointMeta { config_identity: Digest::of(b"id"), weights_blake3: Digest::of(b"x") };
    assert!(writer.commit(&meta).unwrap_err().to_string().contains(CHECKPOINT_FILES[1]));
    assert_eq!((steps(&run), newest(&run)), (vec![10], Some(10)));
}

#[test]
fn what_a_killed_writer_left_is_no_checkpoint_and_goes_at_the_next_start() {
    let (_dir, run) = run_with_checkpoints(&[10]);
    let path = run.path().to_owned();
    let mut writer = run.checkpoints().begin(20).unwrap();
    writer.start_file(CHECKPOINT_FILES[0]).unwrap();
    writer.write(b"half").unwrap();
    std::mem::forget(writer);
    assert_eq!(newest(&run), Some(10));
    drop(run);
    assert_eq!(fs::read_dir(path.join("checkpoints")).unwrap().count(), 2);
    let run = RunDir::resume(&path, &config(&[])).unwrap();
    assert_eq!(fs::read_dir(path.join("checkpoints")).unwrap().count(), 1);
    assert_eq!(newest(&run), Some(10));
}

#[test]
fn the_journal_cut_at_any_byte_loses_the_last_event_only() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("run");
    let mut run = RunDir::create(&path, &config(&[])).unwrap();
    for generation in 1..=3 {
        run.record(&Event::Generation {
            generation,
            workers: 2,
            step: 0,
            members: Vec::new(),
            shards: Vec::new(),
            speeds: Vec::new(),
            dense: None,
        })
        .unwrap();
    }
    drop(run);
    let file = path.join("journal.jsonl");
    let whole = fs::read(&file).unwrap();
    for cut in 0..=whole.len() {
        // A power failure may leave zeros at the end of a line.
        for tail in [&[][..], &[0; 300]] {
            fs::write(&file, [&whole[..cut], tail].concat()).unwrap();
            let lines = whole[..cut].iter().filter(|&&b| b == b'\n').count() as u64;
            let mut run = RunDir::resume(&path, &config(&[])).unwrap();
            assert_eq!(run.last_generation().unwrap().number, lines, "cut at {cut}");
            run.record(&Event::Generation {
                generation: 9,
                workers: 2,
                step: 0,
                members: Vec::new(),
                shards: Vec::new(),
                speeds: Vec::new(),
                dense: None,
            })
            .unwrap();
            assert_eq!(run.last_generation().unwrap().number, 9, "cut at {cut}");
        }
    }
}

#[test]
fn a_step_that_is_told_twice_stands_in_the_metrics_once() {
    let (_dir, mut run) = run_with_checkpoints(&[]);
    run.start_metrics(3).unwrap();
    for s in [3, 4, 5, 4, 5, 2, 6] {
        run.write_step(&step(s)).unwrap();
    }
    run.record(&Event::Checkpoint { step: 7 }).unwrap();
    let text = fs::read_to_string(run.path().join("metrics.jsonl")).unwrap();
    let recorded: Vec<u64> = text.lines().map(|l| serde_json::from_str::<StepMetrics>(l).unwrap().step).collect();
    assert_eq!(recorded, [3, 4, 5, 6], "all of them before the checkpoint's event returns");
}

#[test]
fn another_config_is_refused_with_the_keys_that_decide() {
    let (_dir, run) = run_with_checkpoints(&[]);
    let path = run.path().to_owned();
    drop(run);
    let other = config(&["train.lr=0.5", "train.epochs=99", "train.shards=4", "train.clip_norm=1.0"]);
    let text = RunDir::resume(&path, &other).unwrap_err().to_string();
    for key in ["train.lr (0.5, was 0.01)", "train.shards (4, was 8)", "train.clip_norm (1.0, was not set)", "--run-dir"] {
        assert!(text.contains(key), "{key}: {text}");
    }
    assert!(!text.contains("epochs"), "{text}");
    assert_eq!(Config::load(&path.join("config.toml"), &[]).unwrap(), config(&[]), "a refusal changes nothing");
}

#[test]
fn traces_of_a_run_without_its_config_are_not_built_upon() {
    for name in ["journal.jsonl", "metrics.jsonl", "summary.json", "checkpoints/step-00000010/manifest.json"] {
        let dir = tempdir().unwrap();
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), "x").unwrap();
        assert!(matches!(RunDir::create(dir.path(), &config(&[])), Err(RunDirError::Taken(_))), "{name}");
    }
}

#[test]
fn a_crash_inside_create_leaves_a_directory_that_create_takes() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("checkpoints")).unwrap();
    for name in [".lock", "journal.jsonl", "config.new"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    RunDir::create(dir.path(), &config(&[])).unwrap();
}

#[test]
fn a_file_in_the_way_is_named_with_what_to_do() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "x").unwrap();
    let text = RunDir::create(&path, &config(&[])).unwrap_err().to_string();
    assert!(text.contains(&path.display().to_string()) && text.contains("--run-dir"), "{text}");
}

/// Set for the child process of the next test: the run directory that it locks.
const CHILD: &str = "RINGLEADER_TEST_LOCKED_DIR";

#[test]
fn another_process_is_refused_and_told_who_holds_the_directory() {
    if let Some(path) = std::env::var_os(CHILD) {
        println!("{}", RunDir::resume(Path::new(&path), &config(&[])).unwrap_err());
        return;
    }
    let (_dir, run) = run_with_checkpoints(&[]);
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["run_dir::tests_of_damage::another_process_is_refused_and_told_who_holds_the_directory", "--exact", "--nocapture"])
        .env(CHILD, run.path())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && printed.contains(&format!("in use by process {}", std::process::id())), "{printed}");
}

#[test]
fn a_long_run_is_summed_up_in_bounded_space() {
    let mut builder = SummaryBuilder::new("n", "alexnet", 1);
    for s in 0..300_000u64 {
        builder.step(&StepMetrics { step_ms: s as f64, samples: 2, ..step(s) });
    }
    builder.step(&step(7));
    let summary = builder.finish(300_000, Digest::of(&[]), 0, 0);
    assert_eq!(summary.samples, 600_000);
    assert!((summary.step_ms.p50 / 150_000.0 - 1.0).abs() < 0.01, "{}", summary.step_ms.p50);
    assert!((summary.step_ms.p95 / 285_000.0 - 1.0).abs() < 0.01, "{}", summary.step_ms.p95);
    assert!(builder.kept_steps() < 40_000);
}
