//! The weights that a run begins with.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::tests::config;
use super::*;
use crate::digest::Digest;

#[test]
fn a_run_keeps_the_weights_that_it_begins_with() {
    let dir = tempfile::tempdir().unwrap();
    let [file, path] = ["weights.pth", "run"].map(|name| dir.path().join(name));
    let of = |file: &Path| config(&[&format!("model.weights={}", file.display())]);
    let wanted = of(&file);
    let missing = weights_to_begin_with(&wanted, None).unwrap_err().to_string();
    assert!(missing.contains("weights.pth` does not exist") && missing.contains("model.weights"), "{missing}");

    fs::write(&file, b"some weights").unwrap();
    let run = RunDir::create(&path, &wanted).unwrap();
    let kept = run.keep_weights(&wanted).unwrap().unwrap();
    assert_eq!((kept.bytes, kept.blake3), (12, Digest::of(b"some weights")));
    assert_eq!(fs::read(&kept.path).unwrap(), b"some weights");
    drop(run);

    // The place may change, and the file may go.
    let moved = dir.path().join("moved.pth");
    fs::rename(&file, &moved).unwrap();
    for wanted in [of(&moved), of(&file)] {
        let run = RunDir::resume(&path, &wanted).unwrap();
        assert_eq!(run.keep_weights(&wanted).unwrap().unwrap().blake3, kept.blake3);
        assert_eq!(weights_to_begin_with(&wanted, Some(&path)).unwrap(), Some(kept.path.clone()));
    }
    // Other weights are another run, and the refused config is not kept.
    fs::write(&moved, b"other weights").unwrap();
    let wanted = of(&moved);
    let run = RunDir::resume(&path, &wanted).unwrap();
    let refused = run.keep_weights(&wanted).unwrap_err().to_string();
    assert!(refused.contains("moved.pth") && refused.contains("initial-weights"), "{refused}");
    assert!(!fs::read_to_string(path.join("config.toml")).unwrap().contains("moved"));
    drop(run);
    // So is one without any.
    let refused = RunDir::resume(&path, &config(&[])).unwrap_err().to_string();
    assert!(refused.contains("model.weights (not set"), "{refused}");
}

#[test]
fn a_folder_must_be_a_run_or_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let refused = weights_file(dir.path()).unwrap_err().to_string();
    assert!(refused.contains("neither a file nor a run directory"), "{refused}");
    let model = dir.path().join("model.safetensors");
    fs::write(&model, b"weights").unwrap();
    assert_eq!(weights_file(dir.path()).unwrap(), model);
}
