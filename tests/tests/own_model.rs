//! A model of a user's own, `examples/own-model`, from its config to PyTorch: a residual
//! network at its smallest, on generated pictures.

use std::path::{Path, PathBuf};

use cluster_tests::python::Python;
use cluster_tests::record::{assert_close, generations};
use cluster_tests::scenario::free_port;
use cluster_tests::{LocalCluster, Running, binary, join_line, project, signal};
use image::{Rgb, RgbImage};
use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = "examples/own-model/resnet.toml";

/// Thirty steps an epoch.
const SMALL: [&str; 9] = [
    "model.own={blocks=1,width=4}",
    "data={kind=\"synthetic\",classes=5,train=480,val=40,image_size=16,mean=[0.5,0.5,0.5],std=[0.25,0.25,0.25]}",
    "train.global_batch=16",
    "train.shards=4",
    "train.threads=1",
    "train.lr=0.05",
    "train.epochs=4",
    "train.eval_epochs=2",
    "train.checkpoint_steps=1000000",
];

fn temp() -> TempDir {
    TempDir::new().unwrap_or_else(|e| panic!("{e}"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn cluster(workers: u32, sets: &[&str]) -> LocalCluster {
    let cluster = LocalCluster::new(CONFIG).workers(workers).arg("--worker-binary").arg(binary("own-model"));
    cluster.set_all(&SMALL).set_all(sets)
}

/// A command of the example's binary that takes a config.
fn own(command: &str, more: &[&str]) -> Running {
    let sets = SMALL.iter().flat_map(|set| ["--set", set]);
    let words: Vec<&str> = [command, CONFIG].into_iter().chain(sets).chain(more.iter().copied()).collect();
    Running::start("own-model", &words)
}

/// A run of one process.
fn trained(run: &Path, sets: &[&str]) -> String {
    let run_dir = text(run);
    let mut words = vec!["-q", "--devices", "cpu", "--run-dir", &run_dir];
    sets.iter().for_each(|set| words.extend(["--set", set]));
    let mut training = own("train", &words);
    training.path = run.to_owned();
    training.wait().succeeded().digest()
}

#[test]
fn two_workers_train_it_on_either_backend() {
    let run = |device: &str| {
        let run = cluster(2, &["model.own.width=8"]).arg("--devices").arg(device).run().succeeded();
        assert_eq!((run.summary()["world"].as_u64(), run.summary()["steps"].as_u64()), (Some(2), Some(120)));
        let losses = run.column("loss");
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        assert!(mean(&losses[110..]) < 0.8 * mean(&losses[..5]), "{device} has learnt nothing: {losses:?}");
        // What it has learnt, evaluation finds by the running statistics.
        let said = Running::start("own-model", &["eval", &text(&run.path), "--train", "--json"]).wait().succeeded().stdout;
        let report: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
        let top1 = report["top1"].as_f64();
        assert!(top1.is_some_and(|top1| top1 > 0.4), "{device}: {top1:?} of the training set");
        losses
    };
    let (libtorch, resident, flex) = (run("cpu"), run("cpu:resident"), run("flex"));
    assert_close(&libtorch[..5], &resident[..5], 1e-3, "loss on cpu:resident");
    assert_close(&libtorch[..5], &flex[..5], 1e-3, "loss on flex");
}

#[test]
fn any_number_of_workers_and_a_kill_end_with_the_same_bits() {
    let folder = temp();
    let sets = ["train.reproducible=true", "train.max_steps=60", "cluster.timeout_ms=1000", "cluster.balance=equal"];
    let expected = trained(&folder.path().join("alone"), &sets);
    for workers in [1, 2, 4] {
        assert_eq!(cluster(workers, &sets).run().succeeded().digest(), expected, "{workers} workers");
    }
    let mut disturbed = cluster(2, &sets).start();
    disturbed.wait_for_steps(10);
    signal(disturbed.children()[0], libc::SIGKILL);
    let finished = disturbed.wait().succeeded();
    assert!(generations(&finished.path).len() > 1, "the kill came after the end:\n{}", finished.stderr);
    assert_eq!(finished.digest(), expected);
}

#[test]
fn a_run_goes_on_exactly_where_it_was() {
    let folder = temp();
    let run = folder.path().join("run");
    let part = |steps: &str, more: &[&str]| {
        let sets = ["train.reproducible=true", "train.checkpoint_steps=6", "train.ema=0.9", "train.schedule=constant", steps];
        let cluster = cluster(2, &sets).run_dir(&run);
        more.iter().fold(cluster, |cluster, word| cluster.arg(*word)).run().succeeded().digest()
    };
    part("train.max_steps=9", &[]);
    let resumed = part("train.max_steps=15", &["--resume"]);
    let sets = ["train.reproducible=true", "train.ema=0.9", "train.schedule=constant", "train.max_steps=15"];
    assert_eq!(resumed, trained(&folder.path().join("whole"), &sets));
    // Another network is another run.
    let other = cluster(2, &["train.reproducible=true", "train.ema=0.9", "model.own.width=5"]).run_dir(&run).arg("--resume").run();
    other.failed(1, &["model.own.width"]);
}

/// Two pictures of 16 x 16.
fn pictures(folder: &Path) -> Vec<PathBuf> {
    let picture = |number: u32| {
        let path = folder.join(format!("{number}.png"));
        let value = |x: u32, y: u32, channel: u32| ((x * 7 + y * (3 + channel) + number * 50) * (1 + channel) % 256) as u8;
        RgbImage::from_fn(16, 16, |x, y| Rgb([0, 1, 2].map(|channel| value(x, y, channel)))).save(&path).unwrap_or_else(|e| panic!("{e}"));
        path
    };
    (0..2).map(picture).collect()
}

/// The example is to be read, and short enough for it.
#[test]
fn the_example_is_short() {
    let main = project().join("examples/own-model/src/main.rs");
    let text = std::fs::read_to_string(&main).unwrap_or_else(|e| panic!("{}: {e}", main.display()));
    assert!(text.lines().count() < 120, "docs/own-model.md says so");
}

/// The scores of each picture, class by class.
fn predicted(run: &str, pictures: &[PathBuf]) -> Vec<Vec<f64>> {
    let pictures: Vec<String> = pictures.iter().map(|path| text(path)).collect();
    let mut words = vec!["predict", run, "--json", "--top", "5", "--device", "cpu"];
    words.extend(pictures.iter().map(String::as_str));
    let said = Running::start("own-model", &words).wait().succeeded().stdout;
    let found: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
    let of = |prediction: &Value, class: usize| {
        let top = prediction["top"].as_array().into_iter().flatten();
        let guess = top.clone().find(|guess| guess["class"] == *format!("pattern {class}"));
        guess.and_then(|guess| guess["score"].as_f64()).unwrap_or_else(|| panic!("no class {class} in {prediction}"))
    };
    found.as_array().into_iter().flatten().map(|prediction| (0..5).map(|class| of(prediction, class)).collect()).collect()
}

#[test]
fn its_weights_go_to_pytorch_and_come_back() {
    let folder = temp();
    let (run, again) = (folder.path().join("run"), folder.path().join("again"));
    trained(&run, &["train.max_steps=12"]);
    let run_dir = text(&run);
    let export = |to: &str, out: &Path| {
        let out = text(out);
        Running::start("own-model", &["export", &run_dir, "--to", to, "--out", &out]).wait()
    };
    let refused = export("onnx", &folder.path().join("model.onnx"));
    refused.failed(1, &["`resnet`", "--to pth or safetensors", "PyTorch"]);
    let files = ["pth", "safetensors"].map(|to| folder.path().join(format!("back.{to}")));
    for file in &files {
        export(text(file).rsplit('.').next().unwrap_or_default(), file).succeeded();
    }
    let inputs = pictures(folder.path());
    let expected = predicted(&run_dir, &inputs);
    // A rate that is 0 as f32, and a momentum of running statistics that moves them by a tenth.
    let weights = format!("model.weights={}", files[0].display());
    trained(&again, &[&weights, "train.max_steps=1", "train.lr=1e-60", "train.optimizer=sgd"]);
    let moved = predicted(&text(&again), &inputs);
    let apart = expected.concat().iter().zip(moved.concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart > 0.0 && apart < 3.0, "scores are {apart} apart after a step that moves only running statistics");
    let Some(python) = Python::with_torch() else { return };
    for file in &files {
        let arguments = [&["1", "4", "5"].map(Path::new)[..], &[file], &inputs.iter().map(PathBuf::as_path).collect::<Vec<_>>()].concat();
        let said = python.run("resnet.py", &arguments);
        assert_eq!(said.lines().count(), inputs.len());
        for (line, expected) in said.lines().zip(&expected) {
            let scores: Vec<f64> = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert_close(&scores, expected, 1e-4, &text(file));
        }
    }
}

#[test]
fn who_lacks_the_model_says_which_binary_has_it() {
    let folder = temp();
    let run = folder.path().join("run");
    let sets: Vec<&str> = SMALL.iter().flat_map(|set| ["--set", set]).collect();
    let check = [&["check", CONFIG], &sets[..]].concat();
    Running::start("coordinator", &check).wait().failed(1, &["`resnet`", "--worker-binary"]);
    let example = text(&binary("own-model"));
    let checked = Running::start("coordinator", &[&check[..], &["--worker-binary", &example]].concat()).wait().succeeded();
    // Convolutions, norms and the head of 4, 4 to 8, 8 to 16 channels.
    assert!(checked.stdout.contains("resnet, 5,081 parameters") && checked.stdout.contains("16 x 5"), "{}", checked.stdout);
    let stock = LocalCluster::new(CONFIG).set_all(&SMALL).run();
    stock.failed(1, &["`resnet`", "none such", "--worker-binary"]);
    own("train", &["--set", "model.own.widht=8"]).wait().failed(1, &["[model.own]", "widht"]);
    let summary = own("summary", &[]).wait().succeeded().stdout;
    assert!(["blocks.0.bn1", "batch normalisation", "dense, 16 to 5"].iter().all(|word| summary.contains(word)), "{summary}");
    trained(&run, &["train.max_steps=1"]);
    Running::start("worker", &["eval", &text(&run)]).wait().failed(1, &["`resnet`", "none such"]);
    Running::start("own-model", &["eval", &text(&run)]).wait().succeeded();
}

#[test]
fn workers_join_a_coordinator_that_has_none_of_its_code() {
    let folder = temp();
    let run = folder.path().join("run");
    let (run_dir, example, listen) = (text(&run), text(&binary("own-model")), format!("127.0.0.1:{}", free_port()));
    let serve = |more: &[&str]| {
        let sets = SMALL.iter().flat_map(|set| ["--set", set]);
        let words = ["serve", CONFIG, "--run-dir", &run_dir, "--listen", &listen, "--advertise", "127.0.0.1", "--workers", "2"];
        let words: Vec<&str> = words.into_iter().chain(sets).chain(["--set", "train.max_steps=12"]).chain(more.iter().copied()).collect();
        Running::start("coordinator", &words)
    };
    serve(&[]).wait().failed(1, &["--worker-binary"]);
    let coordinator = serve(&["--worker-binary", &example]);
    let (address, token) = join_line(&run);
    let join = |name: &str| Running::start(name, &["join", &address, "--token", &token, "--devices", "cpu", "--cache-dir", &run_dir]);
    join("worker").wait().failed(1, &["`resnet`", "none such"]);
    let workers = [join("own-model"), join("own-model")];
    coordinator.wait().succeeded();
    for worker in workers {
        worker.wait().succeeded();
    }
    // The run directory knows what the model is.
    serve(&["--resume"]).wait().failed(1, &["is complete at step 12"]);
}
