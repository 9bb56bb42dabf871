//! `worker bench` through the binary: what it prints, and what it refuses. Speed is not
//! tested.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use worker::data::write_png;

fn device() -> &'static str {
    if cfg!(feature = "libtorch") { "cpu" } else { "flex" }
}

fn bench(args: &[&str]) -> Output {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
    command.args(["-q", "bench"]).args(args).current_dir(project).stdin(Stdio::null()).output().unwrap()
}

/// Runs the binary; returns its only line of stdout, as JSON.
fn result(args: &[&str]) -> Value {
    let output = bench(&[args, &["--json"]].concat());
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {}\n{out}\n{err}", output.status);
    assert_eq!(out.lines().count(), 1, "{args:?}: {out}");
    serde_json::from_str(&out).unwrap()
}

/// Each of `keys` is a number above 0.
fn assert_positive(result: &Value, keys: &[&str]) {
    for key in keys {
        assert!(result[key].as_f64().is_some_and(|n| n > 0.0), "{key} of {result}");
    }
}

#[test]
fn a_step_is_taken_apart() {
    let lenet = ["step", "--config", "configs/lenet.toml", "--channels", "1", "--classes", "10", "--batch", "4", "--steps", "2"];
    let step = result(&[&lenet[..], &["--size", "28", "--threads", "1", "--device", device()]].concat());
    assert_positive(&step, &["images_per_second", "step_ms", "forward_ms", "backward_ms", "update_ms", "peak_rss_bytes"]);
    assert!(step["best_images_per_second"].as_f64() >= step["images_per_second"].as_f64());
    assert!(step["copy_ms"].is_number());
    assert_eq!((&step["parameters"], &step["device"]), (&61_706.into(), &device().into()));
}

#[test]
fn a_small_folder_is_gone_through_until_there_are_enough_pictures() {
    let dir = tempfile::tempdir().unwrap();
    for (class, colour) in [("red", [200, 30, 30]), ("blue", [20, 40, 220])] {
        std::fs::create_dir(dir.path().join(class)).unwrap();
        for n in 0..3 {
            write_png(&dir.path().join(class).join(format!("{n}.png")), 20, 16, 3, &colour.repeat(20 * 16)).unwrap();
        }
    }
    let folder = dir.path().to_str().unwrap();
    let all = ["data", folder, "--size", "16", "--threads", "2", "--augment", "crop,flip,colour", "--images", "40"];
    let data = result(&all);
    assert_positive(&data, &["images_per_second", "seconds"]);
    // Seven times all six pictures: none is kept for validation.
    assert_eq!((&data["images"], &data["skipped"]), (&42.into(), &0.into()));

    std::fs::write(dir.path().join("red/damaged.png"), "nothing").unwrap();
    let data = result(&all);
    assert!(data["images"].as_u64() >= Some(40) && data["skipped"].as_u64() >= Some(6), "{data}");

    // If there is a folder train/, only its pictures are read.
    let parent = tempfile::tempdir().unwrap();
    std::fs::rename(dir.path(), parent.path().join("train")).unwrap();
    assert_eq!(result(&["data", parent.path().to_str().unwrap(), "--size", "8", "--images", "6"])["images"], 6);
}

#[test]
fn rings_of_processes_sum_and_are_timed() {
    for more in [&["--world", "2"][..], &["--world", "3", "--wire", "bf16", "--connections", "2", "--threads", "2"], &["--packet", "1452"]]
    {
        let ring = result(&[&["ring", "--bytes", "400003", "--rounds", "3", "--bucket-bytes", "65536"], more].concat());
        assert_positive(&ring, &["median_ms", "best_ms", "bus_gb_per_s", "cpu_ms"]);
        assert_eq!(ring["bytes"], 400_000);
        assert!(ring["best_ms"].as_f64() <= ring["median_ms"].as_f64());
        assert!(ring["wire"] == "f32" || ring["wire"] == "bf16", "{ring}");
    }
}

#[test]
fn a_thousand_workers_are_simulated_and_advised() {
    let all = result(&["ring-sim", "--straggler-spread", "0"]);
    let rows = all["worlds"].as_array().unwrap();
    assert_eq!(rows.iter().map(|r| r["world"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=10).map(|n| 1 << n).collect::<Vec<_>>());
    assert_eq!(all["parameters"], 62_378_344);
    let step = |row: &Value| row["step_ms"].as_f64().unwrap();
    assert!(rows.windows(2).all(|pair| step(&pair[0]) < step(&pair[1])), "{all}");
    for row in rows {
        assert!(row["efficiency"].as_f64().unwrap() < 1.0 && row["exposed_ms"].as_f64().unwrap() > 0.0, "{row}");
        assert!(step(&row["best"]) <= step(row) * 1.01, "{row}");
    }
    // A larger world has more hops for each bucket, so fewer and larger buckets are best.
    let bucket = |row: &Value| row["best"]["bucket_bytes"].as_u64().unwrap();
    assert!(bucket(&rows[9]) > bucket(&rows[0]), "{all}");
    let seeded = || result(&["ring-sim", "--worlds", "4,8", "--seed", "5", "--steps", "2", "--workers-per-machine", "2"]);
    assert_eq!(seeded(), seeded());
}

#[test]
fn the_simulation_is_held_against_this_machine() {
    let report = result(&["ring-sim", "--check", "--check-bytes", "65536,8192", "--check-rounds", "1"]);
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 3 * 2 * 2);
    for check in checks {
        assert_positive(check, &["world", "bytes", "predicted_ms", "measured_ms"]);
        assert!(check["error"].as_f64().is_some_and(|e| e >= 0.0), "{check}");
    }
    assert_eq!(checks.iter().filter(|c| c["fitted"] == true).count(), 4);
}

#[test]
fn what_is_wrong_is_refused_with_the_right_code() {
    let usage: [&[&str]; 12] = [
        &["ring", "--world", "1"],
        &["ring", "--wire", "f16"],
        &["ring", "--packet", "9000"],
        &["ring", "--bytes", "3"],
        &["ring", "--bucket-bytes", "100"],
        &["step", "--device", "gpu"],
        &["step", "--threads", "0"],
        &["step", "--size", "20"],
        &["step", "--config", "configs/perceptron.toml", "--classes", "3"],
        &["data", ".", "--augment", "blur"],
        &["ring-sim", "--link-gbit-per-s", "0"],
        &["ring-sim", "--latency-us", "NaN"],
    ];
    let failed = [(1, &["data", "configs"][..]), (1, &["data", "no such folder"]), (1, &["ring-rank"])];
    for (code, args) in usage.into_iter().map(|args| (2, args)).chain(failed) {
        let output = bench(args);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
        assert!(err.contains("error: ") && !err.contains("panicked"), "{args:?}: {err}");
    }
}
