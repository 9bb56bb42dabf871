//! A checkpoint: its manifest beside good files, and a state as another worker
//! or the disk gives it. The first byte chooses.
#![no_main]

use std::cell::RefCell;
use std::fs;
use std::sync::LazyLock;

use common::config::InputShape;
use common::run_dir::{CHECKPOINT_FILES, CheckpointFiles};
use fuzz::{parts, scratch};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use worker::engine::device::ComputeDevice;
use worker::replica::{Replica, State};

static FOLDER: LazyLock<TempDir> = LazyLock::new(scratch);

thread_local! {
    static REPLICA: RefCell<Replica> = RefCell::new(replica());
}

fn replica() -> Replica {
    let config = fuzz::config();
    let input = InputShape { channels: 1, image_size: 2, classes: 2 };
    Replica::new(&config.model, &config.train, input, 1, ComputeDevice::Flex).expect("a replica")
}

fn manifest(bytes: &[u8]) {
    let [text, model, optimizer] = parts(bytes);
    let folder = FOLDER.path().join("step-00000001");
    fs::create_dir_all(&folder).expect("a folder in memory");
    for (name, content) in ["manifest.json"].into_iter().chain(CHECKPOINT_FILES).zip([text, model, optimizer]) {
        fs::write(folder.join(name), content).expect("a file in memory");
    }
    let files = CheckpointFiles::new(FOLDER.path().to_owned());
    let (newest, broken) = files.newest_valid().expect("a folder is listed");
    assert_ne!(newest.is_some(), !broken.is_empty());
}

/// Weights and optimizer one after the other, the length of the first before them.
fn state(bytes: &[u8]) {
    let Some((&length, bytes)) = bytes.split_first_chunk::<2>() else { return };
    let (model, optimizer) = bytes.split_at(bytes.len().min(u16::from_le_bytes(length).into()));
    REPLICA.with_borrow_mut(|replica| {
        let before = replica.weights_blake3().expect("a digest");
        for step in [0, 1] {
            let state = State { step, model: model.to_vec(), optimizer: optimizer.to_vec() };
            if replica.import(&state).is_err() {
                assert_eq!(replica.weights_blake3().expect("a digest"), before, "a refused state changes nothing");
            }
        }
        let _ = replica.import_weights(model);
    });
}

fuzz_target!(|input: &[u8]| {
    match input.split_first() {
        Some((choice, bytes)) if choice % 2 == 0 => manifest(bytes),
        Some((_, bytes)) => state(bytes),
        None => {}
    }
});
