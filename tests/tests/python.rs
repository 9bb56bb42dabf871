//! What Python's packages make of what this project writes, and the other way round.

#[path = "python/records.rs"]
mod records;
#[path = "python/stores.rs"]
mod stores;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cluster_tests::python::Python;
use cluster_tests::{Finished, Running, pictures};
use tempfile::TempDir;

fn temp() -> TempDir {
    TempDir::new().unwrap_or_else(|e| panic!("{e}"))
}

/// The .tar files of a split.
fn shards(folder: &Path, split: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut shards: Vec<PathBuf> = entries.map(|e| e.unwrap_or_else(|e| panic!("{e}")).path()).collect();
    shards.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with(split) && name.ends_with(".tar")
    });
    shards.sort();
    shards
}

#[test]
fn webdataset_reads_what_data_pack_writes() {
    let Some(python) = Python::with_packages() else { return };
    let folder = temp();
    let (data, out) = (folder.path().join("data"), folder.path().join("pack"));
    pictures::class_folders(&data, 3, 6, 2);
    let [from, to] = [&data, &out].map(|path| path.display().to_string());
    let packed = Running::start("worker", &["data", "pack", &from, &to, "--short-side", "32"]).wait().succeeded();
    assert!(packed.stdout.contains("24 samples in 2 shards"), "{}", packed.stdout);
    for (split, each) in [("train", 6), ("val", 2)] {
        let paths = shards(&out, split);
        let text = python.run("read_shards.py", &paths.iter().map(PathBuf::as_path).collect::<Vec<_>>());
        let mut labels: BTreeMap<String, usize> = BTreeMap::new();
        for line in text.lines() {
            let [_key, label, size, mean] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            *labels.entry(label.to_owned()).or_default() += 1;
            // The pictures are 72 to 76 pixels wide and 70 high.
            assert!(["33x32", "34x32", "35x32"].contains(&size), "{line}");
            assert!(mean.parse::<f64>().is_ok_and(|mean| (60.0..160.0).contains(&mean)), "{line}");
        }
        assert_eq!(labels.into_iter().collect::<Vec<_>>(), ["0", "1", "2"].map(|label| (label.to_owned(), each)));
    }
    Running::start("worker", &["data", "verify", &to]).wait().succeeded();
}

/// Trains a little on this data.
fn trained(data: &str, run: &Path) -> Finished {
    let sets = [data, "model.width=0.0625", "train.global_batch=12", "train.shards=4", "train.epochs=2", "train.reproducible=true"];
    let run_dir = run.display().to_string();
    let mut words = vec!["train", "configs/alexnet-synthetic.toml", "--devices", "cpu", "--run-dir", &run_dir];
    sets.iter().for_each(|set| words.extend(["--set", set]));
    let mut finished = Running::start("worker", &words).wait().succeeded();
    finished.path = run.to_owned();
    finished
}

/// The digest and the accuracy of training on this kind of pictures, into a folder beside
/// them.
fn outcome(kind: &str, path: &Path) -> (String, f64) {
    let run = trained(&section(kind, path), &path.with_extension("run"));
    (run.digest(), run.summary()["top1"].as_f64().unwrap_or_else(|| panic!("there is no accuracy")))
}

/// A `[data]` section of this kind of pictures.
fn section(kind: &str, path: &Path) -> String {
    format!("data={{kind=\"{kind}\",path={path:?},image_size=64}}")
}

#[test]
fn shards_of_webdataset_and_of_data_pack_train_to_the_weights_of_the_folder() {
    let Some(python) = Python::with_packages() else { return };
    let folder = temp();
    let [data, theirs, ours] = ["data", "theirs", "ours"].map(|name| folder.path().join(name));
    pictures::class_folders(&data, 3, 12, 4);
    python.run("write_shards.py", &[&data, &theirs]);
    let [from, to] = [&data, &ours].map(|path| path.display().to_string());
    Running::start("worker", &["data", "pack", &from, &to]).wait().succeeded();
    let expected = outcome("images", &data);
    assert_eq!(outcome("webdataset", &theirs), expected);
    assert_eq!(outcome("webdataset", &ours), expected);
}

#[test]
fn parquet_files_as_the_hub_has_them_train_to_the_weights_of_the_folder() {
    let Some(python) = Python::with_packages() else { return };
    let folder = temp();
    let [data, hub, pack] = ["data", "hub", "pack"].map(|name| folder.path().join(name));
    pictures::class_folders(&data, 3, 12, 4);
    python.run("write_parquet.py", &[&data, &hub]);
    assert_eq!(outcome("parquet", &hub), outcome("images", &data));
    let [place, out, run, sheet] =
        [&hub, &pack, &hub.with_extension("run"), &folder.path().join("sheet.png")].map(|path| path.display().to_string());
    let shown = Running::start("worker", &["data", "show", &place, "--out", &sheet]).wait().succeeded();
    let words = ["3 classes, 36 training and 12 validation samples", "class 2"];
    assert!(words.iter().all(|word| shown.stdout.contains(word)), "{}", shown.stdout);
    let packed = Running::start("worker", &["data", "pack", &place, &out]).wait().succeeded();
    assert!(packed.stdout.contains("48 samples in 2 shards"), "{}", packed.stdout);
    let one = hub.join("data/train-00001-of-00002.parquet").display().to_string();
    let evaluated = Running::start("worker", &["eval", &run, "--data", &one]).wait().succeeded();
    assert!(evaluated.stdout.contains("18 samples"), "{}", evaluated.stdout);
}

#[test]
fn ilsvrc_as_it_is_downloaded_trains_evaluates_and_predicts_with_names() {
    let Some(python) = Python::with_packages() else { return };
    let folder = temp();
    let [data, imagenet, run] = ["data", "imagenet", "run"].map(|name| folder.path().join(name));
    pictures::class_folders(&data, 3, 12, 4);
    python.run("make_ilsvrc.py", &[&data, &imagenet]);
    let of_folder = trained(&section("images", &data), &folder.path().join("of-folder"));
    assert_eq!(trained(&section("ilsvrc", &imagenet), &run).digest(), of_folder.digest());
    let run = run.display().to_string();
    let evaluated = Running::start("worker", &["eval", &run]).wait().succeeded();
    assert!(["12 samples", "tench", "goldfish", "lion"].iter().all(|word| evaluated.stdout.contains(word)), "{}", evaluated.stdout);
    let picture = data.join("val/class 0/0.png").display().to_string();
    let predicted = Running::start("worker", &["predict", &run, &picture]).wait().succeeded();
    assert!(["tench", "goldfish", "lion"].iter().any(|name| predicted.stdout.contains(name)), "{}", predicted.stdout);
}

#[test]
fn tensorboard_reads_the_steps_that_count_and_the_config() {
    let Some(python) = Python::with_packages() else { return };
    let (folder, data) = (temp(), temp());
    pictures::class_folders(data.path(), 3, 12, 4);
    let run = folder.path().join("run");
    let section = section("images", data.path());
    trained(&section, &run);
    // It goes on from an earlier step: what it recorded of later ones is void.
    for gone in ["checkpoints/step-00000006", "summary.json"] {
        let path = run.join(gone);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let run_dir = run.display().to_string();
    let resumed = ["train", &format!("{run_dir}/config.toml"), "--devices", "cpu", "--run-dir", &run_dir, "--resume"];
    Running::start("worker", &resumed).wait().succeeded();
    let text = python.run("read_events.py", &[&run]);
    let of = |tag: &str| text.lines().filter(|line| line.starts_with(&format!("{tag} "))).map(str::to_owned).collect::<Vec<_>>();
    let losses = of("train/loss");
    let lines = cluster_tests::record::step_lines(&run);
    assert_eq!((losses.len(), lines.len()), (6, 6), "{text}");
    for (line, record) in losses.iter().zip(&lines) {
        let [_, step, loss] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!(step.parse::<u64>().ok(), record["step"].as_u64().map(|step| step + 1));
        let (found, expected) = (loss.parse::<f64>(), record["loss"].as_f64());
        assert!(found.ok().zip(expected).is_some_and(|(a, b)| (a - b).abs() < 1e-6), "{line} beside {record}");
    }
    assert_eq!(of("val/top1").len(), 2, "{text}");
    assert!(text.contains("hparam train.global_batch 12"), "{text}");
}
