//! What a stranger may send to a coordinator, and a false coordinator to a
//! stranger: enrolment messages, introductions of visits, certificate requests, certificates. The first
//! byte chooses.
#![no_main]

use std::sync::LazyLock;

use common::net::Authority;
use fuzz::{block_on, scratch};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static AUTHORITY: LazyLock<(Authority, TempDir)> = LazyLock::new(|| {
    let folder = scratch();
    (Authority::open(folder.path()).expect("an authority"), folder)
});

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    match choice % 4 {
        0 => block_on(common::fuzzing::enrolment(bytes)),
        1 => block_on(common::fuzzing::visit(bytes)),
        2 => common::fuzzing::certificate(bytes),
        _ => {
            let _ = AUTHORITY.0.issue("worker-1", bytes);
        }
    }
});
