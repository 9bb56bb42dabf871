//! What a reader of a document has before the first command: small, and made here.

use std::path::Path;
use std::process::Command;

use cluster_tests::{Running, binary, pictures, project};

/// What stands at a place of a document's folder.
enum Input {
    /// Class folders.
    Pictures,
    /// One picture.
    Picture,
    /// Three pictures of one size.
    Frames,
    /// IDX files.
    Digits,
    /// A finished run.
    Run,
    /// Weights of torchvision's AlexNet, narrower.
    Weights,
    Text(&'static str),
}

use Input::{Digits, Frames, Picture, Pictures, Run, Text, Weights};

/// By document and place.
const INPUTS: &[(&str, &str, Input)] = &[
    ("README.md", "pictures", Pictures),
    ("README.md", "data/fashion-mnist", Digits),
    ("README.md", "data/imagenette", Pictures),
    ("README.md", "data/imagenet", Pictures),
    ("README.md", "alexnet-owt-7be5be79.pth", Weights),
    ("README.md", "runs/example", Run),
    ("docs/cluster.md", "pictures", Pictures),
    ("docs/cluster.md", "runs/example", Run),
    ("docs/course.md", "runs/example", Run),
    ("docs/course.md", "PICTURE.jpg", Picture),
    ("docs/course.md", "my-digit.jpg", Picture),
    ("docs/course.md", "my-kernel.txt", Text("1/9 1/9 1/9\n1/9 1/9 1/9\n1/9 1/9 1/9\n")),
    ("docs/course.md", "prices.csv", Text("day,price\n1,10\n2,12.5\n3,11\n4,9\n5,10.25\n")),
    ("docs/course.md", "frames", Frames),
    ("docs/course.md", "pictures", Pictures),
    ("docs/course.md", "iris.csv", Text(IRIS)),
    ("docs/course.md", "new-flowers.csv", Text("sepal,petal\n5.0,1.5\n6.4,4.6\n")),
    ("docs/data.md", "pictures", Pictures),
    ("docs/deploy.md", "data/imagenet", Pictures),
    ("docs/failure.md", "runs/example", Run),
    ("docs/page.md", "runs/alexnet-imagenette", Run),
    ("docs/page.md", "runs/alexnet-imagenette-2", Run),
    ("docs/runs.md", "runs/example", Run),
    ("docs/training.md", "runs/example", Run),
    ("docs/weights.md", "data/imagenet", Pictures),
    ("docs/weights.md", "alexnet-owt-7be5be79.pth", Weights),
    ("docs/weights.md", "data/fashion-mnist", Digits),
    ("docs/weights.md", "runs/lenet", Run),
];

const IRIS: &str = "sepal,petal,species\n4.9,1.4,setosa\n7.0,4.7,versicolor\n5.0,1.3,setosa\n6.4,4.5,versicolor\n5.1,1.5,setosa\n\
    6.9,4.9,versicolor\n4.7,1.6,setosa\n5.5,4.0,versicolor\n4.6,1.0,setosa\n6.5,4.6,versicolor\n5.4,1.7,setosa\n5.7,4.5,versicolor\n\
    4.4,1.4,setosa\n6.3,4.7,versicolor\n4.8,1.9,setosa\n6.6,4.6,versicolor\n5.2,1.5,setosa\n5.2,3.9,versicolor\n4.3,1.1,setosa\n\
    6.7,4.4,versicolor\n5.8,1.2,setosa\n5.6,4.1,versicolor\n5.3,1.5,setosa\n6.2,4.5,versicolor\n5.0,1.6,setosa\n6.1,4.7,versicolor\n";

/// Makes in `store` what folders share: the run, the weights and the data.
pub(super) fn make(store: &Path) {
    pictures::class_folders(&store.join("pictures"), 2, 40, 8);
    pictures::digits(&store.join("digits"), 300, 40);
    let at = |name: &str| store.join(name).display().to_string();
    let small = ["--set", "train.max_steps=4"];
    let run = |words: &[&str]| Running::start("worker", words).wait().succeeded();
    let digits = format!("data.path={}", at("digits"));
    let example = ["train", "configs/lenet-relu.toml", "--run-dir", &at("run"), "--set", &digits, "--set", "train.audit=true", "-q"];
    run(&[&example[..], &small].concat());
    let pictures = format!("data.path={}", at("pictures"));
    let torchvision = ["train", "configs/alexnet.toml", "--run-dir", &at("torchvision"), "--set", &pictures, "-q"];
    let narrow = ["--set", "model.preset=torchvision", "--set", "model.width=0.05", "--set", "train.shards=8"];
    run(&[&torchvision[..], &narrow, &["--set", "train.global_batch=16"], &small].concat());
    run(&["export", &at("torchvision"), "--to", "pth", "--out", &at("weights.pth")]);
}

/// The folder of a document before its first command. `target/release` has the binaries that
/// this test would start, and what else the project has is linked.
pub(super) fn folder(document: &str, folder: &Path, store: &Path) {
    let done = |outcome: std::io::Result<()>| outcome.unwrap_or_else(|e| panic!("{document}: {e}"));
    for name in ["home", "data", "runs", "target/release"] {
        done(std::fs::create_dir_all(folder.join(name)));
    }
    for name in ["Makefile", "benches", "configs", "examples", "scripts"] {
        done(std::os::unix::fs::symlink(project().join(name), folder.join(name)));
    }
    for name in ["coordinator", "worker", "own-model"] {
        done(std::os::unix::fs::symlink(binary(name), folder.join("target/release").join(name)));
    }
    for (_, place, input) in INPUTS.iter().filter(|(of, ..)| *of == document) {
        let to = folder.join(place);
        match input {
            Pictures => copy(&store.join("pictures"), &to),
            Picture => copy(&store.join("pictures/val/class 0/1.JPEG"), &to),
            Frames => {
                done(std::fs::create_dir(&to));
                (0..3).for_each(|n| copy(&store.join("pictures/val/class 0/0.png"), &to.join(format!("{n}.png"))));
            }
            Digits => digits(store, &to),
            Run => copy(&store.join("run"), &to),
            Weights => copy(&store.join("weights.pth"), &to),
            Text(text) => done(std::fs::write(&to, text)),
        }
    }
}

/// What `worker data get` puts there.
pub(super) fn digits(store: &Path, to: &Path) {
    copy(&store.join("digits"), to);
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").args([from, to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "could not copy {} to {}", from.display(), to.display());
}
