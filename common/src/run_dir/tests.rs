#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::digest::Digest;
use std::fs;

use tempfile::{TempDir, tempdir};

use super::*;

pub(crate) fn config(set: &[&str]) -> Config {
    let text = "name = \"t\"\n[model]\nkind = \"alexnet\"\n[data]\nkind = \"synthetic\"\nclasses = 2\ntrain = 10\nval = 10\n[train]\n";
    let set: Vec<String> = set.iter().map(|&s| s.to_owned()).collect();
    Config::parse(text, "test", &set).unwrap()
}

pub(crate) fn step(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        epoch: 0,
        loss: 1.0 / (step + 1) as f64,
        top1: 0.5,
        lr: 0.1,
        grad_norm: 1.0,
        samples: 10,
        samples_checksum: String::new(),
        step_ms: 100.0 + step as f64,
        data_wait_ms: 1.0,
        compute_ms: 90.0,
        all_reduce_exposed_ms: 5.0,
        product_ms: 0.0,
        update_ms: 4.0,
        images_per_second: 100.0,
    }
}

pub(super) fn checkpoint(run: &RunDir, step: u64) -> PathBuf {
    let mut writer = run.checkpoints().begin(step).unwrap();
    for name in CHECKPOINT_FILES {
        writer.start_file(name).unwrap();
        writer.write(&[step as u8; 1000]).unwrap();
        writer.write(name.as_bytes()).unwrap();
    }
    writer.commit(&CheckpointMeta { config_identity: Digest::of(b"id"), weights_blake3: Digest::of(&step.to_le_bytes()) }).unwrap();
    run.path().join(format!("checkpoints/step-{step:08}"))
}

pub(super) fn run_with_checkpoints(steps: &[u64]) -> (TempDir, RunDir) {
    let dir = tempdir().unwrap();
    drop(RunDir::create(&dir.path().join("run"), &config(&[])).unwrap());
    let run = RunDir::resume(&dir.path().join("run"), &config(&[])).unwrap();
    for &s in steps {
        checkpoint(&run, s);
    }
    (dir, run)
}

#[test]
fn a_run_directory_is_created_once_resumed_by_its_own_config_and_held_by_one_process() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("run");
    assert!(matches!(RunDir::resume(&path, &config(&[])), Err(RunDirError::NothingToResume(_))));
    let run = RunDir::create(&path, &config(&[])).unwrap();
    assert!(matches!(RunDir::resume(&path, &config(&[])), Err(RunDirError::Locked { .. })));
    drop(run);
    assert!(matches!(RunDir::create(&path, &config(&[])), Err(RunDirError::Taken(_))));
    assert!(matches!(RunDir::resume(&path, &config(&["seed=2"])), Err(RunDirError::OtherConfig { .. })));
    let run = RunDir::resume(&path, &config(&["train.epochs=99"])).unwrap();
    assert_eq!(Config::load(&run.path().join("config.toml"), &[]).unwrap().train.epochs, 99);
}

#[test]
fn the_newest_whole_checkpoint_counts_and_damage_is_named() {
    let (_dir, run) = run_with_checkpoints(&[5, 10]);
    let newest = run.newest_checkpoint().unwrap().unwrap();
    assert_eq!((newest.step, newest.meta.weights_blake3), (10, Digest::of(&10u64.to_le_bytes())));
    let model = newest.path.join("model.safetensors");
    let whole = fs::read(&model).unwrap();

    let mut flipped = whole.clone();
    flipped[500] ^= 1;
    type Damage<'a> = (&'a str, Box<dyn Fn() + 'a>, &'a str);
    let manifest = newest.path.join("manifest.json");
    let text = fs::read(&manifest).unwrap();
    let damages: [Damage; 4] = [
        ("a flipped byte", Box::new(|| fs::write(&model, &flipped).unwrap()), "BLAKE3"),
        ("a cut file", Box::new(|| fs::write(&model, &whole[..700]).unwrap()), "bytes instead of"),
        ("a missing file", Box::new(|| fs::remove_file(&model).unwrap()), "model.safetensors"),
        ("a cut manifest", Box::new(|| fs::write(&manifest, &text[..text.len() / 2]).unwrap()), "manifest"),
    ];
    for (what, damage, word) in damages {
        damage();
        let (found, broken) = run.checkpoints().newest_valid().unwrap();
        assert_eq!(found.unwrap().step, 5, "{what}");
        assert!(broken.len() == 1 && broken[0].contains(word), "{what}: {broken:?}");
        fs::write(&model, &whole).unwrap();
        fs::write(&manifest, &text).unwrap();
    }
    assert_eq!(run.newest_checkpoint().unwrap().unwrap().step, 10);
}

#[test]
fn a_checkpoint_without_its_manifest_does_not_exist_and_an_aborted_one_leaves_nothing() {
    let (_dir, run) = run_with_checkpoints(&[5, 10]);
    fs::remove_file(run.path().join("checkpoints/step-00000010/manifest.json")).unwrap();
    assert_eq!(run.newest_checkpoint().unwrap().unwrap().step, 5);
    let mut writer = run.checkpoints().begin(20).unwrap();
    writer.start_file("model.safetensors").unwrap();
    writer.write(b"half").unwrap();
    assert!(writer.start_file("../escape").is_err());
    drop(writer);
    assert!(!run.path().join("checkpoints/.writing-00000020").exists());
    assert_eq!(run.newest_checkpoint().unwrap().unwrap().step, 5);
}

#[test]
fn pruning_keeps_the_newest() {
    let (_dir, run) = run_with_checkpoints(&[1, 2, 3, 4]);
    run.prune_checkpoints(2, None).unwrap();
    assert_eq!(run.checkpoints().steps_for_test(), [4, 3]);
}

#[test]
fn metrics_hold_each_step_once_over_a_resume() {
    let (_dir, mut run) = run_with_checkpoints(&[]);
    run.start_metrics(0).unwrap();
    for s in 0..10 {
        run.write_step(&step(s)).unwrap();
    }
    run.write_evaluation(&Evaluation { step: 10, epoch: 1, loss: 1.0, top1: 0.5, top5: 1.0, samples: 10 }).unwrap();
    let path = run.path().join("metrics.jsonl");
    // The process dies in the middle of a line.
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{{\"step\": 10, \"ep")).unwrap();
    run.start_metrics(6).unwrap();
    run.write_step(&step(6)).unwrap();
    run.metrics.as_mut().unwrap().flush().unwrap();
    let steps: Vec<u64> =
        fs::read_to_string(&path).unwrap().lines().map(|l| serde_json::from_str::<StepMetrics>(l).unwrap().step).collect();
    assert_eq!(steps, (0..=6).collect::<Vec<_>>());
}

#[test]
fn the_journal_survives_being_cut_and_being_empty() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("run");
    let mut run = RunDir::create(&path, &config(&[])).unwrap();
    assert_eq!(run.last_generation().unwrap().number, 0);
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
    let text = fs::read(&file).unwrap();
    fs::write(&file, &text[..text.len() - 10]).unwrap();
    let mut run = RunDir::resume(&path, &config(&[])).unwrap();
    assert_eq!(run.last_generation().unwrap().number, 2);
    run.record(&Event::Generation {
        generation: 7,
        workers: 1,
        step: 0,
        members: Vec::new(),
        shards: Vec::new(),
        speeds: Vec::new(),
        dense: None,
    })
    .unwrap();
    assert_eq!(run.last_generation().unwrap().number, 7);
    drop(run);
    fs::write(&file, "").unwrap();
    assert_eq!(RunDir::resume(&path, &config(&[])).unwrap().last_generation().unwrap().number, 0);
}

/// The lines of versions in which all workers owned equally many shards.
#[test]
fn a_journal_without_shards_means_equal_ones() {
    let (_dir, run) = run_with_checkpoints(&[]);
    let line = |rest: &str| format!("{{\"unix_seconds\":1.5,\"event\":\"generation\",\"generation\":{rest}}}\n");
    let lines =
        line("1,\"workers\":3,\"step\":0") + &line("2,\"workers\":2,\"step\":9,\"members\":[],\"shards\":[6,2],\"speeds\":[4.5,null]");
    fs::write(run.path().join("journal.jsonl"), lines + &line("3,\"workers\":2,\"step\":9,\"members\":[],\"shards\":[6,0]")).unwrap();
    let source = crate::dataset::open(&config(&[]).data, 1, &|_| {}).unwrap();
    fs::write(run.path().join("dataset.json"), serde_json::to_string(&DataDescription::of(source.as_ref())).unwrap()).unwrap();
    let found = RunView::open(run.path()).unwrap().generations().unwrap();
    let counts: Vec<_> = found.iter().map(|start| start.ownership.as_ref().map(|o| o.counts().to_vec())).collect();
    assert_eq!(counts, [Some(vec![3, 3, 2]), Some(vec![6, 2]), None], "the third line gives a rank nothing");
}

#[test]
fn the_summary_takes_medians_after_the_first_five_steps() {
    let mut builder = SummaryBuilder::new("n", "alexnet", 1);
    builder.generation(2, vec![5, 3], None);
    for s in 0..16 {
        let slow = if s < 5 { 10_000.0 } else { 0.0 };
        builder.step(&StepMetrics { step_ms: 100.0 + s as f64 + slow, ..step(s) });
    }
    builder.evaluation(&Evaluation { step: 16, epoch: 1, loss: 0.5, top1: 0.75, top5: 1.0, samples: 10 });
    let summary = builder.finish(16, Digest::of(b"digest"), 12, 34);
    assert_eq!((summary.world, summary.generations, summary.steps, summary.samples), (2, 1, 16, 160));
    assert_eq!((summary.step_ms.p50, summary.step_ms.p95), (110.0, 115.0));
    assert_eq!(summary.top1, Some(0.75));
    assert_eq!(SummaryBuilder::new("n", "m", 1).finish(0, Digest::of(&[]), 0, 0).step_ms, StepTimes::default());
    assert!(peak_rss_bytes() > 1 << 20);
}
