//! `coordinator runs`: the runs of a folder, what state each is in and how good it is.
//! It takes no lock and changes nothing.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::Args;
use common::metrics::Evaluation;
use common::recorder::{Length, plan};
use common::run_dir::{Event, RunView};
use common::ui::{duration, visible};
use indicatif::HumanBytes;
use serde::Serialize;

#[derive(Debug, Args)]
pub struct RunsArgs {
    /// The folder that holds the run directories.
    #[arg(default_value = "runs")]
    pub folder: PathBuf,
    /// Print a JSON array.
    #[arg(long)]
    pub json: bool,
}

/// What a run is doing, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
enum State {
    /// A process has it.
    Training,
    Finished,
    /// It can go on with --resume.
    Stopped,
    Failed {
        reason: String,
    },
    /// The record cannot be read.
    Damaged {
        reason: String,
    },
}

/// A run of the list.
#[derive(Debug, Serialize)]
struct Row {
    run: PathBuf,
    #[serde(flatten)]
    state: State,
    model: String,
    /// Committed steps, and those of the whole run; none where that is not known.
    steps: u64,
    of: Option<u64>,
    /// The best accuracy of an evaluation, as a share, and the last one.
    #[serde(with = "common::json_number::optional")]
    best_top1: Option<f64>,
    #[serde(with = "common::json_number::optional")]
    last_top1: Option<f64>,
    bytes: u64,
    /// Seconds since something was written.
    idle_seconds: u64,
}

/// The list as text.
pub fn run(args: &RunsArgs) -> Result<String> {
    let entries = std::fs::read_dir(&args.folder)
        .with_context(|| format!("could not read `{}`: name the folder that holds the run directories", args.folder.display()))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.join("config.toml").is_file()).collect();
    if found.is_empty() && args.folder.join("config.toml").is_file() {
        found.push(args.folder.clone());
    }
    if found.is_empty() {
        bail!("`{}` holds no run: name the folder that holds the run directories", args.folder.display());
    }
    found.sort();
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let rows: Vec<Row> = found.into_iter().map(|path| row(path, &locks)).collect();
    if args.json { Ok(serde_json::to_string_pretty(&rows)?) } else { Ok(table(&rows)) }
}

fn row(path: PathBuf, locks: &str) -> Row {
    let (bytes, newest) = size(&path);
    let idle_seconds = SystemTime::now().duration_since(newest).unwrap_or_default().as_secs();
    let locked = is_locked(&path, locks);
    let unread = |reason: String| Row {
        run: path.clone(),
        state: if locked { State::Training } else { State::Damaged { reason } },
        model: String::new(),
        steps: 0,
        of: None,
        best_top1: None,
        last_top1: None,
        bytes,
        idle_seconds,
    };
    let read = || -> Result<Row> {
        let view = RunView::open(&path)?;
        let (steps, evaluations) = view.metrics()?;
        let plan = plan(view.config(), &view.data().info).map_err(anyhow::Error::msg)?;
        let top1 = |evaluation: &Evaluation| evaluation.top1;
        Ok(Row {
            run: path.clone(),
            state: if locked { State::Training } else { ended(&view.events()?, &evaluations) },
            model: view.config().model.kind().to_owned(),
            steps: steps.last().map_or(0, |metrics| metrics.step + 1),
            of: Some(Length::of(view.config(), &plan).steps),
            best_top1: evaluations.iter().map(top1).filter(|top1| !top1.is_nan()).reduce(f64::max),
            last_top1: evaluations.last().map(top1),
            bytes,
            idle_seconds,
        })
    };
    read().unwrap_or_else(|e| unread(format!("{e:#}")))
}

/// How a run ended that no process has, by its journal. A run that was stopped lacks the
/// evaluation after its last step.
fn ended(events: &[Event], evaluations: &[Evaluation]) -> State {
    let last = events.iter().rfind(|event| {
        matches!(event, Event::RunStarted { .. } | Event::RunFinished { .. } | Event::RunFailed { .. } | Event::Generation { .. })
    });
    match last {
        Some(Event::RunFinished { step }) if evaluations.iter().any(|evaluation| evaluation.step == *step) => State::Finished,
        Some(Event::RunFailed { reason }) => State::Failed { reason: reason.clone() },
        _ => State::Stopped,
    }
}

/// Whether a process of this machine has the run's lock: its id is in the file, and the
/// kernel's list has its lock on that file (proc(5), /proc/locks).
fn is_locked(run: &Path, locks: &str) -> bool {
    let file = run.join(".lock");
    let (Ok(holder), Ok(about)) = (std::fs::read_to_string(&file), file.metadata()) else { return false };
    let inode = format!(":{}", about.ino());
    let of_holder = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&"FLOCK") && words.get(4) == Some(&holder.trim()) && words.get(5).is_some_and(|place| place.ends_with(&inode))
    };
    locks.lines().any(of_holder)
}

/// The bytes of all files of a folder, and when one was written last.
fn size(folder: &Path) -> (u64, SystemTime) {
    let (mut bytes, mut newest) = (0, SystemTime::UNIX_EPOCH);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            // A link is counted as such: what it leads to is elsewhere.
            let Ok(about) = entry.metadata() else { continue };
            if about.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += about.len();
                newest = newest.max(about.modified().unwrap_or(newest));
            }
        }
    }
    (bytes, newest)
}

fn table(rows: &[Row]) -> String {
    let share = |top1: Option<f64>| top1.map_or_else(|| "-".to_owned(), |top1| format!("{:.2}%", 100.0 * top1));
    let cells = rows.iter().map(|row| {
        let (state, reason) = match &row.state {
            State::Training => ("training", None),
            State::Finished => ("finished", None),
            State::Stopped => ("stopped", None),
            State::Failed { reason } => ("failed", Some(reason)),
            State::Damaged { reason } => ("damaged", Some(reason)),
        };
        let steps = row.of.map_or_else(|| "-".to_owned(), |of| format!("{}/{of}", row.steps));
        let cells = [
            visible(&row.run.display().to_string()),
            state.to_owned(),
            row.model.clone(),
            steps,
            share(row.best_top1),
            share(row.last_top1),
            HumanBytes(row.bytes).to_string(),
            format!("{} ago", duration(row.idle_seconds as f64)),
        ];
        (cells, reason)
    });
    let cells: Vec<([String; 8], Option<&String>)> = cells.collect();
    let head = ["run", "state", "model", "steps", "best top-1", "last", "size", "written"].map(str::to_owned);
    let width = |n: usize| cells.iter().map(|(row, _)| &row[n]).chain([&head[n]]).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    let line = |row: &[String; 8]| {
        let padded = row.iter().zip(widths).enumerate().map(|(n, (cell, width))| match n {
            0..=2 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ")
    };
    let mut text = line(&head) + "\n";
    for (row, reason) in &cells {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line(row));
        if let Some(reason) = reason {
            let _ = writeln!(text, "  {}", visible(reason.lines().next_back().unwrap_or_default()));
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use common::config::Config;
    use common::dataset;
    use common::recorder::Recorder;
    use common::run_dir::RunDir;

    use super::*;

    const CONFIG: &str =
        "name = \"t\"\n[model]\nkind = \"mlp\"\n[data]\nkind = \"xor\"\n[train]\nglobal_batch = 4\nshards = 1\nepochs = 2\n";

    fn evaluation(step: u64, top1: f64) -> Evaluation {
        Evaluation { step, epoch: step, loss: 1.0, top1, top5: 1.0, samples: 4 }
    }

    fn recorder(path: &Path) -> Recorder {
        let config = Config::parse(CONFIG, "test", &[]).unwrap();
        let source = dataset::open(&config.data, config.seed, &|_| {}).unwrap();
        let plan = plan(&config, source.info()).unwrap();
        let mut recorder = Recorder::new(RunDir::create(path, &config).unwrap(), &config, source.as_ref(), &plan, 1, true).unwrap();
        recorder.event(&Event::RunStarted { name: "t".to_owned(), step: 0 });
        recorder
    }

    #[test]
    fn runs_are_listed_with_what_became_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut held = recorder(&at("held"));
        held.evaluation(&evaluation(1, 0.25));
        recorder(&at("failed")).fail("training failed:\nthe loss is NaN");
        drop(recorder(&at("killed")));
        std::fs::create_dir(at("damaged")).unwrap();
        std::fs::write(at("damaged/config.toml"), "nonsense").unwrap();
        std::fs::create_dir(at("no-run")).unwrap();
        let mut done = recorder(&at("done"));
        for (step, top1) in [(1, 0.75), (2, 0.5)] {
            done.evaluation(&evaluation(step, top1));
        }
        let report = |step| common::wire::messages::Finished {
            step,
            weights_blake3: common::digest::Digest::of(&[]),
            bytes_sent: 0,
            peak_rss_bytes: 0,
        };
        done.finish(&[report(2)]).unwrap();
        recorder(&at("stopped")).finish(&[report(1)]).unwrap();
        let args = |json| RunsArgs { folder: dir.path().to_owned(), json };
        let text = run(&args(false)).unwrap();
        let row = |name: &str| text.lines().find(|line| line.contains(&format!("/{name} "))).unwrap_or_else(|| panic!("{name}: {text}"));
        for (name, words) in [
            ("held", ["training", "mlp", "25.00%"]),
            ("failed", ["failed", "mlp", "-"]),
            ("killed", ["stopped", "0/2", "-"]),
            ("damaged", ["damaged", "-", "-"]),
            ("done", ["finished", "75.00%", "50.00%"]),
            ("stopped", ["stopped", "0/2", "-"]),
        ] {
            assert!(words.iter().all(|word| row(name).contains(word)), "{name}: {text}");
        }
        assert!(text.contains("\n  the loss is NaN\n") && !text.contains("no-run"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&run(&args(true)).unwrap()).unwrap();
        let done = json.as_array().unwrap().iter().find(|row| row["state"] == "finished").unwrap();
        assert!(done["best_top1"] == 0.75 && done["bytes"].as_u64().unwrap() > 500, "{done}");
        drop(held);
        let none = RunsArgs { folder: at("no-run"), json: false };
        assert!(run(&none).unwrap_err().to_string().contains("holds no run"));
    }
}
