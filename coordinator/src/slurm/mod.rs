//! `coordinator slurm`: a batch file that trains on the nodes of a Slurm cluster.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use common::config::Config;
use common::objects;

use crate::local::worker_binary;
use crate::shell::quoted;

/// What the batch file does, after its options and paths.
const JOB: &str = include_str!("job.sh");

/// How long before its end a job is told so: for a step, and for a checkpoint on a slow disk.
const NOTICE: u32 = 180;

#[derive(Debug, Args)]
pub struct SlurmArgs {
    /// The run's config, a TOML file.
    pub config: PathBuf,
    /// How many nodes train: a worker on each, and the coordinator on the first one.
    #[arg(long, value_name = "N")]
    pub nodes: u32,
    /// GPUs of each node; a worker takes all that it is given.
    #[arg(long, value_name = "N")]
    pub gpus_per_node: Option<u32>,
    /// Cores of each node [default: the whole node].
    #[arg(long, value_name = "N")]
    pub cpus_per_node: Option<u32>,
    /// How long the job may take, such as 8h. Near the end it makes a checkpoint, and Slurm
    /// starts it again where it was [default: what the cluster gives].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub time: Option<Duration>,
    /// Where the run's files go, in a folder that all nodes see [default: runs/NAME].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Change one key of the config, for example train.epochs=3.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// One more option of sbatch, such as --partition=long.
    #[arg(long = "sbatch", value_name = "OPTION", allow_hyphen_values = true)]
    pub options: Vec<String>,
    /// The worker binary, in a folder that all nodes see [default: beside this one].
    #[arg(long, value_name = "FILE")]
    pub worker_binary: Option<PathBuf>,
    /// The batch file [default: NAME.sbatch].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Hand it to sbatch.
    #[arg(long)]
    pub submit: bool,
}

/// What a batch file names.
#[derive(Debug)]
struct Job<'a> {
    name: &'a str,
    args: &'a SlurmArgs,
    config: PathBuf,
    /// Files that workers read themselves; what lies in a store they find by the config.
    data: Option<PathBuf>,
    run: PathBuf,
    coordinator: PathBuf,
    worker: PathBuf,
}

/// Writes the batch file, and submits it if asked to. Returns what to tell.
///
/// # Errors
/// The config is wrong, a file could not be written, or sbatch refused it.
pub fn run(args: &SlurmArgs) -> Result<String> {
    let config = Config::load(&args.config, &args.overrides)?;
    if args.nodes == 0 || args.nodes > config.train.shards {
        bail!("--nodes is {}: every node needs a shard, so it must be 1 to train.shards = {}", args.nodes, config.train.shards);
    }
    let run = args.run_dir.clone().unwrap_or_else(|| Path::new("runs").join(&config.name));
    let job = Job {
        name: &config.name,
        args,
        config: absolute(&args.config)?,
        data: config.data.path().filter(|path| !objects::is_address(path)).map(absolute).transpose()?,
        run: absolute(&run)?,
        coordinator: std::env::current_exe().context("this binary's own path cannot be found")?,
        worker: absolute(&worker_binary(args.worker_binary.clone())?)?,
    };
    // Slurm writes the log there before the job begins, and makes no folder.
    let folder = job.run.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    let out = args.out.clone().unwrap_or_else(|| format!("{}.sbatch", config.name).into());
    std::fs::write(&out, script(&job)).with_context(|| format!("cannot write `{}`", out.display()))?;
    let mut said = format!("written: {}\nrun directory: {}\nlog: {}-JOB.log", out.display(), job.run.display(), job.run.display());
    if !args.submit {
        let _ = write!(said, "\nsubmit it with: sbatch {}", quoted(&out.display().to_string()));
        return Ok(said);
    }
    let output = Command::new("sbatch").arg(&out).output().context("sbatch cannot be started: is this a node of a Slurm cluster?")?;
    if !output.status.success() {
        bail!("sbatch refused `{}`: {}", out.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let _ = write!(said, "\n{}", String::from_utf8_lossy(&output.stdout).trim());
    Ok(said)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("`{}` has no absolute path", path.display()))
}

fn script(job: &Job<'_>) -> String {
    let Job { name, args, config, data, run, coordinator, worker } = job;
    let mut options = vec![
        format!("--job-name={name}"),
        format!("--nodes={}", args.nodes),
        "--ntasks-per-node=1".to_owned(),
        args.cpus_per_node.map_or_else(|| "--exclusive".to_owned(), |cpus| format!("--cpus-per-task={cpus}")),
    ];
    options.extend(args.gpus_per_node.map(|gpus| format!("--gpus-per-node={gpus}")));
    options.extend(args.time.map(|time| format!("--time={}", slurm_time(time))));
    // A node that fails takes its worker with it, and not the job.
    options.extend(["--no-kill", "--requeue", "--open-mode=append"].map(str::to_owned));
    options.extend([format!("--signal=B:USR1@{NOTICE}"), format!("--output={}-%j.log", run.display())]);
    options.extend(args.options.iter().cloned());
    let mut text = format!("#!/bin/bash\n# Trains {name} on {} nodes. Written by `coordinator slurm`; change what you like.\n", args.nodes);
    for option in options {
        let _ = writeln!(text, "#SBATCH {}", directive(&option));
    }
    text.push('\n');
    for (variable, path) in [("config", config), ("run", run), ("coordinator", coordinator), ("worker", worker)] {
        let _ = writeln!(text, "{variable}={}", quoted(&path.display().to_string()));
    }
    let sets: Vec<String> = args.overrides.iter().map(|pair| format!("--set {}", quoted(pair))).collect();
    let _ = writeln!(text, "sets=({})", sets.join(" "));
    let data = data.as_ref().map_or_else(String::new, |path| format!("--data {}", quoted(&path.display().to_string())));
    let _ = writeln!(text, "data=({data})");
    text + JOB
}

/// An option as it stands after `#SBATCH`, which reads quotes and ends at a space.
fn directive(option: &str) -> String {
    match option.split_once('=') {
        Some((key, value)) if value.contains(char::is_whitespace) => format!("{key}=\"{value}\""),
        _ => option.to_owned(),
    }
}

/// Slurm's `days-hours:minutes:seconds`.
fn slurm_time(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    format!("{days}-{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SlurmArgs,
    }

    fn made(line: &[&str]) -> String {
        let args = Line::try_parse_from(["slurm", "a.toml"].iter().chain(line)).unwrap().args;
        let path = |text: &str| PathBuf::from(text);
        let (config, run) = (path("/home/me/it's a.toml"), path("/shared/runs/a"));
        let [coordinator, worker, data] = ["/opt/bin/coordinator", "/opt/bin/worker", "/shared/my pictures"].map(path);
        script(&Job { name: "a", args: &args, config, data: Some(data), run, coordinator, worker })
    }

    #[test]
    fn options_are_those_of_sbatch() {
        let text = made(&[
            "--nodes",
            "4",
            "--gpus-per-node",
            "8",
            "--time",
            "1day 8h 5m",
            "--sbatch",
            "--partition=long",
            "--sbatch=--comment=a b",
        ]);
        for line in [
            "#SBATCH --nodes=4",
            "#SBATCH --gpus-per-node=8",
            "#SBATCH --time=1-08:05:00",
            "#SBATCH --exclusive",
            "#SBATCH --partition=long",
            "#SBATCH --comment=\"a b\"",
            "#SBATCH --output=/shared/runs/a-%j.log",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let cores = made(&["--nodes", "1", "--cpus-per-node", "6"]);
        assert!(cores.contains("#SBATCH --cpus-per-task=6\n") && !cores.contains("--exclusive") && !cores.contains("--time"));
    }

    #[test]
    fn words_of_the_shell_stay_whole() {
        let text = made(&["--nodes", "2", "--set", "data.path=my pictures", "--set", "train.epochs=3"]);
        assert!(text.contains(r"config='/home/me/it'\''s a.toml'"), "{text}");
        assert!(text.contains("sets=(--set 'data.path=my pictures' --set train.epochs=3)"), "{text}");
        assert!(text.contains("data=(--data '/shared/my pictures')"), "{text}");
        let checked = Command::new("bash").args(["-n", "-c", &text]).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}
