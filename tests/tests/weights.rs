//! Weights that come from PyTorch and go back to it, and to ONNX Runtime.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use cluster_tests::Running;
use cluster_tests::python::Python;
use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::Value;
use tempfile::TempDir;

/// Scores that are farther apart are of other models.
const WITHIN: f64 = 1e-4;

fn temp() -> TempDir {
    TempDir::new().unwrap_or_else(|e| panic!("{e}"))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Trains one step by this config, in a folder beside it.
fn trained(folder: &Path, name: &str, config: &str, sets: &[&str]) -> PathBuf {
    let [config_path, run] = ["toml", "run"].map(|extension| folder.join(format!("{name}.{extension}")));
    std::fs::write(&config_path, format!("name = \"{name}\"\n{config}")).unwrap_or_else(|e| panic!("{e}"));
    let [config_path, run_dir] = [&config_path, &run].map(|path| text(path));
    let mut words = vec!["train", &config_path, "--devices", "cpu", "--run-dir", &run_dir, "--set", "train.max_steps=1"];
    sets.iter().for_each(|set| words.extend(["--set", set]));
    Running::start("worker", &words).wait().succeeded();
    run
}

fn exported(run: &Path, to: &str, more: &[&str], out: &Path) {
    let [run, out] = [text(run), text(out)];
    let words = [&["export", &run, "--to", to, "--out", &out], more].concat();
    let done = Running::start("worker", &words).wait().succeeded();
    assert!(done.stdout.contains("the weights after step 1"), "{}", done.stdout);
}

/// The scores of each input by class, as `worker predict` has them.
fn predicted(run: &Path, inputs: &[PathBuf], classes: &[String]) -> Vec<Vec<f64>> {
    let (run, inputs) = (text(run), inputs.iter().map(|path| text(path)).collect::<Vec<_>>());
    let mut words = vec!["predict", &run, "--json", "--top", "100000", "--device", "cpu"];
    words.extend(inputs.iter().map(String::as_str));
    let output = Running::start("worker", &words).wait().succeeded().stdout;
    let found = Value::from_str(&output).unwrap_or_else(|e| panic!("{e}: {output}"));
    let score = |prediction: &Value, class: &String| {
        let top = prediction["top"].as_array().into_iter().flatten().find(|guess| guess["class"] == **class);
        top.and_then(|guess| guess["score"].as_f64()).unwrap_or_else(|| panic!("no score of {class} in {prediction}"))
    };
    found.as_array().into_iter().flatten().map(|prediction| classes.iter().map(|class| score(prediction, class)).collect()).collect()
}

fn numbers(line: &str) -> Vec<f64> {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart < WITHIN, "{what}: {apart} apart, {found:?} and {expected:?}");
}

/// What `tests/python/onnx_scores.py` says of each model with its inputs: classes, and scores
/// of each input.
fn by_onnx_runtime(python: &Python, models: &[(PathBuf, &[PathBuf])]) -> Vec<(Vec<String>, Vec<Vec<f64>>)> {
    let arguments: Vec<&Path> =
        models.iter().flat_map(|(model, inputs)| std::iter::once(model).chain(*inputs)).map(PathBuf::as_path).collect();
    let output = python.run("onnx_scores.py", &arguments);
    let of = |line: &str| {
        let mut found = Value::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let [classes, scores] = ["classes", "scores"].map(|key| found[key].take());
        let classes = serde_json::from_value(classes).unwrap_or_else(|e| panic!("{e}: {line}"));
        (classes, serde_json::from_value(scores).unwrap_or_else(|e| panic!("{e}: {line}")))
    };
    output.lines().map(of).collect()
}

/// Two pictures of this size.
fn pictures(folder: &Path, size: u32) -> Vec<PathBuf> {
    let picture = |number: u32| {
        let path = folder.join(format!("{size}-{number}.png"));
        let value = |x: u32, y: u32, channel: u32| ((x * 7 + y * (3 + channel) + number * 50) * (1 + channel) % 256) as u8;
        RgbImage::from_fn(size, size, |x, y| Rgb([0, 1, 2].map(|channel| value(x, y, channel))))
            .save(&path)
            .unwrap_or_else(|e| panic!("{e}"));
        path
    };
    (0..2).map(picture).collect()
}

/// MNIST's four files with a few grey pictures of noise.
fn idx(folder: &Path) {
    for (split, count) in [("train", 16u32), ("t10k", 4)] {
        let header =
            |kind: u8, sizes: &[u32]| [0, 0, 8, kind].into_iter().chain(sizes.iter().flat_map(|n| n.to_be_bytes())).collect::<Vec<u8>>();
        let mut images = header(3, &[count, 28, 28]);
        images.extend((0..count * 28 * 28).map(|i| (i * 31 % 251) as u8));
        let mut labels = header(1, &[count]);
        labels.extend((0..count).map(|i| (i % 10) as u8));
        for (name, bytes) in [("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)] {
            std::fs::write(folder.join(format!("{split}-{name}")), bytes).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

#[test]
fn onnx_runtime_gives_the_scores_of_every_model() {
    let Some(python) = Python::with_packages() else { return };
    let folder = temp();
    let folder = folder.path();
    idx(folder);
    let mean = "mean = [0.5, 0.4, 0.3]\nstd = [0.25, 0.2, 0.3]";
    let synthetic = |classes: u32, size: u32| {
        format!(
            "[data]\nkind = \"synthetic\"\nclasses = {classes}\ntrain = 16\nval = 4\nimage_size = {size}\n{mean}\n[train]\nglobal_batch = 8\nshards = 2\nlr = 0.01\n"
        )
    };
    let table = folder.join("table.csv");
    let rows: String = (0..24).map(|n| format!("{},{},{}\n", n * 3 % 7, 100 + n % 5, if n % 2 == 0 { "even" } else { "odd" })).collect();
    std::fs::write(&table, format!("a,b,label\n{rows}")).unwrap_or_else(|e| panic!("{e}"));
    let [of_table, of_idx] = [
        format!("[data]\nkind = \"csv\"\npath = {table:?}\n[train]\nglobal_batch = 8\nshards = 2\nlr = 0.01\n"),
        format!("[data]\nkind = \"idx\"\npath = {folder:?}\nimage_size = 28\n[train]\nglobal_batch = 8\nshards = 2\nlr = 0.01\n"),
    ];
    let rule = "[data]\nkind = \"synthetic\"\nclasses = 2\ntrain = 16\nval = 4\nimage_size = 8\n[train]\nglobal_batch = 1\nshards = 1\nlr = 1.0\noptimizer = \"sgd\"\nmomentum = 0\nweight_decay = 0\nschedule = \"constant\"\n";
    let alexnet = |preset: &str| format!("[model]\nkind = \"alexnet\"\nwidth = 0.05\npreset = {preset:?}\n");
    let grey: Vec<PathBuf> = (0..2u32)
        .map(|number| {
            let path = folder.join(format!("grey-{number}.png"));
            GrayImage::from_fn(28, 28, |x, y| Luma([((x * y + number * 40) % 256) as u8])).save(&path).unwrap_or_else(|e| panic!("{e}"));
            path
        })
        .collect();
    let at = |size: u32| pictures(folder, size);
    let models = [
        ("perceptron", "[model]\nkind = \"perceptron\"\n".to_owned() + rule, at(8)),
        ("softmax", "[model]\nkind = \"softmax\"\n".to_owned() + &synthetic(3, 8), at(8)),
        ("mlp", "[model]\nkind = \"mlp\"\nhidden = [9, 8]\nactivation = \"sigmoid\"\n".to_owned() + &synthetic(3, 8), at(8)),
        ("table", "[model]\nkind = \"mlp\"\nhidden = [5]\nactivation = \"tanh\"\n".to_owned() + &of_table, vec![table.clone()]),
        ("identity", "[model]\nkind = \"mlp\"\nhidden = [5]\nactivation = \"identity\"\n".to_owned() + &synthetic(3, 8), at(8)),
        ("lenet", "[model]\nkind = \"lenet\"\n".to_owned() + &of_idx, grey),
        ("lenet-relu", "[model]\nkind = \"lenet\"\npool = \"max\"\nactivation = \"relu\"\n".to_owned() + &synthetic(4, 20), at(20)),
        ("notes", alexnet("notes") + &synthetic(3, 64), at(64)),
        ("original", alexnet("original") + &synthetic(3, 97), at(97)),
        // The adaptive pool makes 6 of 1, of 2 and of 7.
        ("torchvision-64", alexnet("torchvision") + &synthetic(3, 64), at(64)),
        ("torchvision-97", alexnet("torchvision") + &synthetic(3, 97), at(97)),
        ("torchvision-256", alexnet("torchvision") + &synthetic(3, 256), at(256)),
    ];
    let mut runs = Vec::new();
    let mut exports = Vec::new();
    for (name, config, inputs) in &models {
        let run = trained(folder, name, config, &[]);
        for (which, more) in [("plain", &[][..]), ("normalized", &["--normalize"])] {
            let model = folder.join(format!("{name}-{which}.onnx"));
            exported(&run, "onnx", more, &model);
            exports.push((model, &inputs[..]));
        }
        runs.push((name, run, inputs));
    }
    let found = by_onnx_runtime(&python, &exports);
    assert_eq!(found.len(), exports.len());
    for ((name, run, inputs), both) in runs.iter().zip(found.chunks(2)) {
        let expected = predicted(run, inputs, &both[0].0);
        assert!(expected.len() >= 2, "{name}");
        for (classes, scores) in both {
            assert_eq!((classes, scores.len()), (&both[0].0, expected.len()), "{name}");
            scores.iter().zip(&expected).for_each(|(scores, expected)| assert_close(scores, expected, name));
        }
    }
}

#[test]
fn torchvisions_alexnet_comes_in_and_goes_back() {
    let Some(python) = Python::with_torch() else { return };
    let folder = temp();
    let folder = folder.path();
    let expected = numbers(python.run("torchvision_alexnet.py", &[Path::new("make"), folder]).trim());
    // A rate that is 0 as f32.
    let config = "[model]\nkind = \"alexnet\"\npreset = \"torchvision\"\n[data]\nkind = \"synthetic\"\nclasses = 10\ntrain = 12\nval = 10\nimage_size = 224\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n[train]\nglobal_batch = 4\nshards = 2\noptimizer = \"sgd\"\nlr = 1e-60\nmomentum = 0\n";
    let classes: Vec<String> = (0..10).map(|class| format!("pattern {class}")).collect();
    let picture = [folder.join("picture.png")];
    let weights = format!("model.weights={}", folder.join("checkpoint.pt").display());
    let run = trained(folder, "alexnet", config, &[&weights]);
    assert_close(&predicted(&run, &picture, &classes)[0], &expected, "here");
    let [pth, safetensors, onnx] = ["back.pth", "back.safetensors", "back.onnx"].map(|name| folder.join(name));
    exported(&run, "pth", &[], &pth);
    exported(&run, "safetensors", &["--checkpoint", "1"], &safetensors);
    let back = python.run("torchvision_alexnet.py", &[Path::new("back"), folder, &pth, &safetensors]);
    assert_eq!(back.lines().count(), 2);
    back.lines().for_each(|line| assert_close(&numbers(line), &expected, "back in torchvision"));
    exported(&run, "onnx", &["--normalize"], &onnx);
    assert_close(&by_onnx_runtime(&python, &[(onnx, &picture)])[0].1[0], &expected, "in ONNX Runtime");
}
