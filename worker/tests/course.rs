//! The course's models from their configs to their pictures, through the binary:
//! every config, on every device of this build.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::seed;
use worker::data::write_png;

/// The devices that this build has.
fn devices() -> Vec<&'static str> {
    let libtorch = cfg!(feature = "libtorch").then_some("cpu");
    let flex = cfg!(feature = "flex").then_some("flex");
    libtorch.into_iter().chain(flex).collect()
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn config(name: &str) -> String {
    project().join("configs").join(name).display().to_string()
}

/// Runs the binary in `folder`.
fn worker(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_worker")).args(args).arg("-q").current_dir(folder).output().unwrap()
}

/// Runs the binary, which must succeed; returns its stdout.
fn ok(folder: &Path, args: &[&str]) -> String {
    let output = worker(folder, args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Runs the binary, which must fail; returns its stderr.
fn refused(folder: &Path, args: &[&str]) -> String {
    let output = worker(folder, args);
    assert!(!output.status.success(), "{args:?} should have failed");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn summary(run: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap()
}

/// Ten classes of 28x28 pictures in MNIST's format: a bright bar at the place of
/// the class, under noise.
fn idx(folder: &Path, train: u32, val: u32) -> PathBuf {
    let folder = folder.join("idx");
    std::fs::create_dir_all(&folder).unwrap();
    for (prefix, n) in [("train", train), ("t10k", val)] {
        let mut pictures = [&[0, 0, 8, 3][..], &n.to_be_bytes(), &28u32.to_be_bytes(), &28u32.to_be_bytes()].concat();
        let mut labels = [&[0, 0, 8, 1][..], &n.to_be_bytes()].concat();
        for id in 0..n {
            let label = id % 10;
            labels.push(label as u8);
            let mut rng = seed::stream(1, prefix, &[id.into()]);
            pictures.extend((0..28 * 28).map(|i| {
                let bar = (i / 28) / 3 == label as usize + usize::from(label > 8);
                (seed::below(&mut rng, 80) + if bar { 150 } else { 0 }) as u8
            }));
        }
        std::fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), pictures).unwrap();
        std::fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).unwrap();
    }
    folder
}

/// Two classes of small colour pictures.
fn pictures(folder: &Path) -> PathBuf {
    let folder = folder.join("pictures");
    for (split, n) in [("train", 5), ("val", 2)] {
        for (class, colour) in [("red", [200, 30, 30]), ("blue", [20, 40, 220])] {
            let place = folder.join(split).join(class);
            std::fs::create_dir_all(&place).unwrap();
            for id in 0..n {
                write_png(&place.join(format!("{id}.png")), 40, 30 + id, 3, &colour.repeat(40 * (30 + id) as usize)).unwrap();
            }
        }
    }
    folder
}

#[test]
fn every_config_trains_on_every_device() {
    let folder = tempfile::tempdir().unwrap();
    let idx = format!("data.path={}", idx(folder.path(), 40, 20).display());
    let pictures = format!("data.path={}", pictures(folder.path()).display());
    let mut seen = 0;
    for entry in std::fs::read_dir(project().join("configs")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Their schema lies beside them.
        if name == "schema.json" {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let mut set = vec!["train.max_steps=2", "train.checkpoint_steps=2"];
        if !name.starts_with("perceptron") {
            set.extend(["train.shards=2", "train.global_batch=4", "train.threads=1"]);
        }
        if text.contains("kind = \"alexnet\"") {
            set.push("model.width=0.25");
        }
        if text.contains("kind = \"idx\"") {
            set.push(&idx);
        } else if text.contains("kind = \"images\"") {
            set.push(&pictures);
        } else if text.contains("kind = \"synthetic\"") {
            set.extend(["data.train=20", "data.val=10"]);
        }
        let begun = format!("model.weights={}", folder.path().join("begun").display());
        if text.contains("\nweights = ") {
            // The run that it names.
            let given = project().join("configs/alexnet-imagenette.toml").display().to_string();
            let mut args = vec!["train", &given, "--run-dir", begun.trim_start_matches("model.weights=")];
            set.iter().for_each(|s| args.extend(["--set", s]));
            ok(folder.path(), &args);
            set.push(&begun);
        }
        for device in devices() {
            let run = folder.path().join(format!("{name}-{device}"));
            let path = run.display().to_string();
            let mut args = vec!["train", entry.path().to_str().unwrap().to_owned().leak(), "--run-dir", &path, "--device", device];
            set.iter().for_each(|s| args.extend(["--set", s]));
            let out = ok(folder.path(), &args);
            assert!(out.contains("curves.png") && run.join("curves.png").exists(), "{name} {device}: {out}");
            let summary = summary(&run);
            assert_eq!(summary["steps"], 2, "{name} {device}");
            assert!(summary["loss"].as_f64().unwrap().is_finite() && summary["top1"].is_f64(), "{name} {device}: {summary}");
            std::fs::remove_dir_all(&run).unwrap();
        }
        seen += 1;
    }
    assert!(seen >= 14, "only {seen} configs");
}

#[test]
fn the_perceptron_stays_under_its_bound_and_gives_up_on_xor() {
    for device in devices() {
        let folder = tempfile::tempdir().unwrap();
        let out = ok(folder.path(), &["train", &config("perceptron.toml"), "--run-dir", "p", "--device", device]);
        let number = |before: &str, after: &str| -> f64 {
            let rest = out.split(before).nth(1).unwrap_or_else(|| panic!("no {before:?} in {out}"));
            rest.split(after).next().unwrap().trim().parse().unwrap()
        };
        let (updates, bound) = (number("perceptron: ", " updates"), number("(r² + 1)/ρ² = ", " updates"));
        assert!(updates > 0.0 && updates <= bound && bound < 1e5, "{out}");
        assert!(out.contains("every training sample is right"), "{out}");
        assert!(folder.path().join("p/regions.png").exists());

        let out = ok(folder.path(), &["train", &config("perceptron-xor.toml"), "--run-dir", "x", "--device", device]);
        assert!(out.contains("in 100 epochs") && out.contains("no line separates the data"), "{out}");
        for point in ["0.000    0.000      0", "0.000    1.000      1", "1.000    0.000      1", "1.000    1.000      0"] {
            assert!(out.contains(point), "{point}: {out}");
        }
        assert_eq!(summary(&folder.path().join("x"))["steps"], 400);
    }
}

#[test]
fn a_hidden_layer_solves_xor_unless_it_is_linear() {
    let folder = tempfile::tempdir().unwrap();
    for (n, activation) in ["relu", "sigmoid", "tanh", "identity"].into_iter().enumerate() {
        for seed in 1..=3 {
            let run = format!("{n}-{seed}");
            let (activation_key, seed_key) = (format!("model.activation={activation}"), format!("seed={seed}"));
            let args = ["train", &config("mlp-xor.toml"), "--run-dir", &run, "--set", &activation_key, "--set", &seed_key];
            ok(folder.path(), &args);
            let top1 = summary(&folder.path().join(&run))["top1"].as_f64().unwrap();
            if activation == "identity" {
                assert!(top1 <= 0.75, "a line got {top1} of the corners right");
            } else {
                assert_eq!(top1, 1.0, "{activation}, seed {seed}");
            }
        }
    }
}

#[test]
fn a_trained_model_can_be_evaluated_asked_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let data = idx(at, 400, 60);
    let key = format!("data.path={}", data.display());
    let train = ["train", &config("lenet-relu.toml"), "--run-dir", "run", "--set", &key, "--set", "train.global_batch=32"];
    ok(at, &[&train[..], &["--set", "train.epochs=3", "--set", "train.lr=0.05"]].concat());

    let text = ok(at, &["eval", "run"]);
    assert!(text.contains("60 samples") && text.contains("precision") && text.contains("confusion"), "{text}");
    assert!(at.join("run/confusion.png").exists());
    let report: serde_json::Value = serde_json::from_str(&ok(at, &["eval", "run", "--json", "--out", "other"])).unwrap();
    assert!((report["top1"].as_f64().unwrap() - summary(&at.join("run"))["top1"].as_f64().unwrap()).abs() < 1e-9);
    let counted: u64 =
        report["confusion"].as_array().unwrap().iter().flat_map(|r| r.as_array().unwrap()).map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(counted, 60);
    assert!(report["top1"].as_f64().unwrap() > 0.9, "bars are learnt at once: {report}");

    // A bar like that of class 4, as a colour picture of another size.
    let bright = |i: usize| if (i / 56) / 6 == 4 { 200 } else { 30 };
    let values: Vec<u8> = (0..56 * 56).flat_map(|i| [bright(i); 3]).collect();
    write_png(&at.join("bar.png"), 56, 56, 3, &values).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&ok(at, &["predict", "run", "bar.png", "--json", "--top", "3"])).unwrap();
    assert_eq!(answer[0]["top"].as_array().unwrap().len(), 3);
    assert_eq!(answer[0]["top"][0]["class"], "4", "{answer}");
    let inverted: Vec<u8> = values.iter().map(|v| 255 - v).collect();
    write_png(&at.join("dark.png"), 56, 56, 3, &inverted).unwrap();
    assert!(ok(at, &["predict", "run", "dark.png", "--invert"]).contains("dark.png: 4 "));
    std::fs::write(at.join("bad.png"), b"no picture").unwrap();
    let text = refused(at, &["predict", "run", "bad.png", "bar.png"]);
    assert!(text.contains("bad.png") && text.contains("no picture that is read"), "{text}");

    let files = ok(at, &["plot", "run", "--format", "svg", "--out", "drawn"]);
    assert!(files.contains("curves.svg") && files.contains("filters.svg") && !files.contains("regions"), "{files}");
    assert!(refused(at, &["plot", "run", "--what", "regions"]).contains("two features"));
    assert!(ok(at, &["plot", "run", "run", "--out", "both"]).contains("curves.png"));
    assert!(ok(at, &["plot", "--out", "functions"]).contains("activations.png"));
    assert!(refused(at, &["eval", "idx"]).contains("holds no run"));
    assert!(refused(at, &["eval", "run", "--data", "nowhere"]).contains("nowhere"));

    let text = ok(at, &["data", "show", "idx", "--out", "sheet.png"]);
    assert!(text.contains("400 training and 60 validation") && at.join("sheet.png").exists(), "{text}");
}

#[test]
fn a_table_goes_all_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut rng = seed::stream(3, "table", &[]);
    let mut text = "width,kind,height\n".to_owned();
    for n in 0..120 {
        let (w, h) = (100.0 + 10.0 * seed::normal(&mut rng), 0.5 + 0.1 * seed::normal(&mut rng));
        let (w, kind) = if n % 2 == 0 { (w, "narrow") } else { (w + 100.0, "wide") };
        text += &format!("{w},{kind},{h}\n");
    }
    std::fs::write(at.join("t.csv"), text).unwrap();
    let set = ["--set", "data.kind=csv", "--set", "data.path=t.csv", "--set", "data.label=kind"];
    let plain = "name = \"table\"\n[model]\nkind = \"softmax\"\n[data]\nkind = \"csv\"\npath = \"?\"\n[train]\nepochs = 20\nglobal_batch = 8\nlr = 0.1\n";
    std::fs::write(at.join("table.toml"), plain).unwrap();
    let out = ok(at, &[&["train", "table.toml", "--run-dir", "run"][..], &set].concat());
    assert!(out.contains("regions.png"), "{out}");
    assert_eq!(summary(&at.join("run"))["top1"], 1.0);
    // Rows without a label, with the columns in another order and one more column.
    std::fs::write(at.join("new.csv"), "height,note,width\n0.5,a,105\n0.4,b,190\n").unwrap();
    let answer: serde_json::Value = serde_json::from_str(&ok(at, &["predict", "run", "new.csv", "--json"])).unwrap();
    assert_eq!((&answer[0]["top"][0]["class"], &answer[1]["top"][0]["class"]), (&"narrow".into(), &"wide".into()));
    std::fs::write(at.join("test.csv"), "width,height,kind\n110,0.5,narrow\n90,0.5,wide\n").unwrap();
    assert!(ok(at, &["eval", "run", "--data", "test.csv"]).contains("top-1 50.00%"));
    // Rows without a label are predicted, and neither right nor wrong.
    std::fs::write(at.join("some.csv"), "width,height,kind\n110,0.5,narrow\n90,0.5,\n90,0.5,?\n").unwrap();
    assert!(ok(at, &["eval", "run", "--data", "some.csv"]).contains("top-1 100.00%"));
    assert_eq!(ok(at, &["predict", "run", "some.csv"]).matches("narrow").count(), 3);
    assert!(refused(at, &["eval", "run", "--data", "new.csv"]).contains("no label column `kind`"));

    let text = ok(at, &["data", "show", "t.csv", "--label", "kind"]);
    assert!(text.contains("narrow") && text.contains("width") && at.join("t-sheet.png").exists(), "{text}");
    let text = refused(at, &["data", "show", "t.csv"]);
    assert!(text.contains("t.csv") && text.contains("no label column `label`") && text.contains("`kind`"), "{text}");
}

#[test]
fn summaries_count_and_compare() {
    let folder = tempfile::tempdir().unwrap();
    let text = ok(folder.path(), &["summary", &config("lenet.toml")]);
    assert!(text.contains("61,706") && text.contains("416,520") && text.contains("10 classes are assumed"), "{text}");
    let text = ok(folder.path(), &["summary", "--compare", &config("lenet.toml"), &config("alexnet.toml")]);
    assert!(text.contains("10 times LeNet's parameters") && text.contains("times the compute"), "{text}");
    assert!(ok(folder.path(), &["summary", "--megapixels", "12"]).contains("14.400 GB"));
    assert!(refused(folder.path(), &["summary"]).contains("CONFIG"));
}

#[test]
fn bad_input_is_named_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let data = idx(at, 40, 20);
    let cut = data.join("train-images-idx3-ubyte");
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 5]).unwrap();
    let key = format!("data.path={}", data.display());
    let text = refused(at, &["train", &config("softmax.toml"), "--run-dir", "a", "--set", &key]);
    assert!(text.contains("train-images-idx3-ubyte") && text.contains("cut short"), "{text}");

    let pictures = pictures(at);
    std::fs::create_dir(pictures.join("train/green")).unwrap();
    let key = format!("data.path={}", pictures.display());
    let alexnet = config("alexnet.toml");
    let text = refused(at, &["train", &alexnet, "--run-dir", "b", "--set", &key]);
    assert!(text.contains("train/green") && text.contains("without a single"), "{text}");
    std::fs::remove_dir(pictures.join("train/green")).unwrap();

    write_png(&pictures.join("train/red/0.png"), 1, 1, 3, &[1, 2, 3]).unwrap();
    let small = ["--set", "train.shards=2", "--set", "train.global_batch=10", "--set", "model.width=0.05", "--set", "data.on_corrupt=stop"];
    let text = refused(at, &[&["train", &alexnet, "--run-dir", "c", "--set", &key][..], &small].concat());
    assert!(text.contains("train/red/0.png") && text.contains("1x1"), "{text}");

    std::fs::write(at.join("even.txt"), "1 2\n3 4\n").unwrap();
    let picture = pictures.join("train/red/1.png").display().to_string();
    let text = refused(at, &["filter", "--kernel", "even.txt", &picture, "out.png"]);
    assert!(text.contains("even.txt") && text.contains("must be odd"), "{text}");

    let text = refused(at, &["train", &config("perceptron.toml"), "--set", "data.kind=idx", "--run-dir", "d"]);
    assert!(text.contains("data."), "{text}");
}
