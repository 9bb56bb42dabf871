//! Runs whose data and whose copies lie in an S3 store.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use cluster_tests::python::{Python, Served};
use cluster_tests::scenario::free_port;
use cluster_tests::{Finished, Running, pictures, until};

use super::{shards, temp};

/// What says where the store is, and who asks.
fn store(port: u16, cache: &Path) -> Vec<(&'static str, OsString)> {
    let endpoint = format!("http://127.0.0.1:{port}");
    let words = [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];
    let words = words.into_iter().map(|(name, value)| (name, OsString::from(value)));
    words.chain([("AWS_REGION", OsString::from("us-east-1")), ("XDG_CACHE_HOME", cache.into())]).collect()
}

fn served(python: &Python, port: u16, folder: Option<&Path>) -> Served {
    let port = port.to_string();
    let arguments = [Some(Path::new(&port)), folder];
    python.serve("s3_server.py", &arguments.into_iter().flatten().collect::<Vec<_>>())
}

/// The words of a reproducible run of an epoch on shards at `path`, 12 samples a step.
fn words(program: &str, path: &str, run: &Path) -> Vec<String> {
    let mut words: Vec<String> = match program {
        "coordinator" => ["local", "configs/alexnet-synthetic.toml", "--workers", "2"].map(str::to_owned).to_vec(),
        _ => ["train", "configs/alexnet-synthetic.toml"].map(str::to_owned).to_vec(),
    };
    let section = format!("data={{kind=\"webdataset\",path={path:?},image_size=64}}");
    let sets = [section.as_str(), "model.width=0.25", "train.global_batch=12", "train.shards=4", "train.reproducible=true"];
    let sets = sets.into_iter().chain(["train.epochs=1", "train.schedule=\"constant\""]);
    words.extend(["--devices".to_owned(), "cpu".to_owned(), "--run-dir".to_owned(), run.display().to_string()]);
    sets.for_each(|set| words.extend(["--set".to_owned(), set.to_owned()]));
    words
}

fn start(program: &str, words: &[String], environment: &[(&str, OsString)]) -> Running {
    Running::start_in(program, &words.iter().map(String::as_str).collect::<Vec<_>>(), environment)
}

/// A pack of made pictures below `folder`, and the digest of a run on it.
fn packed(folder: &Path, each: u32) -> String {
    let [data, pack] = ["data", "store/pack"].map(|name| folder.join(name));
    pictures::class_folders(&data, 3, each, 4);
    let [from, to] = [&data, &pack].map(|path| path.display().to_string());
    Running::start("worker", &["data", "pack", &from, &to]).wait().succeeded();
    assert!(!shards(&pack, "train").is_empty());
    let run = folder.join("of-folder");
    ended(start("worker", &words("worker", &pack.display().to_string(), &run), &[]), &run).digest()
}

fn ended(running: Running, run: &Path) -> Finished {
    let mut finished = running.wait().succeeded();
    finished.path = run.to_owned();
    finished
}

#[test]
fn workers_read_a_store_themselves_and_survive_its_absence() {
    let Some(python) = Python::with_packages() else { return };
    let folder = temp();
    let expected = packed(folder.path(), 400);
    let (port, run) = (free_port(), folder.path().join("run"));
    // Nothing can be kept there: the pictures of each step are asked for anew.
    let environment = store(port, Path::new("/proc/none"));
    let server = served(&python, port, Some(&folder.path().join("store")));
    let mut running = start("coordinator", &words("coordinator", "s3://data/pack", &run), &environment);
    running.path = run.clone();
    running.wait_for_steps(3);
    drop(server);
    std::thread::sleep(Duration::from_secs(10));
    assert!(running.is_running(), "it has read everything before: {}", running.log());
    let _server = served(&python, port, Some(&folder.path().join("store")));
    let finished = ended(running, &run);
    assert_eq!(finished.digest(), expected);
    assert!(!finished.stderr.contains("samples come from the coordinator"), "{}", finished.stderr);
}

#[test]
fn a_run_goes_on_from_its_mirror_on_another_machine() {
    let Some(python) = Python::with_packages() else { return };
    let folder = temp();
    let expected = packed(folder.path(), 24);
    let port = free_port();
    let environment = store(port, &folder.path().join("cache"));
    let _server = served(&python, port, None);
    let pack = folder.path().join("store/pack").display().to_string();
    let mirrored = |run: &Path, more: &[&str]| {
        let mut words = words("worker", &pack, run);
        let own = ["--set", "run.mirror=\"s3://data/runs/one\"", "--set", "train.checkpoint_steps=2"];
        words.extend(own.into_iter().chain(more.iter().copied()).map(str::to_owned));
        start("worker", &words, &environment)
    };
    let first = folder.path().join("first");
    let stopped = ended(mirrored(&first, &["--set", "train.max_steps=4"]), &first);
    assert_ne!(stopped.digest(), expected);
    // Its machine is lost, and the next one has nothing but the config.
    std::fs::remove_dir_all(&first).unwrap_or_else(|e| panic!("{e}"));
    let second = folder.path().join("second");
    let finished = ended(mirrored(&second, &["--resume"]), &second);
    assert_eq!(finished.digest(), expected);
    assert!(finished.stderr.contains("copied from its mirror"), "{}", finished.stderr);
    assert_eq!(finished.steps().len(), 6, "the record has every step once");
    let refused = folder.path().join("refused");
    mirrored(&refused, &[]).wait().failed(1, &["s3://data/runs/one", "--resume"]);
    until("summary.json", Duration::from_secs(10), || second.join("summary.json").exists().then_some(()));
}
