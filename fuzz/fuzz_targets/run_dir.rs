//! A run directory's files, each of them damaged in any way: read by those who
//! look at a run, audit it, and go on with it.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use common::config::Config;
use common::run_dir::{RunDir, RunView};
use fuzz::{parts, scratch};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<(TempDir, Config)> = LazyLock::new(|| {
    let folder = scratch();
    let config = fuzz::config();
    fs::write(folder.path().join("config.toml"), config.to_toml()).expect("a file in memory");
    (folder, config)
});

fuzz_target!(|input: &[u8]| {
    let [journal, metrics, trained, dataset] = parts(input);
    let (folder, config) = (FOLDER.0.path(), &FOLDER.1);
    for (name, content) in [("journal.jsonl", journal), ("metrics.jsonl", metrics), ("audit.jsonl", trained), ("dataset.json", dataset)] {
        fs::write(folder.join(name), content).expect("a file in memory");
    }
    if let Ok(view) = RunView::open(folder) {
        let _ = (view.metrics(), view.trained(), view.generations());
        // A plan takes memory for each sample, as it must.
        if view.data().info.train <= 10_000 {
            let _ = coordinator::audit::run(folder);
        }
    }
    let mut run = RunDir::resume(folder, config).expect("damaged lines do not keep a run from going on");
    let _ = (run.events(), run.last_generation(), run.metrics(), run.newest_checkpoint());
    let next = run.recorded().map_or(0, |(next, _)| next);
    run.start_metrics(next / 2).expect("the metrics can be cut");
    assert!(run.recorded().is_ok_and(|(now, _)| now <= next));
});
