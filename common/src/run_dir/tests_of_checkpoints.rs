//! Checkpoints next to each other: concurrent writers, links, damaged newer ones.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::digest::Digest;
use std::collections::HashMap;
use std::fs;
use std::io::Read;

use safetensors::tensor::{Dtype, TensorView};
use tempfile::tempdir;

use super::tests::{checkpoint, config, run_with_checkpoints};
use super::*;
use crate::config::InputShape;

fn meta(digest: &str) -> CheckpointMeta {
    CheckpointMeta { config_identity: Digest::of(b"id"), weights_blake3: Digest::of(digest.as_bytes()) }
}

fn fill(writer: &mut CheckpointWriter, byte: u8) {
    for name in CHECKPOINT_FILES {
        writer.start_file(name).unwrap();
        writer.write(&[byte; 1000]).unwrap();
    }
}

fn in_folder(run: &RunDir) -> Vec<String> {
    let entries = fs::read_dir(run.path().join("checkpoints")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn two_writers_of_one_step_do_not_meet_and_the_last_whole_one_stays() {
    let (_dir, run) = run_with_checkpoints(&[]);
    let files = run.checkpoints();
    let (mut first, mut second, mut third) = (files.begin(10).unwrap(), files.begin(10).unwrap(), files.begin(10).unwrap());
    first.start_file(CHECKPOINT_FILES[0]).unwrap();
    first.write(&[1; 500]).unwrap();
    fill(&mut second, 2);
    first.write(&[1; 500]).unwrap();
    first.start_file(CHECKPOINT_FILES[1]).unwrap();
    first.write(&[1; 1000]).unwrap();
    first.commit(&meta("first")).unwrap();
    assert_eq!(files.verify(10).unwrap().meta.weights_blake3, Digest::of(b"first"));
    second.commit(&meta("second")).unwrap();
    assert_eq!(files.verify(10).unwrap().meta.weights_blake3, Digest::of(b"second"));
    third.start_file(CHECKPOINT_FILES[0]).unwrap();
    drop(third);
    assert_eq!(in_folder(&run), ["step-00000010"], "nothing is left of the others");
}

#[test]
fn rivals_in_many_threads_leave_one_whole_checkpoint_of_each_step() {
    let (_dir, run) = run_with_checkpoints(&[]);
    let files = run.checkpoints();
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let files = files.clone();
            scope.spawn(move || {
                for step in [10, 20, 10, 20, 30] {
                    let mut writer = files.begin(step).unwrap();
                    fill(&mut writer, thread);
                    writer.commit(&meta(&format!("{thread}"))).unwrap();
                    files.prune(2, None).unwrap();
                }
            });
        }
    });
    assert_eq!(files.newest_valid().unwrap().0.unwrap().step, 30);
    assert!(in_folder(&run).iter().all(|name| name.starts_with("step-")), "{:?}", in_folder(&run));
}

#[test]
fn leftovers_go_at_the_next_start_be_they_folders_files_or_links() {
    let (dir, run) = run_with_checkpoints(&[10]);
    let path = run.path().to_owned();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("precious"), "x").unwrap();
    std::mem::forget(run.checkpoints().begin(20).unwrap());
    fs::write(path.join("checkpoints/.writing-file"), "x").unwrap();
    std::os::unix::fs::symlink(&elsewhere, path.join("checkpoints/.writing-link")).unwrap();
    drop(run);
    let run = RunDir::resume(&path, &config(&[])).unwrap();
    assert_eq!(in_folder(&run), ["step-00000010"]);
    assert!(elsewhere.join("precious").exists());
}

#[test]
fn a_link_to_a_checkpoint_counts_and_its_target_is_never_touched() {
    let (dir, run) = run_with_checkpoints(&[10, 20, 30]);
    let place = |step: u64| run.path().join(format!("checkpoints/step-{step:08}"));
    // A user has moved two checkpoints to a larger disk.
    for step in [10, 20] {
        let target = dir.path().join(format!("archive-{step}"));
        fs::rename(place(step), &target).unwrap();
        std::os::unix::fs::symlink(&target, place(step)).unwrap();
    }
    run.prune_checkpoints(2, None).unwrap();
    assert_eq!(in_folder(&run), ["step-00000020", "step-00000030"]);
    assert!(dir.path().join("archive-10/manifest.json").exists(), "pruning removes the link alone");
    // Another state of step 20 takes the place of the link.
    let mut writer = run.checkpoints().begin(20).unwrap();
    fill(&mut writer, 9);
    writer.commit(&meta("other")).unwrap();
    assert_eq!(run.checkpoints().verify(20).unwrap().meta.weights_blake3, Digest::of(b"other"));
    for step in [10, 20] {
        let whole = fs::read_dir(dir.path().join(format!("archive-{step}"))).unwrap().count();
        assert_eq!(whole, 3, "archive-{step}");
    }
}

#[test]
fn pruning_spares_the_last_that_was_verified_however_many_seem_newer() {
    let (_dir, run) = run_with_checkpoints(&[10]);
    let place = |step: u64| run.path().join(format!("checkpoints/step-{step:08}"));
    // Whole by their manifests and sizes, but with damaged bytes.
    for step in [4999, 5000] {
        fs::create_dir(place(step)).unwrap();
        for name in CHECKPOINT_FILES.into_iter().chain(["manifest.json"]) {
            let mut bytes = fs::read(place(10).join(name)).unwrap();
            if name == "manifest.json" {
                bytes = String::from_utf8(bytes).unwrap().replace("\"step\": 10", &format!("\"step\": {step}")).into_bytes();
            } else {
                bytes[3] ^= 1;
            }
            fs::write(place(step).join(name), bytes).unwrap();
        }
    }
    for keep in [1, 2, 1] {
        run.prune_checkpoints(keep, None).unwrap();
        assert_eq!(run.checkpoints().verify(10).unwrap().step, 10, "keep {keep}");
    }
    // A resumed run finds it again and keeps it again.
    let path = run.path().to_owned();
    drop(run);
    let run = RunDir::resume(&path, &config(&[])).unwrap();
    run.prune_checkpoints(1, None).unwrap();
    assert_eq!(run.newest_checkpoint().unwrap().unwrap().step, 10);
    run.prune_checkpoints(1, None).unwrap();
    assert_eq!(run.newest_checkpoint().unwrap().unwrap().step, 10);
    // The next checkpoint is verified too, and replaces it.
    checkpoint(&run, 11);
    run.prune_checkpoints(1, None).unwrap();
    assert_eq!(in_folder(&run), ["step-00000011"], "those that are newer and broken are gone");
}

#[test]
fn pruning_spares_the_best_beside_the_newest() {
    let (_dir, run) = run_with_checkpoints(&[10, 20, 30, 40, 50]);
    run.prune_checkpoints(2, Some(20)).unwrap();
    assert_eq!(in_folder(&run), ["step-00000020", "step-00000040", "step-00000050"]);
    // A better one; one that is among the newest; one that is not there.
    for (best, expected) in
        [(Some(40), &["step-00000040", "step-00000050"][..]), (Some(50), &["step-00000050"]), (Some(7), &["step-00000050"])]
    {
        run.prune_checkpoints(1, best).unwrap();
        assert_eq!(in_folder(&run), expected);
    }
}

#[test]
fn an_opened_checkpoint_is_read_to_its_end_though_it_is_pruned() {
    let (_dir, run) = run_with_checkpoints(&[10]);
    let (_, files) = run.checkpoints().open(10).unwrap();
    let expected: Vec<Vec<u8>> =
        CHECKPOINT_FILES.iter().map(|n| fs::read(run.path().join("checkpoints/step-00000010").join(n)).unwrap()).collect();
    checkpoint(&run, 20);
    run.prune_checkpoints(1, None).unwrap();
    for (mut verified, expected) in files.into_iter().zip(expected) {
        let mut bytes = Vec::new();
        verified.file.read_to_end(&mut bytes).unwrap();
        assert!(bytes == expected && verified.bytes == expected.len() as u64, "{}", verified.name);
    }
}

/// A safetensors file with these tensors.
fn tensors(list: &[(String, Vec<usize>)], step: Option<&str>) -> Vec<u8> {
    let zeros = vec![0; 4 << 20];
    let view = |shape: &Vec<usize>| TensorView::new(Dtype::F32, shape.clone(), &zeros[..4 * shape.iter().product::<usize>()]).unwrap();
    let metadata = step.map(|s| HashMap::from([("step".to_owned(), s.to_owned())]));
    safetensors::serialize(list.iter().map(|(name, shape)| (name, view(shape))), metadata).unwrap()
}

#[test]
fn files_that_are_not_the_models_state_are_refused() {
    let text = "name = \"p\"\n[model]\nkind = \"mlp\"\nhidden = [5]\n[data]\nkind = \"xor\"\n[train]\nglobal_batch = 4\nshards = 1\n";
    let config = Config::parse(text, "test", &[]).unwrap();
    let layout = CheckpointLayout::of(&config, InputShape { channels: 2, image_size: 1, classes: 2 });
    let named = |prefix: &str, list: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        list.iter().map(|(name, shape)| (format!("{prefix}{name}"), shape.to_vec())).collect()
    };
    let good: [(&str, &[usize]); 4] =
        [("hidden.0.weight", &[2, 5]), ("hidden.0.bias", &[5]), ("output.weight", &[5, 2]), ("output.bias", &[2])];
    let model = tensors(&named("", &good), None);
    let optimizer = tensors(&named("momentum/", &good), Some("7"));
    let both = [named("m/", &good), named("v/", &good)].concat();

    let dir = tempdir().unwrap();
    let checked_by = |layout: &CheckpointLayout, model: &[u8], optimizer: &[u8]| {
        let mut writer = CheckpointFiles::new(dir.path().join("checkpoints")).begin(7).unwrap();
        for (name, bytes) in CHECKPOINT_FILES.into_iter().zip([model, optimizer]) {
            writer.start_file(name).unwrap();
            writer.write(bytes).unwrap();
        }
        writer.check(layout).map_err(|e| e.to_string())
    };
    let checked = |model: &[u8], optimizer: &[u8]| checked_by(&layout, model, optimizer);
    checked(&model, &optimizer).unwrap();
    checked(&model, &tensors(&both, Some("7"))).unwrap();
    checked(&model, &tensors(&[], Some("7"))).unwrap();

    let mut wider = good;
    wider[2].1 = &[5, 3];
    let mut other = good;
    other[1].0 = "hidden.1.bias";
    let mut huge = model.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let half: f32 = 0.5;
    let bf16 =
        safetensors::serialize([("output.bias", TensorView::new(Dtype::BF16, vec![2], &half.to_le_bytes()).unwrap())], None).unwrap();
    let cases: [(&[u8], &[u8], &str); 14] = [
        (b"", &optimizer, "no safetensors header"),
        (b"1234567", &optimizer, "no safetensors header"),
        (&huge, &optimizer, "no safetensors header"),
        (&[9; 1000], &optimizer, "no safetensors header"),
        (&model[..model.len() - 4], &optimizer, "its header speaks of"),
        (&bf16, &optimizer, "not f32"),
        (&tensors(&named("", &wider), None), &optimizer, "17 parameters for the layer `output`"),
        (&tensors(&named("", &other), None), &optimizer, "the layer `hidden.0`"),
        (&tensors(&named("", &good[..2]), None), &optimizer, "0 parameters for the layer `output`"),
        (&model, &tensors(&named("momentum/", &good), None), "names the step none"),
        (&model, &tensors(&named("momentum/", &good), Some("5000")), "names the step 5000"),
        (&model, &tensors(&named("momentum/", &good[..3]), Some("7")), "3 tensors for a model that trains 4"),
        (&model, &tensors(&named("momentum/", &wider), Some("7")), "belongs to none"),
        (&model, b"\x02\0\0\0\0\0\0\0{}", "names the step none"),
    ];
    for (model, optimizer, word) in cases {
        let refused = checked(model, optimizer).unwrap_err();
        assert!(refused.contains(word), "`{word}`: {refused}");
    }
    let with_average = [named("ema/", &good), both].concat();
    assert_eq!(checked(&model, &tensors(&with_average, Some("7"))), Ok(()));
    let more = [named("a/", &good), with_average].concat();
    assert!(checked(&model, &tensors(&more, Some("7"))).unwrap_err().contains("16 tensors"));
    let odd: Vec<(&str, &[usize])> = good.into_iter().chain([("extra.weight", &[1][..])]).collect();
    assert!(checked(&tensors(&named("", &odd), None), &optimizer).unwrap_err().contains("a layer `extra`"));

    // Of a frozen layer the optimizer has nothing.
    let frozen = config.with(&["train.freeze=[\"hidden\"]".to_owned()]).unwrap();
    let of_frozen = CheckpointLayout::of(&frozen, InputShape { channels: 2, image_size: 1, classes: 2 });
    checked_by(&of_frozen, &model, &tensors(&named("momentum/", &good[2..]), Some("7"))).unwrap();
    assert!(checked_by(&of_frozen, &model, &optimizer).unwrap_err().contains("belongs to none that is trained"));
}

#[test]
fn a_checkpoint_is_named_by_a_word_or_its_step() {
    let parsed = ["last", "best", "120"].map(|text| text.parse::<Which>().unwrap());
    assert_eq!(parsed, [Which::Last, Which::Best, Which::Step(120)]);
    assert!("step-3".parse::<Which>().is_err_and(|e| e.contains("neither best, last nor a step")));
}
