//! What other programs make of a run's record and of its config.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cluster_tests::python::Python;
use cluster_tests::scenario::free_port;
use cluster_tests::{Running, pictures, project};

use super::{section, temp};

/// Runs a program on a few pictures, with these keys changed.
fn run(words: &[&str], section: &str, run_dir: &Path, environment: &[(&str, OsString)]) {
    let run_dir = run_dir.display().to_string();
    let mut words = words.to_vec();
    let sets = [section, "model.width=0.0625", "train.global_batch=12", "train.shards=4", "train.epochs=2"];
    words.extend(["configs/alexnet-synthetic.toml", "--devices", "cpu", "--run-dir", &run_dir]);
    sets.iter().for_each(|set| words.extend(["--set", set]));
    let (program, arguments) = (words[0], &words[1..]);
    Running::start_in(program, arguments, environment).wait().succeeded();
}

#[test]
fn tensorboard_shows_the_pictures_of_one_process_and_of_a_cluster() {
    let Some(python) = Python::with_packages() else { return };
    let folder = temp();
    let data = folder.path().join("data");
    pictures::class_folders(&data, 3, 12, 4);
    let section = section("images", &data);
    for words in [&["worker", "train"][..], &["coordinator", "local"]] {
        let run_dir = folder.path().join(words[0]);
        run(words, &section, &run_dir, &[]);
        let text = python.run("read_events.py", &[&run_dir]);
        let steps = |tag: &str| {
            let lines = text.lines().filter_map(|line| line.strip_prefix(tag)).map(|rest| rest.split_whitespace().collect::<Vec<_>>());
            let shown = lines.inspect(|words| assert!(words[2].parse::<u32>().is_ok_and(|colours| colours > 10), "{tag} {words:?}"));
            shown.map(|words| words[0].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(steps("train/first_batch "), ["1"], "{text}");
        for tag in ["model/first_layer ", "val/confusion "] {
            // After the last step always, and after others as far as drawing is fast.
            assert_eq!(steps(tag).last().map(String::as_str), Some("6"), "{words:?}: {text}");
        }
    }
}

#[test]
fn an_mlflow_server_has_the_record_of_a_run_that_went_on() {
    let Some(python) = Python::with_records() else { return };
    let (folder, kept) = (temp(), temp());
    let (data, run_dir, port) = (folder.path().join("data"), folder.path().join("run"), free_port().to_string());
    pictures::class_folders(&data, 3, 12, 4);
    let _server = python.serve("mlflow_server.py", &[Path::new(&port), kept.path()]);
    let url = format!("http://127.0.0.1:{port}");
    let environment = [("MLFLOW_TRACKING_URI", url.as_str()), ("MLFLOW_EXPERIMENT_NAME", "pictures of animals")];
    let environment = environment.map(|(name, value)| (name, OsString::from(value)));
    let section = section("images", &data);
    run(&["coordinator", "local"], &section, &run_dir, &environment);
    let read = || python.run("read_mlflow.py", &[Path::new(&url), Path::new("pictures of animals")]);
    let text = read();
    let count = |text: &str, begin: &str| text.lines().filter(|line| line.starts_with(begin)).count();
    let words =
        ["run alexnet-synthetic FINISHED", "param train.global_batch 12", "param data.kind images", "tag ringleader.weights_blake3 "];
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert_eq!((count(&text, "metric train/loss "), count(&text, "metric val/top1 ")), (6, 2), "{text}");
    let files = ["file config.toml ", "file summary.json ", "file val/confusion-00000006.png ", "file train/first_batch-00000001.png "];
    assert!(files.iter().all(|file| count(&text, file) == 1), "{text}");

    // It goes on for another epoch, in the same record.
    let config = run_dir.join("config.toml").display().to_string();
    let run_dir = run_dir.display().to_string();
    let words = ["train", &config, "--devices", "cpu", "--run-dir", &run_dir, "--resume", "--set", "train.epochs=3"];
    Running::start_in("worker", &words, &environment).wait().succeeded();
    let text = read();
    assert_eq!((count(&text, "run "), count(&text, "metric train/loss "), count(&text, "metric val/top1 ")), (1, 9, 3), "{text}");
}

#[test]
fn a_run_does_without_an_mlflow_server_that_is_away() {
    let folder = temp();
    let run_dir = folder.path().join("run").display().to_string();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let words = ["train", "configs/mlp-xor.toml", "--devices", "cpu", "--run-dir", &run_dir];
    let finished = Running::start_in("worker", &words, &[("MLFLOW_TRACKING_URI", nobody.into())]).wait().succeeded();
    let warnings = finished.stderr.lines().filter(|line| line.contains("MLflow's server at")).count();
    assert_eq!(warnings, 1, "{}", finished.stderr);
    assert!(Path::new(&run_dir).join("summary.json").exists());
}

#[test]
fn configs_fit_their_schema_and_mistakes_do_not() {
    let Some(python) = Python::with_records() else { return };
    let folder = temp();
    let schema = folder.path().join("schema.json");
    let printed = Running::start("coordinator", &["schema"]).wait().succeeded().stdout;
    std::fs::write(&schema, printed).unwrap_or_else(|e| panic!("{e}"));
    let entries = std::fs::read_dir(project().join("configs")).unwrap_or_else(|e| panic!("{e}"));
    let mut configs: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    let good = configs.len();
    assert!(good > 10, "{configs:?}");
    let wrong = [
        ("[train]\nepoch = 3", "epoch"),
        ("[train]\noptimizer = \"sdg\"", "sdg"),
        ("[train]\nlr = \"0,1\"", "0,1"),
        ("[model]\nkind = \"mlp\"\ndropout = 0.5", "dropout"),
        ("[cluster]\nworkers = 3", "workers"),
        ("[data]\nkind = \"pictures\"", "pictures"),
    ];
    for (number, (text, _)) in wrong.iter().enumerate() {
        let rest = ["[model]\nkind = \"softmax\"", "[data]\nkind = \"xor\"", "[train]"];
        let rest = rest.into_iter().filter(|rest| rest.split(']').next() != text.split(']').next());
        let path = folder.path().join(format!("{number}.toml"));
        let whole = ["name = \"t\""].into_iter().chain(rest).chain([*text]).collect::<Vec<_>>().join("\n");
        std::fs::write(&path, whole).unwrap_or_else(|e| panic!("{e}"));
        configs.push(path);
    }
    let arguments: Vec<&Path> = [&schema].into_iter().chain(&configs).map(PathBuf::as_path).collect();
    let text = python.run("check_schema.py", &arguments);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[..good].iter().all(|line| *line == "good"), "{text}");
    for ((_, word), line) in wrong.iter().zip(&lines[good..]) {
        assert!(line.contains(word), "{word}: {line}");
    }
}
