//! Disturbs runs for as long as it is told, and writes down what came of it.
//!
//! Every round trains the same small model on the same data, does something to
//! it every few steps, and compares the weights with those of an undisturbed run
//! in one process. A round is decided by its seed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use cluster_tests::chaos::Chaos;
use cluster_tests::chaos::plan::{Fault, Kind, draw};
use cluster_tests::scenario::Scenario;
use serde_json::Value;

/// Kill, stop and cut off processes of real runs, and see that nothing is lost.
#[derive(Debug, Parser)]
struct Arguments {
    /// Decides every fault; a round's seed is this plus its number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds are started until so much time is over; at least one is.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Workers of each run, 1 to 4.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4))]
    workers: u32,
    /// Kinds of faults to draw from.
    #[arg(long, value_delimiter = ',', default_values_t = Kind::ALL)]
    faults: Vec<Kind>,
    /// Faults a round.
    #[arg(long, default_value_t = 20)]
    count: usize,
    /// Steps between two of them.
    #[arg(long, default_value_t = 40)]
    spacing: usize,
    /// The table.
    #[arg(long, value_name = "FILE", default_value = "chaos.md")]
    table: PathBuf,
}

fn main() {
    let arguments = Arguments::parse();
    println!("seed {}: {} faults a round, drawn from {}", arguments.seed, arguments.count, list(&arguments.faults));
    // After the last fault the run must not be over before it is noticed.
    let steps = arguments.spacing * (arguments.count + 3);
    let expected = Scenario::new(steps).quiet();
    println!("undisturbed, {steps} steps end with {expected}");
    let start = Instant::now();
    let (mut rows, mut failed) = (Vec::new(), 0);
    for seed in arguments.seed.. {
        let row = round(&arguments, seed, steps, &expected);
        failed += usize::from(row.is_err());
        rows.push(row.unwrap_or_else(|problem| problem));
        if let Some(row) = rows.last() {
            println!("{row}");
        }
        write_table(&arguments, &rows);
        if start.elapsed() >= arguments.time {
            break;
        }
    }
    println!("{} rounds, {failed} failed: {}", rows.len(), arguments.table.display());
    std::process::exit(i32::from(failed > 0));
}

/// A round's row of the table; the same as an error if something was lost.
fn round(arguments: &Arguments, seed: u64, steps: usize, expected: &str) -> Result<String, String> {
    let faults = draw(seed, &arguments.faults, arguments.count, arguments.spacing, arguments.workers as usize);
    let kinds = counted(&faults);
    let scenario = Scenario::new(steps).set("train.checkpoint_steps=100");
    let start = Instant::now();
    let done = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut chaos = Chaos::start(&scenario, arguments.workers, seed);
        for (step, fault) in &faults {
            chaos.at_step(*step, fault);
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

fn counted(faults: &[(usize, Fault)]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, fault) in faults {
        *counts.entry(fault.name()).or_default() += 1;
    }
    counts.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", ")
}

fn list(kinds: &[Kind]) -> String {
    kinds.iter().map(Kind::to_string).collect::<Vec<_>>().join(", ")
}

fn write_table(arguments: &Arguments, rows: &[String]) {
    let mut text = format!(
        "Seed {}, {} workers, {} faults a round ({}), one every {} steps.\n\n",
        arguments.seed,
        arguments.workers,
        arguments.count,
        list(&arguments.faults),
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
