//! `--trace`: what the threads of every rank did, in one file.

use std::collections::BTreeSet;

use cluster_tests::LocalCluster;
use serde_json::Value;

#[test]
fn a_trace_has_every_rank_and_shows_buckets_on_their_way_while_backward_runs() {
    let folder = tempfile::TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    let path = folder.path().join("trace.json");
    // Buckets so small that the classifier's gradients fill some of them before the
    // other gradients are there.
    let keys = ["train.max_steps=6", "data.val=10", "cluster.bucket_bytes=1000000"];
    let cluster = LocalCluster::new("configs/alexnet-synthetic.toml").workers(2).set_all(&keys);
    cluster.arg("--trace").arg(&path).run().succeeded();
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let events: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}"));
    for rank in 0..2 {
        let of = |ph: &'static str| events.iter().filter(move |e| e["pid"] == rank && e["ph"] == ph);
        let names: BTreeSet<&str> = of("X").filter_map(|e| e["name"].as_str()).collect();
        for name in ["data wait", "make a batch", "compute", "all-reduce exposed", "update", "evaluation"] {
            assert!(names.contains(name), "rank {rank} has no `{name}`: {names:?}");
        }
        // Spans that overlap are in no thread's row.
        assert!(!names.contains("bucket"), "{names:?}");
        let (begun, ended) = (of("b").count(), of("e").count());
        assert!(begun > 0 && begun == ended, "rank {rank}: {begun} buckets begun, {ended} ended");
        assert_eq!(of("X").filter(|e| e["name"] == "compute").count(), 6);
        let features: Vec<&Value> = of("X").filter(|e| e["name"] == "backward of the features").collect();
        let meanwhile = |at: f64| {
            let mut spans = features.iter().filter_map(|e| Some((e["ts"].as_f64()?, e["dur"].as_f64()?)));
            spans.any(|(from, dur)| from < at && at < from + dur)
        };
        assert!(of("b").filter_map(|e| e["ts"].as_f64()).any(meanwhile), "rank {rank}: no bucket left while backward ran");
    }
    assert_eq!(std::fs::read_dir(folder.path()).map(Iterator::count).unwrap_or(0), 1, "parts are left over");
}
