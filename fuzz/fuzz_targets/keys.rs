//! A run's keys folder: certificate, key and tokens.
#![no_main]

use std::fs;
use std::sync::LazyLock;
use std::time::SystemTime;

use common::net::Authority;
use fuzz::{parts, scratch};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(scratch);

fuzz_target!(|input: &[u8]| {
    let [tokens, certificate, key] = parts(input);
    let folder = FOLDER.path();
    // Empty parts are left as a good authority has them, so that each file is read beside good ones.
    let _ = fs::remove_file(folder.join("ca.pem"));
    Authority::open(folder).expect("an authority is made where none is");
    for (name, content) in [("tokens.json", tokens), ("ca.pem", certificate), ("ca.key", key)] {
        if !content.is_empty() {
            fs::write(folder.join(name), content).expect("a file in memory");
        }
    }
    if let Ok(authority) = Authority::open(folder) {
        let _ = authority.identity("worker-1");
        let _ = authority.tokens().list();
        let _ = authority.tokens().standing(SystemTime::now());
    }
});
