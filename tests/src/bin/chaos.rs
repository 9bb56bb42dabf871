//! Disturbs runs for a given time, and writes down the results.
//!
//! Every round trains the same small model on the same data, injects a fault every
//! few steps, and compares the weights with those of an undisturbed run in one
//! process. The seed of a round decides its faults.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use cluster_tests::chaos::Chaos;
use cluster_tests::chaos::disk::SlowDisk;
use cluster_tests::chaos::plan::{Choice, Fault, Kind, Moment, When, draw};
use cluster_tests::chaos::silence::{self, Silence};
use cluster_tests::scenario::Scenario;
use serde_json::Value;

/// Kill, stop and cut off processes of real runs, and see that nothing is lost.
#[derive(Debug, Parser)]
struct Arguments {
    /// Decides every fault; a round's seed is this plus its number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds are started until this much time is over; at least one is.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Workers of each run, 1 to 4.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4))]
    workers: u32,
    /// Kinds of faults to draw from [default: all of them].
    #[arg(long, value_delimiter = ',')]
    faults: Option<Vec<Kind>>,
    /// Kinds of moments to draw from: at a step, while a generation forms, while a
    /// state is handed over, while a checkpoint is uploaded [default: all of them;
    /// with --faults, step].
    #[arg(long, value_delimiter = ',')]
    moments: Option<Vec<When>>,
    /// Play every entry of a table instead of drawing faults: each silence, for each
    /// duration, with five seeds.
    #[arg(long, conflicts_with_all = ["faults", "moments", "count", "spacing", "workers", "time"])]
    matrix: Option<Matrix>,
    /// Faults a round.
    #[arg(long, default_value_t = 20)]
    count: usize,
    /// Steps between two faults.
    #[arg(long, default_value_t = 40)]
    spacing: usize,
    /// Where the table is written.
    #[arg(long, value_name = "FILE", default_value = "chaos.md")]
    table: PathBuf,
}

/// A table of faults of which every entry is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Matrix {
    /// Processes stopped and links cut, all at once.
    Stalls,
}

/// What faults are drawn from.
struct Drawn {
    faults: Vec<Kind>,
    moments: Vec<When>,
    /// Whether some of the faults are of the disk.
    disk: bool,
}

impl Drawn {
    fn from(arguments: &Arguments) -> Self {
        let moments = || if arguments.faults.is_some() { vec![When::Step] } else { When::ALL.to_vec() };
        let moments = arguments.moments.clone().unwrap_or_else(moments);
        let mut faults = arguments.faults.clone().unwrap_or_else(|| Kind::ALL.to_vec());
        let slow = |kind: &Kind| *kind == Kind::Disk;
        if faults.iter().any(slow) && SlowDisk::build().is_none() {
            faults.retain(|kind| !slow(kind));
            assert!(!faults.is_empty(), "no other kind of fault is left");
        }
        Self { disk: faults.iter().any(slow), faults, moments }
    }
}

fn main() {
    let arguments = Arguments::parse();
    match arguments.matrix {
        Some(Matrix::Stalls) => stalls(&arguments),
        None => rounds(&arguments),
    }
}

const STALLED_SEEDS: u64 = 5;

/// Every silence for every duration: a run for each silence and seed.
fn stalls(arguments: &Arguments) {
    let mut text = "| silence | seed | s of silence: s until the next step | recoveries | result |\n|---|---|---|---|---|\n".to_owned();
    let mut failed = 0;
    for silence in Silence::ALL {
        for seed in arguments.seed..arguments.seed + STALLED_SEEDS {
            let scenario = Scenario::endless();
            let play = || silence::play(&scenario, silence, &silence::DURATIONS_MS, seed);
            let row = match std::panic::catch_unwind(AssertUnwindSafe(play)) {
                Ok(played) => {
                    let each = |s: &silence::Survived| format!("{}: {:.1}", s.millis as f64 / 1e3, s.went_on_after.as_secs_f64());
                    let each: Vec<String> = played.silences.iter().map(each).collect();
                    format!(
                        "| {silence} | {seed} | {} | {} | no step lost, same weights, clean audit |",
                        each.join(", "),
                        played.recoveries
                    )
                }
                Err(_) => {
                    failed += 1;
                    format!("| {silence} | {seed} | | | FAILED, see {} |", scenario.folder.keep().display())
                }
            };
            println!("{row}");
            let _ = writeln!(text, "{row}");
            write(&arguments.table, &text);
        }
    }
    println!("{failed} of {} failed: {}", Silence::ALL.len() as u64 * STALLED_SEEDS, arguments.table.display());
    std::process::exit(i32::from(failed > 0));
}

fn rounds(arguments: &Arguments) {
    let drawn = Drawn::from(arguments);
    println!("seed {}: {} faults a round, drawn from {}", arguments.seed, arguments.count, list(&drawn.faults));
    // The run must not be over before its last fault is noticed.
    let steps = arguments.spacing * (arguments.count + 3);
    let expected = Scenario::new(steps).quiet();
    println!("undisturbed, {steps} steps end with {expected}");
    let start = Instant::now();
    let (mut rows, mut failed) = (Vec::new(), 0);
    for seed in arguments.seed.. {
        let row = round(arguments, &drawn, seed, steps, &expected);
        failed += usize::from(row.is_err());
        rows.push(row.unwrap_or_else(|problem| problem));
        if let Some(row) = rows.last() {
            println!("{row}");
        }
        write_table(arguments, &drawn, &rows);
        if start.elapsed() >= arguments.time {
            break;
        }
    }
    println!("{} rounds, {failed} failed: {}", rows.len(), arguments.table.display());
    std::process::exit(i32::from(failed > 0));
}

/// A round's row of the table; the same as an error if something was lost.
fn round(arguments: &Arguments, drawn: &Drawn, seed: u64, steps: usize, expected: &str) -> Result<String, String> {
    let choice = Choice {
        kinds: &drawn.faults,
        moments: &drawn.moments,
        count: arguments.count,
        spacing: arguments.spacing,
        workers: arguments.workers as usize,
    };
    let faults = draw(seed, &choice);
    let kinds = counted(&faults);
    let scenario = Scenario::new(steps).set("train.checkpoint_steps=100").set("cluster.balance=speed");
    let start = Instant::now();
    let done = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let disk = if drawn.disk { SlowDisk::build() } else { None };
        let mut chaos = Chaos::start_on(&scenario, arguments.workers, seed, disk);
        for (moment, fault) in &faults {
            chaos.at(*moment, fault);
        }
        let run = chaos.finish();
        scenario.assert_whole(&run, expected);
        run.summary()
    }));
    let seconds = start.elapsed().as_secs_f64();
    match done {
        Ok(summary) => Ok(row(seed, &kinds, seconds, &summary)),
        Err(_) => {
            let kept = scenario.folder.keep();
            Err(format!("| {seed} | {kinds} | | | | {seconds:.0} | FAILED, see {} |", kept.display()))
        }
    }
}

fn row(seed: u64, kinds: &str, seconds: f64, summary: &Value) -> String {
    let recoveries = summary["recoveries"].as_array().map_or(0, Vec::len);
    let ms = |share: &str| summary["recovery_ms"][share].as_f64().unwrap_or_default();
    format!("| {seed} | {kinds} | {recoveries} | {:.0} | {:.0} | {seconds:.0} | same weights, clean audit |", ms("p50"), ms("p95"))
}

fn counted(faults: &[(Moment, Fault)]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, fault) in faults {
        *counts.entry(fault.name()).or_default() += 1;
    }
    counts.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", ")
}

fn list<T: ToString>(kinds: &[T]) -> String {
    kinds.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn write_table(arguments: &Arguments, drawn: &Drawn, rows: &[String]) {
    let mut text = format!(
        "Seed {}, {} workers, {} faults a round ({}; moments: {}), one every {} steps.\n\n",
        arguments.seed,
        arguments.workers,
        arguments.count,
        list(&drawn.faults),
        list(&drawn.moments),
        arguments.spacing
    );
    text += "| seed | faults | recoveries | p50 ms | p95 ms | seconds | result |\n|---|---|---|---|---|---|---|\n";
    for row in rows {
        let _ = writeln!(text, "{row}");
    }
    write(&arguments.table, &text);
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("could not write `{}`: {e}", path.display()));
}
